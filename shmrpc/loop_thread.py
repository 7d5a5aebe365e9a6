"""An event loop in a daemon thread of its own, which runs coroutines for callers that wait in other threads.

Owns the thread, how errands get into its loop and how they all end: with their result, with their error, or because the
thread was stopped. Knows nothing of calls; `anyio.from_thread` does the same in general, at twice to three times the time.
"""

import asyncio
import atexit
import contextvars
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakSet

from shmrpc.errors import Closed, ForkedError, ResourceExhausted, RpcError, WrongLoop

T = TypeVar("T")

log: Final = logging.getLogger("shmrpc")

EXIT_SECONDS: Final = 2.0
"""How long the interpreter, when it exits, waits for a thread that was not stopped."""
LATE_SECONDS: Final = 1.0
"""How long errands that go on when the thread is stopped get to end, before they are cancelled."""


class Errand:
    """One coroutine that the loop's thread runs for another thread, in a copy of the context that it was made in."""

    __slots__ = ("_arguments", "_context", "_function", "_given_up", "_on_end", "ended", "error", "result", "task")

    def __init__(self, on_end: Callable[[], object], function: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        self._on_end: Final = on_end
        """Called once when it has ended, in the loop's thread."""
        self._function: Callable[..., Awaitable[Any]] | None = function
        self._arguments = arguments
        self._context: Final = contextvars.copy_context()
        self._given_up = False
        self.task: asyncio.Task[None] | None = None
        """What runs it, from its beginning on."""
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, on_done: Callable[[], object]) -> None:
        """Starts it, unless nobody waits for it any more; in the loop's thread. `on_done` is called at its end."""
        if self._given_up:
            self.fail(asyncio.CancelledError())
            on_done()
            return
        self.task = loop.create_task(self._run(), context=self._context)

        def end(task: "asyncio.Task[None]") -> None:
            self.fail(asyncio.CancelledError())  # if it was cancelled before its first step, it ran none of its code
            on_done()

        self.task.add_done_callback(end)

    async def _run(self) -> None:
        function, arguments = self._function, self._arguments
        self._function, self._arguments = None, ()
        assert function is not None
        try:
            self.result = await function(*arguments)
        except BaseException as error:  # whoever waits gets it
            self.error = error
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # these are the loop's too
        finally:
            del function, arguments
            self._end()

    def give_up(self) -> None:
        """Nobody waits for it any more; in the loop's thread."""
        self._given_up = True
        if self.task is not None:
            self.task.cancel()

    def fail(self, error: BaseException) -> None:
        """Ends it, if nothing has yet."""
        if not self.ended:
            self.error = error
            self._end()

    def _end(self) -> None:
        self.ended = True
        self._on_end()

    def outcome(self) -> Any:
        """Its result, once it has ended. Raises what it raised, an `RpcError` without the frames of the loop."""
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            if isinstance(error, asyncio.CancelledError):
                raise Closed("the connection was closed while the call was under way", maybe_executed=True) from None
            raise error.with_traceback(None) if isinstance(error, RpcError) else error
        finally:
            del error  # else it, its traceback and this frame keep each other


class LoopThread:
    """Runs an event loop, on uvloop where it is installed, from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self.name: Final = name
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Final = threading.Thread(target=self._serve, name=name, daemon=True)
        self._stack: Final = AsyncExitStack()
        self._stopping: Final = asyncio.Event()
        self._errands: Final[set[Errand]] = set()
        self._helpers: list[threading.Thread] = []
        self._failed: BaseException | None = None

    def __repr__(self) -> str:
        return f"<LoopThread {self.name}, {'running' if self._thread.is_alive() else 'not running'}>"

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; only to be used in its thread, but for `call_soon_threadsafe`.

        Raises:
            Closed: it was not started.
        """
        if self._loop is None:
            raise Closed(f"{self.name} was not started")
        return self._loop

    @property
    def forked(self) -> bool:
        """Whether this is a forked child, which does not have the thread."""
        return self._loop is not None and self._pid != os.getpid()

    @property
    def running(self) -> bool:
        """Whether it was started, and nobody has stopped it."""
        return self._loop is not None and not self.forked and not self._stopping.is_set() and self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread.

        Raises:
            Closed: it was started before.
            OSError: the system has no fd left for an event loop.
            RuntimeError: nor a thread.
        """
        if self._loop is not None:
            raise Closed("a stub can be entered once; connect again")
        self._loop = _new_loop()
        self._pid = os.getpid()
        try:
            self._thread.start()
        except BaseException:
            self._loop.close()
            self._loop = None
            raise
        _running.add(self)

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._live())
        except BaseException as error:  # it is raised by `stop`
            self._failed = error
        finally:
            _running.discard(self)
            while self._errands:  # the loop is closed: what is not in here cannot come any more
                errand = self._errands.pop()
                errand.fail(Closed("the connection of this stub was closed", maybe_executed=errand.task is not None))

    async def _live(self) -> None:
        await self._stopping.wait()
        try:
            await self._stack.aclose()
        finally:
            tasks = [errand.task for errand in self._errands if errand.task is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=LATE_SECONDS)
            await self._stack.aclose()  # of what was entered meanwhile

    # ---- errands ----

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Awaits a coroutine function's result in the loop, in a copy of the caller's context.

        When the wait is interrupted, by KeyboardInterrupt for one, the coroutine is cancelled. Raises what it raises.

        Raises:
            Closed: the thread has ended, or ends meanwhile.
            ForkedError: this is a forked child.
            WrongLoop: this is the loop's own thread, which would wait for itself.
        """
        ended = threading.Lock()
        ended.acquire()
        errand = Errand(ended.release, function, *arguments)
        try:
            self.send(errand)
            ended.acquire()
        except BaseException:
            self.give_up(errand)
            raise
        result: T = errand.outcome()
        return result

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same for a plain function; in the loop's own thread, it is simply called."""
        if threading.get_ident() == self._thread.ident:
            return function(*arguments)

        async def call() -> T:
            return function(*arguments)

        result: T = self.run(call)
        return result

    def enter(self, context_manager: AbstractAsyncContextManager[T]) -> T:
        """Enters something in the loop; it is left when the thread is stopped."""

        async def enter() -> T:
            return await self._stack.enter_async_context(context_manager)

        return self.run(enter)

    def send(self, errand: Errand) -> None:
        """Has the loop begin an errand. Raises what `run` raises, but what the coroutine does."""
        if self.forked:
            raise ForkedError("this connection belongs to the parent process; connect again in the child")
        if threading.get_ident() == self._thread.ident:
            raise WrongLoop(f"a blocking call was made in the thread that carries it, {self.name}, and would never end")
        self._errands.add(errand)
        try:
            self.loop.call_soon_threadsafe(self._begin, errand)
        except RuntimeError:
            self._errands.discard(errand)
            raise Closed("the connection of this stub is closed") from None

    def _begin(self, errand: Errand) -> None:
        if self._stopping.is_set():
            self._errands.discard(errand)
            errand.fail(Closed("the connection of this stub is closed"))
        else:
            errand.begin(self.loop, partial(self._errands.discard, errand))

    def give_up(self, errand: Errand) -> None:
        """Cancels an errand, if it goes on. From any thread; does not wait."""
        if not errand.ended and not self.forked:
            self.post(errand.give_up)

    def post(self, function: Callable[..., object], *arguments: Any) -> bool:
        """Has a plain function called in the loop; says whether there is a loop to do so. Does not wait."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # it is closed
            return False
        return True

    def help(self, function: Callable[..., object], *arguments: Any) -> None:
        """Calls a function in another daemon thread, which must be told when to end; in the loop's thread.

        Raises:
            ResourceExhausted: there can be no more threads.
        """
        self._helpers = [helper for helper in self._helpers if helper.is_alive()]
        helper = threading.Thread(target=function, args=arguments, name=f"{self.name} feed", daemon=True)
        try:
            helper.start()
        except RuntimeError as error:
            raise ResourceExhausted(f"{helper.name} needs a thread, and cannot have one: {error}") from None
        self._helpers.append(helper)

    # ---- the end ----

    def stop_soon(self) -> None:
        """Begins to stop. From any thread; does not wait. Idempotent."""
        if self._loop is not None and not self.forked:
            self.post(self._stopping.set)

    def stop(self, timeout: float | None = None) -> None:
        """Leaves what was entered, which ends what is under way, and waits for the end of the thread. Idempotent.

        In the loop's own thread, and in a forked child, it does not wait. Raises what leaving raised.
        """
        if self._loop is None or self.forked:
            return
        self.stop_soon()
        if threading.get_ident() != self._thread.ident:
            self._thread.join(timeout)
        until = time.monotonic() + LATE_SECONDS  # for all of them together
        for helper in self._helpers:
            if helper is not threading.current_thread():
                helper.join(max(0.0, until - time.monotonic()))
                if helper.is_alive():
                    log.warning("%s still waits for the next item of an iterable that was given to a call", helper.name)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_running: Final[WeakSet[LoopThread]] = WeakSet()


def _stop_all() -> None:
    """At the interpreter's exit: says goodbye for connections that nobody closed."""
    for thread in list(_running):
        thread.stop(EXIT_SECONDS)


atexit.register(_stop_all)
