"""The measuring client's loops over sizes and kinds of call. It runs in a process of its own."""

import time
from collections.abc import Callable, Coroutine
from statistics import median

import numpy as np

from benchmarks.arrays.figures import ArrayFigures, ArrayPlan, AtSize, Timed
from benchmarks.arrays.workload import Calls, Words, numbered, total
from benchmarks.workload import ITEM

Once = Callable[[], Coroutine[None, None, None]]

clock = time.perf_counter_ns


def timed(samples_ns: list[int]) -> Timed:
    """The median."""
    return Timed(median(samples_ns) / 1e3, len(samples_ns))


class Stopwatch:
    """Times something again and again, a slice at a time."""

    def __init__(self, once: Once) -> None:
        self.once = once
        self.samples_ns: list[int] = []

    async def slice(self, plan: ArrayPlan) -> None:
        """One call that does not count, then calls for the length of a slice."""
        once, samples = self.once, self.samples_ns
        await once()
        after = clock()
        end = after + int(plan.slice_s * 1e9)
        least = len(samples) + plan.least_calls
        while after < end or len(samples) < least:
            before = clock()
            await once()
            after = clock()
            samples.append(after - before)

    @property
    def timed(self) -> Timed:
        """What came out."""
        return timed(self.samples_ns)


class FirstWatch:
    """Times `first` with a new array for each call: with the making of the array, and without."""

    def __init__(self, calls: Calls, nbytes: int) -> None:
        self.calls = calls
        self.nbytes = nbytes
        self.called_ns: list[int] = []
        self.made_ns: list[int] = []

    async def slice(self, plan: ArrayPlan) -> None:
        """One call that does not count, then calls for the length of a slice."""
        await self.once()
        del self.called_ns[-1], self.made_ns[-1]
        end = clock() + int(plan.slice_s * 1e9)
        least = len(self.called_ns) + plan.least_calls
        while len(self.called_ns) < least or clock() < end:
            await self.once()

    async def once(self) -> None:
        """Make an array, write a word of it, call."""
        made = clock()
        array = self.calls.new(self.nbytes)
        array[0] = written = len(self.called_ns)
        called = clock()
        read = await self.calls.first(array)
        after = clock()
        if read != written:
            raise RuntimeError(f"the handler read {read}, not {written}")
        self.called_ns.append(after - called)
        self.made_ns.append(after - made)


async def check(calls: Calls, array: Words) -> None:
    """What comes back is what was sent: all of it. Large memory is found meanwhile, which is not what is measured."""
    for method in (calls.echo, calls.echo_summed):
        if not np.array_equal(await method(array), array):
            raise RuntimeError(f"the echo of {array.nbytes} bytes differs")


async def measure_size(calls: Calls, nbytes: int, plan: ArrayPlan) -> AtSize:
    """All kinds of call at one size, in turns."""
    array = numbered(nbytes)
    expected = total(array)
    warm = np.zeros_like(array)

    async def small() -> None:
        await calls.small(ITEM)

    born = calls.new(nbytes)
    born[:] = array

    async def first_again() -> None:
        if await calls.first(born) != born[0]:
            raise RuntimeError("the handler read another word")

    async def echo() -> None:
        result = await calls.echo(array)
        if result[-1] != array[-1]:
            raise RuntimeError("the echo differs")

    async def echo_summed() -> None:
        if total(await calls.echo_summed(array)) != expected:
            raise RuntimeError("the echo differs")

    async def memcpy() -> None:
        warm[:] = array

    await check(calls, array)
    kinds: list[Once] = [small, first_again, echo, memcpy, echo_summed]
    watches = {once.__name__: Stopwatch(once) for once in kinds}
    first = FirstWatch(calls, nbytes)
    for _ in range(plan.slices):
        await watches["small"].slice(plan)
        await first.slice(plan)
        await watches["first_again"].slice(plan)
        await watches["echo"].slice(plan)
        await watches["memcpy"].slice(plan)
        await watches["echo_summed"].slice(plan)
    return AtSize(
        nbytes=nbytes,
        first=timed(first.called_ns),
        made_first=timed(first.made_ns),
        **{name: watch.timed for name, watch in watches.items()},
    )


async def measure_arrays(calls: Calls, plan: ArrayPlan) -> ArrayFigures:
    """Every size, the smallest first."""
    return ArrayFigures([await measure_size(calls, nbytes, plan) for nbytes in plan.sizes])
