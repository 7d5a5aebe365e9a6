"""The strongest plain-Python rival: one stream at a time over a Unix socket, made of an asyncio protocol and msgspec.

A frame is its length and its kind, both u32 little-endian, then the contents. Small items go in batches: an array of up to
64 of them is encoded, written and decoded at once. The writer knows that its items are at hand, and so never asks itself
whether to wait for more; where items come one at a time, in `talk`, each is written at once.

Flow control is the transport's: the writer stops while the socket's buffer is full, and the reader stops reading while more
than 4096 items are unread. There are no calls, errors, deadlines or cancellation.

Arrays have a connection of their own, see `handrolled_arrays`.
"""

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import msgspec

from benchmarks.arrays.workload import Words
from benchmarks.streams.entrants import handrolled_arrays
from benchmarks.streams.workload import BATCH, count_of, items
from benchmarks.workload import Item

HEADER = struct.Struct("<II")
NUMBER = struct.Struct("<Q")
GIVE, TAKE, TALK, ITEMS, END, COUNT = range(6)
BUFFER_BYTES = 256 * 1024
MOST_UNREAD = 4096

encode = msgspec.msgpack.Encoder().encode
decode_items = msgspec.msgpack.Decoder(list[Item]).decode


class Connection(asyncio.BufferedProtocol):
    """Either end."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.filled = 0
        self.ready: deque[Item] = deque()
        self.ended = self.paused = False
        self.waiter: asyncio.Future[None] | None = None
        self.writable: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    # ---- reading ----

    def get_buffer(self, sizehint: int) -> memoryview:
        """The room behind an incomplete frame."""
        return self.view[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take the complete frames; an incomplete one moves to the front."""
        view, end, start = self.view, self.filled + nbytes, 0
        while end - start >= HEADER.size:
            size, kind = HEADER.unpack_from(view, start)
            stop = start + HEADER.size + size
            if stop > end:
                break
            self.take_frame(kind, view[start + HEADER.size : stop])
            start = stop
        self.filled = end - start
        if self.filled:
            self.buffer[: self.filled] = bytes(view[start:end])
        if len(self.ready) > MOST_UNREAD and not self.paused:
            self.paused = True
            self.transport.pause_reading()

    def take_frame(self, kind: int, contents: memoryview) -> None:
        """Items, or their end."""
        if kind == ITEMS:
            self.ready += decode_items(contents)
        else:
            self.ended = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def read(self) -> AsyncIterator[Item]:
        """The items of one stream."""
        ready = self.ready
        while True:
            while ready:
                yield ready.popleft()
            if self.paused:
                self.paused = False
                self.transport.resume_reading()
            if self.ended:
                self.ended = False
                return
            self.waiter = self.loop.create_future()
            await self.waiter

    # ---- writing ----

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None

    def write(self, kind: int, contents: bytes = b"") -> None:
        """One frame."""
        self.transport.write(HEADER.pack(len(contents), kind) + contents)

    async def send(self, source: AsyncIterator[Item], batch: int = BATCH) -> None:
        """All items of a stream, so many at a time, and their end."""
        together: list[Item] = []
        async for item in source:
            together.append(item)
            if len(together) == batch:
                self.write(ITEMS, encode(together))
                together.clear()
                if self.writable is not None:
                    await self.writable
        if together:
            self.write(ITEMS, encode(together))
        self.write(END)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits need not wait any longer."""
        for future in (self.waiter, self.writable):
            if future is not None and not future.done():
                future.cancel()


class Server(Connection):
    """Begins a task for each stream that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[None] | None = None

    def take_frame(self, kind: int, contents: memoryview) -> None:
        """What is asked for, or items."""
        if kind == GIVE:
            (count,) = NUMBER.unpack(contents)
            self.task = self.loop.create_task(self.send(items(count)))
        elif kind == TAKE:
            self.task = self.loop.create_task(self.count())
        elif kind == TALK:
            self.task = self.loop.create_task(self.send(self.read(), batch=1))
        else:
            super().take_frame(kind, contents)

    async def count(self) -> None:
        """Read a stream, and say how much it was."""
        self.write(COUNT, NUMBER.pack(await count_of(self.read())))


class Client(Connection):
    """One stream at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.count: asyncio.Future[int] = self.loop.create_future()
        self.of_arrays: handrolled_arrays.Client | None = None

    def take_frame(self, kind: int, contents: memoryview) -> None:
        """The server's count, or items."""
        if kind == COUNT:
            (count,) = NUMBER.unpack(contents)
            self.count.set_result(count)
        else:
            super().take_frame(kind, contents)

    def give(self, count: int) -> AsyncIterator[Item]:
        """So many items from the server."""
        self.write(GIVE, NUMBER.pack(count))
        return self.read()

    async def take(self, source: AsyncIterator[Item]) -> int:
        """The server's count of what it was given."""
        self.count = self.loop.create_future()
        self.write(TAKE)
        await self.send(source)
        return await self.count

    async def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back from the server."""
        self.write(TALK)
        sending = self.loop.create_task(self.send(source, batch=1))
        async for item in self.read():
            yield item
        await sending

    def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays from the server."""
        assert self.of_arrays is not None
        return self.of_arrays.arrays(count, nbytes, touch_all)


async def serve(path: str, variant: str) -> None:
    """Serve streams at `path` until cancelled."""
    async with handrolled_arrays.listening(path):
        server = await asyncio.get_running_loop().create_unix_server(Server, path)
        async with server:
            await server.serve_forever()


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    transport, connection = await asyncio.get_running_loop().create_unix_connection(Client, path)
    try:
        async with handrolled_arrays.client(path) as connection.of_arrays:
            yield connection
    finally:
        transport.close()
