"""The caller's side of the native core at its edges: broken channels, foreign loops, early and unknown replies, cycles.

What a Requester and a PendingCall do in plain weather is in ``test_pending_call``.
"""

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joined import INLINE, handlers_of, received, set_word, two_channels

from shmrpc.shm import envelope, layout, ring
from shmrpc.shm.channel import Channel, Record
from shmrpc.shm.ring import PendingCall, Requester, RingCorrupt

PLACE = contextvars.ContextVar("PLACE", default="outside")
Settle = Callable[[int, Record], None]


class Method:
    """Stands for what is called."""


class Caller:
    """One side of a channel: begins calls, and takes replies in a callback of the loop, as the poller does."""

    def __init__(self, channel: Channel, far: Channel) -> None:
        self.channel = channel
        self.far = far
        self.pending: dict[int, PendingCall] = {}
        self.unclaimed: list[Record] = []

    def requester(self, settle: Settle | None = None) -> Requester:
        """What begins its calls."""
        loop = asyncio.get_running_loop()
        return Requester(loop, self.channel._producer, self.pending, settle or self.channel.settle)

    def begin(self, count: int = 1) -> list[PendingCall]:
        """Some calls under way, numbered from one."""
        start = self.requester().start
        calls = [start(Method, 3, 0, 0, b"") for _ in range(count)]
        return [call for call in calls if call is not None]

    async def take(self) -> None:
        """Takes what the other side sent; raises what the loop would get."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def callback() -> None:
            try:
                self.channel.dispatch(100, handlers_of(self.unclaimed.append), self.pending)
            except BaseException as error:
                done.set_exception(RuntimeError(f"the loop got {error!r}"))
            else:
                done.set_result(None)

        loop.call_soon(callback, context=contextvars.Context())
        await done

    async def take_reply(self, call_id: int, payload: bytes = b"", flags: int = 0, kind: int = envelope.REPLY) -> None:
        """The other side replies, and this one takes it."""
        self.far.send(kind, flags, 0, call_id, 0, payload)
        await self.take()


@pytest.fixture
def caller() -> Iterator[Caller]:
    with two_channels() as (left, right):
        yield Caller(left, right)


async def awaiting(call: PendingCall) -> Any:
    return await call


async def waiting_task(call: PendingCall) -> "asyncio.Task[Any]":
    """A task that awaits a call, and has got that far."""
    task = asyncio.create_task(awaiting(call))
    await asyncio.sleep(0)
    return task


# Beginning


async def test_the_request_of_a_call_arrives_with_every_field(caller: Caller) -> None:
    start = caller.requester().start
    calls = [start(Method, 0xFFFF, envelope.AS_JSON, 2**64 - 1, b"one"), start(Method, 4, 0, 0, b"two")]
    assert caller.pending == dict(enumerate(calls, 1))
    assert received(caller.far) == [
        (envelope.REQUEST, envelope.AS_JSON, 0xFFFF, 1, 2**64 - 1, b"one"),
        (envelope.REQUEST, 0, 4, 2, 0, b"two"),
    ]
    assert calls[0] is not None
    assert (calls[0].call_id, calls[0].deadline_ns, calls[0].method) == (1, 2**64 - 1, Method)


async def test_what_cannot_be_published_simply_is_settled(caller: Caller) -> None:
    settled: list[tuple[int, Record]] = []
    start = caller.requester(lambda status, record: settled.append((status, record))).start
    large = bytes(INLINE + 1)
    start(Method, 1, 0, 0, large)
    assert caller.far.consumer.arm()
    start(Method, 2, 4, 9, b"ringing")
    caller.channel._producer.corked = True
    start(Method, 3, 0, 0, b"waiting")
    assert settled == [
        (ring.LARGE, (envelope.REQUEST, 0, 1, 1, 0, large)),
        (ring.RING, (envelope.REQUEST, 4, 2, 2, 9, b"ringing")),
        (ring.FULL, (envelope.REQUEST, 0, 3, 3, 0, b"waiting")),
    ]
    assert set(caller.pending) == {1, 2, 3}


@pytest.mark.parametrize("ended_meanwhile", [False, True])
async def test_a_call_that_cannot_be_sent_is_not_under_way(caller: Caller, ended_meanwhile: bool) -> None:
    def settle(status: int, record: Record) -> None:
        if ended_meanwhile:
            caller.pending.clear()
        raise LookupError(status)

    start = caller.requester(settle).start
    with pytest.raises(LookupError, match=str(ring.LARGE)):
        start(Method, 1, 0, 0, bytes(INLINE + 1))
    assert not caller.pending
    second = start(Method, 1, 0, 0, b"")
    assert second is not None
    assert second.call_id == 2  # ids rise, whatever happened


async def test_a_broken_or_closed_channel_begins_no_call(caller: Caller) -> None:
    start = caller.requester().start
    while caller.channel.push(envelope.REQUEST, 0, 0, 1, 0, b"") != ring.FULL:
        pass
    set_word(caller.far.own, layout.CURSOR_HEAD, 4)
    with pytest.raises(RingCorrupt):
        start(Method, 1, 0, 0, b"")
    caller.channel.close()
    with pytest.raises(ValueError, match="the channel is closed"):
        start(Method, 1, 0, 0, b"")
    assert not caller.pending


def test_a_loop_that_does_not_run_begins_no_call(caller: Caller) -> None:
    with asyncio.Runner() as runner:

        async def make() -> Requester:
            return caller.requester()

        requester = runner.run(make())
        assert requester.start(Method, 1, 0, 0, b"") is None
    assert not caller.pending


WRONG: list[tuple[type[Exception], tuple[Any, ...]]] = [
    (TypeError, (Method, 1, 0, 0)),
    (TypeError, (Method, "1", 0, 0, b"")),
    (TypeError, (Method, 1, 0, 0, bytearray())),
    (OverflowError, (Method, 65536, 0, 0, b"")),
    (OverflowError, (Method, -1, 0, 0, b"")),
    (OverflowError, (Method, 1, 256, 0, b"")),
    (OverflowError, (Method, 1, 0, -1, b"")),
    (OverflowError, (Method, 1, 0, 2**64, b"")),
]


@pytest.mark.parametrize(("error", "arguments"), WRONG)
async def test_wrong_arguments_begin_no_call(
    caller: Caller, error: type[Exception], arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(error):
        caller.requester().start(*arguments)
    assert not caller.pending
    assert not received(caller.far)


async def test_a_requester_is_made_of_a_loop_a_producer_and_a_dict(caller: Caller) -> None:
    loop, producer = asyncio.get_running_loop(), caller.channel._producer
    wrong: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (TypeError, (loop, producer, {})),
        (TypeError, (loop, caller.channel.consumer, {}, print)),
        (TypeError, (loop, producer, [], print)),
        (AttributeError, (object(), producer, {}, print)),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            Requester(*arguments)
    with pytest.raises(TypeError):
        PendingCall()


# Awaiting


async def test_a_call_that_is_answered_already_needs_no_turn_of_the_loop(caller: Caller) -> None:
    [call] = caller.begin()
    call.set_result(b"answer")
    coroutine = awaiting(call)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == b"answer"


@pytest.mark.parametrize("answer", [(1, 2), StopIteration(3), ValueError("no"), None])
async def test_an_answer_may_be_anything_and_is_not_raised(caller: Caller, answer: object) -> None:
    [call] = caller.begin()
    task = await waiting_task(call)
    call.set_result(answer)
    call.set_result("the first counts")
    assert await task is answer
    assert await call is answer
    with pytest.raises(StopIteration) as stop:
        next(call.__await__())
    assert stop.value.value is answer


async def test_an_answer_outlives_a_cancellation_that_comes_after_it(caller: Caller) -> None:
    [call] = caller.begin()
    task = await waiting_task(call)
    call.set_result(b"answer")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await call == b"answer"


async def test_asyncios_own_ways_to_wait_work(caller: Caller) -> None:
    slow, slower, quick = caller.begin(3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await slow
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(awaiting(slower), timeout=0.001)
    asyncio.get_running_loop().call_soon(quick.set_result, b"quick")
    [answer] = await asyncio.gather(awaiting(quick))
    assert answer == b"quick"


async def test_a_second_task_that_awaits_a_call_is_told_at_once(caller: Caller) -> None:
    [call] = caller.begin()
    first = await waiting_task(call)
    with pytest.raises(RuntimeError, match="a call can be awaited by one task only"):
        next(call.__await__())  # what the second task would do: if this yielded, the task would wait for ever
    call.set_result(b"answer")
    assert await first == b"answer"


async def test_what_nobody_needs_any_more_is_collected(caller: Caller) -> None:
    class Circle:
        def __call__(self, *_: object) -> None: ...

    circle: Any = Circle()
    circle.requester = caller.requester(circle)
    circle.call = circle.requester.start(Method, 1, 0, 0, b"")
    circle.call.add_done_callback(circle)
    caller.pending.clear()
    forgotten = weakref.ref(circle)
    del circle
    gc.collect()
    assert forgotten() is None


# Replies that dispatch delivers


async def test_a_caller_goes_on_in_its_own_context(caller: Caller) -> None:
    async def wait(call: PendingCall) -> str:
        PLACE.set("inside")
        await call
        return PLACE.get()

    [call] = caller.begin()
    task = asyncio.create_task(wait(call))
    await asyncio.sleep(0)
    await caller.take_reply(1)
    assert await task == "inside"
    assert PLACE.get() == "outside"


async def test_a_reply_that_comes_before_anybody_awaits_it_is_kept(caller: Caller) -> None:
    [call] = caller.begin()
    await caller.take_reply(1, b"early")
    assert await call == b"early"


async def test_what_is_no_plain_reply_to_a_known_call_goes_to_its_handler(caller: Caller) -> None:
    caller.begin()
    odd: Any = "not a call"
    caller.pending[2] = odd
    await caller.take_reply(2)
    await caller.take_reply(9)
    await caller.take_reply(1, kind=envelope.FAILURE)
    await caller.take_reply(1, flags=envelope.AS_JSON)
    await caller.take_reply(1, flags=envelope.IN_BLOCK)
    await caller.take_reply(1, flags=envelope.HAS_BUFFERS)
    assert [record[:4] for record in caller.unclaimed] == [
        (envelope.REPLY, 0, 0, 2),
        (envelope.REPLY, 0, 0, 9),
        (envelope.FAILURE, 0, 0, 1),
        (envelope.REPLY, envelope.AS_JSON, 0, 1),
        (envelope.REPLY, envelope.IN_BLOCK, 0, 1),
        (envelope.REPLY, envelope.HAS_BUFFERS, 0, 1),
    ]
    assert set(caller.pending) == {1, 2}


async def test_nothing_of_a_call_is_kept_once_it_has_ended(caller: Caller) -> None:
    loop = asyncio.get_running_loop()
    start = caller.requester().start
    counted = [Method, loop, caller.pending]
    before = [sys.getrefcount(each) for each in counted]
    for call_id in range(1, 101):
        call = start(Method, 1, 0, 0, b"request")
        assert call is not None
        caller.far.send(envelope.REPLY, 0, 0, call_id, 0, b"reply")
        caller.channel.dispatch(1, handlers_of(caller.unclaimed.append), caller.pending)
        assert await call == b"reply"
        received(caller.far)
    del call
    assert [sys.getrefcount(each) for each in counted] == before
