"""The writing end of a stream: iterates what an application gives, encodes the items, and stops when it has no credit.

Items that can hold no buffers are put into one message as long as they come within one turn of the event loop. What credit
is, see `inlet`. How messages travel is a transport's affair: its `Sink`.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Final, Protocol

from shmrpc import codec
from shmrpc.buffers import Packed
from shmrpc.codec import MANY_HEAD_BYTES
from shmrpc.inlet import BrokenCredit, Window

MANY_MOST: Final = 64
"""Items in one message: a reader that waits gets the first of them not too late."""


class Items(Protocol):
    """How a stream's items are encoded: an `ItemCodec`, or what stands for one."""

    @property
    def buffered(self) -> bool:
        """Whether each item is a message of its own; else many may be in one."""
        ...

    @property
    def pack(self) -> Callable[[Any], Packed]:
        """Encodes one item. Raises whatever is wrong with it."""
        ...


class Sink(Protocol):
    """How a transport sends what an outlet encodes."""

    @property
    def largest(self) -> int:
        """The largest payload, bytes, that `send` takes."""
        ...

    @property
    def full(self) -> bool:
        """Whether what was sent waits for room: then nothing more should be."""
        ...

    def send(self, payload: bytes, *, many: bool) -> None:
        """Sends a message without buffers. Never raises."""

    async def send_apart(self, packed: Packed, *, many: bool) -> None:
        """Sends a message with buffers, or one that is too large for `send`; waits for memory."""

    async def room(self) -> None:
        """Returns when `full` may have ended."""


class Outlet:
    """The writing end of a stream."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: Items,
        sink: Sink,
        window: Window,
        encode_json: Callable[[Any], bytes] | None = None,
        misfit: Callable[[Exception], Exception] | None = None,
    ) -> None:
        self._loop = loop
        self._items = items
        self._sink = sink
        self._window: Final = window
        self._encode_json = encode_json
        """For a peer without the contract: each item is a message, in JSON."""
        self._misfit = misfit
        """What is raised for an item that cannot be encoded; None: the encoder's own error."""
        self._body = bytearray(MANY_HEAD_BYTES)
        self._count = 0
        """Items in the body, which wait for more of them, or for the end of this turn of the loop."""
        self._flush_handle: asyncio.Handle | None = None
        self._apart: tuple[Packed, bool] | None = None
        """What must be sent by waiting, for memory or for credit; and whether it is a message of many."""
        self._sent_items = self._read_items = 0
        self._sent_bytes = self._read_bytes = 0
        self._left = window.items
        """Items that may be sent; none when there is no credit for bytes."""
        self._credit: asyncio.Future[None] | None = None
        self.touched = False
        """Whether what the application gave was begun to be iterated, which can be done once."""

    def __repr__(self) -> str:
        return f"<Outlet {self._sent_items} items sent, {self._read_items} read>"

    # ---- credit ----

    def grant(self, items: int, nbytes: int) -> None:
        """The reader has read so much in total.

        Raises:
            BrokenCredit: it cannot have.
        """
        if not (self._read_items <= items <= self._sent_items and self._read_bytes <= nbytes <= self._sent_bytes):
            raise BrokenCredit(
                f"the peer says that it has read {items} items of {nbytes} bytes after {self._read_items} of "
                f"{self._read_bytes}, and was sent {self._sent_items} of {self._sent_bytes}"
            )
        self._read_items, self._read_bytes = items, nbytes
        self._count_left()
        if self._left > 0 and self._credit is not None and not self._credit.done():
            self._credit.set_result(None)

    def _count_left(self) -> None:
        unread_bytes = self._sent_bytes - self._read_bytes
        self._left = (
            self._window.items - self._sent_items + self._read_items if unread_bytes < self._window.nbytes else 0
        )

    def _account(self, count: int, nbytes: int) -> None:
        self._sent_items += count
        self._sent_bytes += nbytes
        self._count_left()

    # ---- what is sent ----

    async def pump(self, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Sends every item of a source, as fast as the reader reads, and closes the source however that ends.

        Raises:
            BaseException: what the source raises, or what is wrong with an item; those before it were sent.
        """
        self.touched = True
        iterator = iterator_of(source)
        add = self._add_json if self._encode_json is not None else self._add_one if self._items.buffered else self._add
        try:
            async for item in iterator:
                try:
                    more = add(item)
                except Exception as error:  # the encoder meets arbitrary values
                    if self._misfit is None:
                        raise
                    raise self._misfit(error) from error
                if not more:
                    del item  # it may hold memory that the reader waits for
                    await self._go_on()
        except asyncio.CancelledError:
            self.drop()
            raise
        finally:
            self.flush()
            await close_iterator(iterator)

    def _add(self, item: Any) -> bool:
        """Takes one item that holds no buffers. Whether one more may come at once."""
        body = self._body
        before = len(body)
        try:
            codec.encode_into(item, body, -1)
        except BaseException:
            del body[before:]
            raise
        if len(body) > self._sink.largest:
            return self._overflow(before)
        count = self._count = self._count + 1
        if count == 1:
            if self._flush_handle is None:
                self._flush_handle = self._loop.call_soon(self._flush_soon)
            if self._sink.full:
                return False
        elif count >= MANY_MOST:
            self.flush()
            return self._left > 0 and not self._sink.full
        return count < self._left

    def _overflow(self, before: int) -> bool:
        """The last item does not fit into one message with those before it."""
        tail = bytes(self._body[before:])
        del self._body[before:]
        self.flush()
        if self._left <= 0 or MANY_HEAD_BYTES + len(tail) > self._sink.largest:
            self._apart = Packed(codec.head_of_many(1) + tail, ()), True
        else:
            self._body += tail
            self._count = 1
        return False

    def _add_one(self, item: Any) -> bool:
        """Takes one item that may hold buffers, which is a message of its own."""
        packed = self._items.pack(item)
        if packed.pieces or len(packed.payload) > self._sink.largest:
            self._apart = packed, False
            return False
        return self._send_one(packed.payload)

    def _add_json(self, item: Any) -> bool:
        assert self._encode_json is not None
        payload = self._encode_json(item)
        if len(payload) > self._sink.largest:
            self._apart = Packed(payload, ()), False
            return False
        return self._send_one(payload)

    def _send_one(self, payload: bytes) -> bool:
        self._account(1, len(payload))
        self._sink.send(payload, many=False)
        return self._left > 0 and not self._sink.full

    async def _go_on(self) -> None:
        """Returns when one more item may be taken."""
        if self._apart is not None:
            await self._wait_for_credit()
            (packed, many), self._apart = self._apart, None
            nbytes = len(packed.payload) + sum(piece.nbytes for piece in packed.pieces)
            self._account(1, nbytes)
            await self._sink.send_apart(packed, many=many)
            del packed
        self.flush()
        while self._left <= 0 or self._sink.full:
            await self._wait_for_credit()
            if self._sink.full:
                await self._sink.room()

    async def _wait_for_credit(self) -> None:
        while self._left <= 0:
            self._credit = self._loop.create_future()
            try:
                await self._credit
            finally:
                self._credit = None

    def _flush_soon(self) -> None:
        self._flush_handle = None
        self.flush()

    def flush(self) -> None:
        """Sends the items that wait for more."""
        if count := self._count:
            body = self._body
            body[:MANY_HEAD_BYTES] = codec.head_of_many(count)
            payload = bytes(body)
            del body[MANY_HEAD_BYTES:]
            self._count = 0
            self._account(count, len(payload))
            self._sink.send(payload, many=True)

    def drop(self) -> None:
        """Forgets the items that wait for more: nobody wants them."""
        self._count = 0
        self._apart = None
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None


def iterator_of(source: AsyncIterable[Any] | Iterable[Any]) -> AsyncIterator[Any]:
    """An async iterator of whatever an application gives as a stream."""
    return aiter(source) if isinstance(source, AsyncIterable) else _each(source)


async def close_iterator(iterator: object) -> None:
    """Closes an async iterator, if it is one that can be closed."""
    if (aclose := getattr(iterator, "aclose", None)) is not None:
        await aclose()


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


class Pump:
    """Passes a caller's own stream on, in a task of its own, while its call is under way."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        outlet: Outlet,
        source: AsyncIterable[Any] | Iterable[Any],
        *,
        is_open: Callable[[], bool],
        on_end: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Begins.

        Args:
            loop: The call's.
            name: The method's full one.
            outlet: Where to.
            source: The stream.
            is_open: Whether the call is under way.
            on_end: Called when the stream has ended by itself, and the call is under way.
            on_error: Called with what the stream raised.
        """
        # Nothing of it is kept here: whoever has this is what the callbacks belong to.
        task = loop.create_task(_pass_on(outlet, source, is_open, on_end, on_error), name=f"shmrpc items {name}")
        self._task: asyncio.Task[None] | None = task
        task.add_done_callback(self._on_done)

    def _on_done(self, _: "asyncio.Task[None]") -> None:
        self._task = None  # lest its cancellation, the frames of that and their owner keep each other

    def stop(self) -> None:
        """Stops to pass it on. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Returns when the stream is closed; at once to the stream itself."""
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait((self._task,))


async def _pass_on(
    outlet: Outlet,
    source: AsyncIterable[Any] | Iterable[Any],
    is_open: Callable[[], bool],
    on_end: Callable[[], None],
    on_error: Callable[[BaseException], None],
) -> None:
    try:
        await outlet.pump(source)
    except asyncio.CancelledError:
        if is_open():  # by the source itself, not by the end of the call
            on_error(asyncio.CancelledError())
        raise
    except BaseException as error:
        on_error(error)
        if not isinstance(error, Exception):
            raise  # KeyboardInterrupt and SystemExit are the loop's
    else:
        if is_open():
            on_end()
