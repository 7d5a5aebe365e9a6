"""The hand-rolled rival's stream of arrays: a connection of its own, on which they follow one another.

The client asks with a count, a size, and whether all is to be touched. Then the arrays come, without anything between
them. The server writes each from where it lies, and goes on when the kernel has taken it, since it writes the same warm
memory again. The client receives into two buffers by turns, straight from the socket: while one is looked at the other
fills. So user space copies nothing, and touches no fresh memory. An array is valid until the next one is asked for.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import cast

import numpy as np

from benchmarks.arrays.entrants.handrolled import SEND_BUFFER_BYTES
from benchmarks.arrays.workload import Words, numbered
from benchmarks.streams.workload import stamp

ASKED = struct.Struct("<QQQ")
BUFFERS = 2


def path_of(path: str) -> str:
    """Where arrays are served, beside everything else."""
    return f"{path}.arrays"


class Server(asyncio.Protocol):
    """Writes what is asked for."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.asked = b""
        self.writable: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, let the kernel buffer more, and nobody else: what is written may be written again."""
        self.transport = cast(asyncio.Transport, transport)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """Begin a stream."""
        self.asked += data
        if len(self.asked) >= ASKED.size:
            count, nbytes, touch_all = ASKED.unpack(self.asked)
            self.asked = b""
            self.task = self.loop.create_task(self.send(count, nbytes, bool(touch_all)))

    async def send(self, count: int, nbytes: int, touch_all: bool) -> None:
        """So many arrays."""
        array = numbered(nbytes)
        for number in range(count):
            stamp(array, number, touch_all=touch_all)
            self.transport.write(array.data.cast("B"))
            if self.writable is not None:
                await self.writable

    def pause_writing(self) -> None:
        """Not all of an array is with the kernel."""
        self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        """It is now."""
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for the rest."""
        if self.task is not None:
            self.task.cancel()


class Client(asyncio.BufferedProtocol):
    """Receives arrays into two buffers by turns."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.nbytes = self.filled = 0
        self.free: deque[memoryview] = deque()
        self.full: deque[memoryview] = deque()
        self.paused = False
        self.waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The rest of the array that is coming."""
        return self.free[0][self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand an array over when it is complete; stop when there is no buffer for another."""
        self.filled += nbytes
        if self.filled < self.nbytes:
            return
        self.filled = 0
        self.full.append(self.free.popleft())
        if not self.free:
            self.paused = True
            self.transport.pause_reading()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays."""
        if nbytes != self.nbytes:
            self.nbytes = nbytes
            self.free = deque(memoryview(bytearray(nbytes)) for _ in range(BUFFERS))
        self.transport.write(ASKED.pack(count, nbytes, touch_all))
        for _ in range(count):
            while not self.full:
                self.waiter = self.loop.create_future()
                await self.waiter
            buffer = self.full.popleft()
            yield np.frombuffer(buffer, np.uint64)
            self.free.append(buffer)
            if self.paused:
                self.paused = False
                self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits need not wait any longer."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.cancel()


@asynccontextmanager
async def listening(path: str) -> AsyncIterator[None]:
    """Serve arrays beside `path`, for the length of the context."""
    async with await asyncio.get_running_loop().create_unix_server(Server, path_of(path)):
        yield


def client(path: str) -> AbstractAsyncContextManager[Client]:
    """Connect beside `path`."""

    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        transport, connection = await asyncio.get_running_loop().create_unix_connection(Client, path_of(path))
        try:
            yield connection
        finally:
            transport.close()

    return connected()
