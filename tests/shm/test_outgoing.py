"""The calls that one side makes follow the protocol's table, whatever happens to them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic_ns

import pytest
import uvloop
from joined import INLINE, crowd, fill, set_word
from life_waiting import until
from memories import METHOD, MIB, SLAB, End, Pair, numbered, packed, two_ends

from shmrpc.errors import ConnectionLost, DeadlineExceeded, ForkedError, ProtocolError, RpcError, WrongLoop
from shmrpc.failure import Failure
from shmrpc.shm import envelope, layout
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.outgoing import OutgoingCalls, state_of
from shmrpc.shm.placed import Placed
from shmrpc.shm.protocol import OUTGOING, Event, Outgoing
from shmrpc.shm.ring import PendingCall

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


class Method:
    """What a call needs to know of its method."""

    full_name = METHOD
    contract = object


class Side:
    """The calls of one end, and one of them in the state that a test wants."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.calls = OutgoingCalls(asyncio.get_running_loop(), end.channel, end.memory, {}, 16, end.broken.append)

    def bring_to(self, state: Outgoing) -> PendingCall:
        call = self.calls.start(Method(), 0, 0, 0, b"")
        if state is Outgoing.ABANDONED:
            self.calls.abandon(call)
        assert state_of(call) is state
        return call

    def state(self, call: PendingCall) -> Outgoing:
        return state_of(call) if self.calls.pending.get(call.call_id) is call else Outgoing.ENDED


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def _reply(side: Side, call: PendingCall) -> None:
    side.calls.on_reply(0, 0, call.call_id, 0, b"result")


def _fail(side: Side, call: PendingCall) -> None:
    side.calls.on_failure(0, 0, call.call_id, 0, envelope.encode_failure(Failure(5, "no such thing")))


def _abandon(side: Side, call: PendingCall) -> None:
    side.calls.abandon(call)


def _lose(side: Side, call: PendingCall) -> None:
    side.calls.lose("the peer died")


ACTS: list[tuple[Event, Callable[[Side, PendingCall], None]]] = [
    (Event.ANSWER, _reply),
    (Event.ANSWER, _fail),
    (Event.GIVE_UP, _abandon),
    (Event.LOSE, _lose),
]


@pytest.mark.parametrize(("event", "act"), ACTS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("state", [Outgoing.OPEN, Outgoing.ABANDONED])
async def test_a_call_moves_as_the_table_says(
    pair: Pair, state: Outgoing, event: Event, act: Callable[[Side, PendingCall], None]
) -> None:
    side = Side(pair[0])
    call = side.bring_to(state)
    act(side, call)
    assert side.state(call) is OUTGOING.get((state, event), state)
    side.calls.close("the test is over")
    assert pair[0].broken == []


async def test_every_call_that_is_lost_ends_with_what_may_have_happened_to_it(pair: Pair) -> None:
    side = Side(pair[0])
    call = side.bring_to(Outgoing.OPEN)
    side.calls.lose("the peer died")
    answer = await call
    assert isinstance(answer, ConnectionLost)
    assert not answer.maybe_executed  # the other side has not taken a record
    assert side.calls.pending == {}


# Requests that need memory


def begin(side: Side, *arrays: object, payload: bytes = b"", deadline_ns: int = 0) -> PendingCall:
    call = side.calls.try_begin(Method(), 0, 0, deadline_ns, packed(arrays, payload))
    assert call is not None
    return call


@pytest.mark.parametrize(("payload", "buffers"), [(INLINE, 0), (INLINE + 1, 0), (10, 2), (5000, 2)])
async def test_a_request_of_any_size_arrives(pair: Pair, payload: int, buffers: int) -> None:
    near, far = pair
    side = Side(near)
    call = begin(side, *(numbered(1000, number) for number in range(buffers)), payload=bytes(payload))
    [parcel] = far.receive()
    assert parcel.payload == bytes(payload)
    assert [bytes(memoryview(view)) for view in parcel.views] == [numbered(1000, n).tobytes() for n in range(buffers)]
    side.calls.abandon(call)
    del parcel
    assert near.at_home
    side.calls.close("the test is over")


async def test_a_result_with_buffers_is_given_as_a_parcel(pair: Pair) -> None:
    near, far = pair
    side = Side(near)
    call = side.bring_to(Outgoing.OPEN)
    far.receive()
    placed = far.lender.try_place(packed([numbered(5000)], b"body"), METHOD)
    assert isinstance(placed, Placed)
    side.calls.on_reply(placed.flags, 0, call.call_id, 0, placed.payload)
    answer = await call
    assert isinstance(answer, Parcel)
    assert answer.payload == b"body"
    assert bytes(memoryview(answer.views[0])) == numbered(5000).tobytes()
    answer.views.clear()
    assert far.at_home


async def test_a_result_with_buffers_that_nobody_waits_for_goes_home(pair: Pair) -> None:
    near, far = pair
    side = Side(near)
    call = side.bring_to(Outgoing.ABANDONED)
    far.receive()
    placed = far.lender.try_place(packed([numbered(5000)]), METHOD)
    assert isinstance(placed, Placed)
    side.calls.on_reply(placed.flags, 0, call.call_id, 0, placed.payload)
    del call
    assert far.at_home


async def test_a_request_that_still_waits_takes_its_memory_back_when_it_is_abandoned(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)
    fill(near.channel)
    call = begin(side, numbered(5000), payload=bytes(5000))
    assert len(near.arena.loans) == 2
    side.calls.abandon(call)
    assert near.at_home
    assert side.calls.pending == {}


async def test_a_request_that_still_waits_takes_its_memory_back_when_its_deadline_passes(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)
    fill(near.channel)
    call = begin(side, numbered(5000), deadline_ns=monotonic_ns() + 10_000_000)
    answer = await call
    assert isinstance(answer, DeadlineExceeded)
    assert "it was never sent" in str(answer)
    assert near.at_home


async def test_a_request_that_was_published_leaves_its_memory_with_the_peer(pair: Pair) -> None:
    near, far = pair
    side = Side(near)
    call = begin(side, numbered(5000))
    side.calls.abandon(call)
    assert len(near.arena.loans) == 1
    assert [parcel.payload for parcel in far.receive()] == [b"", b""]  # and the cancel
    assert near.at_home
    side.calls.close("the test is over")


async def test_a_request_that_finds_no_room_must_begin_by_waiting() -> None:
    async with two_ends(max_extent_bytes=0) as (near, far):
        side = Side(near)
        kept = [near.allocate(SLAB)]
        assert side.calls.try_begin(Method(), 0, 0, 0, packed([numbered(5000)])) is None
        beginning = asyncio.create_task(side.calls.begin(Method(), 0, 0, 0, packed([numbered(5000)])))
        await until(lambda: near.lender._waiters, "the waiting")
        kept.clear()
        call = await asyncio.wait_for(beginning, 20)
        assert call is not None
        assert len(far.receive_arrays()) == 1
        side.calls.close("the test is over")


async def test_credit_that_was_used_up_meanwhile_is_asked_for_again_and_nothing_stays_placed(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)
    beginning = asyncio.create_task(side.calls.begin(Method(), 0, 0, 0, packed([numbered(MIB)])))
    await asyncio.sleep(0)
    for _ in range(16):
        side.bring_to(Outgoing.OPEN)
    assert await asyncio.wait_for(beginning, 20) is None
    assert near.at_home
    side.calls.close("the test is over")


async def test_a_connection_that_ends_meanwhile_ends_the_waiting(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)
    beginning = asyncio.create_task(side.calls.begin(Method(), 0, 0, 0, packed([numbered(MIB)])))
    await asyncio.sleep(0)
    side.calls.lose("the peer died")
    near.close()
    with pytest.raises(ConnectionLost) as lost:
        await beginning
    assert not lost.value.maybe_executed


@pytest.mark.parametrize("waits", [False, True])
async def test_a_forged_release_that_is_found_on_the_way_breaks_the_connection(waits: bool) -> None:
    async with two_ends(max_extent_bytes=0) as (near, far):
        side = Side(near)
        kept = near.allocate(SLAB)
        far.channel.release(0, 99)
        with pytest.raises(ProtocolError, match="which is not out"):
            if waits:
                await side.calls.begin(Method(), 0, 0, 0, packed([numbered(5000)]))
            else:
                begin(side, numbered(5000))
        assert [str(error) for error in near.broken] == ["block 0 was released under lease 99, which is not out"]
        del kept


async def test_a_request_that_cannot_be_published_takes_its_memory_back(pair: Pair) -> None:
    near, far = pair
    side = Side(near)
    crowd(near.channel)
    set_word(far.channel.own, layout.CURSOR_HEAD, 2**64 - 8)
    with pytest.raises(RpcError, match="read position"):
        begin(side, numbered(5000))
    assert near.at_home
    assert len(near.broken) == 1


async def test_from_another_event_loop_no_memory_is_touched(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)

    async def elsewhere() -> None:
        with pytest.raises(WrongLoop):
            begin(side, numbered(5000))

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert near.at_home
    assert near.arena.lend(near.arena.take(1, attached=True), 0, 1, METHOD) == 1  # type: ignore[arg-type]


async def test_in_a_forked_child_no_memory_is_touched(pair: Pair) -> None:
    near, _ = pair
    side = Side(near)
    side.calls.forked = True
    with pytest.raises(ForkedError):
        begin(side, numbered(5000))
    side.calls.forked = False
    assert near.arena.lend(near.arena.take(1, attached=True), 0, 1, METHOD) == 1  # type: ignore[arg-type]
