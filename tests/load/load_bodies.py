"""What the processes of the load do: serve it, or make its calls, until they are killed."""

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from load_actors import Load
from load_api import Answering, Work, Worker
from load_journal import SIGNALS, Journal
from load_ledger import Ledger
from load_signals import handle_many, handled

import shmrpc


def warm_up() -> None:
    """Does everything once, so that the processes that are forked from this one need not: imports, contracts, codecs."""

    async def once(folder: str) -> None:
        async with shmrpc.Server(Worker(Journal(f"{folder}/journal")), at=f"{folder}/sock") as server:
            exposed = Answering(lambda number: None)
            async with shmrpc.connect(Work, f"{folder}/sock", exposes=exposed) as work:
                async with Load(work, Ledger(), 0, sizes=(16, 8_100)).running(1):
                    await asyncio.sleep(0.1)
            await server.drain()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(once(folder))


async def serve(
    at: str, journal: str, fd: int | None = None, listening: str = "", signals: bool = False, **settings: Any
) -> None:
    """A server of the load, which drains on SIGTERM. `listening` is a file that gets the time right before it does, in
    nanoseconds."""
    if signals:
        handle_many()
    worker = Worker(Journal(journal))
    worker.server = server = shmrpc.Server(worker, at=at, fd=fd, **settings)
    if listening:
        server._before_listening = lambda: write_time(listening)
    draining: list[asyncio.Task[bool]] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: draining.append(loop.create_task(server.drain())))
    async with server:
        await server.wait_closed()


def write_time(path: str) -> None:
    """Writes the time into a file."""
    Path(path).write_text(str(time.monotonic_ns()))


async def call(
    at: str,
    journal: str,
    first: int = 0,
    seed: int = 0,
    actors: int = 8,
    seconds: float = 1e6,
    signals: bool = False,
    become: list[str] | None = None,
    **settings: Any,
) -> None:
    """A client of the load, whose calls have the numbers from `first` on. In the end it becomes a program, or ends."""
    if signals:
        handle_many()
    written = Journal(journal)
    ledger = Ledger(first=first, journal=written)
    exposed = Answering(lambda number: ledger.returned.update((number,)))
    async with shmrpc.connect(Work, at, wait=60, reconnect_timeout=60, exposes=exposed, **settings) as work:
        async with Load(work, ledger, seed).running(actors):
            await asyncio.sleep(seconds)
            if become is not None:
                os.execv(become[0], become)
        assert not ledger.wrong, ledger.wrong
        written.write(SIGNALS, handled() + await work.signals())
