"""Starts handlers at once: a coroutine that ends without waiting never costs a task, one that waits goes on as a task.

asyncio can do this by itself from Python 3.12 on (`eager_start`), at the price of a task for every coroutine. Here a *seat*
is kept ready: a task that waits for nothing but a coroutine to carry on. While a handler runs its first step, the seat is
what `asyncio.current_task()` gives, by asyncio's own means for foreign tasks (`_enter_task`, `_leave_task`; see "Extending
asyncio" in Python's documentation). If the step ends the coroutine, the seat is kept for the next one. If it suspends,
the seat carries it on, so that it is the same task from the first line of the handler to the last.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from types import CoroutineType
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from shmrpc.shm.ring import first_step

Coro = Coroutine[Any, Any, Any]


class Job(Protocol):
    """What a coroutine is run for."""

    task: "asyncio.Task[None] | None"


J = TypeVar("J", bound=Job)


class _Rest(NamedTuple):
    """What is left of a coroutine after its first step. Awaited, it drives the coroutine to its end, in its context."""

    coroutine: Coro
    context: Context
    awaited: Any
    """What the first step yielded."""

    def drive(self, thrown: BaseException | None) -> Generator[Any, Any, Any]:
        """Goes on where the first step stopped; with `thrown`, by throwing that into the coroutine."""
        coroutine, context, awaited = self
        del self  # it has what is awaited: see below
        if thrown is not None and hasattr(awaited, "cancel") and awaited.cancel(*thrown.args):
            thrown = None  # as in a task: what is awaited is cancelled, and its end is what the coroutine gets
        while True:
            value = None
            if thrown is None:
                try:
                    value = yield awaited
                except BaseException as error:  # the task's cancellation, on its way into the coroutine
                    thrown = error
            awaited = None  # it may have the error that the coroutine passes on, whose frames have this one
            try:
                if thrown is None:
                    awaited = context.run(coroutine.send, value)
                else:
                    cancellation, thrown = thrown, None
                    try:
                        awaited = context.run(coroutine.throw, cancellation)
                    finally:
                        del cancellation  # its traceback leads back to this frame, and to what the handler saw
            except StopIteration as stop:
                return stop.value


class _Drive:
    """Makes an awaitable of a generator."""

    __slots__ = ("_generator",)

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._generator


class _Late:
    """Awaits a coroutine; lets go of it when it begins, or when it is taken away because it never will."""

    __slots__ = ("_coroutine", "_queue")

    def __init__(self, coroutine: Coro, queue: "set[_Late]") -> None:
        self._coroutine: Coro | None = coroutine
        self._queue = queue
        queue.add(self)

    def take(self) -> Coro | None:
        """The coroutine, if it has not begun: a task that was cancelled must not keep what its handler would have seen."""
        self._queue.discard(self)
        coroutine, self._coroutine = self._coroutine, None
        return coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self.take()
        assert coroutine is not None  # awaited once, and not after it was taken
        return coroutine.__await__()


class _Seat(Generic[J]):
    """A task in waiting."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: Context, on_end: Callable[[J, Any, BaseException | None], None]
    ) -> None:
        self.sits = False
        self.job: J | None = None
        self.rest: _Rest | None = None
        self.taken: Final[asyncio.Future[None]] = loop.create_future()
        self._on_end = on_end
        self.task: Final = asyncio.Task(self._sit(), loop=loop, context=context, name="shmrpc handler")

    def take(self, job: J, rest: _Rest) -> None:
        """Carries on a job. Also when the seat was cancelled just now: then the job gets that cancellation."""
        self.job, self.rest = job, rest
        if not self.taken.done():
            self.taken.set_result(None)

    async def _sit(self) -> None:
        self.sits = True
        thrown: BaseException | None = None
        try:
            await self.taken
        except asyncio.CancelledError as error:
            thrown = error
        if self.job is None or self.rest is None:
            if thrown is not None:
                raise thrown
            return
        rest = _Drive(self.rest.drive(thrown))
        thrown = self.rest = None  # their tracebacks lead back to this frame
        await _finish(rest, self.job, self._on_end)


async def _finish(rest: Awaitable[Any], job: J, on_end: Callable[[J, Any, BaseException | None], None]) -> None:
    """Awaits the rest of a job and reports its end."""
    try:
        result = await rest
    except BaseException as error:
        on_end(job, None, error)
        if not isinstance(error, (Exception, asyncio.CancelledError)):
            raise  # KeyboardInterrupt and SystemExit are the loop's
    else:
        on_end(job, result, None)


class Starter(Generic[J]):
    """Starts coroutines in one event loop. `close` it, or its empty seat stays behind as a waiting task."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        variable: ContextVar[Any],
        on_end: Callable[[J, Any, BaseException | None], None],
    ) -> None:
        self._loop = loop
        self._context = context
        self._variable = variable
        self._on_end = on_end
        self._seat: _Seat[J] | None = None
        self._queue: Final[set[_Late]] = set()
        """Those that wait for their turn in the loop, which none overtakes: they begin in the order in which they came."""
        self.ending: asyncio.Task[None] | None = None
        """The task of the empty seat, once it was told to end."""

    def start(self, coroutine: Awaitable[Any], job: J) -> tuple[bool, Any]:
        """Runs a coroutine's first step, in a context of its own in which the starter's variable is the job.

        Returns:
            (True, the result) when that was all. Else (False, anything): the job's `task` is set and carries it on, and
            `on_end` is called with the job and its result, or its exception, once.

        Raises:
            BaseException: what the first step raised.
        """
        steppable = coroutine if isinstance(coroutine, CoroutineType) else _as_coroutine(coroutine)
        seat = self._seat
        if seat is None or not seat.sits or seat.taken.done():
            if seat is None or seat.taken.done():  # somebody who cancels all tasks takes an empty seat for one of them
                self._seat = _Seat(self._loop, self._context, self._on_end)
            return self._start_as_task(steppable, job)
        if self._queue:
            return self._start_as_task(steppable, job)
        task = seat.task
        try:
            step = first_step(self._loop, task, steppable, self._context, self._variable, job)
        finally:
            if seat.taken.done():  # the handler cancelled itself: this seat will not wait for another one
                self._seat = None
        if step is None:  # inside of another task: this one has to wait for its turn
            return self._start_as_task(steppable, job)
        ended, outcome, context = step
        if not ended:
            self._seat = None
            job.task = task
            seat.take(job, _Rest(steppable, context, outcome))
        return ended, outcome

    def _start_as_task(self, coroutine: Coro, job: J) -> tuple[bool, Any]:
        """All of the coroutine as a task, from the next turn of the loop on: while no seat is ready, or others wait."""
        context = self._context.copy()
        context.run(self._variable.set, job)
        whole = _finish(late := _Late(coroutine, self._queue), job, self._on_end)
        job.task = asyncio.Task(whole, loop=self._loop, context=context, name="shmrpc handler")

        def check_started(task: "asyncio.Task[None]") -> None:
            if (never_begun := late.take()) is not None:
                never_begun.close()  # a task that is cancelled before its first step runs none of its code
                self._on_end(job, None, asyncio.CancelledError())

        job.task.add_done_callback(check_started)
        return False, None

    def close(self) -> None:
        """Ends the empty seat."""
        if self._seat is not None and not self._seat.taken.done():
            self._seat.taken.set_result(None)
            self.ending = self._seat.task
        self._seat = None


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
