"""PendingCall and Requester: what a caller awaits, and how its call begins."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from shmrpc.shm import ring, segment
from shmrpc.shm.layout import Geometry
from shmrpc.shm.ring import PendingCall, Producer, Requester

SMALL = Geometry(ring_bytes=4096, release_entries=64, slab_bytes=16 * 1024, inline_limit=1024)
HANDLERS = tuple([lambda *record: None] * 256)
REPLY = 2


class Pair:
    """Two ends of a ring in one process: calls go out by `requester`, and `peer` answers them."""

    def __init__(self) -> None:
        self.near, self.far = segment.create(SMALL), segment.create(SMALL)
        self.pending: dict[int, PendingCall] = {}
        self.settled: list[tuple[int, tuple[Any, ...]]] = []
        self.producer = ring.open_producer(self.near, self.far)
        self.consumer = ring.open_consumer(self.near, self.far)
        self.peer: Producer = ring.open_producer(self.far, self.near)
        self.requester = Requester(
            asyncio.get_running_loop(), self.producer, self.pending, lambda *settled: self.settled.append(settled)
        )

    def start(self, method: object = "method", *, deadline_ns: int = 0, payload: bytes = b"arguments") -> PendingCall:
        call = self.requester.start(method, 5, 0, deadline_ns, payload)
        assert call is not None
        return call

    def answer(self, call_id: int, payload: bytes) -> None:
        """The peer replies, and the reply is taken at once."""
        self.peer.send(REPLY, 0, 0, call_id, 0, payload)
        self.consumer.dispatch(64, HANDLERS, self.pending)

    def close(self) -> None:
        for end in (self.producer, self.consumer, self.peer):
            end.close()
        self.near.close()
        self.far.close()


@pytest.fixture
async def pair() -> Any:
    made = Pair()
    yield made
    made.close()


async def test_calls_are_numbered_from_one_and_kept_as_pending(pair: Pair) -> None:
    calls = [pair.start(name, deadline_ns=deadline) for name, deadline in (("first", 0), ("second", 9))]
    assert [(call.call_id, call.method, call.deadline_ns) for call in calls] == [(1, "first", 0), (2, "second", 9)]
    assert pair.pending == {1: calls[0], 2: calls[1]}
    assert pair.producer.unread() == [(1, 1), (1, 2)]


async def test_a_reply_ends_the_call_with_its_payload(pair: Pair) -> None:
    call = pair.start()
    pair.answer(1, b"result")
    assert call.done()
    assert await call == b"result"
    assert pair.pending == {}


async def test_the_waiter_runs_inside_of_the_dispatch(pair: Pair) -> None:
    seen: list[bytes] = []

    async def wait() -> None:
        seen.append(await pair.start())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    taken_in_callback = asyncio.get_running_loop().create_future()

    def take() -> None:
        pair.answer(1, b"result")
        taken_in_callback.set_result(list(seen))

    asyncio.get_running_loop().call_soon(take)
    assert await taken_in_callback == [b"result"]
    await task


async def test_a_call_ends_once(pair: Pair) -> None:
    call = pair.start()
    call.set_result("the first")
    call.set_result("the second")
    pair.answer(1, b"the third")
    assert await call == "the first"


async def test_a_cancelled_waiter_gets_its_cancellation_and_a_late_reply_means_nothing(pair: Pair) -> None:
    async def wait() -> Any:
        return await pair.start()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    pair.answer(1, b"late")
    assert pair.pending == {}


async def test_a_cancellation_in_the_tick_of_the_reply_loses_nothing(pair: Pair) -> None:
    async def wait() -> Any:
        return await pair.start()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)

    def cancel_then_answer() -> None:
        task.cancel()
        pair.answer(1, b"result")

    asyncio.get_running_loop().call_soon(cancel_then_answer)
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_a_cancellation_keeps_its_message(pair: Pair) -> None:
    """anyio knows its own cancellations by their message."""

    async def wait() -> Any:
        return await pair.start()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("why",)


async def test_the_scopes_of_anyio_work(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.001):
            await pair.start()
    with anyio.move_on_after(0.001) as scope:
        await pair.start()
    assert scope.cancelled_caught


async def test_only_one_task_may_await_a_call(pair: Pair) -> None:
    call: Any = pair.start()
    call.add_done_callback(print)
    with pytest.raises(RuntimeError, match="one task only"):
        call.add_done_callback(print)


async def test_what_a_waiter_raises_to_the_loop_stops_no_other_answer(pair: Pair) -> None:
    class StopAll(BaseException):
        pass

    def explode(call: object) -> None:
        raise StopAll

    calls = [pair.start() for _ in range(3)]
    calls[0].add_done_callback(explode)
    for call_id in (1, 2, 3):
        pair.peer.send(REPLY, 0, 0, call_id, 0, b"result")
    with pytest.raises(StopAll):
        pair.consumer.dispatch(64, HANDLERS, pair.pending)
    assert all(call.done() for call in calls)


async def test_an_answer_runs_the_waiter_at_once(pair: Pair) -> None:
    seen: list[object] = []

    async def wait() -> None:
        seen.append(await pair.start())

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    seen_in_callback = asyncio.get_running_loop().create_future()

    def end() -> None:
        pair.pending[1].answer(["any", "object"])
        seen_in_callback.set_result(list(seen))

    asyncio.get_running_loop().call_soon(end)
    assert await seen_in_callback == [["any", "object"]]
    await task


async def test_an_answer_that_nobody_awaits_yet_is_kept(pair: Pair) -> None:
    call = pair.start()
    call.answer("the first")
    call.answer("the second")
    call.set_result("the third")
    assert call.done()
    assert await call == "the first"


async def test_an_answer_to_a_cancelled_call_means_nothing(pair: Pair) -> None:
    async def wait() -> Any:
        return await pair.start()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    pair.pending[1].answer("late")
    await asyncio.wait((task,))
    assert task.cancelled()


async def test_an_answer_raises_what_its_waiter_raises_to_the_loop(pair: Pair) -> None:
    class StopAll(BaseException):
        pass

    def explode(call: object) -> None:
        raise StopAll

    call = pair.start()
    call.add_done_callback(explode)
    with pytest.raises(StopAll):
        call.answer("result")
    assert call.done()


async def test_nothing_begins_in_another_thread(pair: Pair) -> None:
    begun: list[object] = []
    thread = threading.Thread(target=lambda: begun.append(pair.requester.start("method", 1, 0, 0, b"")))
    thread.start()
    thread.join()
    assert begun == [None]
    assert pair.pending == {}


def test_nothing_begins_in_another_loop(folder: Path) -> None:
    async def make() -> Pair:
        return Pair()

    first = asyncio.new_event_loop()
    pair = first.run_until_complete(make())

    async def start() -> object:
        return pair.requester.start("method", 1, 0, 0, b"")

    assert asyncio.run(start()) is None
    pair.close()
    first.close()


async def test_a_record_without_room_is_settled_and_stays_pending(pair: Pair) -> None:
    while not pair.settled:
        pair.start(payload=bytes(1024))
    status, record = pair.settled[0]
    assert status == ring.FULL
    assert record[3] in pair.pending


async def test_a_call_that_cannot_be_settled_is_not_pending(pair: Pair) -> None:
    def refuse(status: int, record: object) -> None:
        raise LookupError("too large")

    requester = Requester(asyncio.get_running_loop(), pair.producer, pair.pending, refuse)
    with pytest.raises(LookupError, match="too large"):
        requester.start("method", 1, 0, 0, bytes(2048))
    assert pair.pending == {}


@pytest.mark.parametrize(
    "arguments",
    [("method", 1 << 16, 0, 0, b""), ("method", 1, 256, 0, b""), ("method", 1, 0, -1, b"")],
    ids=["method number", "flags", "deadline"],
)
async def test_what_does_not_fit_in_a_record_is_refused(pair: Pair, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(OverflowError):
        pair.requester.start(*arguments)
    assert pair.pending == {}


def _await_once(call: PendingCall) -> Iterator[Any]:
    return iter(call.__await__())


async def test_it_speaks_the_protocol_that_tasks_have_for_foreign_futures(pair: Pair) -> None:
    call = pair.start()
    waiting = _await_once(call)
    assert next(waiting) is call
    assert asyncio.isfuture(call)
    foreign: Callable[[str], Any] = lambda name: getattr(call, name)  # noqa: E731
    assert foreign("_asyncio_future_blocking") is True
    assert foreign("get_loop")() is asyncio.get_running_loop()
    call.set_result("ended")
    with pytest.raises(StopIteration) as stop:
        next(waiting)
    assert stop.value.value == "ended"
