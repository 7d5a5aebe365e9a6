"""A child process: server, measuring client or holder of idle connections, as its one argument says.

It ends when its stdin does, so that it cannot outlive the orchestrator, however that ends.
"""

import asyncio
import os
import resource
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack

import msgspec
import uvloop

from benchmarks.arrays.entrants import load as load_arrays
from benchmarks.jobs import (
    Drive,
    DriveArrays,
    DriveFootprint,
    DriveStreams,
    Hold,
    Job,
    Serve,
    ServeArrays,
    ServeFootprint,
    ServeStreams,
)
from benchmarks.measure import measure
from benchmarks.streams.entrants import load as load_streams
from benchmarks.workload import ITEM


def say(message: object) -> None:
    """Write one line of JSON for the orchestrator."""
    print(msgspec.json.encode(message).decode(), flush=True)


async def drive(job: Drive) -> None:
    """Measure, report, and stay connected."""
    async with job.entrant.load().client(job.path, job.entrant.variant) as echo:
        say(await measure(echo, job.server_pid, job.plan))
        await asyncio.Event().wait()


async def hold(job: Hold) -> None:
    """Open the connections, use each once, and keep them."""
    connect = job.entrant.load().client
    async with AsyncExitStack() as connections:
        for _ in range(job.connections):
            echo = await connections.enter_async_context(connect(job.path, job.entrant.variant))
            await echo(ITEM)
        say(job.connections)
        await asyncio.Event().wait()


async def drive_arrays(job: DriveArrays) -> None:
    """Measure calls with arrays, and report."""
    from benchmarks.arrays.measure import measure_arrays

    async with load_arrays(job.entrant).client(job.path, job.entrant.variant) as calls:
        say(await measure_arrays(calls, job.plan))


async def drive_footprint(job: DriveFootprint) -> None:
    """Look at memory and copies, and report."""
    from benchmarks.arrays.footprint import measure_footprint

    say(await measure_footprint(job.path, job.server_pid, job.plan))


async def drive_streams(job: DriveStreams) -> None:
    """Measure streams, and report."""
    from benchmarks.streams.measure import measure_streams

    async with load_streams(job.entrant).client(job.path, job.entrant.variant) as streams:
        say(await measure_streams(streams, job.server_pid, job.plan))


async def serve_footprint(job: ServeFootprint) -> None:
    """Answer until cancelled."""
    from benchmarks.arrays.footprint import serve

    await serve(job.path)


def perform(job: Job) -> Coroutine[None, None, None]:
    """The coroutine that does a job."""
    match job:
        case Serve():
            return job.entrant.load().serve(job.path, job.entrant.variant)
        case Drive():
            return drive(job)
        case Hold():
            return hold(job)
        case ServeArrays():
            return load_arrays(job.entrant).serve(job.path, job.entrant.variant)
        case DriveArrays():
            return drive_arrays(job)
        case ServeStreams():
            return load_streams(job.entrant).serve(job.path, job.entrant.variant)
        case DriveStreams():
            return drive_streams(job)
        case ServeFootprint():
            return serve_footprint(job)
        case DriveFootprint():
            return drive_footprint(job)


async def until_stdin_ends(work: Coroutine[None, None, None]) -> None:
    """Run `work`; cancel it when the orchestrator closes the pipe, to which it never writes."""
    loop = asyncio.get_running_loop()
    stdin = sys.stdin.fileno()
    task = asyncio.ensure_future(work)

    def stop() -> None:
        loop.remove_reader(stdin)
        task.cancel()

    loop.add_reader(stdin, stop)
    await asyncio.wait((task,))
    loop.remove_reader(stdin)
    if not task.cancelled():
        task.result()


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: connections are made of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Take the CPU first, then start the loop, then import what is measured."""
    job: Job = msgspec.json.decode(sys.argv[1], type=Job)
    if job.cpu is not None:
        os.sched_setaffinity(0, {job.cpu})
    allow_many_files()
    factory = uvloop.new_event_loop if job.entrant.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(until_stdin_ends(perform(job)))


if __name__ == "__main__":
    main()
