"""What this process holds, and whether something is left of it: fds, shared mappings, threads, child processes, leases.

Reads what the system says of the process, so it needs no event loop and finds what any transport, or any code, left.
"""

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from shmrpc.sharing import leases

SELF: Final = Path("/proc/self")
WORKER_THREADS: Final = "AnyIO worker thread"
"""They end with the event loop that they were started from, a little later."""
CLOSING_THREADS: Final = "shmrpc closing"
"""They close what a peer sent, and end when that is done."""
THREAD_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Held:
    """What this process holds at one moment that code can leave behind.

    Where there is no ``/proc``, it knows of threads only.
    """

    fds: frozenset[tuple[str, str]] = frozenset()
    """Numbers, and what they are of."""
    mappings: frozenset[str] = frozenset()
    """Mappings of shmrpc's segments and extents: addresses and inodes."""
    threads: frozenset[threading.Thread] = field(default_factory=frozenset)
    children: frozenset[str] = frozenset()
    """Pids."""

    @classmethod
    def now(cls) -> "Held":
        """What is held now."""
        threads = frozenset(threading.enumerate())
        if not SELF.exists():
            return cls(threads=threads)
        return cls(frozenset(_fds()), frozenset(_mappings()), threads, frozenset(_children()))

    def __or__(self, other: "Held") -> "Held":
        """What one of the two holds."""
        return Held(
            self.fds | other.fds,
            self.mappings | other.mappings,
            self.threads | other.threads,
            self.children | other.children,
        )

    def without(self, other: "Held") -> "Held":
        """What the other does not hold."""
        return Held(
            self.fds - other.fds,
            self.mappings - other.mappings,
            self.threads - other.threads,
            self.children - other.children,
        )

    def __str__(self) -> str:
        """A text of all of it, empty if there is nothing."""
        parts = [f"fd {number} -> {target}" for number, target in sorted(self.fds)]
        if self.mappings:
            what = "a connection that was not closed, or an array that came over one and is still referred to"
            parts.append(f"{len(self.mappings)} shared mapping{'s' * (len(self.mappings) != 1)} ({what})")
        parts += [f"thread {thread.name}" for thread in self.threads]
        parts += [f"child process {pid}" for pid in sorted(self.children)]
        return "; ".join(parts)


def _fds() -> Iterator[tuple[str, str]]:
    for fd in os.listdir(SELF / "fd"):
        try:
            target = os.readlink(SELF / "fd" / fd)
        except FileNotFoundError:  # the fd of the listing itself
            continue
        yield fd, target


def _mappings() -> Iterator[str]:
    for line in (SELF / "maps").read_text().splitlines():
        addresses, _, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith(("/memfd:shmrpc", "/dev/shm/shmrpc-")):
            yield f"{addresses} {inode}"


def _children() -> Iterator[str]:
    for task in os.listdir(SELF / "task"):
        try:
            children = (SELF / "task" / task / "children").read_text()
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            continue
        yield from children.split()


@cache
def settle_process() -> None:
    """Makes what the process gets once and keeps for good, so that it is not taken for something left behind."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()  # libuv keeps a pipe for signals


def left_since(before: Held) -> Held:
    """What is held and was not before, once threads that were told to end have ended, and garbage was collected.

    Collects only where something is left: a collection takes time for all that a long test run keeps.
    """
    ending = {CLOSING_THREADS} if _runs_a_loop() else {CLOSING_THREADS, WORKER_THREADS}
    for thread in threading.enumerate():
        if thread.name in ending and thread not in before.threads:
            thread.join(THREAD_SECONDS)
    left = Held.now().without(before)
    if left != Held():
        gc.collect()
        left = Held.now().without(before)
    if _runs_a_loop():  # which keeps its idle threads until it is closed
        waiting = {thread for thread in left.threads if thread.name.startswith((WORKER_THREADS, "asyncio_"))}
        left = Held(left.fds, left.mappings, left.threads - waiting, left.children)
    return left


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def no_leaks() -> Iterator[None]:
    """Checks that its block leaves no fd, no shared mapping, no thread and no child process behind.

    For all of a test, its fixtures and its event loop included, there is the fixture ``shmrpc_no_leaks``.

    Raises:
        AssertionError: something is left; the text says what.
    """
    settle_process()
    gc.collect()
    before = Held.now()
    yield
    if left := str(left_since(before)):
        raise AssertionError(f"left behind: {left}")


async def all_released(stub_or_server: object, *, timeout: float = 5.0) -> None:
    """Returns when nobody holds any of this side's shared memory any more: every array that went over has died.

    At a client it tells that the worker does not keep what it was given, at a server that its clients do not. An array of
    this process counts too, one of `shmrpc.empty` for example.

    Args:
        stub_or_server: As for `shmrpc.leases`.
        timeout: Seconds until it must be so.

    Raises:
        AssertionError: it is not; the text says who holds how much of which method.
    """
    until = time.monotonic() + timeout
    while held := leases(stub_or_server):
        if time.monotonic() > until:
            lines = [
                f"{lease.holder or 'this process'} holds {lease.nbytes} bytes in {lease.blocks} blocks of "
                f"{lease.method or 'its own making'}, the oldest for {lease.age:.1f} s"
                for lease in held
            ]
            raise AssertionError(f"not released within {timeout} s: {'; '.join(lines)}")
        await asyncio.sleep(0.005)
        gc.collect()  # an exception and its traceback often keep each other, and the arguments of the call
