"""Clients of a load are killed at random moments, and their servers too: who survives loses no call, no block and no fd."""

import random

import pytest
from figures import Figures
from kills_common import Baseline, all_home, all_settled, count, epochs, kills_wanted, run_in, seeded
from load_actors import Load, load_stub
from load_api import Worker
from load_journal import ENDED, JournalReader, journal
from load_ledger import Ledger, settle_journals
from load_processes import Executioner, Processes, processes, until

import shmrpc

pytest_plugins = ["kills_plugin"]

RANGE = 1 << 20
"""Numbers for the calls of one client."""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_survives_the_kills_of_its_clients(
    path: str, deaths: Executioner, figures: Figures, loop: str
) -> None:
    """And so does another client of it, the witness."""
    with seeded() as rng:
        run_in(loop, survive(path, deaths, figures, rng))


async def survive(path: str, deaths: Executioner, figures: Figures, rng: random.Random) -> None:
    """In epochs, after each of which everything is counted, and nothing is left."""
    witness, said, did, baseline = Ledger(), f"{path}.said", f"{path}.did", None
    with journal(did) as written:
        worker = Worker(written)
        async with (
            processes(deaths, "call", at=path, journal=said) as clients,
            shmrpc.Server(worker, at=path) as server,
        ):
            worker.server = server
            for rounds in epochs(kills_wanted(figures, 16, 400) // 2):
                async with load_stub(path, witness) as work:
                    async with Load(work, witness, rng.random()).running(4):
                        for _ in range(rounds):
                            await kill_one(clients, server, rng)
                            figures.add("kills survived")
                        await clients.kill_all()
                    await until(lambda: server.connections == 1, "the server to notice")
                    await until(lambda: not server._listener.in_flight(), "the handlers to end")
                    await all_home(figures, work)
                await until(lambda: server.connections == 0, "the witness to leave")
                await all_settled(lambda: server._listener._orphaned)
                baseline = baseline or Baseline()
                baseline.check(figures)
    assert set(clients.statuses) == {-9}, "a client ended by itself"
    numbers = [entry["number"] for entry in JournalReader(did).read() if entry["event"] == ENDED]
    assert len(set(numbers)) == len(numbers), "a handler ended twice"
    witness.settle(JournalReader(did))
    figures.add("calls checked", settle_journals(JournalReader(said), JournalReader(did), but=len(witness)))
    count(figures, witness)


async def kill_one(clients: Processes, server: shmrpc.Server, rng: random.Random) -> None:
    """Of two clients, which are mostly connected."""
    while len(clients.living) < 2:
        begun = 1 + sum(clients.statuses.values()) + len(clients.living)
        loop, seed = rng.choice(("asyncio", "uvloop")), rng.randrange(1 << 30)
        await clients.begin(first=begun * RANGE, seed=seed, loop=loop)
    if rng.random() < 0.85:
        await until(lambda: server.connections >= 2, "a client to connect")
    await clients.kill(rng.choice(sorted(clients.living)), after=rng.random() * rng.choice((0.002, 0.02)))


@pytest.mark.timeout(7200)
async def test_a_client_survives_when_servers_and_other_clients_are_killed(
    path: str, deaths: Executioner, figures: Figures
) -> None:
    rounds, witness = kills_wanted(figures, 10, 300), Ledger()
    said, did = f"{path}.said", f"{path}.did"
    with seeded() as rng:
        async with (
            processes(deaths, "serve", at=path, journal=did) as servers,
            processes(deaths, "call", at=path, journal=said) as clients,
        ):
            await servers.begin()
            begun = 1
            await clients.begin(first=RANGE)
            async with load_stub(path, witness) as work:
                async with Load(work, witness, rng.random()).running(4):
                    for _ in range(rounds):
                        await until(lambda: shmrpc.peer(work), "the connection")
                        victims = rng.choice((("server",), ("client",), ("server", "client"), ("client", "server")))
                        for victim in victims:
                            killed = servers if victim == "server" else clients
                            await killed.kill(after=rng.random() * 0.01 if victim == victims[0] else 0.0)
                            figures.add("kills survived")
                        if "server" in victims:
                            await servers.begin(loop=rng.choice(("asyncio", "uvloop")))
                        if "client" in victims:
                            begun += 1
                            await clients.begin(first=begun * RANGE, seed=rng.randrange(1 << 30))
                    await clients.kill()
                await all_home(figures, work)
            await servers.kill()
    assert set(servers.statuses) == set(clients.statuses) == {-9}, "one ended by itself"
    witness.settle(JournalReader(did))
    figures.add("calls checked", settle_journals(JournalReader(said), JournalReader(did), but=len(witness)))
    count(figures, witness)
