"""Starter: handlers start at once, and are one and the same task from their first line to their last."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import anyio
import pytest

from shmrpc.shm.eager import Starter

running: ContextVar["Job"] = ContextVar("running")
mark: ContextVar[str] = ContextVar("mark", default="unset")


class Job:
    """What a test runs a coroutine for."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    async def outcome(self) -> Any:
        """Waits for the end; gives the result or raises."""
        async with asyncio.timeout(5):
            await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.result


def _on_end(job: Job, result: Any, error: BaseException | None) -> None:
    assert not job.ended.is_set(), "a job ended twice"
    job.result, job.error = result, error
    job.ended.set()


@pytest.fixture
async def starter() -> Any:
    """A starter whose seat is ready, as it is after the first call of a connection."""
    made = Starter[Job](asyncio.get_running_loop(), copy_context(), running, _on_end)
    job = Job()
    await in_callback(lambda: made.start(_value("warm"), job))
    assert await job.outcome() == "warm"
    yield made
    made.close()
    await asyncio.sleep(0)


async def in_callback(act: Callable[[], Any]) -> Any:
    """Runs a function as the poller would: in a callback of the loop, outside of every task."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        try:
            done.set_result(act())
        except Exception as error:  # handed to the test
            done.set_exception(error)

    loop.call_soon(run)
    return await done


def start_and_cancel(starter: Starter[Job], awaitable: Awaitable[Any], job: Job) -> None:
    """Both in one tick of the loop."""
    starter.start(awaitable, job)
    assert job.task is not None
    job.task.cancel()


async def _value(value: Any) -> Any:
    return value


async def test_a_coroutine_that_does_not_wait_ends_at_once_and_leaves_no_task(starter: Starter[Job]) -> None:
    before = asyncio.all_tasks()
    job = Job()
    assert await in_callback(lambda: starter.start(_value(7), job)) == (True, 7)
    assert job.task is None
    assert not job.ended.is_set()
    assert asyncio.all_tasks() == before


async def test_what_the_first_step_raises_is_raised_to_the_starter(starter: Starter[Job]) -> None:
    async def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        await in_callback(lambda: starter.start(fail(), Job()))


async def test_a_coroutine_that_waits_goes_on_as_the_task_that_it_began_as(starter: Starter[Job]) -> None:
    seen: list[asyncio.Task[Any] | None] = []

    async def wait() -> str:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())
        await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())
        return "done"

    job = Job()
    assert (await in_callback(lambda: starter.start(wait(), job)))[0] is False
    assert await job.outcome() == "done"
    assert len(set(map(id, seen))) == 1
    assert seen[0] is job.task


async def test_each_coroutine_has_a_context_of_its_own(starter: Starter[Job]) -> None:
    async def look_and_set(wait: bool) -> tuple[str, Job]:
        before = mark.get()
        mark.set("set by a handler")
        if wait:
            await asyncio.sleep(0)
            assert mark.get() == "set by a handler"
        return before, running.get()

    for wait in (False, True, False):
        job = Job()
        ended, outcome = await in_callback(partial(starter.start, look_and_set(wait), job))
        assert (outcome if ended else await job.outcome()) == ("unset", job)
    assert mark.get() == "unset"


async def test_a_task_started_by_a_handler_inherits_its_context(starter: Starter[Job]) -> None:
    async def look() -> Job:
        return running.get()

    async def start_another() -> Job:
        return await asyncio.create_task(look())

    job = Job()
    await in_callback(lambda: starter.start(start_another(), job))
    assert await job.outcome() is job


async def test_cancelling_the_task_cancels_what_waits(starter: Starter[Job]) -> None:
    job = Job()
    await in_callback(lambda: starter.start(asyncio.sleep(60), job))
    assert job.task is not None
    job.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job.outcome()


async def test_a_cancellation_in_the_tick_of_the_suspension_arrives(starter: Starter[Job]) -> None:
    arrived: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            arrived.append("cancelled")
            raise

    job = Job()

    await in_callback(partial(start_and_cancel, starter, wait(), job))
    with pytest.raises(asyncio.CancelledError):
        await job.outcome()
    assert arrived == ["cancelled"]


async def test_a_handler_that_swallows_its_cancellation_goes_on(starter: Starter[Job]) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "still here"

    job = Job()
    await in_callback(lambda: starter.start(stubborn(), job))
    assert job.task is not None
    job.task.cancel()
    assert await job.outcome() == "still here"


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_cancels_itself_harms_no_other(starter: Starter[Job], waits: bool) -> None:
    async def suicidal() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if waits:
            await asyncio.sleep(60)
        return "ended first"

    job = Job()
    ended, outcome = await in_callback(lambda: starter.start(suicidal(), job))
    if waits:
        with pytest.raises(asyncio.CancelledError):
            await job.outcome()
    else:
        assert (ended, outcome) == (True, "ended first")
    for _ in range(3):
        after = Job()
        ended, outcome = await in_callback(partial(starter.start, _value("unharmed"), after))
        assert (outcome if ended else await after.outcome()) == "unharmed"


async def test_many_that_wait_started_in_one_tick_all_end(starter: Starter[Job]) -> None:
    async def wait(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        return number

    jobs = [Job() for _ in range(50)]
    await in_callback(lambda: [starter.start(wait(number), job) for number, job in enumerate(jobs)])
    assert [await job.outcome() for job in jobs] == list(range(50))
    assert len({job.task for job in jobs}) == 50


async def test_a_task_cancelled_before_its_first_step_is_reported_and_its_coroutine_closed() -> None:
    starter = Starter[Job](asyncio.get_running_loop(), copy_context(), running, _on_end)
    job = Job()
    coroutine = _value("never")

    def start_and_cancel() -> None:
        assert starter.start(coroutine, job) == (False, None)  # no seat is ready yet: it is a task from the beginning
        assert job.task is not None
        job.task.cancel()

    await in_callback(start_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await job.outcome()
    with pytest.raises(RuntimeError, match="cannot reuse already awaited"):
        coroutine.send(None)
    starter.close()


async def test_inside_of_another_task_a_coroutine_waits_for_its_turn(starter: Starter[Job]) -> None:
    job = Job()
    assert starter.start(_value("later"), job) == (False, None)
    assert not job.ended.is_set()
    assert await job.outcome() == "later"


async def test_any_awaitable_can_be_started(starter: Starter[Job]) -> None:
    class Later:
        def __await__(self) -> Generator[Any, Any, Any]:
            return asyncio.sleep(0, "an awaitable").__await__()

    job = Job()
    await in_callback(lambda: starter.start(Later(), job))
    assert await job.outcome() == "an awaitable"


async def _timeout_of_asyncio() -> str:
    try:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)
    except TimeoutError:
        return "timed out"
    return "never"


async def _scope_of_anyio() -> str:
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(60)
    return "timed out" if scope.cancelled_caught else "never"


async def _task_group() -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.sleep(0.001, "timed out"))
    return task.result()


async def _group_of_anyio() -> str:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0.001)
    return "timed out"


@pytest.mark.parametrize("handler", [_timeout_of_asyncio, _scope_of_anyio, _task_group, _group_of_anyio])
async def test_what_asks_for_the_current_task_works(
    starter: Starter[Job], handler: Callable[[], Awaitable[str]]
) -> None:
    for _ in range(2):  # with the seat ready, and right after it was taken
        jobs = [Job(), Job()]
        for job in jobs:
            await in_callback(partial(starter.start, handler(), job))
        assert [await job.outcome() for job in jobs] == ["timed out", "timed out"]


async def test_a_seat_that_somebody_cancelled_is_not_used_again(starter: Starter[Job]) -> None:
    """As a program does that cancels all tasks but its own."""
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    job = Job()
    await in_callback(lambda: starter.start(asyncio.sleep(0, "unharmed"), job))
    assert await job.outcome() == "unharmed"


async def test_a_handler_that_takes_its_own_cancellation_back_harms_no_other(starter: Starter[Job]) -> None:
    async def undecided() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        task.uncancel()
        return "undecided"

    assert await in_callback(lambda: starter.start(undecided(), Job())) == (True, "undecided")
    job = Job()
    await in_callback(lambda: starter.start(asyncio.sleep(0, "unharmed"), job))
    assert await job.outcome() == "unharmed"


async def test_what_the_handler_awaits_is_cancelled_with_it_also_in_the_tick_of_the_suspension(
    starter: Starter[Job],
) -> None:
    inner: list[asyncio.Task[None]] = []

    async def wait() -> None:
        inner.append(asyncio.create_task(asyncio.sleep(60)))
        await inner[0]

    job = Job()

    await in_callback(partial(start_and_cancel, starter, wait(), job))
    with pytest.raises(asyncio.CancelledError):
        await job.outcome()
    assert inner[0].cancelled()


async def test_an_awaitable_that_is_cancelled_before_it_is_awaited_is_reported() -> None:
    starter = Starter[Job](asyncio.get_running_loop(), copy_context(), running, _on_end)
    job = Job()
    inner = asyncio.ensure_future(asyncio.sleep(0))

    await in_callback(partial(start_and_cancel, starter, inner, job))
    with pytest.raises(asyncio.CancelledError):
        await job.outcome()
    await inner
    starter.close()


async def test_none_is_started_before_those_that_wait_for_their_turn() -> None:
    """A seat is ready in the middle of a turn of the loop: what comes in its rest must not overtake what came before."""
    loop = asyncio.get_running_loop()
    starter = Starter[Job](loop, copy_context(), running, _on_end)
    began: list[str] = []

    async def begin(name: str) -> None:
        began.append(name)

    def start(name: str) -> None:
        starter.start(begin(name), Job())

    loop.call_soon(start, "first")  # makes the seat, which is ready in the next turn
    loop.call_soon(loop.call_soon, start, "second")
    loop.call_soon(start, "also first")
    loop.call_soon(loop.call_soon, start, "third")
    async with asyncio.timeout(5):
        while len(began) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert began == ["first", "also first", "second", "third"]
    starter.close()
    await asyncio.sleep(0)
