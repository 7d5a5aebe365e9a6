"""The server's half of the handshake, against clients that keep to the specification; the others are in `hostile`."""

import asyncio
import os
import socket

import msgspec
import pytest
from life_api import METHODS, Keeper, Life
from raw_channel import DEFAULT, REPLY, Geometry
from raw_peer import RawClient

import shmrpc
from shmrpc.inlet import DEFAULT_WINDOW
from shmrpc.shm import handshake, liveness
from shmrpc.shm.settings import Settings


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def fd_exists(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")  # the fd of the listing itself does not


@pytest.mark.parametrize("doorbell", ["eventfd", "pipe"])
async def test_a_client_that_was_written_from_the_specification_is_served(path: str, doorbell: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path, doorbell=doorbell) as peer:
        channel = await peer.shake_hands()
        assert server.connections == 1
        for call_id in (1, 2, 3):
            channel.request(call_id, METHODS.index("add"), call_id, 40)
            reply = await channel.receive()
            assert (reply.kind, reply.call_id) == (REPLY, call_id)
            assert msgspec.msgpack.decode(reply.payload) == call_id + 40


async def test_the_welcome_says_what_is_served(path: str) -> None:
    async with (
        shmrpc.Server(Keeper(), at=path, max_message=1 << 20, max_in_flight=7, max_extent_bytes=5 << 20) as server,
        RawClient(path) as peer,
    ):
        answer = await peer.ask(features=["json", "telepathy"])
        life, built_in = answer["offered"]
        assert (answer["version"], answer["features"]) == (1, [])
        assert (answer["max_message"], answer["max_in_flight"]) == (1 << 20, 7)
        assert answer["max_extent_bytes"] == 5 << 20
        assert (answer["segment"], answer["geometry"]) == ("memfd", DEFAULT._asdict())
        assert (life["name"], life["first_method"]) == ("Life", 0)
        assert [signature["name"] for signature in life["signatures"]] == METHODS
        assert (built_in["name"], built_in["first_method"]) == ("shmrpc.Introspection", len(METHODS))
        assert server.connections == 1


@pytest.mark.parametrize(("servers", "clients"), [(1 << 20, 1 << 30), (1 << 30, 1 << 20), (0, 1 << 30)])
async def test_the_smaller_limit_of_extents_counts_on_both_sides(servers: int, clients: int) -> None:
    client, server = socket.socketpair()
    client.setblocking(False)
    server.setblocking(False)

    async def serve() -> handshake.Answered:
        frame = handshake.new_frame()
        hello = await handshake.receive_hello(server, frame)
        settings = Settings(max_extent_bytes=servers)
        joined = handshake.join_client(hello, frame, liveness.peer_of(server), settings)
        return await handshake.answer_hello(server, hello, joined, [], settings)

    serving = asyncio.ensure_future(serve())
    accepted = await handshake.as_client(client, [], Settings(max_extent_bytes=clients))
    answered = await serving
    assert accepted.max_extent_bytes == answered.max_extent_bytes == min(servers, clients)
    assert accepted.pidfd is not None
    os.close(accepted.pidfd)
    accepted.channel.close()
    answered.channel.close()
    client.close()
    server.close()


async def test_each_side_says_what_it_accepts_of_a_stream(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, stream_items=7, stream_bytes=1234) as server:
        async with RawClient(path) as peer:
            assert (await peer.ask(stream_window=[5, 99]))["stream_window"] == [7, 1234]
            (session,) = server._listener.sessions
            assert session.windows == ((7, 1234), (5, 99))
        async with RawClient(path) as peer:
            await peer.ask()
            assert {session.windows for session in server._listener.sessions} >= {((7, 1234), DEFAULT_WINDOW)}


async def test_a_client_that_knows_the_contract_is_told_no_more_than_that(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        async with RawClient(path) as peer:
            life = (await peer.ask())["offered"][0]
        async with RawClient(path) as peer:
            answer = await peer.ask(wanted=[{"name": "Life", "digest": life["digest"]}])
            assert answer["offered"] == [life | {"signatures": []}]


async def test_a_client_that_wants_a_built_in_service_of_a_later_version_is_not_refused(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        wanted = [{"name": name, "digest": b""} for name in ("Life", "shmrpc.Telepathy", "shmrpc.Introspection")]
        answer = await peer.ask(wanted=wanted)
        assert [service["name"] for service in answer["offered"]] == ["Life", "shmrpc.Introspection"]


async def test_a_small_segment_will_do(path: str) -> None:
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=1024, inline_limit=64)
    async with shmrpc.Server(Keeper(), at=path), RawClient(path, small) as peer:
        channel = await peer.shake_hands()
        channel.request(1, METHODS.index("add"), 1)
        assert (await channel.receive()).kind == REPLY


async def test_a_client_of_a_range_of_versions_gets_the_one_of_the_server(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        assert (await peer.ask(versions=(1, 9), novelty="unheard of"))["version"] == 1


async def test_every_fd_of_a_connection_is_closed_on_exec(path: str) -> None:
    before = open_fds()
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer, shmrpc.connect(Life, path) as life:
        await peer.shake_hands()
        assert await life.add(1) == 2
        opened = [int(fd) for fd in open_fds() - before]
        assert len(opened) > 10
        assert [fd for fd in opened if fd_exists(fd) and os.get_inheritable(fd)] == []
