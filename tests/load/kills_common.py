"""What the tests of random kills share: how many rounds, from which seed, and what must be left when they are over."""

import asyncio
import gc
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from figures import Figures
from load_api import Work
from load_executioner import LOOPS
from load_ledger import Ledger
from load_processes import until

import shmrpc
from shmrpc.shm.session import Session
from shmrpc.testing.holdings import Held


def kills_wanted(figures: Figures, plain: int, long: int) -> int:
    """How many rounds: SHMRPC_KILLS in the environment is for a run that takes its time."""
    return int(os.environ.get("SHMRPC_KILLS", 0)) or (long if figures.long else plain)


def epochs(rounds: int) -> Iterator[int]:
    """Divides rounds into parts of about a hundred, and two at least: what the first one leaves is compared with."""
    parts = max(2, rounds // 100)
    yield from (rounds // parts + (part < rounds % parts) for part in range(parts))


@contextmanager
def seeded() -> Iterator[random.Random]:
    """Randomness from SHMRPC_SEED, or from a new seed, which a failure says."""
    seed = int(os.environ.get("SHMRPC_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    try:
        yield random.Random(seed)
    except BaseException as error:
        error.add_note(f"SHMRPC_SEED={seed} begins with the same seed")
        raise


def run_in(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """Runs a test in an event loop of a kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main)


def count(figures: Figures, *ledgers: Ledger) -> None:
    """Adds what ledgers have proven, once they are settled."""
    figures.add("calls checked", sum(map(len, ledgers)))
    figures.add("bytes checked", sum(ledger.nbytes for ledger in ledgers))
    figures.add("streams checked", sum(ledger.streams for ledger in ledgers))
    figures.add("calls lost", sum(ledger.lost for ledger in ledgers))


async def all_home(figures: Figures, work: Work) -> None:
    """Returns when no block of either side is out on the present connection, with nothing under way on it."""
    try:
        await until(lambda: gc.collect() >= 0 and not shmrpc.leases(work), "the client's blocks to come home")
        while await work.out():  # noqa: ASYNC110  # the server's follow
            await asyncio.sleep(0.001)
    except BaseException:
        figures.add("blocks lost", 1 + sum(lease.blocks for lease in shmrpc.leases(work)))
        raise
    figures.add("blocks lost", 0)


async def all_settled(ended: Callable[[], Iterable[Session]]) -> None:
    """Returns when no thread makes an extent any more for a connection that has ended."""
    await until(lambda: all(session.settled for session in ended()), "the threads of ended connections to end")


class Baseline:
    """What this process holds at a moment that comes again."""

    def __init__(self) -> None:
        gc.collect()
        self._held = Held.now()

    def check(self, figures: Figures) -> None:
        """Nothing was added since; the numbers of fds may be others.

        Raises:
            AssertionError: something was.
        """
        gc.collect()
        held = Held.now()
        more_fds = len(held.fds) - len(self._held.fds)
        figures.add("fds lost", max(0, more_fds))
        more = held.without(self._held)
        assert more_fds <= 0, str(more)
        assert len(held.mappings) <= len(self._held.mappings), str(more)
        threads = {thread for thread in more.threads if not thread.name.startswith(("AnyIO worker", "asyncio_"))}
        assert not threads, str(more)
