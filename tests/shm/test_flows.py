"""The streams of a session, over two joined channels without a poller: whose a record is, and what waits where.

Which records of a parameter end the connection: see `test_flows_order` and `test_shm_hostile_streams`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from joined import fill, received
from memories import Pair, numbered, packed, two_ends

from shmrpc.codec import head_of_many
from shmrpc.contract import read
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import ConnectionLost, DeadlineExceeded, ForkedError, ProtocolError
from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.shm import envelope
from shmrpc.shm.channel import Record
from shmrpc.shm.envelope import ARGUMENTS, CANCEL, END_OF_ARGUMENTS, HAS_BUFFERS, MANY, REQUEST, RESULT_CREDIT, RESULTS
from shmrpc.shm.flows import Flows, IncomingFlows, OutgoingFlow, RecordSink, RunningCall
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.ring import PendingCall

U8 = npt.NDArray[np.uint8]


class Api(Protocol):
    def count(self, most: int) -> AsyncIterator[int]: ...
    async def total(self, parts: AsyncIterator[int]) -> int: ...
    def negate(self, parts: AsyncIterator[U8]) -> AsyncIterator[U8]: ...


methods = read(Api).methods


class Service(Api):
    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def negate(self, parts: AsyncIterator[U8]) -> AsyncIterator[U8]:
        async for part in parts:
            yield 255 - part


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def flows_of(end: Any, own: Window = DEFAULT_WINDOW, peer: Window = DEFAULT_WINDOW) -> Flows:
    """What the flows of one end need."""
    return Flows(asyncio.get_running_loop(), end.channel, end.memory, (own, peer), end.broken.append)


def calls_of(end: Any) -> OutgoingCalls:
    """The calls of one end."""
    return OutgoingCalls(asyncio.get_running_loop(), end.channel, end.memory, {}, 16, end.broken.append)


def begin(calls: OutgoingCalls, name: str, source: Any = None) -> tuple[PendingCall, OutgoingFlow]:
    """A call with its streams, as `streaming` begins one."""
    method = methods[name]
    pending = calls.start(method, 0, 0, 0, b"")
    flow = calls.flows.begin(method, pending, source, deque())
    if method.streams_result:
        pending.add_done_callback(flow.on_end)
    return pending, flow


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def kinds(records: list[Record]) -> list[tuple[int, int]]:
    return [(record[0], record[3]) for record in records]


# Sending


async def test_a_message_is_a_record_with_its_call(pair: Pair) -> None:
    sink = RecordSink(flows_of(pair[0]), RESULTS, 7, "Api.count", lambda: True)
    sink.send(b"one", many=False)
    sink.send(b"several", many=True)
    assert received(pair[1].channel) == [(RESULTS, 0, 0, 7, 0, b"one"), (RESULTS, MANY, 0, 7, 0, b"several")]


async def test_a_message_with_buffers_lends_them(pair: Pair) -> None:
    near, far = pair
    sink = RecordSink(flows_of(near), RESULTS, 7, "Api.negate", lambda: True)
    await sink.send_apart(packed([numbered(3000)], b"body"), many=False)
    assert near.arena.loans
    [parcel] = far.receive()
    assert parcel.payload == b"body"
    assert bytes(memoryview(parcel.views[0])) == numbered(3000).tobytes()
    del parcel
    assert near.at_home


async def test_what_is_ready_after_its_call_has_ended_is_not_sent_and_gives_its_memory_back(pair: Pair) -> None:
    near, far = pair
    live = True
    sink = RecordSink(flows_of(near), RESULTS, 7, "Api.negate", lambda: live)
    live = False
    sink.send(b"one", many=False)
    await sink.send_apart(packed([numbered(3000)]), many=False)
    assert received(far.channel) == []
    assert near.at_home


async def test_what_waits_for_memory_when_its_call_ends_is_not_sent() -> None:
    async with two_ends(max_extent_bytes=0) as (near, far):
        live = [True]
        kept = [near.allocate(near.arena.base.nbytes)]
        sink = RecordSink(flows_of(near), RESULTS, 7, "Api.negate", lambda: bool(live))
        sending = asyncio.ensure_future(sink.send_apart(packed([numbered(3000)]), many=False))
        await turns()
        live.clear()
        kept.clear()
        await asyncio.wait_for(sending, 20)
        assert received(far.channel) == []
        assert near.at_home


async def test_a_sink_is_full_while_anything_waits_for_room(pair: Pair) -> None:
    near, far = pair
    sink = RecordSink(flows_of(near), RESULTS, 7, "Api.count", lambda: True)
    assert not sink.full
    fill(near.channel)
    assert sink.full
    waiting = asyncio.ensure_future(sink.room())
    await turns()
    assert not waiting.done()
    far.receive()
    near.turn()
    await asyncio.wait_for(waiting, 20)
    assert not sink.full


async def test_credit_that_waits_for_room_is_replaced_by_what_comes_later(pair: Pair) -> None:
    near, far = pair
    flows = flows_of(near)
    fill(near.channel)
    before = len(near.channel.outbox)
    for items in range(1, 100):
        flows.send_credit(RESULT_CREDIT, 7, items, items)
        flows.send_credit(RESULT_CREDIT, 8, items, items)
    assert len(near.channel.outbox) == before + 2
    records = []
    while near.channel.outbox:
        records += received(far.channel)
        near.turn()
    records += received(far.channel)
    credits = [envelope.decode_credit(record[5]) for record in records if record[0] == RESULT_CREDIT]
    assert credits == [envelope.Credit(99, 99)] * 2


async def test_a_channel_that_is_closed_breaks_nothing_but_itself(pair: Pair) -> None:
    near, _ = pair
    flows = flows_of(near)
    near.channel.close()
    flows.send(RESULTS, 0, 7, b"one")
    assert [type(error) for error in near.broken] == [ProtocolError]


# The caller's side


async def test_a_callers_stream_is_sent_behind_its_request_and_then_its_end(pair: Pair) -> None:
    near, far = pair
    calls = calls_of(near)
    call, _ = begin(calls, "total", [1, 2])
    await turns()
    records = received(far.channel)
    assert kinds(records) == [(REQUEST, 1), (ARGUMENTS, 1), (END_OF_ARGUMENTS, 1)]
    assert records[1][5] == head_of_many(2) + b"\1\2"
    calls.on_reply(0, 0, call.call_id, 0, b"\3")
    assert await call == b"\3"


async def test_items_go_to_the_inlet_of_their_call_and_their_end_is_the_reply(pair: Pair) -> None:
    calls = calls_of(pair[0])
    (first, one), (second, other) = begin(calls, "count"), begin(calls, "count")
    calls.flows.on_results(MANY, 0, second.call_id, 0, head_of_many(2) + b"\1\2")
    calls.flows.on_results(0, 0, first.call_id, 0, b"\3")
    for call in (first, second):
        calls.on_reply(0, 0, call.call_id, 0, b"\xc0")
    assert [item async for item in one.inlet] == [3]
    assert [item async for item in other.inlet] == [1, 2]
    assert calls.flows._flows == {}
    assert calls.pending == {}


async def test_an_abandoned_call_is_forgotten_and_what_comes_of_it_dropped(pair: Pair) -> None:
    near, far = pair
    calls = calls_of(near)
    call, flow = begin(calls, "negate", [])
    await turns()
    flow.abandon()
    flow.abandon()
    await turns()
    assert calls.flows._flows == {}
    assert kinds(received(far.channel)) == [(REQUEST, 1), (END_OF_ARGUMENTS, 1), (CANCEL, 1)]
    placed = far.lender.try_place(packed([numbered(3000)]), "Api.negate")
    calls.flows.on_results(HAS_BUFFERS, 0, call.call_id, 0, placed.payload)  # type: ignore[union-attr]
    assert far.at_home
    calls.on_reply(0, 0, call.call_id, 0, b"\xc0")
    assert calls.pending == {}


@pytest.mark.parametrize("name", ["count", "negate"])
async def test_a_call_that_is_abandoned_before_it_is_published_leaves_nothing(pair: Pair, name: str) -> None:
    near, _ = pair
    calls = calls_of(near)
    fill(near.channel)
    before = len(near.channel.outbox)
    call, flow = begin(calls, name, None if name == "count" else [numbered(1), numbered(3000)])
    await turns()
    assert len(near.channel.outbox) > before
    flow.abandon()
    await turns()
    assert call.done()
    assert (calls.flows._flows, calls.pending) == ({}, {})
    assert len(near.channel.outbox) == before
    await flow.wait_closed()
    assert near.at_home


async def test_a_source_that_fails_before_the_request_is_published_ends_the_call(pair: Pair) -> None:
    async def failing() -> AsyncIterator[int]:
        raise KeyError("mine")
        yield

    calls = calls_of(pair[0])
    fill(pair[0].channel)
    call, flow = begin(calls, "total", failing())
    async with asyncio.timeout(20):
        await calls.finish(call)
    assert isinstance(flow.take_error(), KeyError)
    assert calls.pending == {}


@pytest.mark.parametrize(
    ("deadline_ns", "items"), [(0, [1, 2]), (1 << 62, [1, 2]), (1, [])], ids=["none", "far", "passed"]
)
async def test_only_the_calls_own_deadline_drops_what_was_not_read(
    pair: Pair, deadline_ns: int, items: list[int]
) -> None:
    calls = calls_of(pair[0])
    method = methods["count"]
    call = calls.start(method, 0, 0, deadline_ns, b"")
    flow = calls.flows.begin(method, call, None, deque())
    call.add_done_callback(flow.on_end)
    calls.flows.on_results(MANY, 0, call.call_id, 0, head_of_many(2) + b"\1\2")
    call.set_result(DeadlineExceeded("over"))
    await turns()
    got = []
    with pytest.raises(DeadlineExceeded):
        async for item in flow.inlet:
            got.append(item)
    assert got == items
    calls.close("the test is over")


async def test_a_lost_connection_ends_the_stream_after_its_items_and_stops_the_callers(pair: Pair) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[U8]:
        try:
            while True:
                yield numbered(1)
                await asyncio.sleep(0)
        finally:
            closed.set()

    calls = calls_of(pair[0])
    call, flow = begin(calls, "negate", endless())
    await turns()
    calls.flows.on_results(0, 0, call.call_id, 0, methods["negate"].result_items.pack(numbered(5)).payload)  # type: ignore[union-attr]
    calls.lose("the peer died")
    assert (await anext(flow.inlet) == numbered(5)).all()
    with pytest.raises(ConnectionLost):
        await anext(flow.inlet)
    await asyncio.wait_for(closed.wait(), 20)
    await flow.wait_closed()


async def test_in_a_forked_child_streams_end_and_nothing_is_sent(pair: Pair) -> None:
    near, far = pair
    calls = calls_of(near)
    _, flow = begin(calls, "count")
    received(far.channel)
    calls.fork_off()
    with pytest.raises(ForkedError):
        await anext(flow.inlet)
    flow.abandon()
    assert received(far.channel) == []


# The handler's side


class Running:
    """A call that is being served."""

    def __init__(self, served: ServedMethod) -> None:
        self.served = served


def serve(end: Any, name: str, row: tuple[Any, ...] = ()) -> tuple[IncomingFlows, Any]:
    """Call 1, and what runs its handler."""
    served = Dispatcher((Service(),)).find(f"Api.{name}")
    running: dict[int, RunningCall] = {1: Running(served)}
    flows = IncomingFlows(flows_of(end), running, lambda call_id: call_id <= 1)
    return flows, flows.begin(1, served, row, as_json=False)


async def test_a_handler_gets_its_items_and_gives_its_result(pair: Pair) -> None:
    flows, handling = serve(pair[0], "total")
    flows.on_arguments(MANY, 0, 1, 0, head_of_many(3) + b"\1\2\3")
    flows.on_end_of_arguments(0, 0, 1, 0, b"")
    assert await handling == 6
    flows.end(1, "Api.total")


async def test_a_handlers_items_are_sent_as_results(pair: Pair) -> None:
    near, far = pair
    flows, handling = serve(near, "count", (3,))
    await handling
    assert received(far.channel) == [(RESULTS, MANY, 0, 1, 0, head_of_many(3) + b"\0\1\2")]
    flows.on_credit(0, 0, 1, 0, msgspec.msgpack.encode((3, 8)))
    flows.end(1, "Api.count")
    assert (flows._inlets, flows._outlets, flows._states) == ({}, {}, {})


async def test_credit_that_crossed_the_end_of_its_call_means_nothing(pair: Pair) -> None:
    flows, handling = serve(pair[0], "count", (3,))
    await handling
    flows.end(1, "Api.count")
    flows.on_credit(0, 0, 1, 0, msgspec.msgpack.encode((3, 8)))


async def test_items_that_a_handler_left_go_home_with_its_call(pair: Pair) -> None:
    near, far = pair
    flows, handling = serve(near, "negate")
    placed = far.lender.try_place(packed([numbered(3000)]), "Api.negate")
    flows.on_arguments(placed.flags, 0, 1, 0, placed.payload)  # type: ignore[union-attr]
    flows.on_end_of_arguments(0, 0, 1, 0, b"")
    assert not far.at_home
    flows.end(1, "Api.negate")
    assert far.at_home
    handling.close()
