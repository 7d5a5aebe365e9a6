"""first_step: a handler's first step runs as a task that waits for it, in a context of its own."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from shmrpc.shm.ring import first_step

T = TypeVar("T")
PLACE = contextvars.ContextVar("PLACE", default="outside")
ORIGIN = contextvars.ContextVar("ORIGIN", default="nowhere")


async def in_callback(action: Callable[[], T]) -> T:
    """What an action gives, or raises, in a callback of the loop, where no task is running."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def callback() -> None:
        try:
            done.set_result(action())
        except Exception as error:
            done.set_exception(error)

    loop.call_soon(callback)
    return await done


@pytest.fixture
async def seat() -> AsyncIterator["asyncio.Task[None]"]:
    """A task that waits."""
    over = asyncio.Event()

    async def sit() -> None:
        await over.wait()

    task = asyncio.create_task(sit())
    await asyncio.sleep(0)
    yield task
    over.set()
    await task


class Step:
    """Runs first steps."""

    def __init__(self, seat: "asyncio.Task[None]") -> None:
        self.seat = seat
        self.context = contextvars.Context()
        self.context.run(ORIGIN.set, "the starter")

    def now(self, coroutine: Awaitable[Any]) -> tuple[bool, Any, contextvars.Context] | None:
        return first_step(self.seat.get_loop(), self.seat, coroutine, self.context, PLACE, "inside")

    async def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any, contextvars.Context]:
        step = await in_callback(lambda: self.now(coroutine))
        assert step is not None
        return step


@pytest.fixture
async def step(seat: "asyncio.Task[None]") -> Step:
    return Step(seat)


async def look() -> tuple[object, str, str]:
    return asyncio.current_task(), PLACE.get(), ORIGIN.get()


async def wait_then(value: object) -> object:
    PLACE.set("further inside")
    await asyncio.sleep(0)
    return value


async def fail() -> None:
    raise LookupError(PLACE.get())


async def test_a_step_that_ends_gives_the_result(step: Step) -> None:
    ended, result, context = await step(look())
    assert ended
    assert result == (step.seat, "inside", "the starter")
    assert context is not step.context


async def test_a_step_that_suspends_gives_what_it_yielded_and_its_context(step: Step) -> None:
    coroutine = wait_then(5)
    ended, yielded, context = await step(coroutine)
    assert (ended, yielded) == (False, None)
    assert context.run(PLACE.get) == "further inside"
    with pytest.raises(StopIteration) as stop:
        context.run(coroutine.send, None)
    assert stop.value.value == 5


async def test_a_step_that_fails_raises_and_leaves_everything_as_it_was(step: Step) -> None:
    with pytest.raises(LookupError, match="inside"):
        await step(fail())
    assert asyncio.current_task() is not step.seat
    assert PLACE.get() == "outside"
    assert PLACE not in step.context
    assert (await step(look()))[0]  # the seat can be used again


async def test_inside_of_another_task_nothing_is_done(step: Step) -> None:
    coroutine = look()
    assert step.now(coroutine) is None
    assert (await step(coroutine))[0]


async def test_wrong_arguments_are_refused_and_the_seat_is_left(step: Step) -> None:
    loop, seat, context = step.seat.get_loop(), step.seat, step.context
    coroutine = look()
    wrong: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (TypeError, (loop, seat, coroutine, context, PLACE)),
        (TypeError, (loop, seat, coroutine, None, PLACE, 1)),
        (TypeError, (loop, seat, coroutine, context, None, 1)),
        (AttributeError, (loop, seat, object(), context, PLACE, 1)),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            await in_callback(lambda arguments=arguments: first_step(*arguments))  # type: ignore[misc]
    assert (await step(coroutine))[0]
