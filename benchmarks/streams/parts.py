"""What each part of a stream of small items costs, in one process and without a transport: what limits the rate.

    python -m benchmarks.streams.parts

Each line is the best of several runs, in nanoseconds an item. Writer and reader are processes of their own in a real stream,
so the slower one of "outlet" and "result stream" limits it, when the transport does not.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import uvloop

import shmrpc
from benchmarks.layout import table
from benchmarks.streams.entrants.shm import StreamContract, StreamService
from benchmarks.streams.workload import BATCH, count_of, items
from benchmarks.workload import ITEM, Item
from shmrpc.buffers import Packed
from shmrpc.codec import ItemCodec, encode_into, head_of_many
from shmrpc.inlet import Inlet, Window
from shmrpc.outlet import Outlet
from shmrpc.streams import ResultStream

COUNT = 100 * BATCH * 32
RUNS = 5
UNLIMITED = Window(1 << 40, 1 << 60)

codec = ItemCodec(Item)


def message() -> bytes:
    """One with as many items as go into one."""
    body = bytearray(head_of_many(BATCH))
    for _ in range(BATCH):
        encode_into(ITEM, body, -1)
    return bytes(body)


MESSAGE = message()


class Plain:
    """The simplest async iterator that is a class."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return ITEM


class Dropping:
    """A sink that drops what it gets."""

    largest = 8192
    full = False

    def send(self, payload: bytes, *, many: bool) -> None:
        """Drops it."""

    async def send_apart(self, packed: Packed, *, many: bool) -> None:
        """Drops it."""

    async def room(self) -> None:
        """There always is."""


async def generator() -> None:
    """What the application costs, in whatever stream."""
    await count_of(items(COUNT))


async def plain_class() -> None:
    """The same with a class: a coroutine for each item."""
    await count_of(Plain(COUNT))


async def encode() -> None:
    """Encoding, each item by itself."""
    body = bytearray()
    for _ in range(COUNT // BATCH):
        for _ in range(BATCH):
            encode_into(ITEM, body, -1)
        body.clear()


async def decode() -> None:
    """Decoding, a message at a time."""
    for _ in range(COUNT // BATCH):
        codec.read(MESSAGE, (), many=True)


async def outlet() -> None:
    """The writing end, application and encoding included."""
    await Outlet(asyncio.get_running_loop(), codec, Dropping(), UNLIMITED).pump(items(COUNT))


def filled(ready: deque[Any]) -> Inlet:
    """A reading end that has everything."""

    def read(payload: bytes, views: Sequence[Any], many: bool) -> list[Any]:
        return codec.read(payload, views, many=many)

    inlet = Inlet(asyncio.get_running_loop(), read, UNLIMITED, lambda count, nbytes: None, ready)
    for _ in range(COUNT // BATCH):
        inlet.put(MESSAGE, (), many=True)
    inlet.finish()
    return inlet


async def inlet() -> None:
    """The reading end as a handler has it, decoding and application included."""
    await count_of(filled(deque()))


class Flow:
    """The least that a `ResultStream` reads from."""

    untouched = False

    def __init__(self, ready: deque[Any]) -> None:
        self.inlet = filled(ready)

    def abandon(self) -> None:
        """There is no call."""

    async def wait_closed(self) -> None:
        """There is no call."""


async def result_stream() -> None:
    """The reading end as a caller has it, decoding and application included."""

    async def begin(ready: deque[Any]) -> Flow:
        return Flow(ready)

    await count_of(ResultStream("parts", begin, lambda error: False, None))


async def local() -> None:
    """Both ends, joined in one process."""
    service: StreamContract = StreamService()
    async with shmrpc.local(StreamContract, service) as stub:
        await count_of(stub.give(COUNT))


async def best_ns(part: Callable[[], Awaitable[None]]) -> float:
    """Of all runs, nanoseconds an item."""
    times = []
    for _ in range(RUNS):
        before = time.perf_counter_ns()
        await part()
        times.append(time.perf_counter_ns() - before)
    return min(times) / COUNT


async def main() -> None:
    """Measures all parts."""
    cells = [["part", "ns an item", ""]]
    for part in (generator, plain_class, encode, decode, outlet, inlet, result_stream, local):
        ns = await best_ns(part)
        cells.append([f"{part.__name__.replace('_', ' ')}: {part.__doc__}", f"{ns:.0f}", f"{1e3 / ns:.2f} million/s"])
    print(table(cells))


if __name__ == "__main__":
    uvloop.run(main())
