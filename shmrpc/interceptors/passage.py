"""How a stream of results passes its interceptors.

The chain of interceptors runs as a task beside the reader, from the reader's first step until the stream has ended. It
makes the call, and then waits; the items do not go through it. The reader takes them from the stream below itself, so an
item costs no switch of tasks and none is kept on the way. Each step of the stream below runs in the chain's context, so
that it sees the context variables that interceptors have set. Who ends first ends the other: a reader that leaves cancels
the chain, and a chain that gives up, say for a timeout of its own, ends the step that the reader waits in.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from typing import Any, Final

import anyio

from shmrpc.interceptors.call import Intercepted, Interceptor
from shmrpc.interceptors.chain import Chain, Each
from shmrpc.outlet import close_iterator


async def passed(
    ask: Callable[[], tuple[Intercepted, Callable[[], Any]]], interceptors: Sequence[Interceptor]
) -> AsyncGenerator[Any, None]:
    """The items of a stream, past its interceptors.

    Args:
        ask: Called at the first step: gives what the interceptors see, and a function that begins the stream below.
        interceptors: In order, outermost first.
    """
    passage = _Passage(*ask(), interceptors)
    try:
        while await passage.advance():
            yield passage.take()  # kept by no name here: it may be memory that its sender waits for
    finally:
        await passage.close()


class _Within:
    """Awaited, runs a coroutine as a part of the awaiting task, but in another context."""

    __slots__ = ("_awaited", "_context", "_coroutine", "_must_cancel", "cancelled")

    def __init__(self, context: Context, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._context = context
        self._coroutine = coroutine
        self._awaited: Any = None
        self._must_cancel = False
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine = self._context.run, self._coroutine
        thrown: BaseException | None = None
        while True:
            try:
                if thrown is None:
                    self._awaited = run(coroutine.send, None)
                else:
                    cancellation, thrown = thrown, None
                    try:
                        self._awaited = run(coroutine.throw, cancellation)
                    finally:
                        del cancellation  # its traceback leads back to this frame
            except StopIteration as stop:
                return stop.value
            try:
                yield self._awaited
            except BaseException as error:
                thrown = error
            if self._must_cancel:
                self._must_cancel = False
                thrown = asyncio.CancelledError()

    def cancel(self) -> None:
        """Cancels the coroutine, as a task would be, but not the task that awaits it."""
        self.cancelled = True
        self._must_cancel = not (hasattr(self._awaited, "cancel") and self._awaited.cancel())


class _Passage:
    """One stream, between its reader and its interceptors."""

    def __init__(self, call: Intercepted, begin: Callable[[], Any], interceptors: Sequence[Interceptor]) -> None:
        self._name: Final = call.method
        self._begin: Final = begin
        self._loop: Final = asyncio.get_running_loop()
        self._context: Final = copy_context()
        self._below: AsyncIterator[Any] | None = None
        """The stream that the innermost `proceed` has begun."""
        self._over: asyncio.Future[None] | None = None
        """What that `proceed` waits for."""
        self._step: _Within | None = None
        """What the reader waits in."""
        self._news: asyncio.Future[None] | None = None
        """What the reader waits for while there is no stream, or the chain while the reader leaves its step."""
        self._delivered = False
        self._item: Any = None
        self._closing = False
        self._changes: Final[dict[int, Each]] = {}
        self._task: asyncio.Task[Any] | None = self._loop.create_task(
            self._run(call, interceptors), name=f"shmrpc interceptors of {self._name}", context=self._context
        )
        self._task.add_done_callback(self._tell)

    async def _run(self, call: Intercepted, interceptors: Sequence[Interceptor]) -> Any:
        return await Chain(call, interceptors, self._proceed, self._changes).run()

    def _tell(self, *_: object) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def _hear(self) -> None:
        self._news = self._loop.create_future()
        await self._news

    # ---- in the task of the chain ----

    async def _proceed(self) -> None:
        """What is inside of all interceptors: begins the stream, and returns when it has ended."""
        if self._closing:
            raise asyncio.CancelledError
        if self._over is not None:
            raise RuntimeError(f"{self._name}: proceed() was called while its stream is still under way")
        if self._delivered:
            raise RuntimeError(f"{self._name}: proceed() was called again after items of its stream were delivered")
        self._below = aiter(self._begin())
        over = self._over = self._loop.create_future()
        self._tell()
        try:
            await over
        except asyncio.CancelledError:
            await self._withdraw()
            raise
        finally:
            del over  # it has the exception, whose traceback leads back to this frame

    async def _withdraw(self) -> None:
        """The chain, which was cancelled, waits for the stream no longer: ends it, also while the reader is in a step."""
        below, self._below, self._over = self._below, None, None
        if below is None:
            return
        if self._step is not None:
            self._step.cancel()
        while self._step is not None:
            with contextlib.suppress(asyncio.CancelledError):  # once more: it is on its way already
                await self._hear()
        await close_iterator(below)

    # ---- in the task of the reader ----

    async def advance(self) -> bool:
        """Goes to the next item; False when there is none any more.

        Raises:
            BaseException: what the chain ended with.
        """
        while True:
            if self._below is not None:
                if await self._advance(self._below):
                    return True
            elif self._task is None or self._task.done():
                self._end()
                return False
            else:
                await self._hear()

    def take(self) -> Any:
        """The item."""
        item, self._item = self._item, None
        return item

    async def _advance(self, below: AsyncIterator[Any]) -> bool:
        """Goes to the next item of this stream below; False when it has none any more, whatever the reason."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        step = self._step = _Within(self._context, _next(below))
        try:
            item = await step
            if step.cancelled:
                return False
            self._delivered = True
            for depth in sorted(self._changes, reverse=True):  # the innermost first
                item = self._changes[depth](item)
            self._item = item
            return True
        except StopAsyncIteration:
            await self._settle(below, None)
        except asyncio.CancelledError:
            if not step.cancelled or (task is not None and task.cancelling() > cancelled_before):
                raise
        except Exception as error:
            await self._settle(below, error)
        finally:
            self._step = None
            if step.cancelled:
                self._tell()
        return False

    async def _settle(self, below: AsyncIterator[Any], error: Exception | None) -> None:
        """The stream below has ended: closes it, and tells the chain."""
        over, self._over, self._below = self._over, None, None
        try:
            await _Within(self._context, close_iterator(below))
        except Exception as worse:
            error = worse
        if over is not None and not over.done():
            if error is None:
                over.set_result(None)
            else:
                over.set_exception(error)
        del error, over  # the traceback may lead back to this frame

    def _end(self) -> None:
        task, self._task = self._task, None
        try:
            result = task.result() if task is not None else None
        finally:
            del task  # it has the exception, whose traceback leads back to this frame
        if result is not None:
            raise TypeError(
                f"{self._name}: an interceptor of a stream of results returned {type(result).__name__}, expected None; "
                "items are changed with proceed(each=…)"
            )

    async def close(self) -> None:
        """The reader has gone: ends the stream below, then the chain. Idempotent.

        Raises:
            Exception: what the stream or an interceptor raises instead of ending quietly.
        """
        self._closing = True
        over, told = self._over, False
        try:
            told = await self._close_below(over)
        finally:
            await self._end_chain(over, told)

    async def _close_below(self, over: asyncio.Future[None] | None) -> bool:
        """Closes the stream below. Whether that failed, and the chain was told so."""
        below, self._below = self._below, None
        if below is None:
            return False
        try:
            await _Within(self._context, close_iterator(below))
        except Exception as error:
            if over is None or over.done():
                raise
            over.set_exception(error)
            return True
        return False

    async def _end_chain(self, over: asyncio.Future[None] | None, told: bool) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        if task.done():  # before it could hear of this: how is no concern of a reader that has gone
            if not task.cancelled():
                task.exception()
            return
        if not told:
            task.cancel()
            if over is not None:
                over.cancel()  # an interceptor may have a task of its own for it
        try:
            with anyio.CancelScope(shield=True):  # else what interceptors shield is cut off, unlike around a unary call
                await _ended(task)
            if not task.cancelled():
                task.result()
        finally:
            if task.done() and not task.cancelled():
                task.exception()  # fetched, also when the reader is cancelled once more and does not ask
            del task


async def _next(below: AsyncIterator[Any]) -> Any:
    return await anext(below)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Returns when a task has ended that was cancelled; hands on any further cancellation."""
    again: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            task.cancel()
            again = error
    try:
        if again is not None:
            raise again
    finally:
        del again
