"""How soon calls succeed again after SIGKILL of a server under load and its restart: a command that prints a table.

``python tests/load/kills_recovery.py [ROUNDS] [ACTORS]``. The time counts from right before the restarted server listens to
the end of the first call that succeeds under the same stub. *At once*: it is restarted as soon as it is dead; *later*: after
a pause, in which the client has backed off. Not a test: figures depend on the machine.
"""

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from load_actors import Load, load_stub
from load_journal import JournalReader
from load_ledger import Kind, Ledger, Outcome
from load_processes import Executioner, executioner, processes, until

import shmrpc


async def rounds_of(
    executioner: Executioner, folder: Path, rounds: int, actors: int, away: tuple[float, float]
) -> list[float]:
    """The times of so many restarts, milliseconds."""
    path, listening = str(folder / "server.sock"), folder / "listening"
    rng, ledger, took = random.Random(rounds), Ledger(), []
    arguments: dict[str, Any] = {"at": path, "journal": str(folder / "journal"), "listening": str(listening)}
    async with processes(executioner, "serve", **arguments) as servers:
        await servers.begin()
        async with load_stub(path, ledger) as work, Load(work, ledger, rounds).running(actors):
            for _ in range(rounds):
                await asyncio.sleep(rng.uniform(0.02, 0.05))
                await servers.kill()
                await until(lambda: shmrpc.peer(work) is None, "the client to notice")
                listening.unlink()
                await asyncio.sleep(rng.uniform(*away))
                ledger.first_done_ns = 0
                await servers.begin(loop="uvloop")
                if not actors:
                    await until(listening.exists, "the server to listen")
                    await work.effect(number := ledger.begin(Kind.ONCE), b"")
                    ledger.end(number, Outcome.DONE)
                await until(lambda: ledger.first_done_ns, "a call to succeed")
                took.append((ledger.first_done_ns - int(listening.read_text())) / 1e6)
        await servers.kill()
    ledger.settle(JournalReader(arguments["journal"]))
    return took


async def main(rounds: int = 50, actors: int = 16) -> None:
    """Prints the table."""
    print(f"{rounds} restarts each, {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}\n")
    print("| restarted | calls | p50 ms | p99 ms | most ms |\n|---|---|---:|---:|---:|")
    for what, away in (("at once", (0.0, 0.0)), ("after 0.2 to 0.6 s", (0.2, 0.6))):
        for load, number in ((f"{actors} actors", actors), ("one, when it listens", 0)):
            with tempfile.TemporaryDirectory() as folder, executioner() as deaths:
                took = sorted(await rounds_of(deaths, Path(folder), rounds, number, away))
            p50, p99 = took[len(took) // 2], took[min(len(took) - 1, len(took) * 99 // 100)]
            print(f"| {what} | {load} | {p50:.1f} | {p99:.1f} | {took[-1]:.1f} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
