"""A peer that stands still under load, stopped or with a blocked event loop, delays calls, and ends none of them wrongly."""

import asyncio
import os
import signal
import time

from figures import Figures
from kills_common import all_home, count, seeded
from load_actors import Load, load_stub
from load_api import Worker
from load_journal import JournalReader, journal
from load_ledger import Kind, Ledger, Outcome, settle_journals
from load_processes import Executioner, processes, until

import shmrpc

pytest_plugins = ["kills_plugin"]

ENDS_OF_THEIR_OWN = {"DONE", "LATE", "UNSENT", "CANCELLED"}
"""How calls end while nobody dies."""


async def test_a_server_that_is_stopped_and_goes_on_loses_no_call(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    rounds, ledger, written = 200 if figures.long else 8, Ledger(), f"{path}.journal"
    with seeded() as rng:
        async with processes(deaths, "serve", at=path, journal=written) as servers:
            pid = await servers.begin()
            async with load_stub(path, ledger) as work:
                async with Load(work, ledger, rng.random()).running(12):
                    for _ in range(rounds):
                        os.kill(pid, signal.SIGSTOP)
                        await asyncio.sleep(rng.random() * 0.03)
                        os.kill(pid, signal.SIGCONT)
                        await asyncio.sleep(rng.random() * 0.02)
                        figures.add("faults survived")
                await all_home(figures, work)
                assert shmrpc.peer(work) is not None
            await servers.kill()
    ledger.settle(JournalReader(written))
    assert ledger.counts().keys() <= ENDS_OF_THEIR_OWN
    count(figures, ledger)


async def test_a_server_that_is_killed_while_it_is_stopped_has_died_like_any(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    rounds, ledger, written = 60 if figures.long else 4, Ledger(), f"{path}.journal"
    with seeded() as rng:
        async with processes(deaths, "serve", at=path, journal=written) as servers:
            await servers.begin()
            async with load_stub(path, ledger) as work:
                async with Load(work, ledger, rng.random()).running(12):
                    for _ in range(rounds):
                        await until(lambda: shmrpc.peer(work), "the connection")
                        await asyncio.sleep(rng.random() * 0.02)
                        os.kill(servers.pid, signal.SIGSTOP)
                        await asyncio.sleep(rng.random() * 0.02)
                        await servers.kill()
                        figures.add("kills survived")
                        await servers.begin()
            await servers.kill()
    ledger.settle(JournalReader(written))
    count(figures, ledger)


async def test_a_client_that_is_stopped_and_goes_on_loses_no_call_and_holds_nobody_up(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    rounds, witness, first = 200 if figures.long else 8, Ledger(), 1 << 32
    said, did = f"{path}.said", f"{path}.did"
    with seeded() as rng, journal(did) as written:
        worker = Worker(written)
        async with processes(deaths, "call", at=path, journal=said) as clients:
            async with shmrpc.Server(worker, at=path) as server, load_stub(path, witness) as work:
                worker.server = server
                pid = await clients.begin(first=first, seed=rng.randrange(1 << 30))
                await until(lambda: server.connections == 2, "the client")
                async with Load(work, witness, rng.random()).running(4):
                    for _ in range(rounds):
                        os.kill(pid, signal.SIGSTOP)
                        seen = len(witness)
                        await asyncio.sleep(rng.random() * 0.03)
                        await until(lambda: len(witness) > seen + 4, "the others to go on")  # noqa: B023
                        os.kill(pid, signal.SIGCONT)
                        await asyncio.sleep(rng.random() * 0.02)
                        figures.add("faults survived")
                await clients.kill()
                await until(lambda: server.connections == 1, "the server to notice")
                await all_home(figures, work)
    witness.settle(JournalReader(did))
    assert witness.counts().keys() <= ENDS_OF_THEIR_OWN
    figures.add("calls checked", settle_journals(JournalReader(said), JournalReader(did), but=first))
    count(figures, witness)


async def test_event_loops_that_are_blocked_at_either_side_delay_calls_and_end_none(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    rounds, ledger, written = 100 if figures.long else 5, Ledger(), f"{path}.journal"
    with seeded() as rng:
        async with processes(deaths, "serve", at=path, journal=written) as servers:
            await servers.begin()
            async with load_stub(path, ledger) as work:
                async with Load(work, ledger, rng.random()).running(12):
                    for _ in range(rounds):
                        number = ledger.begin(Kind.ONCE)
                        blocked = asyncio.ensure_future(work.block(number, rng.random() * 0.05))
                        await asyncio.sleep(rng.random() * 0.005)
                        time.sleep(rng.random() * 0.05)  # noqa: ASYNC251  # this side's
                        assert await blocked == number
                        ledger.end(number, Outcome.DONE)
                        figures.add("faults survived", 2)
                await all_home(figures, work)
            await servers.kill()
    ledger.settle(JournalReader(written))
    assert ledger.counts().keys() <= ENDS_OF_THEIR_OWN
    count(figures, ledger)
