"""The measuring client's loops over kinds of streams. It runs in a process of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median

from benchmarks.arrays.figures import Timed
from benchmarks.measure import Spent, accounted
from benchmarks.streams.figures import ARRAY_BYTES, Rate, StreamFigures, StreamPlan
from benchmarks.streams.workload import Streams, count_of, items, look
from benchmarks.workload import ITEM, Item

Stream = Callable[[int], Awaitable[int]]
"""One stream of so many items; how many the reader counted."""

FIRST_COUNT = 64
MOST_GROWTH = 8
"""By how much a stream may be longer than the one before."""

clock = time.perf_counter_ns


class RateWatch:
    """The rate of one kind of stream, from streams that last about as long as a slice."""

    def __init__(self, stream: Stream, server_pid: int) -> None:
        self._stream = stream
        self._server_pid = server_pid
        self._count = FIRST_COUNT
        self._spent: list[tuple[int, Spent]] = []

    async def _one(self) -> tuple[int, Spent]:
        count = self._count
        with accounted(self._server_pid) as spent:
            read = await self._stream(count)
        if read != count:
            raise RuntimeError(f"{read} items arrived of {count}")
        return count, spent

    async def warm_up(self, plan: StreamPlan) -> None:
        """Finds out how many items fill a slice."""
        while True:
            count, spent = await self._one()
            longer = plan.slice_s / max(spent.wall_s, 1e-9)
            self._count = max(1, int(count * min(longer, MOST_GROWTH)))
            if longer < 2:
                return

    async def slice(self) -> None:
        """One stream that counts."""
        self._spent.append(await self._one())

    @property
    def rate(self) -> Rate:
        """What came out."""
        each = self._spent
        return Rate(
            per_s=median(count / spent.wall_s for count, spent in each),
            client_busy=median(spent.client_ns / 1e9 / spent.wall_s for _, spent in each),
            server_busy=median(spent.server_ns / 1e9 / spent.wall_s for _, spent in each),
            streams=len(each),
        )


class Turns:
    """The client's half of a conversation: an async iterator that gives an item when it is told to."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[Item | None] = self._loop.create_future()

    def say(self, item: Item | None) -> None:
        """The next item; None: there is none."""
        self._next.set_result(item)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self._next
        self._next = self._loop.create_future()
        if item is None:
            raise StopAsyncIteration
        return item


async def time_turns(streams: Streams, seconds: float) -> list[int]:
    """Nanoseconds of each turn of one conversation that lasts `seconds`, but for the first."""
    turns, samples = Turns(), []
    answers = aiter(streams.talk(turns))
    after = clock()
    end = after + int(seconds * 1e9)
    while after < end:
        before = clock()
        turns.say(ITEM)
        answer = await anext(answers)
        after = clock()
        if answer != ITEM:
            raise RuntimeError(f"the answer to {ITEM!r} is {answer!r}")
        samples.append(after - before)
    turns.say(None)
    async for extra in answers:
        raise RuntimeError(f"{extra!r} came after the last turn")
    return samples[1:]


async def measure_streams(streams: Streams, server_pid: int, plan: StreamPlan) -> StreamFigures:
    """All kinds, in turns."""

    async def give(count: int) -> int:
        return await count_of(streams.give(count))

    async def take(count: int) -> int:
        return await streams.take(items(count))

    async def arrays(count: int) -> int:
        return await look(streams.arrays(count, ARRAY_BYTES, False), ARRAY_BYTES, touch_all=False)

    async def arrays_touched(count: int) -> int:
        return await look(streams.arrays(count, ARRAY_BYTES, True), ARRAY_BYTES, touch_all=True)

    async def in_process(count: int) -> int:
        return await count_of(items(count))

    kinds: list[Stream] = [give, take, arrays, arrays_touched, in_process]
    watches = {kind.__name__: RateWatch(kind, server_pid) for kind in kinds}
    turns_ns: list[int] = []
    for watch in watches.values():
        await watch.warm_up(plan)
    for _ in range(plan.slices):
        for watch in watches.values():
            await watch.slice()
        turns_ns += await time_turns(streams, plan.slice_s)
    return StreamFigures(
        turn=Timed(median(turns_ns) / 1e3, len(turns_ns)), **{name: watch.rate for name, watch in watches.items()}
    )
