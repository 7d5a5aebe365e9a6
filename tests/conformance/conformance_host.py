"""The server process of the conformance suite: ``conformance_host.py FOLDER LOOP DOORBELL``, until its input ends.

It serves at addresses in the folder: everything at ``main.sock``, `Api` in debug mode at ``debug.sock``, `Kinds` with an
interceptor at ``intercepted.sock``, and an old version of a contract at ``older.sock``. With a fourth argument it serves
only `Life` at ``life.sock``, whose diary that is.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from conformance_api import Echo, Inner, Threads
from conformance_arrays import ArrayService, ArrayThreadHandlers, ArrayThreads
from conformance_backward import FrontService
from conformance_interceptors import KindsService, Obedient
from conformance_interop import InteropService, Nested, NestedService
from conformance_older import OlderService
from conformance_policy import Policed, PolicedService
from conformance_service import InnerService, LifeService, NamesService, Service, ThreadHandlers
from conformance_streams import StreamService

import shmrpc


async def serve_all(folder: Path, settings: dict[str, Any]) -> None:
    """Serves at all addresses but that of `Life`."""
    async with AsyncExitStack() as stack:

        async def at(name: str, *services: object, **more: Any) -> str:
            path = str(folder / name)
            await stack.enter_async_context(shmrpc.Server(*services, at=path, grace=1.0, **settings, **more))
            return path

        inner = await stack.enter_async_context(
            shmrpc.connect(Inner, await at("inner.sock", InnerService()), **settings)
        )
        await at("older.sock", OlderService())
        await at("debug.sock", Service(inner), debug=True)
        kinds = KindsService()
        await at("intercepted.sock", kinds, interceptors=[Obedient(kinds.journal)])
        threads = shmrpc.service(ThreadHandlers(), Threads)
        arrays = shmrpc.service(ArrayThreadHandlers(), ArrayThreads)
        values = (Echo(), ArrayService(), arrays)
        policed = shmrpc.service(PolicedService(), Policed)
        nested = NestedService()
        more = (StreamService(), FrontService(), InteropService(), nested, policed)
        path = await at("main.sock", Service(inner), InnerService(), NamesService(), threads, *more, *values)
        nested.itself = await stack.enter_async_context(shmrpc.connect(Nested, path, **settings))
        await until_input_ends()


async def serve_life(folder: Path, diary: Path, settings: dict[str, Any]) -> None:
    """Serves `Life`."""
    async with shmrpc.Server(LifeService(diary), at=str(folder / "life.sock"), **settings):
        await until_input_ends()


async def until_input_ends() -> None:
    """Returns when whoever started this process closes its end, or is gone."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    loop.remove_reader(sys.stdin.fileno())


def main(folder: str, loop: str, doorbell: str, diary: str | None = None) -> None:
    """Serves, and checks that no task is left in the end."""
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        settings = {"doorbell": doorbell}
        if diary is None:
            runner.run(serve_all(Path(folder), settings))
        else:
            runner.run(serve_life(Path(folder), Path(diary), settings))
        left = asyncio.all_tasks(runner.get_loop())
        assert not left, f"tasks are left: {left}"


if __name__ == "__main__":
    main(*sys.argv[1:])
