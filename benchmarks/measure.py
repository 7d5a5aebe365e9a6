"""The measuring client's loops: latency, sustained throughput, and waves. It runs in a process of its own."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.accounting import cpu_ns
from benchmarks.jobs import Calls, Cpu, Latency, Plan, Throughput
from benchmarks.workload import ITEM, Echo


@dataclass
class Spent:
    """Wall-clock and CPU time of one phase; filled in when the phase ends."""

    wall_s: float = 0.0
    client_ns: int = 0
    server_ns: int = 0

    def per_call(self, calls: int) -> Cpu:
        """CPU time of each process, divided among the calls."""
        return Cpu(client_us=self.client_ns / calls / 1e3, server_us=self.server_ns / calls / 1e3)


@contextmanager
def accounted(server_pid: int) -> Iterator[Spent]:
    """Measure what the body takes, here and in the server."""
    spent = Spent()
    client_ns, server_ns, start = time.process_time_ns(), cpu_ns(server_pid), time.perf_counter()
    yield spent
    spent.wall_s = time.perf_counter() - start
    spent.client_ns = time.process_time_ns() - client_ns
    spent.server_ns = cpu_ns(server_pid) - server_ns


def percentile(ascending: Sequence[int], fraction: float) -> int:
    """The nearest-rank percentile of sorted samples."""
    return ascending[min(int(len(ascending) * fraction), len(ascending) - 1)]


async def time_round_trips(echo: Echo, seconds: float) -> list[int]:
    """Nanoseconds of each call, one after the other, for `seconds`."""
    clock = time.perf_counter_ns
    samples = []
    end = clock() + int(seconds * 1e9)
    after = 0
    while after < end:
        before = clock()
        await echo(ITEM)
        after = clock()
        samples.append(after - before)
    return samples


async def latency(echo: Echo, server_pid: int, seconds: float) -> Latency:
    """Sequential calls: percentiles, and the CPU time of a call."""
    with accounted(server_pid) as spent:
        samples = await time_round_trips(echo, seconds)
    samples.sort()
    return Latency(
        p50_us=percentile(samples, 0.5) / 1e3,
        p99_us=percentile(samples, 0.99) / 1e3,
        p999_us=percentile(samples, 0.999) / 1e3,
        samples=len(samples),
        cpu=spent.per_call(len(samples)),
    )


async def count_calls(echo: Echo, in_flight: int, seconds: float) -> int:
    """Calls completed by `in_flight` tasks that each make one after the other for `seconds`."""
    running = True

    def stop() -> None:
        nonlocal running
        running = False

    async def keep_calling() -> int:
        completed = 0
        while running:
            await echo(ITEM)
            completed += 1
        return completed

    asyncio.get_running_loop().call_later(seconds, stop)
    return sum(await asyncio.gather(*(keep_calling() for _ in range(in_flight))))


async def throughput(echo: Echo, server_pid: int, in_flight: int, seconds: float) -> Throughput:
    """Calls per second with `in_flight` calls open all the time."""
    with accounted(server_pid) as spent:
        completed = await count_calls(echo, in_flight, seconds)
    return Throughput(in_flight, completed / spent.wall_s, spent.per_call(completed))


async def waves(echo: Echo, server_pid: int, size: int, seconds: float) -> Throughput:
    """Calls per second when `asyncio.gather` starts `size` at a time, each a task, and awaits them all."""
    completed = 0
    with accounted(server_pid) as spent:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await asyncio.gather(*(echo(ITEM) for _ in range(size)))
            completed += size
    return Throughput(size, completed / spent.wall_s, spent.per_call(completed))


async def measure(echo: Echo, server_pid: int, plan: Plan) -> Calls:
    """Warm up, check that the item comes back, and run every phase."""
    answer = await echo(ITEM)
    if answer != ITEM:
        raise RuntimeError(f"the echo of {ITEM!r} is {answer!r}")
    await time_round_trips(echo, plan.warm_up_s)
    await count_calls(echo, max(plan.in_flight), plan.warm_up_s)
    return Calls(
        latency=await latency(echo, server_pid, plan.latency_s),
        throughput=[await throughput(echo, server_pid, n, plan.throughput_s) for n in plan.in_flight],
        wave=await waves(echo, server_pid, plan.wave, plan.throughput_s),
    )
