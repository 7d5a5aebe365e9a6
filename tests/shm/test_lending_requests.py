"""Calls that lend an array while they begin: the quick way, and what it leaves to the slow one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import uvloop
from joined import crowd, set_word
from memories import METHOD, End, Pair, packed, two_ends

from shmrpc.errors import ConnectionLost, ForkedError, ProtocolError
from shmrpc.shm import envelope, layout
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.placed import Placed
from shmrpc.shm.ring import PendingCall, View, pack_references

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

BODY = b"the body"


class Method:
    """What a call needs to know of its method."""

    full_name = METHOD
    contract = object


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def calls_of(end: End) -> OutgoingCalls:
    return OutgoingCalls(asyncio.get_running_loop(), end.channel, end.memory, {}, 16, end.broken.append)


def born(end: End, nbytes: int = 3000) -> View:
    """An array that was born in a block; something was sent before, which sets the timer that the quick way relies on."""
    lender = end.memory.lender
    first = lender.try_place(packed([np.zeros(3000, np.uint8)]), METHOD)
    assert isinstance(first, Placed)
    view = lender.allocate(nbytes)
    assert isinstance(view, View)
    lender._look_home()
    lender.undo(first)
    return view


def lend(calls: OutgoingCalls, exporter: object, deadline_ns: int = 0) -> PendingCall | None:
    return calls.try_lend(Method(), 3, deadline_ns, BODY, exporter)


async def test_a_call_that_lends_an_array_arrives_with_its_reference(pair: Pair) -> None:
    near, far = pair
    calls, view = calls_of(near), born(near)
    call = lend(calls, view, 10**18)
    assert call is not None
    assert calls.pending == {1: call}
    assert calls.timer.next_ns == 10**18
    records: list[tuple[Any, ...]] = []
    far.channel.dispatch(9, tuple(lambda *record: records.append(record) for _ in range(256)), {})
    reference = (view.block, 2, 0, 3000)
    assert records == [(envelope.HAS_BUFFERS, 3, 1, 10**18, pack_references([reference], BODY))]
    assert near.arena.loans[2][1:4] == (0, 3000, METHOD)
    calls.close("enough")


async def test_one_that_finds_no_room_is_not_begun_and_lends_nothing(pair: Pair) -> None:
    near, _ = pair
    calls, view = calls_of(near), born(near)
    crowd(near.channel)
    assert lend(calls, view) is None
    assert (calls.pending, near.arena.loans) == ({}, {})
    assert not near.channel.outbox
    assert near.arena.base.blocks, "whoever passed the array still has it"


async def test_one_over_a_broken_channel_lends_nothing(pair: Pair) -> None:
    near, far = pair
    calls, view = calls_of(near), born(near)
    crowd(near.channel)
    set_word(far.channel.own, layout.CURSOR_HEAD, 4)
    with pytest.raises(ProtocolError, match="read position"):
        lend(calls, view)
    assert (calls.pending, near.arena.loans) == ({}, {})
    near.broken.clear()  # the errors keep the frames, and those the array


async def test_one_in_a_forked_child_lends_nothing(pair: Pair) -> None:
    near, _ = pair
    calls, view = calls_of(near), born(near)
    calls.forked = True
    near.channel._producer.close()
    with pytest.raises(ForkedError):
        lend(calls, view)
    assert near.arena.loans == {}


async def test_one_from_another_thread_is_left_to_the_slow_way(pair: Pair) -> None:
    near, _ = pair
    calls, view = calls_of(near), born(near)
    assert await asyncio.get_running_loop().run_in_executor(None, lend, calls, view) is None
    assert (calls.pending, near.arena.loans) == ({}, {})


async def test_what_came_home_is_looked_for_before_the_ledger_grows_large(pair: Pair) -> None:
    near, far = pair
    calls, view = calls_of(near), born(near)
    mark = near.arena.ledger.mark
    assert mark <= near.arena.most_leases
    for _ in range(mark):
        assert lend(calls, view) is not None
    assert lend(calls, view) is None, "the mark is reached"
    for lease in list(near.arena.loans):
        far.channel.release(view.block, lease)
    near.memory.lender._look_home()
    assert (len(near.arena.loans), near.arena.ledger.mark) == (0, mark)
    assert lend(calls, view) is not None
    calls.close("enough")


async def test_after_the_end_nothing_is_lent_the_quick_way(pair: Pair) -> None:
    near, _ = pair
    calls, view = calls_of(near), born(near)
    near.memory.lender.close(ConnectionLost("it ended"))
    assert near.arena.ledger.mark == 0
    assert lend(calls, view) is None


@pytest.mark.parametrize(
    "wrong", [("3", 0, BODY), (3, "0", BODY), (3, 0, bytearray(BODY)), (2**16, 0, BODY), (3, -1, BODY)]
)
async def test_wrong_arguments_lend_nothing(pair: Pair, wrong: tuple[Any, Any, Any]) -> None:
    near, _ = pair
    calls, view = calls_of(near), born(near)
    number, deadline_ns, body = wrong
    with pytest.raises((TypeError, OverflowError)):
        calls._lend(near.arena.ledger, Method(), number, deadline_ns, body, view, METHOD)
    with pytest.raises(TypeError):
        calls._lend(object(), Method(), 3, 0, BODY, view, METHOD)  # type: ignore[arg-type]
    assert (calls.pending, near.arena.loans) == ({}, {})
