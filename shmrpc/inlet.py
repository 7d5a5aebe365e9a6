"""The reading end of a stream: keeps what came until the application reads it, and gives credit back as it does.

Credit counts items and bytes. The reader says what it has read since the stream began, both in total; the writer, see
`outlet`, may send while less than a window is unread of both. So one item may exceed the window of bytes, and no more than
that. How messages and credit travel is a transport's affair.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

from shmrpc import codec
from shmrpc.buffers import Buffer
from shmrpc.errors import Cancelled


class Window(NamedTuple):
    """How much of a stream may be sent and not read."""

    items: int
    nbytes: int


DEFAULT_WINDOW: Final = Window(256, 4 << 20)
"""What a reader accepts that says nothing else."""


class BrokenCredit(ValueError):
    """The peer sent more than it may, or gave credit for what was never sent."""


class Message(NamedTuple):
    """Items that came."""

    payload: bytes
    views: Sequence[Buffer]
    many: bool
    items: int
    nbytes: int


class Inlet:
    """The reading end of a stream. It is the async iterator that a handler gets for a parameter.

    Args:
        loop: The event loop of the reader.
        read: Decodes a message's items: payload, views, and whether it is one of many.
        window: What the writer was told that it may send.
        grant: Sends credit: how many items, and bytes, were read in total.
        ready: Where items are put that can be read at once.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        read: Callable[[bytes, Sequence[Buffer], bool], list[Any]],
        window: Window,
        grant: Callable[[int, int], None],
        ready: deque[Any] | None = None,
    ) -> None:
        self.ready: Final[deque[Any]] = deque() if ready is None else ready
        self._loop = loop
        self._read = read
        self._window: Final = window
        self._grant = grant
        self._messages: deque[Message] = deque()
        self._unread_items = window.items
        """How many more may come, before the next credit."""
        self._unread_bytes = window.nbytes
        self._read_items = self._granted_items = 0
        self._read_bytes = self._granted_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._end: BaseException | None = None
        self.touched = False
        """Whether anything came."""

    def __repr__(self) -> str:
        state = "open" if self._end is None else "ended"
        waiting = sum(message.items for message in self._messages) + len(self.ready)
        return f"<Inlet {state}, {waiting} items to be read>"

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self._end is not None

    # ---- what comes ----

    def put(self, payload: bytes, views: Sequence[Buffer], *, many: bool) -> None:
        """Takes a message in.

        Raises:
            BrokenCredit: it exceeds what the writer may send, or is no message.
        """
        if self._end is not None:
            return
        try:
            count = codec.count_of_many(payload) if many else 1
        except ValueError as error:
            raise BrokenCredit(str(error)) from None
        nbytes = len(payload) + sum(map(len, views)) if views else len(payload)  # type: ignore[arg-type]
        if count > self._unread_items or self._unread_bytes <= 0:
            raise BrokenCredit(
                f"{count} items of {nbytes} bytes came, and the credit was {self._unread_items} items of "
                f"{max(0, self._unread_bytes)} bytes"
            )
        self._unread_items -= count
        self._unread_bytes -= nbytes
        self.touched = True
        self._messages.append(Message(payload, views, many, count, nbytes))
        self._wake()

    def finish(self, error: BaseException | None = None, *, at_once: bool = False) -> None:
        """Nothing more comes. What came before is read first, unless `at_once`; then the error is raised, if any.

        What ended before ends again only if that is `at_once`, and there is something that is not read any more.
        """
        if self._end is None or (at_once and (self._messages or self.ready)):
            self._end = StopAsyncIteration() if error is None else error
            if at_once:
                self._messages.clear()
                self.ready.clear()
            self._wake()

    def disown(self, error: BaseException) -> None:
        """The same at once, without waking whoever waits: in a forked child, where nobody does."""
        self._end = error
        self._messages.clear()
        self.ready.clear()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ---- what is read ----

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self.ready:
            return self.ready.popleft()
        return await self.next()

    async def next(self) -> Any:
        """The next item.

        Raises:
            StopAsyncIteration: there is none, and there never will be.
            RuntimeError: another task waits for it already.
            BaseException: what the stream ended with, once.
        """
        while not self.ready:
            if self._messages:
                self._open(self._messages.popleft())
            elif self._end is not None:
                error, self._end = self._end, StopAsyncIteration()
                try:
                    raise error
                finally:
                    del error  # else it, its traceback and this frame keep each other, and what the reader holds
            else:
                await self._wait()
        return self.ready.popleft()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a stream is read by one task at a time, and another one waits for its next item")
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _open(self, message: Message) -> None:
        payload, views, many, count, nbytes = message
        del message
        try:
            self.ready.extend(self._read(payload, views, many))
        finally:  # items that do not fit are over too
            self._account(count, nbytes)

    def _account(self, count: int, nbytes: int) -> None:
        """So much was read: gives credit for it when it is half of the window."""
        self._read_items += count
        self._read_bytes += nbytes
        if self._end is None and (
            (self._read_items - self._granted_items) * 2 >= self._window.items
            or (self._read_bytes - self._granted_bytes) * 2 >= self._window.nbytes
        ):
            self._unread_items += self._read_items - self._granted_items
            self._unread_bytes += self._read_bytes - self._granted_bytes
            self._granted_items, self._granted_bytes = self._read_items, self._read_bytes
            self._grant(self._read_items, self._read_bytes)


def cut_off(inlet: Inlet, name: str) -> None:
    """For a handler that has ended: whoever still reads its parameter hears so."""
    inlet.finish(Cancelled(f"the call of {name} has ended"), at_once=True)
