"""Connections hoarded up to the limit: those who have one go on, and the next one gets the place of the one that ends."""

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest
from hostile_stage import ADD, bystander, charged, decode
from life_api import Life
from life_waiting import until
from raw_channel import HEAD
from raw_peer import RawClient, hung_up, receive_frame

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


async def test_hoarded_connections_keep_others_out_and_hurt_nobody_who_is_in(path: str) -> None:
    async with bystander(path, segments=20, max_connections=20) as server:
        async with AsyncExitStack() as stack:
            peers = [await stack.enter_async_context(RawClient(path)) for _ in range(18)]
            for peer in peers:
                await peer.shake_hands()
            assert charged(server)[0] == 20
            with pytest.raises(shmrpc.HandshakeError, match=r"the server has 20 connections, the limit \(max_connec"):
                async with shmrpc.connect(Life, path):
                    raise AssertionError("connected")
            for peer in peers:
                peer.channel.request(1, ADD, 40, 2)
                assert decode((await peer.channel.receive()).payload) == 42
            peers[0].sock.close()
            await until(lambda: charged(server)[0] == 19, "its place to be free")
            async with shmrpc.connect(Life, path) as life:
                assert await life.add(1) == 2
            await until(lambda: charged(server)[0] == 19, "its place to be free")


async def test_connecting_and_hanging_up_without_end_leaves_nothing(path: str) -> None:
    async with bystander(path):
        for _ in range(300):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
            await asyncio.sleep(0)


async def test_shaking_hands_and_hanging_up_again_and_again_leaves_nothing(path: str) -> None:
    async with bystander(path, segments=30) as server:
        for _ in range(30):
            async with RawClient(path) as peer:
                await peer.shake_hands()
            await until(lambda: server.connections == 2, "it to end")


async def test_one_who_has_hung_up_frees_its_place_though_its_records_keep_coming(path: str) -> None:
    async with bystander(path, segments=2) as server, RawClient(path) as peer:
        channel = await peer.shake_hands()
        peer.sock.shutdown(socket.SHUT_WR)
        await hung_up(peer.sock)
        await until(lambda: server.connections == 2, "it to end")
        head = channel.far_word(HEAD)
        for call_id in range(1, 100):
            channel.request(call_id, ADD, 1)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
        assert channel.far_word(HEAD) == head
        assert channel.take() is None


async def test_who_is_refused_for_the_limit_is_told_before_it_says_anything(path: str) -> None:
    async with bystander(path, max_connections=2), RawClient(path) as peer:
        answer, fds = await receive_frame(peer.sock)
        assert (answer["type"], answer["message"]) == (
            "rejection",
            "the server has 2 connections, the limit (max_connections)",
        )
        assert fds == []
        await hung_up(peer.sock)
