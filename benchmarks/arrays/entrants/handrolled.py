"""The strongest plain-Python rival: a protocol over a Unix socket that carries one array at a time.

A frame is its length (u64), a method (u64), then the contents; dtype and shape are agreed, not sent. Each end receives
into one buffer that is as large as the largest frame so far and is used again, straight from the socket, and writes
from where the contents lie. So user space copies nothing, and touches no fresh memory. It pays for that with what a
service could not do without: an array is valid until the next frame, and one call is under way at a time.

Sockets get send buffers of 4 MiB where the kernel allows it, which was the fastest of several sizes.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import numpy as np

from benchmarks.arrays.workload import Warm, Words, total
from benchmarks.workload import Item

HEADER = struct.Struct("<QQ")
NUMBER = struct.Struct("<Q")
FIRST_BUFFER_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 4 << 20

SMALL, FIRST, ECHO, ECHO_SUMMED = range(4)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Item).decode


class Connection(asyncio.BufferedProtocol):
    """Either end: one frame at a time, received into the same memory each time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.view = memoryview(bytearray(FIRST_BUFFER_BYTES))
        self.filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and let the kernel buffer more."""
        self.transport = cast(asyncio.Transport, transport)
        own = transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The room behind what is there of a frame."""
        return self.view[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand a complete frame on; make room for a larger one than ever before."""
        self.filled += nbytes
        if self.filled < HEADER.size:
            return
        size, method = HEADER.unpack_from(self.view)
        end = HEADER.size + size
        if self.filled == end:
            self.filled = 0
            self.take(method, self.view[HEADER.size : end])
        elif self.filled > end:
            raise RuntimeError(f"{self.filled - end} bytes behind the only frame")
        elif end > len(self.view):
            larger = memoryview(bytearray(end))
            larger[: self.filled] = self.view[: self.filled]
            self.view = larger

    def take(self, method: int, contents: memoryview) -> None:
        """A complete frame; its contents are overwritten by the next one."""
        raise NotImplementedError

    def send(self, method: int, contents: bytes | memoryview) -> None:
        """Write a frame from where it lies."""
        self.transport.writelines([HEADER.pack(len(contents), method), contents])


class Server(Connection):
    """Answers while it parses, without a task."""

    def take(self, method: int, contents: memoryview) -> None:
        """Do what is asked, and reply."""
        if method == SMALL:
            self.send(method, encode(decode(contents)))
            return
        array = np.frombuffer(contents, np.uint64)
        if method == FIRST:
            self.send(method, NUMBER.pack(int(array[0])))
            return
        if method == ECHO_SUMMED:
            total(array)
        self.send(method, array.data.cast("B"))


class Client(Connection, Warm):
    """One call at a time."""

    def __init__(self) -> None:
        Connection.__init__(self)
        Warm.__init__(self)
        self.loop = asyncio.get_running_loop()
        self.reply: asyncio.Future[memoryview] = self.loop.create_future()

    async def call(self, method: int, contents: bytes | memoryview) -> memoryview:
        """The contents of the reply, valid until the next call."""
        self.reply = self.loop.create_future()
        self.send(method, contents)
        return await self.reply

    async def small(self, item: Item) -> Item:
        """Return the item."""
        return decode(await self.call(SMALL, encode(item)))

    async def first(self, array: Words) -> int:
        """Return the first word."""
        (word,) = NUMBER.unpack(await self.call(FIRST, array.data.cast("B")))
        return int(word)

    async def echo(self, array: Words) -> Words:
        """Return the array."""
        return np.frombuffer(await self.call(ECHO, array.data.cast("B")), np.uint64)

    async def echo_summed(self, array: Words) -> Words:
        """Read all of the array, and return it."""
        return np.frombuffer(await self.call(ECHO_SUMMED, array.data.cast("B")), np.uint64)

    def take(self, method: int, contents: memoryview) -> None:
        """Complete the call."""
        if not self.reply.done():
            self.reply.set_result(contents)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the call that will get no reply."""
        if not self.reply.done():
            self.reply.set_exception(exc or ConnectionResetError("the server closed the connection"))


async def serve(path: str, variant: str) -> None:
    """Answer calls at `path` until cancelled."""
    server = await asyncio.get_running_loop().create_unix_server(Server, path)
    async with server:
        await server.serve_forever()


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    transport, connection = await asyncio.get_running_loop().create_unix_connection(Client, path)
    try:
        yield connection
    finally:
        transport.close()
