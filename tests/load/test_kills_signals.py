"""Signals by the thousand at both sides of a load: every system call of theirs may be interrupted, and no call is."""

import asyncio
import os
import signal
from typing import Any

import pytest
from figures import Figures
from load_actors import PATIENT
from load_api import Work
from load_journal import SIGNALS, JournalReader
from load_ledger import settle_journals
from load_processes import Executioner, processes

import shmrpc

pytest_plugins = ["kills_plugin"]


async def storm(pid: int, other: int) -> None:
    """SIGCHLD to two processes, about a thousand times a second."""
    while True:
        for each in (pid, other):
            os.kill(each, signal.SIGCHLD)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("doorbell", ["eventfd", "pipe"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_signals_interrupt_no_call(
    path: str, deaths: Executioner, figures: Figures, loop: str, doorbell: str
) -> None:
    """The load ends by itself, and its client has no complaint: each call ended as it must while nobody dies."""
    said, did = f"{path}.said", f"{path}.did"
    arguments: dict[str, Any] = {"at": path, "signals": True, "doorbell": doorbell, "loop": loop}
    async with (
        processes(deaths, "serve", journal=did, **arguments) as servers,
        processes(deaths, "call", journal=said, seconds=6.0 if figures.long else 0.3, **arguments) as clients,
    ):
        server = await servers.begin()
        async with shmrpc.connect(Work, path, **PATIENT):
            client = await clients.begin(seed=1)
            sending = asyncio.ensure_future(storm(server, client))
            for _ in range(20):
                async with shmrpc.connect(Work, path, **PATIENT) as other:
                    assert await other.where() == server
            await clients.wait(client)
            sending.cancel()
        await servers.kill()
    assert clients.statuses == {0: 1}
    (handled,) = [entry["number"] for entry in JournalReader(said).read() if entry["event"] == SIGNALS]
    assert handled > 100
    figures.add("signals weathered", int(handled))
    figures.add("calls checked", settle_journals(JournalReader(said), JournalReader(did), died=False))
