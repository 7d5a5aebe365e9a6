"""Starts the processes of one measurement, reads what the client reports, and cleans up whatever happens."""

import asyncio
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from benchmarks.accounting import cpu_ns, voluntary_switches
from benchmarks.arrays.figures import ArrayFigures, ArrayPlan, Footprint
from benchmarks.entrants import Entrant
from benchmarks.jobs import (
    Calls,
    Drive,
    DriveArrays,
    DriveFootprint,
    DriveStreams,
    Figures,
    Hold,
    Idle,
    Job,
    Plan,
    Serve,
    ServeArrays,
    ServeFootprint,
    ServeStreams,
)
from benchmarks.placement import Placement
from benchmarks.streams.figures import StreamFigures, StreamPlan

ROOT = Path(__file__).resolve().parent.parent
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
LOOK_S = 0.01
ARRAYS_LIMIT_S = 180.0
"""For all sizes of one entrant: long enough for any machine that is not stuck."""

STREAMS_LIMIT_S = 120.0
"""The same for all kinds of streams."""

T = TypeVar("T")


class BenchmarkError(Exception):
    """A process of a measurement did not do its part."""


class Child:
    """One child process and what to call it in an error."""

    def __init__(self, process: Process, title: str) -> None:
        self.process = process
        self.title = title

    async def hear(self, kind: type[T], limit_s: float) -> T:
        """The next line that it reports, as `kind`."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise BenchmarkError(f"{self.title} has reported nothing for {limit_s:.0f} s") from None
        if not line:
            raise BenchmarkError(f"{self.title} ended with exit code {await self.process.wait()}")
        return msgspec.json.decode(line, type=kind)

    async def stop(self) -> None:
        """Ask it to end by closing its stdin; kill it if it does not."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self.process.wait()
        except TimeoutError:
            print(f"warning: {self.title} did not end within {STOP_LIMIT_S:.0f} s: killed", file=sys.stderr)
        finally:
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()


@asynccontextmanager
async def child(job: Job) -> AsyncIterator[Child]:
    """A process that does `job` for the length of the context. Ctrl-C does not reach it: we end it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.worker",
        msgspec.json.encode(job).decode(),
        stdin=PIPE,
        stdout=PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    started = Child(process, f"{type(job).__name__.lower()} {job.entrant.name} (pid {process.pid})")
    try:
        yield started
    finally:
        await started.stop()


async def listening(server: Child, path: Path) -> None:
    """Wait until the server has made its socket."""
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while not await anyio.Path(path).exists():
                if server.process.returncode is not None:
                    raise BenchmarkError(f"{server.title} ended with exit code {server.process.returncode}")
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise BenchmarkError(f"{server.title} made no socket within {START_LIMIT_S:.0f} s") from None


async def watch_idle(client_pid: int, server_pid: int, plan: Plan) -> Idle:
    """What both processes do while nothing is asked of them, seen from outside."""

    def sample() -> list[float]:
        loop = asyncio.get_running_loop()
        cpu_ms = [cpu_ns(pid) / 1e6 for pid in (client_pid, server_pid)]
        return [loop.time(), *cpu_ms, *(voluntary_switches(pid) for pid in (client_pid, server_pid))]

    await asyncio.sleep(plan.idle_settle_s)
    before = sample()
    await asyncio.sleep(plan.idle_s)
    elapsed, *changes = (now - then for now, then in zip(sample(), before, strict=True))
    return Idle(*(change / elapsed for change in changes))


@asynccontextmanager
async def serving(
    kind: type[Serve | ServeArrays | ServeFootprint | ServeStreams], entrant: Entrant, placement: Placement
) -> AsyncIterator[tuple[Child, str]]:
    """A server of that kind, listening, and the path where it does."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        path = Path(directory, "server.sock")
        async with child(kind(entrant, str(path), placement.server_cpu)) as server:
            await listening(server, path)
            yield server, str(path)


async def measure_entrant(entrant: Entrant, plan: Plan, placement: Placement) -> Figures:
    """One round of one entrant, in fresh processes."""
    async with AsyncExitStack() as stack:
        server, path = await stack.enter_async_context(serving(Serve, entrant, placement))
        if entrant.idle_connections:
            hold = Hold(entrant, path, placement.client_cpu, entrant.idle_connections)
            holder = await stack.enter_async_context(child(hold))
            await holder.hear(int, START_LIMIT_S)
        server_pid = server.process.pid
        drive = Drive(entrant, path, placement.client_cpu, server_pid, plan)
        client = await stack.enter_async_context(child(drive))
        calls = await client.hear(Calls, START_LIMIT_S + 3 * plan.calls_s)
        return Figures(calls, await watch_idle(client.process.pid, server_pid, plan))


async def measure_arrays(entrant: Entrant, plan: ArrayPlan, placement: Placement) -> ArrayFigures:
    """One round of one entrant with arrays, in fresh processes."""
    async with (
        serving(ServeArrays, entrant, placement) as (_, path),
        child(DriveArrays(entrant, path, placement.client_cpu, plan)) as client,
    ):
        return await client.hear(ArrayFigures, ARRAYS_LIMIT_S)


async def measure_footprint(entrant: Entrant, plan: ArrayPlan, placement: Placement) -> Footprint:
    """Memory and copies of shmrpc, in fresh processes."""
    async with AsyncExitStack() as stack:
        server, path = await stack.enter_async_context(serving(ServeFootprint, entrant, placement))
        job = DriveFootprint(entrant, path, placement.client_cpu, server.process.pid, plan)
        client = await stack.enter_async_context(child(job))
        return await client.hear(Footprint, ARRAYS_LIMIT_S)


async def measure_streams(entrant: Entrant, plan: StreamPlan, placement: Placement) -> StreamFigures:
    """One round of one entrant with streams, in fresh processes."""
    async with AsyncExitStack() as stack:
        server, path = await stack.enter_async_context(serving(ServeStreams, entrant, placement))
        job = DriveStreams(entrant, path, placement.client_cpu, server.process.pid, plan)
        client = await stack.enter_async_context(child(job))
        return await client.hear(StreamFigures, STREAMS_LIMIT_S)
