"""pyzmq on asyncio over ipc: a DEALER that matches replies to calls by id, and a ROUTER that answers them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import zmq
import zmq.asyncio

from benchmarks.workload import Echo, Item

ID_BYTES = 4

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Item).decode


async def serve(path: str, variant: str) -> None:
    """Answer echo calls at `path` until cancelled."""
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"ipc://{path}")
        while True:
            peer, call_id, request = await router.recv_multipart()
            await router.send_multipart((peer, call_id, encode(decode(request))))


class Client:
    """The calls of one DEALER socket."""

    def __init__(self, dealer: zmq.asyncio.Socket) -> None:
        self.dealer = dealer
        self.loop = asyncio.get_running_loop()
        self.pending: dict[bytes, asyncio.Future[Item]] = {}
        self.last_id = 0

    async def echo(self, item: Item) -> Item:
        """One call."""
        self.last_id += 1
        call_id = self.last_id.to_bytes(ID_BYTES, "little")
        reply: asyncio.Future[Item] = self.loop.create_future()
        self.pending[call_id] = reply
        await self.dealer.send_multipart((call_id, encode(item)))
        return await reply

    async def receive(self) -> None:
        """Complete calls as their replies arrive."""
        while True:
            call_id, payload = await self.dealer.recv_multipart()
            reply = self.pending.pop(call_id)
            if not reply.done():
                reply.set_result(decode(payload))


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Echo]:
    """Connect to `path`."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(f"ipc://{path}")
        calls = Client(dealer)
        receiving = asyncio.create_task(calls.receive())
        try:
            yield calls.echo
        finally:
            receiving.cancel()
