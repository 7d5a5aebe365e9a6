"""Peers that take no items and no credit: nothing piles up in the memory of the other side."""

import asyncio

import msgspec
import pytest
from hostile_flows import (
    TEXTS,
    TOTAL,
    client_of,
    next_end,
    waiting_at,
)
from hostile_stage import (
    ADD,
    well_begun,
)
from life_waiting import until
from raw_channel import (
    ARGUMENTS,
    END_OF_ARGUMENTS,
    MANY,
    REPLY,
    ROOM_EPOCH,
    many,
)

from shmrpc.shm.layout import Geometry

pytestmark = pytest.mark.counted("bad inputs tried")


async def test_items_that_wait_for_room_are_no_calls_in_flight(path: str) -> None:
    async with client_of(path, max_in_flight=8) as (server, peer, _):
        channel = await well_begun(peer, stream_window=[1000, 1 << 20])
        for call_id in range(2, 8):
            channel.request(call_id, TEXTS, call_id, 8000)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for room")
        await until(lambda: waiting_at(server) >= 2, "items to wait")
        channel.request(8, ADD, 41)  # the seventh that runs
        answer = await next_end(channel)
        assert (answer.kind, answer.call_id) == (REPLY, 8)


async def test_streams_of_a_client_that_takes_nothing_fill_no_memory(path: str) -> None:
    async with client_of(path) as (server, peer, streamer):
        channel = await well_begun(peer, stream_window=[1 << 40, 1 << 40])
        for call_id in range(2, 22):
            channel.request(call_id, TEXTS, call_id, 1000)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for room")
        before = -1
        while before != (now := streamer.events.total()):
            before = now
            await asyncio.sleep(0.02)
        assert waiting_at(server) <= 3 * 20


async def test_a_client_that_takes_no_credit_cannot_make_the_server_hoard_it(path: str) -> None:
    """It sends items that are read, without end, as if it had taken the credit for them."""
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=256)
    async with client_of(path, geometry=small) as (server, peer, streamer):
        channel = await well_begun(peer)
        channel.request(2, TOTAL, 5)
        for number in range(1, 500):
            channel.send(ARGUMENTS, many(*[1] * 8), call_id=2, flags=MANY)
            await until(lambda: streamer.events["gave 5"] == 8 * number, "the items to be read")  # noqa: B023
        assert waiting_at(server) == 1
        channel.send(END_OF_ARGUMENTS, call_id=2)
        records = [await channel.receive()]
        while records[-1].kind != REPLY:
            records.append(await channel.receive())
        *credits, reply = records
        assert msgspec.msgpack.decode(reply.payload) == 8 * 499
        assert msgspec.msgpack.decode(credits[-1].payload)[0] >= 8 * 498
