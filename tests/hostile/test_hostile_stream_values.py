"""Items that do not fit the contract: their call fails, and no other."""

import asyncio

import msgspec
import pytest
from flow_api import all_left, session_of
from hostile_flows import (
    KEEP_ARRAYS,
    TOTAL,
    client_of,
    played,
)
from hostile_stage import (
    ADD,
    well_begun,
)
from raw_channel import (
    ARGUMENTS,
    CANCEL,
    FAILURE,
    MANY,
    REPLY,
    RESULTS,
    many,
)

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


@pytest.mark.parametrize(
    ("method", "payload", "flags"),
    [(TOTAL, b"\xa3one", 0), (TOTAL, many(1, "two"), MANY), (TOTAL, b"\xc1", 0), (KEEP_ARRAYS, many(1), MANY)],
    ids=["of another type", "some of another type", "noise", "many at once that can hold buffers"],
)
async def test_an_item_that_does_not_fit_fails_its_call_and_no_other(
    path: str, method: int, payload: bytes, flags: int
) -> None:
    async with client_of(path) as (_, peer, streamer):
        streamer.go.set()
        channel = await well_begun(peer)
        channel.request(2, method, 5)
        channel.send(ARGUMENTS, payload, call_id=2, flags=flags)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (FAILURE, 2)
        assert "an item of parameter 'parts' does not fit" in msgspec.msgpack.decode(end.payload)[1]
        channel.request(3, ADD, 1)
        assert (await channel.receive()).call_id == 3


@pytest.mark.parametrize(("payload", "flags"), [(b"\xa3one", 0), (many(1, "two"), MANY), (b"\xc1", 0), (b"", 0)])
async def test_an_item_of_the_server_that_does_not_fit_fails_its_call_and_no_other(
    path: str, payload: bytes, flags: int
) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.count(5, 10)))
        play.channel.send(RESULTS, payload, call_id=2, flags=flags)
        with pytest.raises(shmrpc.Internal, match=r"Flow\.count: an item of the server does not fit the contract"):
            await call
        assert (await play.channel.receive()).kind == CANCEL
        play.channel.send(REPLY, b"\xc0", call_id=2)
        other = asyncio.ensure_future(play.flow.plain(1))
        record = await play.channel.receive()
        play.channel.send(REPLY, b"\1", call_id=record.call_id)
        assert await other == 1
        assert all_left(session_of(play.flow)) == []
