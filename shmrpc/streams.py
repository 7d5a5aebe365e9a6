"""What a stub gives for a method whose result is a stream, over whatever transport."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from shmrpc.errors import DeadlineExceeded, WrongLoop
from shmrpc.inlet import Inlet


class Flow(Protocol):
    """A call whose result is a stream, once it has begun."""

    @property
    def inlet(self) -> Inlet:
        """Where the items arrive."""
        ...

    @property
    def untouched(self) -> bool:
        """Whether nothing came of it, and nothing was taken of the caller's own stream: it can be begun again."""
        ...

    def abandon(self) -> None:
        """Nobody reads it any more: ends it at the other side too. Idempotent."""

    async def wait_closed(self) -> None:
        """Returns when nothing of this side works for it any more."""


class ResultStream:
    """What a stub's method gives whose result is a stream: an async iterator of the items.

    Nothing is sent before the first item is asked for. Leaving it early ends the handler: by `aclose`, by the end of the
    task that waits for an item, and, some time later, by dropping the last reference.
    """

    def __init__(
        self,
        name: str,
        begin: Callable[[deque[Any]], Awaitable[Flow]],
        should_repeat: Callable[[BaseException], bool],
        idle_timeout: float | None,
    ) -> None:
        self._name = name
        self._ready: Final[deque[Any]] = deque()
        self._begin: Callable[[deque[Any]], Awaitable[Flow]] | None = begin
        self._loop: asyncio.AbstractEventLoop | None = None
        self._should_repeat = should_repeat
        self._idle_timeout = idle_timeout
        self._flow: Flow | None = None
        self._reading = False

    def __repr__(self) -> str:
        state = "ended" if self._begin is None else "not begun" if self._flow is None else "running"
        return f"<stream of {self._name}, {state}>"

    def __aiter__(self) -> "ResultStream":
        return self

    async def __anext__(self) -> Any:
        if self._ready:
            return self._ready.popleft()
        return await self._next()

    async def _next(self) -> Any:
        if self._begin is None:
            raise StopAsyncIteration
        if self._reading:
            raise RuntimeError(
                f"the stream of {self._name} is read by one task at a time, and another one waits for it"
            )
        self._check_loop()
        self._reading = True
        try:
            while True:
                try:
                    return await self._read()
                except Exception as error:
                    if self._flow is None or not self._flow.untouched or not self._should_repeat(error):
                        raise
                    self._flow = None
        except BaseException:
            await self._end()
            raise
        finally:
            self._reading = False

    async def _read(self) -> Any:
        if self._idle_timeout is None:  # which costs as much as the rest
            return await self._read_on()
        limit = asyncio.timeout(self._idle_timeout)
        try:
            async with limit:
                return await self._read_on()
        except TimeoutError:
            if not limit.expired():  # the call's deadline, or the caller's own stream
                raise
            raise DeadlineExceeded(f"{self._name}: nothing came for {self._idle_timeout} s (idle_timeout)") from None

    async def _read_on(self) -> Any:
        if self._flow is None:
            assert self._begin is not None
            self._flow = await self._begin(self._ready)
            self._loop = asyncio.get_running_loop()
        return await self._flow.inlet.next()

    def _check_loop(self) -> None:
        if self._flow is not None and not self._flow.inlet.ended and asyncio.get_running_loop() is not self._loop:
            raise WrongLoop(f"the stream of {self._name} began in another event loop, or another thread, than this one")

    async def _end(self) -> None:
        self._begin = None
        self._ready.clear()
        if self._flow is not None:
            self._flow.abandon()
            await self._flow.wait_closed()
            self._flow = None  # which leads to the error that it ended with, and from there to whoever got that

    async def aclose(self) -> None:
        """Ends the call, if it has not ended: its handler is cancelled. Idempotent.

        Raises:
            RuntimeError: a task waits for an item; cancel it instead.
            WrongLoop: it began in another event loop.
        """
        if self._reading:
            raise RuntimeError(f"the stream of {self._name} is being read; cancel the task that reads it")
        self._check_loop()
        await self._end()

    def __del__(self) -> None:
        flow = getattr(self, "_flow", None)
        if flow is None or self._begin is None or flow.inlet.ended:
            return
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(flow.abandon)
            except RuntimeError:  # the loop was closed in another thread just now
                return
