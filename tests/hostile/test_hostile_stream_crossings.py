"""What crossed the end of its call on the way, which is no lie and means nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from flow_api import Streamer, all_left, session_of, sessions_of
from hostile_flows import (
    COUNT,
    KEEP,
    KEEP_ARRAYS,
    LONG_AFTER,
    TEXTS,
    Act,
    client_of,
    credit,
    in_order,
    many_items,
    nothing_yet,
    played,
    send,
)
from hostile_stage import (
    ADD,
    LONG,
    bystander,
    encode,
    well_begun,
)
from life_waiting import until
from raw_channel import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    CANCEL,
    END_OF_ARGUMENTS,
    FAILURE,
    HAS_BUFFERS,
    RELEASE_TAIL,
    REPLY,
    RESULT_CREDIT,
    RESULTS,
    ROOM_EPOCH,
    table_of,
)
from raw_peer import RawClient

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

CROSSED: list[Any] = [
    pytest.param(send(ARGUMENTS, b"\xa1a", times=20), id="items"),
    pytest.param(many_items(ARGUMENTS, *"abcdefghijklmn"), id="many items"),
    pytest.param(in_order(send(ARGUMENTS, b"\xa1a"), send(END_OF_ARGUMENTS)), id="the end"),
    pytest.param(credit(RESULT_CREDIT, 3, 12), id="credit"),
]


@pytest.mark.parametrize("act", CROSSED)
@pytest.mark.parametrize("ended", ["refused", "cancelled", "ended"])
async def test_what_crossed_the_end_of_its_call_means_nothing(path: str, act: Act, ended: str) -> None:
    async with client_of(path) as (server, peer, streamer):
        channel = await well_begun(peer)
        if ended == "refused":
            channel.request(2, KEEP, "five")
        elif ended == "cancelled":
            channel.request(2, KEEP, 5)
            await until(lambda: streamer.events["began 5"], "the call to begin")
            channel.send(CANCEL, call_id=2)
        else:
            channel.request(2, COUNT, 5, 0)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (REPLY if ended == "ended" else FAILURE, 2)
        act(channel)
        channel.request(3, ADD, 41)
        assert (await channel.receive()).call_id == 3
        assert [left for session in sessions_of(server) for left in all_left(session)] == ["call 1 running"]


async def test_buffers_in_items_that_crossed_the_end_of_their_call_go_home(path: str) -> None:
    async with client_of(path) as (_, peer, _):
        channel = await well_begun(peer)
        channel.request(2, KEEP_ARRAYS, "five")
        assert (await channel.receive()).kind == FAILURE
        channel.put(0, bytes(range(100)))
        channel.send(ARGUMENTS, table_of([(0, 1, 0, 100)]), call_id=2, flags=HAS_BUFFERS)
        await until(lambda: channel.far_word(RELEASE_TAIL) == 1, "the buffer to come home")
        channel.request(3, ADD, 1)
        assert (await channel.receive()).call_id == 3


async def test_items_may_come_while_the_answer_of_their_call_waits_for_memory(path: str) -> None:
    """Its handler has ended, and the client cannot know that."""
    async with client_of(path, max_extent_bytes=0) as (_, peer, streamer):
        channel = await well_begun(peer)
        channel.request(2, LONG, 300 * 1024)
        block, _ = channel.open_block(await channel.receive())
        channel.request(3, LONG_AFTER, 5, 300 * 1024)
        channel.send(ARGUMENTS, b"\xa1a", call_id=3)
        await until(lambda: streamer.events["ended 5"], "the handler to end")
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        channel.send(ARGUMENTS, b"\xa1b", call_id=3)
        channel.send(END_OF_ARGUMENTS, call_id=3)
        channel.request(4, ADD, 1)
        assert (await channel.receive()).call_id == 4
        channel.release(*block)
        answer = await channel.receive()
        assert (answer.kind, answer.call_id) == (REPLY, 3)
        channel.give_back(answer)


async def test_credit_may_come_while_the_failure_of_its_call_waits_for_memory(path: str) -> None:
    class Failing(Streamer):
        def texts(self, number: int, length: int) -> AsyncIterator[str]:
            async def items() -> AsyncIterator[str]:
                yield "x" * length
                await self.go.wait()
                raise shmrpc.InvalidArgument("y" * (300 * 1024))

            return self._watched(number, items())

    failing = Failing()
    async with bystander(path, failing, max_extent_bytes=0), RawClient(path) as peer:
        channel = await well_begun(peer)
        channel.request(2, LONG, 300 * 1024)
        block, _ = channel.open_block(await channel.receive())
        channel.request(3, TEXTS, 5, 10)
        items = await channel.receive()
        assert (items.kind, items.call_id) == (RESULTS, 3)
        failing.go.set()
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        channel.send(RESULT_CREDIT, encode((1, len(items.payload))), call_id=3)
        channel.request(4, ADD, 1)
        assert (await channel.receive()).call_id == 4
        channel.release(*block)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (FAILURE, 3)
        channel.give_back(end)


@pytest.mark.parametrize(
    "act",
    [
        send(RESULTS, b"\1", times=20),
        many_items(RESULTS, *range(20)),
        credit(ARGUMENT_CREDIT, 0, 0),
    ],
    ids=["items", "many items", "credit"],
)
async def test_what_crossed_a_cancel_means_nothing(path: str, act: Act) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.echo(5, nothing_yet())))
        call.cancel()
        assert (await play.channel.receive()).kind == CANCEL
        act(play.channel)
        play.channel.send(FAILURE, encode((1, "cancelled")), call_id=2)
        other = asyncio.ensure_future(play.flow.plain(1))
        record = await play.channel.receive()
        play.channel.send(REPLY, b"\1", call_id=record.call_id)
        assert await other == 1
        assert all_left(session_of(play.flow)) == []


async def test_buffers_in_items_that_crossed_a_cancel_go_home(path: str) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.arrays(5, 10, 100)))
        call.cancel()
        assert (await play.channel.receive()).kind == CANCEL
        play.channel.put(0, bytes(100))
        play.channel.send(RESULTS, table_of([(0, 1, 0, 100)]), call_id=2, flags=HAS_BUFFERS)
        await until(lambda: play.channel.far_word(RELEASE_TAIL) == 1, "the buffer to come home")
        play.channel.send(REPLY, b"\xc0", call_id=2)
