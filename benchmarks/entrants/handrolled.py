"""The strongest plain-Python rival: an asyncio protocol and msgspec over a Unix socket, for this one call.

A frame is a length and a call id, both u32 little-endian, then the item as msgpack. The server answers inside
`buffer_updated`, without a task, and writes all replies to one read together. There are no methods, errors,
deadlines, cancellation or back-pressure: it is as fast as it is because it does so little.

Two clients exist. The plain one writes each request at once. The variant "batched" joins up to 16 requests of
one turn of the event loop into one write, which costs code and wins throughput.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import msgspec

from benchmarks.workload import Echo, Item

HEADER = struct.Struct("<II")
BUFFER_BYTES = 256 * 1024
BATCH_FRAMES = 16

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Item).decode


class Connection(asyncio.BufferedProtocol):
    """Either end: reads into one buffer and cuts it into frames."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The room behind an incomplete frame."""
        return self.view[self.filled :]

    def take_frames(self, received: int) -> list[tuple[int, Item]]:
        """The complete frames after `received` more bytes; an incomplete one moves to the front."""
        view, end, start = self.view, self.filled + received, 0
        frames = []
        while end - start >= HEADER.size:
            size, call_id = HEADER.unpack_from(view, start)
            stop = start + HEADER.size + size
            if stop > end:
                break
            frames.append((call_id, decode(view[start + HEADER.size : stop])))
            start = stop
        self.filled = end - start
        if self.filled:
            self.buffer[: self.filled] = bytes(view[start:end])
        return frames


class Server(Connection):
    """Sends every item back."""

    def buffer_updated(self, nbytes: int) -> None:
        """Answer all complete requests with one write."""
        replies = []
        for call_id, item in self.take_frames(nbytes):
            payload = encode(item)
            replies.append(HEADER.pack(len(payload), call_id))
            replies.append(payload)
        if replies:
            self.transport.write(b"".join(replies))


class Client(Connection):
    """Matches replies to calls by their id, and writes each request at once."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.pending: dict[int, asyncio.Future[Item]] = {}
        self.last_id = 0

    async def echo(self, item: Item) -> Item:
        """One call."""
        self.last_id = call_id = (self.last_id + 1) & 0xFFFFFFFF
        reply: asyncio.Future[Item] = self.loop.create_future()
        self.pending[call_id] = reply
        payload = encode(item)
        self.transport.write(HEADER.pack(len(payload), call_id) + payload)
        return await reply

    def buffer_updated(self, nbytes: int) -> None:
        """Complete the calls whose replies have arrived."""
        pop = self.pending.pop
        for call_id, item in self.take_frames(nbytes):
            reply = pop(call_id)
            if not reply.done():
                reply.set_result(item)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the calls that will get no reply."""
        for reply in self.pending.values():
            if not reply.done():
                reply.set_exception(exc or ConnectionResetError("the server closed the connection"))


class BatchingClient(Client):
    """Joins up to 16 requests of one turn of the loop into one write; a lone request goes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batch: list[bytes] = []
        self.flush_scheduled = False

    async def echo(self, item: Item) -> Item:
        """One call."""
        self.last_id = call_id = (self.last_id + 1) & 0xFFFFFFFF
        payload = encode(item)
        request = HEADER.pack(len(payload), call_id) + payload
        if self.pending:
            self.batch.append(request)
            if len(self.batch) == BATCH_FRAMES:
                self.write_batch()
            elif not self.flush_scheduled:
                self.flush_scheduled = True
                self.loop.call_soon(self.flush)
        else:
            self.transport.write(request)
        reply: asyncio.Future[Item] = self.loop.create_future()
        self.pending[call_id] = reply
        return await reply

    def write_batch(self) -> None:
        """Write what has been joined so far."""
        self.transport.write(b"".join(self.batch))
        self.batch.clear()

    def flush(self) -> None:
        """The end of a turn: write an incomplete batch."""
        self.flush_scheduled = False
        if self.batch:
            self.write_batch()


async def serve(path: str, variant: str) -> None:
    """Answer echo calls at `path` until cancelled."""
    server = await asyncio.get_running_loop().create_unix_server(Server, path)
    async with server:
        await server.serve_forever()


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Echo]:
    """Connect to `path`; the variant "batched" joins requests."""
    factory = BatchingClient if variant == "batched" else Client
    transport, connection = await asyncio.get_running_loop().create_unix_connection(factory, path)
    try:
        yield connection.echo
    finally:
        transport.close()
