"""pyzmq on asyncio over ipc: PUSH and PULL for each direction, with high-water marks as the flow control.

Small items go in messages of up to 64, encoded and decoded at once; in `talk`, where they come one at a time, each is a
message. An empty message is the end of a stream. What is wanted is asked for over DEALER and ROUTER, one stream at a time.

Arrays have a socket of their own, with a low mark, and go out from where they lie (`copy=False`): from a pool of warm
arrays, which is larger than what can be under way, since libzmq reads them later. They are looked at inside the message that
they came in.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from itertools import cycle

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from benchmarks.arrays.workload import Words, numbered
from benchmarks.streams.workload import BATCH, count_of, items, stamp
from benchmarks.workload import Item

GIVE, TAKE, TALK, ARRAYS = b"g", b"t", b"b", b"a"
END = b""
ITEM_MARK = 64
"""Messages of items under way, at each end of a socket."""
ARRAY_MARK = 4
POOL = 4 * ARRAY_MARK

encode = msgspec.msgpack.Encoder().encode
decode_items = msgspec.msgpack.Decoder(list[Item]).decode
decode_asked = msgspec.msgpack.Decoder(tuple[int, int, bool]).decode


def socket_of(context: zmq.asyncio.Context, kind: int, mark: int) -> zmq.asyncio.Socket:
    """A socket with a high-water mark, which forgets what was not sent when it is closed."""
    made = context.socket(kind)
    made.set_hwm(mark)
    made.setsockopt(zmq.LINGER, 0)
    return made


async def send(push: zmq.asyncio.Socket, source: AsyncIterator[Item], batch: int = BATCH) -> None:
    """All items of a stream, so many at a time, and their end."""
    together: list[Item] = []
    async for item in source:
        together.append(item)
        if len(together) == batch:
            await push.send(encode(together))
            together.clear()
    if together:
        await push.send(encode(together))
    await push.send(END)


async def read(pull: zmq.asyncio.Socket) -> AsyncIterator[Item]:
    """The items of one stream."""
    while message := await pull.recv():
        for item in decode_items(message):
            yield item


class Ends:
    """The four sockets of one side; their paths are those of the server's."""

    def __init__(self, stack: ExitStack, path: str, *, server: bool) -> None:
        context = stack.enter_context(zmq.asyncio.Context())
        out, into = ("down", "up") if server else ("up", "down")
        self.push = stack.enter_context(socket_of(context, zmq.PUSH, ITEM_MARK))
        self.pull = stack.enter_context(socket_of(context, zmq.PULL, ITEM_MARK))
        self.arrays = stack.enter_context(socket_of(context, zmq.PUSH if server else zmq.PULL, ARRAY_MARK))
        self.asking = stack.enter_context(socket_of(context, zmq.ROUTER if server else zmq.DEALER, ITEM_MARK))
        names = {self.push: f".{out}", self.pull: f".{into}", self.arrays: ".arrays", self.asking: ""}
        for one, name in names.items():  # the one at `path` itself last: then the server is there
            address = f"ipc://{path}{name}"
            if server:
                one.bind(address)
            else:
                one.connect(address)


class Server:
    """Does what it is asked, one stream at a time."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    async def answer(self, method: bytes, asked: bytes) -> int:
        """One stream; the count of what was taken."""
        push, pull = self.ends.push, self.ends.pull
        count, nbytes, touch_all = decode_asked(asked)
        if method == GIVE:
            await send(push, items(count))
        elif method == TAKE:
            return await count_of(read(pull))
        elif method == TALK:
            await send(push, read(pull), batch=1)
        else:
            pool = cycle([numbered(nbytes) for _ in range(POOL)])
            for number in range(count):
                array = next(pool)
                stamp(array, number, touch_all=touch_all)
                await self.ends.arrays.send(array, copy=False)
        return 0


async def serve(path: str, variant: str) -> None:
    """Serve streams at `path` until cancelled."""
    with ExitStack() as stack:
        ends = Ends(stack, path, server=True)
        server = Server(ends)
        while True:
            peer, method, asked = await ends.asking.recv_multipart()
            count = await server.answer(method, asked)
            await ends.asking.send_multipart((peer, encode(count)))


class Client:
    """One stream at a time."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends

    async def ask(self, method: bytes, count: int = 0, nbytes: int = 0, touch_all: bool = False) -> None:
        """Say what is wanted."""
        await self.ends.asking.send_multipart((method, encode((count, nbytes, touch_all))))

    async def done(self) -> int:
        """The server has done it; its count of what it took."""
        return msgspec.msgpack.decode(await self.ends.asking.recv(), type=int)

    async def give(self, count: int) -> AsyncIterator[Item]:
        """So many items from the server."""
        await self.ask(GIVE, count)
        async for item in read(self.ends.pull):
            yield item
        await self.done()

    async def take(self, source: AsyncIterator[Item]) -> int:
        """The server's count of what it was given."""
        await self.ask(TAKE)
        await send(self.ends.push, source)
        return await self.done()

    async def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back from the server."""
        await self.ask(TALK)
        sending = asyncio.create_task(send(self.ends.push, source, batch=1))
        async for item in read(self.ends.pull):
            yield item
        await sending
        await self.done()

    async def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays from the server."""
        await self.ask(ARRAYS, count, nbytes, touch_all)
        for _ in range(count):
            message = await self.ends.arrays.recv(copy=False)
            yield np.frombuffer(message.buffer, np.uint64)
        await self.done()


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    with ExitStack() as stack:
        yield Client(Ends(stack, path, server=False))
