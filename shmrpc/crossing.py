"""Streams between an event loop's thread and the threads that wait for it.

A result stream becomes a plain iterator (`BlockingStream`), an iterable becomes an async iterator (`Feed`). Either side may
be ahead of the other by a few items, so that a thread is not woken for each, and never by more: a slow reader stops the
writer here too.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from shmrpc.loop_thread import Errand, LoopThread

T = TypeVar("T")

AHEAD: Final = 16
"""Items of one stream and direction that may wait between the threads."""


class _End:
    """Comes after the last item: why there are no more."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error: Final = error


class Feed(AsyncIterator[T]):
    """What a thread's iterable gives, for the loop. A thread must `pour` it."""

    def __init__(self, thread: LoopThread, iterable: Iterable[T]) -> None:
        self._thread = thread
        self._iterator = iter(iterable)
        self._items: deque[Any] = deque()
        self._room: SimpleQueue[bool] = SimpleQueue()
        self._arrived: asyncio.Future[None] | None = None
        self._stopped = False
        for _ in range(AHEAD):
            self._room.put(True)

    def pour(self) -> None:
        """In the thread: takes item after item, while there is room, until there are no more or the call has ended.

        Raises whatever the iterable raises.
        """
        while self._room.get() and not self._stopped:
            try:
                item = next(self._iterator)
            except StopIteration:
                self._hand_over(_End())
                return
            self._hand_over(item)

    def pour_all(self) -> None:
        """The same in a thread that nobody looks after: the loop gets what the iterable raises."""
        try:
            self.pour()
        except Exception as error:  # it is the caller's, wherever it was raised
            self._hand_over(_End(error))
        except BaseException as error:  # SystemExit would end the loop
            self._hand_over(_End(RuntimeError(f"the iterable that was given raised {error!r}")))

    def _hand_over(self, item: object) -> None:
        self._items.append(item)
        if self._arrived is not None:
            self._thread.post(self._wake)

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def __anext__(self) -> T:
        """The next item, for which it may wait."""
        while not self._items:
            if self._stopped:
                raise StopAsyncIteration
            self._arrived = asyncio.get_running_loop().create_future()  # first, so that `_hand_over` sees it, or
            if not self._items:  # this sees the item
                await self._arrived
            self._arrived = None
        item = self._items.popleft()
        if isinstance(item, _End):
            self.stop()
            if item.error is not None:
                raise item.error
            raise StopAsyncIteration
        self._room.put(True)
        return item  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """No more items are wanted."""
        self.stop()

    def stop(self) -> None:
        """No more items are wanted: whoever pours ends, once the iterable has given what it is asked for. Idempotent."""
        self._stopped = True
        self._room.put(False)


class _Intake(Generic[T]):
    """Items on their way from the loop to a thread. Does not know the iterator that they are for, which may die first."""

    def __init__(
        self, thread: LoopThread, open_stream: Callable[[], AsyncIterator[T]], feed: "Feed[Any] | None"
    ) -> None:
        self._thread = thread
        self._open = open_stream
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._room: asyncio.Future[None] | None = None
        self._feed = feed
        self._left = False
        self.errand: Final = Errand(self._on_end, self._pour)

    async def _pour(self) -> None:
        stream = self._open()
        try:
            if self._feed is not None:
                self._thread.help(contextvars.copy_context().run, self._feed.pour_all)
            async for item in stream:
                if self._left:
                    break
                self._items.put(item)
                del item
                while self._items.qsize() >= AHEAD:
                    self._room = asyncio.get_running_loop().create_future()
                    if self._items.qsize() >= AHEAD:
                        await self._room
                    self._room = None
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def _make_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _on_end(self) -> None:
        if self._feed is not None:
            self._feed.stop()
        self._items.put(_End())

    def leave(self) -> None:
        """In the thread: no more items are wanted. Lets go of those that wait, and does not wait itself. Idempotent."""
        self._left = True
        self._thread.give_up(self.errand)
        with contextlib.suppress(Empty):
            while not isinstance(item := self._items.get_nowait(), _End):
                del item
            self._items.put(item)  # the end, which another thread may wait for

    def take(self) -> Any:
        """In the thread: the next item, or the end."""
        item = self._items.get()
        if self._room is not None and self._items.qsize() <= AHEAD // 2:
            self._thread.post(self._make_room)
        return item


class BlockingStream(Generator[T, None, None]):
    """A result stream as a plain iterator. Its first step begins the call; leaving it ends the call at the other side."""

    def __init__(
        self,
        thread: LoopThread,
        name: str,
        open_stream: Callable[[], AsyncIterator[T]],
        feed: Feed[Any] | None = None,
    ) -> None:
        self._name = name
        self._thread = thread
        self._intake: Final = _Intake(thread, open_stream, feed)
        self._one_at_a_time: Final = threading.Lock()
        self._begun = False
        self._ended = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "under way" if self._begun else "not begun"
        return f"<BlockingStream of {self._name}, {state}>"

    def __next__(self) -> T:
        """The next item. Raises what ended the stream, after the items before it."""
        with self._one_at_a_time:
            if self._ended:
                raise StopIteration
            try:
                if not self._begun:
                    self._begun = True
                    self._thread.send(self._intake.errand)
                item = self._intake.take()
            except BaseException:
                self._leave()
                raise
            if not isinstance(item, _End):
                return item  # type: ignore[no-any-return]
            given_up, self._ended = self._ended, True
            if not given_up:
                self._intake.errand.outcome()
            raise StopIteration

    def send(self, value: None) -> T:
        """The same: nothing can be sent into it."""
        return next(self)

    def throw(self, typ: Any, val: BaseException | object = None, tb: TracebackType | None = None, /) -> T:
        """Leaves the stream, and raises that."""
        self.close()
        error = typ(val) if isinstance(typ, type) and val is not None else typ() if isinstance(typ, type) else typ
        raise error

    def close(self) -> None:
        """Leaves the stream: the handler is cancelled, and an iterable that was given is not asked any more. Idempotent.

        Does not wait for the other side.
        """
        self._leave()

    def _leave(self) -> None:
        if not self._ended:
            self._ended = True
            if self._begun:
                self._intake.leave()

    def __del__(self) -> None:
        self._leave()
