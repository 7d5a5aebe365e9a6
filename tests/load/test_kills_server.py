"""Servers of a load are killed at random moments, again and again: the client loses no call, no block and no fd.

``SHMRPC_KILLS=10000`` says how many rounds, for each test of this file, of both kinds of loops.
"""

import random
from contextlib import AsyncExitStack
from typing import Any

import pytest
from figures import Figures
from kills_common import Baseline, all_home, all_settled, count, epochs, kills_wanted, run_in, seeded
from load_actors import Load, load_stub
from load_api import Work
from load_journal import JournalReader
from load_ledger import Ledger
from load_processes import Executioner, Processes, executioner, processes, until

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm import address

pytest_plugins = ["kills_plugin"]


async def kill_at_random(servers: Processes, work: Work, rng: random.Random) -> None:
    """One round: mostly when the client is connected to the new server, else perhaps before that one listens."""
    if rng.random() < 0.85:
        await until(lambda: (peer := shmrpc.peer(work)) is not None and peer.pid == servers.pid, "the connection")
    await servers.kill(after=rng.random() * rng.choice((0.002, 0.008, 0.03)))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_survives_the_kills_of_its_servers(
    path: str, deaths: Executioner, figures: Figures, loop: str
) -> None:
    with seeded() as rng:
        run_in(loop, survive(path, deaths, figures, rng))


async def survive(path: str, deaths: Executioner, figures: Figures, rng: random.Random) -> None:
    """In epochs, after each of which the load pauses, everything is counted, and nothing is left."""
    ledger, journal = Ledger(), f"{path}.journal"
    reader, baseline = JournalReader(journal), None
    async with processes(deaths, "serve", at=path, journal=journal) as servers, AsyncExitStack() as stack:
        await servers.begin()
        work = await stack.enter_async_context(load_stub(path, ledger))
        link: Any = open_stub(work)[1]
        load = Load(work, ledger, rng.random())
        for rounds in epochs(kills_wanted(figures, 32, 1200) // 2):
            async with load.running(16):
                for _ in range(rounds):
                    await kill_at_random(servers, work, rng)
                    figures.add("kills survived")
                    await servers.begin(loop=rng.choice(("asyncio", "uvloop")))
            await all_home(figures, work)
            await servers.kill()
            await until(lambda: shmrpc.peer(work) is None, "the client to notice")
            await all_settled(lambda: link._retiring)
            ledger.settle(reader)
            baseline = baseline or Baseline()
            baseline.check(figures)
            await servers.begin()
    assert set(servers.statuses) == {-9}, "a server ended by itself"
    count(figures, ledger)


@pytest.mark.timeout(7200)
async def test_a_client_of_several_workers_survives_the_kills_of_some(path: str, figures: Figures) -> None:
    rounds, ledger, journal = kills_wanted(figures, 10, 300), Ledger(), f"{path}.journal"
    with seeded() as rng, address.listen(path, 0o600, backlog=64) as sock:
        arguments = {"at": path, "journal": journal, "fd": sock.fileno()}
        with executioner(pass_fds=(sock.fileno(),)) as their_deaths:
            async with (
                processes(their_deaths, "serve", **arguments) as workers,
                AsyncExitStack() as stack,
            ):
                pids = [await workers.begin() for _ in range(2)]
                work = await stack.enter_async_context(load_stub(path, ledger, connections=2))
                async with Load(work, ledger, rng.random()).running(16):
                    for _ in range(rounds):
                        await until(lambda: shmrpc.peer(work), "a connection")
                        doomed = pids.pop(rng.randrange(2))
                        await workers.kill(doomed, after=rng.random() * rng.choice((0.002, 0.01)))
                        figures.add("kills survived")
                        pids.append(await workers.begin(loop=rng.choice(("asyncio", "uvloop"))))
                await all_home(figures, work)
    assert set(workers.statuses) == {-9}, "a worker ended by itself"
    ledger.settle(JournalReader(journal))
    count(figures, ledger)
