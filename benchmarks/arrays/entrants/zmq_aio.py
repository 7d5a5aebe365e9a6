"""pyzmq on asyncio over ipc: DEALER and ROUTER, arrays as frames of their own with `copy=False` on both sides.

An array goes out from where it lies and is looked at inside the frame that it came in. pyzmq copies all the same what is
smaller than its own threshold of 64 KiB, because that is faster.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import zmq
import zmq.asyncio

from benchmarks.arrays.workload import Warm, Words, total
from benchmarks.entrants.zmq_aio import ID_BYTES, decode, encode
from benchmarks.workload import Item

SMALL, FIRST, ECHO, ECHO_SUMMED = b"s", b"f", b"e", b"a"
NUMBER_BYTES = 8


def answer(method: bytes, contents: memoryview) -> bytes | Words:
    """What the handlers return."""
    if method == SMALL:
        return encode(decode(contents))
    array = np.frombuffer(contents, np.uint64)
    if method == FIRST:
        return int(array[0]).to_bytes(NUMBER_BYTES, "little")
    if method == ECHO_SUMMED:
        total(array)
    return array


async def serve(path: str, variant: str) -> None:
    """Answer calls at `path` until cancelled."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{path}")
        while True:
            peer, call_id, method, contents = await router.recv_multipart(copy=False)
            await router.send_multipart((peer, call_id, answer(method.bytes, contents.buffer)), copy=False)


class Client(Warm):
    """The calls of one DEALER socket."""

    def __init__(self, dealer: zmq.asyncio.Socket) -> None:
        super().__init__()
        self.dealer = dealer
        self.loop = asyncio.get_running_loop()
        self.pending: dict[bytes, asyncio.Future[memoryview]] = {}
        self.last_id = 0

    async def call(self, method: bytes, contents: bytes | Words) -> memoryview:
        """The contents of the reply."""
        self.last_id += 1
        call_id = self.last_id.to_bytes(ID_BYTES, "little")
        reply: asyncio.Future[memoryview] = self.loop.create_future()
        self.pending[call_id] = reply
        await self.dealer.send_multipart((call_id, method, contents), copy=False)
        return await reply

    async def small(self, item: Item) -> Item:
        """Return the item."""
        return decode(await self.call(SMALL, encode(item)))

    async def first(self, array: Words) -> int:
        """Return the first word."""
        return int.from_bytes(await self.call(FIRST, array), "little")

    async def echo(self, array: Words) -> Words:
        """Return the array."""
        return np.frombuffer(await self.call(ECHO, array), np.uint64)

    async def echo_summed(self, array: Words) -> Words:
        """Read all of the array, and return it."""
        return np.frombuffer(await self.call(ECHO_SUMMED, array), np.uint64)

    async def receive(self) -> None:
        """Complete calls as their replies arrive."""
        while True:
            call_id, contents = await self.dealer.recv_multipart(copy=False)
            reply = self.pending.pop(call_id.bytes)
            if not reply.done():
                reply.set_result(contents.buffer)


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{path}")
        calls = Client(dealer)
        receiving = asyncio.create_task(calls.receive())
        try:
            yield calls
        finally:
            receiving.cancel()
