"""What shmrpc takes besides time: the memory of a connection during many calls, and the copies of plain `bytes`.

Copies are counted by their destinations. A copy needs a place to go to: memory on one of the two heaps, which tracemalloc
sees (bytes objects and NumPy's memory alike), or a block in shared memory, which the kernel's list of mappings shows.
The places of the payload's size that come into being during one call on a fresh connection are the copies that it took.
"""

import asyncio
import os
import time
import tracemalloc
from collections.abc import Container, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import numpy as np

import shmrpc
from benchmarks.arrays.figures import MIB, ArrayPlan, Copies, Footprint, Memory, PlainBytes, Timed
from benchmarks.arrays.measure import Once, Stopwatch
from benchmarks.arrays.memory import anonymous, segments
from benchmarks.arrays.workload import Words, numbered
from benchmarks.entrants.shm import CONNECT_WAIT_S

EXTENT_IDLE_S = 1.0
"""Of both sides. An extent cannot come and go unseen between two looks that are much less than this apart."""
GIVE_UP_S = 5 * EXTENT_IDLE_S
LOOK_S = 0.02
IN_FLIGHT = 8
LOOK_EVERY = 25
PLAIN_BYTES = 16 * MIB


class FootprintContract(Protocol):
    """The contract."""

    async def echo(self, array: Words) -> Words:
        """Return the array: the caller gets its own memory back."""
        ...

    async def plus_one(self, array: Words) -> Words:
        """Return a new array, of the server's heap."""
        ...

    async def take(self, plain: bytes) -> int:
        """Return the length."""
        ...

    async def give(self) -> bytes:
        """Return the bytes that were prepared."""
        ...

    async def back(self, plain: bytes) -> bytes:
        """Return the bytes."""
        ...

    async def prepare(self, nbytes: int) -> None:
        """Have so many bytes ready for `give`."""
        ...

    async def trace(self, on: bool) -> int:
        """Begin to trace the heap, or end; returns the peak since the beginning, in bytes."""
        ...


def trace_heap(on: bool) -> int:
    """Begin to trace this process's heap, or end; returns the peak since the beginning, in bytes."""
    if on:
        tracemalloc.start()
        return 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


class FootprintService(FootprintContract):
    """The service."""

    def __init__(self) -> None:
        self.prepared = b""

    async def echo(self, array: Words) -> Words:
        """Return the array: the caller gets its own memory back."""
        return array

    async def plus_one(self, array: Words) -> Words:
        """Return a new array, of the server's heap."""
        return array + np.uint64(1)

    async def take(self, plain: bytes) -> int:
        """Return the length."""
        return len(plain)

    async def give(self) -> bytes:
        """Return the bytes that were prepared."""
        return self.prepared

    async def back(self, plain: bytes) -> bytes:
        """Return the bytes."""
        return plain

    async def prepare(self, nbytes: int) -> None:
        """Have so many bytes ready for `give`."""
        self.prepared = os.urandom(nbytes)

    async def trace(self, on: bool) -> int:
        """Begin to trace the heap, or end."""
        return trace_heap(on)


def connect(path: str) -> AbstractAsyncContextManager[FootprintContract]:
    """A fresh connection."""
    return shmrpc.connect(FootprintContract, path, wait=CONNECT_WAIT_S, extent_idle=EXTENT_IDLE_S)


async def serve(path: str) -> None:
    """Answer calls at `path` until cancelled."""
    await shmrpc.serve(FootprintService(), at=path, extent_idle=EXTENT_IDLE_S)


def seen(pids: Iterable[int]) -> dict[str, int]:
    """The segments while there is a connection: without any, nothing could be said about memory."""
    found = segments(pids)
    if not found:
        raise RuntimeError("no mapping looks like a segment of shmrpc")
    return found


class Watch:
    """The memory of a connection while calls are made, from looks at both processes."""

    def __init__(self, pids: tuple[int, int], others: Container[str], calls: int) -> None:
        self.pids = pids
        self.others = others
        self.calls = calls
        self.done = 0
        self.first_tenth = self.last_tenth = self.peak = self.heap = 0

    def committed(self) -> int:
        """Bytes of all segments that belong to no other connection."""
        return sum(size for key, size in segments(self.pids).items() if key not in self.others)

    def count(self) -> None:
        """One more call is over."""
        self.done += 1
        if self.done % LOOK_EVERY == 0:
            now = self.committed()
            self.peak = max(self.peak, now)
            if self.done <= self.calls // 10:
                self.first_tenth = max(self.first_tenth, now)
                self.heap = anonymous(self.pids)
            elif self.done > self.calls - self.calls // 10:
                self.last_tenth = max(self.last_tenth, now)

    async def until_down_to(self, nbytes: int) -> tuple[int, float]:
        """Wait until no more than that is left; gives up after a while. Returns what is left, and the seconds it took."""
        start = time.monotonic()
        while True:
            now, waited_s = self.committed(), time.monotonic() - start
            if now <= nbytes or waited_s > GIVE_UP_S:
                return now, waited_s
            await asyncio.sleep(LOOK_S)


async def watch_memory(path: str, server_pid: int, calls: int) -> Memory:
    """Calls with 1 MiB arrays, some at a time: every second result is the caller's memory, the others the server's."""
    pids = (os.getpid(), server_pid)
    array = numbered(MIB)
    expected = array + np.uint64(1)
    others = segments(pids)  # an earlier connection may not be gone yet
    async with connect(path) as stub:
        watch = Watch(pids, others, calls)
        seen(pids)
        at_rest = watch.committed()
        left = iter(range(calls))

        async def keep_calling() -> None:
            for number in left:
                if number % 2:
                    right = np.array_equal(await stub.plus_one(array), expected)
                else:
                    right = np.array_equal(await stub.echo(array), array)
                if not right:
                    raise RuntimeError(f"the result of call {number} is wrong")
                watch.count()

        await asyncio.gather(*(keep_calling() for _ in range(IN_FLIGHT)))
        heap_growth = anonymous(pids) - watch.heap
        after, gone_after_s = await watch.until_down_to(at_rest)
        return Memory(
            calls=calls,
            in_flight=IN_FLIGHT,
            at_rest=at_rest,
            peak=watch.peak,
            first_tenth=watch.first_tenth,
            last_tenth=watch.last_tenth,
            after=after,
            extent_idle_s=EXTENT_IDLE_S,
            gone_after_s=gone_after_s,
            heap_growth=heap_growth,
        )


async def count_copies(path: str, server_pid: int, nbytes: int, *, reply: bool) -> Copies:
    """The places that one call with `bytes` in one direction needed, on a connection that has carried nothing yet."""
    pids = (os.getpid(), server_pid)
    plain = os.urandom(nbytes)
    async with connect(path) as stub:
        await stub.prepare(nbytes)
        before = seen(pids)
        await stub.trace(True)
        trace_heap(True)
        if reply:
            await stub.give()
        else:
            await stub.take(plain)
        here = trace_heap(False)
        there = await stub.trace(False)
        new = [size for key, size in segments(pids).items() if key not in before]
    sender, receiver = (there, here) if reply else (here, there)
    if receiver < nbytes or sum(new) < nbytes:
        raise RuntimeError("the receiver's object, or the memory that it came through, was not seen")
    return Copies(sender // nbytes, sum(size // nbytes for size in new), receiver // nbytes)


async def time_bytes(path: str, nbytes: int, plan: ArrayPlan) -> dict[str, Timed]:
    """The calls with `bytes`, and what copies cost, in turns."""
    plain = os.urandom(nbytes)
    source, warm = np.frombuffer(plain, np.uint64), numbered(nbytes)

    async with connect(path) as stub:
        await stub.prepare(nbytes)

        async def echo() -> None:
            if len(await stub.back(plain)) != nbytes:
                raise RuntimeError("the echo differs")

        async def request_only() -> None:
            await stub.take(plain)

        async def reply_only() -> None:
            await stub.give()

        async def memcpy() -> None:
            warm[:] = source

        async def new_bytes() -> None:
            bytes(memoryview(plain))

        kinds: list[Once] = [echo, request_only, reply_only, memcpy, new_bytes]
        watches = {kind.__name__: Stopwatch(kind) for kind in kinds}
        if await stub.back(plain) != plain:
            raise RuntimeError("the echo differs")
        for _ in range(plan.slices):
            for watch in watches.values():
                await watch.slice(plan)
        return {name: watch.timed for name, watch in watches.items()}


async def measure_footprint(path: str, server_pid: int, plan: ArrayPlan) -> Footprint:
    """All of it; the copies first, while nothing was sent yet."""
    request = await count_copies(path, server_pid, PLAIN_BYTES, reply=False)
    reply = await count_copies(path, server_pid, PLAIN_BYTES, reply=True)
    times = await time_bytes(path, PLAIN_BYTES, plan)
    memory = await watch_memory(path, server_pid, plan.footprint_calls)
    return Footprint(memory, PlainBytes(nbytes=PLAIN_BYTES, request=request, reply=reply, **times))
