"""A soak: a mixed load for a bounded time, through connections that last, come and go, and lose their server.

    python tests/load/soak.py [--seconds N] [--seed N] [--figures FILE]

The load runs in rounds. After each it stands still, and what was called is held against what was done; nobody may hold
memory of anybody, nothing but the base segments may be mapped, and this process and the server that lasts must have the fds
that they had at first. At the end, the memory of both and the time that a small call takes must not have grown from the
first third of the rounds to the last.
Prints a line a round and a table; exit status 1 says that something was lost or grew.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop
from load_actors import PATIENT, Load
from load_api import Answering, Work
from load_journal import JournalReader
from load_ledger import Ledger
from load_processes import Executioner, Processes, executioner, processes, until

import shmrpc

ROUND_SECONDS: Final = 4.0
WARM_UP_ROUNDS: Final = 2
"""Rounds after which what a process holds is what it holds from then on."""
ACTORS: Final = 8
"""Of each stub."""
WAVES: Final = 200
IN_FLIGHT: Final = 64
"""So many small calls at once, so many times after each round, to see how long one takes: neither side sleeps meanwhile."""
MEMORY_GROWTH: Final = 8 << 20
"""Bytes by which resident memory may differ between the thirds: an allocator's arenas come and go."""
LATENCY_GROWTH: Final = 2.0
"""The ratio that is still noise."""
EXTENT_IDLE: Final = 0.5
"""Seconds; so that memory that is not used is given back within a pause."""
FIRST_NUMBERS: Final = {"steady": 0, "restless": 1 << 40}


@dataclass(frozen=True)
class Sample:
    """What is seen of this process and of the steady server while the load stands still."""

    resident: tuple[int, int]
    """Bytes."""
    latency: float
    """The median of small calls, many of which are in flight, microseconds."""


@dataclass
class Soaked:
    """What was held."""

    calls: int = 0
    nbytes: int = 0
    streams: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    drains: int = 0
    connections: int = 0
    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """What must not be."""

    def take(self, ledger: Ledger) -> None:
        """Adds the books of a round."""
        self.calls += len(ledger)
        self.nbytes += ledger.nbytes
        self.streams += ledger.streams
        self.outcomes.update(ledger.counts())

    def judge(self) -> None:
        """Sees whether something grew from the first third of the rounds to the last."""
        third = max(1, len(self.samples) // 3)
        first, last = self.samples[:third], self.samples[-third:]
        for index, whose in enumerate(("the client", "the server")):
            before, after = (statistics.median(one.resident[index] for one in part) for part in (first, last))
            if after > before + MEMORY_GROWTH:
                self.wrong.append(f"the memory of {whose} grew from {before / 2**20:.1f} to {after / 2**20:.1f} MiB")
        before, after = self._latencies()
        if after > before * LATENCY_GROWTH:
            self.wrong.append(f"a small call took {before:.1f} us at first and {after:.1f} us in the end")

    def _latencies(self) -> tuple[float, float]:
        """Of the first third and of the last, the least: other work on the machine makes some longer, never shorter."""
        third = max(1, len(self.samples) // 3)
        first, last = self.samples[:third], self.samples[-third:]
        return min(one.latency for one in first), min(one.latency for one in last)

    def table(self) -> str:
        """In words and figures."""
        ended = ", ".join(f"{count:,} {name.lower().replace('_', ' ')}" for name, count in self.outcomes.most_common())
        rows = [
            f"calls: {self.calls:,} ({ended}), none lost",
            f"streams: {self.streams:,}, contents checked: {self.nbytes / 2**30:.2f} GiB",
            f"faults: {self.kills} kills, {self.drains} drains, {self.connections} connections that came and went",
        ]
        if self.samples:
            first, last = self.samples[0], self.samples[-1]
            for index, whose in enumerate(("client", "server")):
                rows.append(
                    f"memory of the {whose}: {first.resident[index] >> 20} MiB, then {last.resident[index] >> 20} MiB"
                )
            rows.append("a small call: {:.1f} us, then {:.1f} us".format(*self._latencies()))
        return "\n".join([*rows, *(f"WRONG: {what}" for what in self.wrong)])

    def counts(self) -> dict[str, int]:
        """For the table of what was proven."""
        return {
            "calls checked": self.calls,
            "streams checked": self.streams,
            "bytes checked": self.nbytes,
            "kills survived": self.kills,
            "faults survived": self.drains + self.connections,
            "calls lost": self.outcomes["OPEN"],
        }


class Soak:
    """The processes, and the rounds."""

    def __init__(self, executioner: Executioner, folder: Path, seed: int) -> None:
        self.soaked: Final = Soaked()
        self._executioner = executioner
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self._ledgers = {name: Ledger(first=first) for name, first in FIRST_NUMBERS.items()}
        self._readers = {name: JournalReader(str(folder / f"{name}.journal")) for name in FIRST_NUMBERS}
        self._stubs: dict[str, Work] = {}
        self._servers: dict[str, Processes] = {}
        self._fds: tuple[int, int] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Both servers, and a stub of each."""
        async with AsyncExitStack() as stack:
            for name in FIRST_NUMBERS:
                at, journal = str(self._folder / f"{name}.sock"), self._readers[name].path
                servers = await stack.enter_async_context(
                    processes(
                        self._executioner, "serve", at=at, journal=journal, loop="uvloop", extent_idle=EXTENT_IDLE
                    )
                )
                await servers.begin()
                self._servers[name] = servers
                self._stubs[name] = await stack.enter_async_context(self._connect(name))
            yield

    def _connect(self, name: str) -> AbstractAsyncContextManager[Work]:
        exposed = Answering(lambda number: self._ledgers[name].returned.update((number,)))
        at = str(self._folder / f"{name}.sock")
        return shmrpc.connect(Work, at, exposes=exposed, extent_idle=EXTENT_IDLE, **PATIENT)

    async def round(self, number: int, seconds: float) -> None:
        """A load on both servers, one of which is killed or drained meanwhile, then a pause in which all must be settled."""
        async with AsyncExitStack() as stack:
            for name, stub in self._stubs.items():
                load = Load(stub, self._ledgers[name], f"{self._seed} {number} {name}")
                await stack.enter_async_context(load.running(ACTORS))
            until_then = time.monotonic() + seconds
            while time.monotonic() < until_then:
                await asyncio.sleep(self._rng.uniform(0.05, 0.4))
                await self._disturb(number)
        for name, ledger in self._ledgers.items():
            self.soaked.take(ledger)
            try:
                ledger.settle(self._readers[name])
            except AssertionError as error:
                self.soaked.wrong.append(f"round {number}, {name}: {error}")
            self._ledgers[name] = Ledger(first=ledger.first + len(ledger))
        await self._look(number)

    async def _disturb(self, number: int) -> None:
        servers = self._servers["restless"]
        match self._rng.randrange(4):
            case 0:
                await servers.kill()
                await servers.begin()
                self.soaked.kills += 1
            case 1:
                os.kill(servers.pid, signal.SIGTERM)
                await servers.wait()
                await servers.begin()
                self.soaked.drains += 1
            case _:
                async with self._connect("steady") as work:
                    load = Load(work, self._ledgers["steady"], f"{self._seed} {number} {self.soaked.connections}")
                    async with load.running(4):
                        await asyncio.sleep(self._rng.uniform(0.0, 0.05))
                self.soaked.connections += 1

    async def _look(self, number: int) -> None:
        steady, pid = self._stubs["steady"], self._servers["steady"].pid
        gc.collect()
        for stub in self._stubs.values():
            await until(lambda stub=stub: not shmrpc.leases(stub), "all memory to come home")
        while await steady.out():  # noqa: ASYNC110  # the server's follow
            await asyncio.sleep(0.001)
        # One segment of each side for each connection, once idle extents are given back and what ended is gone.
        await until(lambda: mappings("self") == 2 * len(self._stubs) and mappings(pid) == 2, "extents to be given back")
        took = []
        for _ in range(WAVES):
            began = time.perf_counter()
            await asyncio.gather(*(steady.where() for _ in range(IN_FLIGHT)))
            took.append((time.perf_counter() - began) / IN_FLIGHT)
        if number >= WARM_UP_ROUNDS:
            fds = fds_of("self"), fds_of(pid)
            if self._fds not in (None, fds):
                self.soaked.wrong.append(f"round {number}: {fds} fds in client and server, and {self._fds} at first")
            self._fds = self._fds or fds
            self.soaked.samples.append(Sample((resident("self"), resident(pid)), statistics.median(took) * 1e6))


def fds_of(pid: int | str) -> int:
    """How many fds a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def mappings(pid: int | str) -> int:
    """How many segments and extents a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("/memfd:shmrpc" in line or "/dev/shm/shmrpc-" in line for line in lines)


def resident(pid: int | str) -> int:
    """Bytes of memory of a process, without what it shares."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


async def soak(seconds: float, seed: int, *, round_seconds: float = ROUND_SECONDS) -> Soaked:
    """Soaks for a while; what was held."""
    with tempfile.TemporaryDirectory() as folder, executioner() as deaths:
        one = Soak(deaths, Path(folder), seed)
        async with one.running():
            until_then, number = time.monotonic() + seconds, 0
            while time.monotonic() < until_then or number < WARM_UP_ROUNDS + 3:
                await one.round(number, round_seconds)
                number += 1
                print(f"round {number}: {one.soaked.calls:,} calls, {len(one.soaked.wrong)} wrong", flush=True)
    return one.soaked


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="A mixed load for a bounded time, and what was held.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write the counts to this file")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        soaked = runner.run(soak(options.seconds, options.seed))
    soaked.judge()
    print(soaked.table())
    if options.figures is not None:
        options.figures.parent.mkdir(parents=True, exist_ok=True)
        options.figures.write_text(json.dumps({**soaked.counts(), "soak seconds": int(options.seconds)}))
    return 1 if soaked.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
