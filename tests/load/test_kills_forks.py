"""Processes that fork, or become another program, in the middle of a load: what is left of them keeps no connection."""

import asyncio
import errno
import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from figures import Figures
from kills_common import all_home, count, seeded
from load_actors import Load, load_stub
from load_api import Worker
from load_journal import JournalReader, journal
from load_ledger import Kind, Ledger, settle_journals
from load_processes import Executioner, processes, until

import shmrpc

pytest_plugins = ["kills_plugin"]

SLEEP = ["/bin/sleep", "600"]
LOOPS_OWN = ["anon_inode", "socket", "socket"]
"""What an event loop of asyncio has for itself."""


def is_another(pid: int) -> bool:
    """Whether a process runs `SLEEP` by now. It is called so from when its fds are closed on."""
    return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"


def kinds_kept(pid: int) -> list[str]:
    """What they are, without numbers."""
    return sorted(what.split()[0].partition(":")[0] for what in kept_of_connections(pid))


def connected_by(pid: int) -> list[str]:
    """The same without memory."""
    return [kind for kind in kinds_kept(pid) if kind not in ("/memfd", "mapping")]


def kept_of_connections(pid: int) -> list[str]:
    """Sockets, doorbells, segments and their mappings that a process has."""
    kept = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # it loads a library
            kept.append(f"{os.readlink(f'/proc/{pid}/fd/{fd}')} {fd}")
    with open(f"/proc/{pid}/maps") as maps:
        kept += [f"mapping {line}" for line in maps]
    ours = ("socket:", "anon_inode:", "/memfd:shmrpc")
    return [what for what in kept if what.startswith(ours) or (what.startswith("mapping") and "memfd:shmrpc" in what)]


def nobody_listens(path: str) -> bool:
    """Whether a connection is refused."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


async def end(pid: int) -> None:
    """Kills a process that is nobody's child any more; returns when the kernel has closed all that it had."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await until(lambda: select.select([pidfd], [], [], 0)[0], f"process {pid} to end")
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("raw", [False, True], ids=["forked by Python", "forked behind its back"])
async def test_a_child_that_outlives_its_server_hides_no_death(
    path: str, deaths: Executioner, figures: Figures, raw: bool
) -> None:
    """Behind Python's back it holds everything: the sockets, the mappings, and the listening socket too."""
    ledger, written = Ledger(), f"{path}.journal"
    with seeded() as rng:
        async with processes(deaths, "serve", at=path, journal=written) as servers:
            pid = await servers.begin()
            async with load_stub(path, ledger) as work:
                async with Load(work, ledger, rng.random()).running(12):
                    await asyncio.sleep(0.02)
                    child = await work.beget(raw)
                    try:
                        if raw:
                            assert {"socket", "mapping"} <= set(kinds_kept(child))
                        else:  # of memory, it has what handlers had that were under way
                            assert connected_by(child) == LOOPS_OWN
                        await asyncio.sleep(rng.random() * 0.02)
                        await servers.kill(pid)
                        await until(lambda: shmrpc.peer(work) is None, "the client to see the death")
                        os.kill(child, 0)  # which lives
                        figures.add("kills survived")
                        if raw:  # it has the socket that listens, and clients would wait for it
                            await end(child)
                        successor = await servers.begin()
                        assert await work.where() == successor
                    finally:
                        with suppress(ProcessLookupError):
                            os.kill(child, signal.SIGKILL)
                await all_home(figures, work)
            await servers.kill()
    ledger.settle(JournalReader(written))
    count(figures, ledger)


async def test_a_server_that_becomes_another_program_is_gone_and_keeps_nothing(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    """Its process lives on, so that no pidfd says anything."""
    ledger, written = Ledger(), f"{path}.journal"
    with seeded() as rng:
        async with processes(deaths, "serve", at=path, journal=written) as servers:
            await servers.begin()
            async with load_stub(path, ledger) as work:
                async with Load(work, ledger, rng.random()).running(12):
                    for loop in ("asyncio", "uvloop"):
                        await asyncio.sleep(0.01 + rng.random() * 0.02)
                        number = ledger.begin(Kind.ONCE)
                        with pytest.raises(shmrpc.ConnectionLost, match=r"Work\.become was under way there") as caught:
                            await work.become(number, SLEEP)
                        ledger.fail(number, caught.value)
                        await until(lambda: is_another(servers.pid), "the program to be another")
                        assert kept_of_connections(servers.pid) == []
                        await until(lambda: nobody_listens(path), "the kernel to close what was no fd any more")
                        figures.add("faults survived")
                        before = servers.pid
                        successor = await servers.begin(loop=loop)
                        assert await work.where() == successor
                        await servers.kill(before)
                await all_home(figures, work)
            await servers.kill()
    ledger.settle(JournalReader(written))
    count(figures, ledger)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_client_that_becomes_another_program_is_gone_and_keeps_nothing(
    path: str, deaths: Executioner, figures: Figures, loop: str
) -> None:
    witness, first = Ledger(), 1 << 32
    said, did = f"{path}.said", f"{path}.did"
    with seeded() as rng, journal(did) as written:
        worker = Worker(written)
        async with processes(deaths, "call", at=path, journal=said) as clients:
            async with shmrpc.Server(worker, at=path) as server, load_stub(path, witness) as work:
                worker.server = server
                async with Load(work, witness, rng.random()).running(4):
                    pid = await clients.begin(first=first, loop=loop, seconds=0.1, become=SLEEP)
                    await until(lambda: server.connections == 2, "the client")
                    await until(lambda: server.connections == 1, "the server to notice")
                    await until(lambda: is_another(pid), "the program to be another")
                    assert kept_of_connections(pid) == []
                    figures.add("faults survived")
                await until(lambda: not server._listener.in_flight(), "the handlers to end")
                await all_home(figures, work)
                await clients.kill()
    witness.settle(JournalReader(did))
    figures.add("calls checked", settle_journals(JournalReader(said), JournalReader(did), but=first))
    count(figures, witness)
