"""Control groups of the kernel that a test makes for one process: what it may take of memory, or how many threads.

Of version 1 or 2, whichever the machine has mounted; only where this process may make one.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path("/sys/fs/cgroup")
LIMITS: Final = {
    "memory": (("memory.max", ROOT), ("memory.limit_in_bytes", ROOT / "memory")),
    "pids": (("pids.max", ROOT), ("pids.max", ROOT / "pids")),
}
"""By controller: the file that has the limit, and where its hierarchy is, of version 2 and of version 1."""
PATIENCE: Final = 20.0


class ControlGroup:
    """One that is there for this test."""

    def __init__(self, folder: Path, limit: str) -> None:
        self._folder: Final = folder
        self._limit: Final = limit

    def take(self, pid: int) -> None:
        """Puts a process into it."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def limit(self, amount: int) -> None:
        """Sets what all in it may have."""
        (self._folder / self._limit).write_text(str(amount))
        swap = self._folder / "memory.swap.max"
        if self._limit == "memory.max" and swap.exists():
            swap.write_text("0")

    def current(self, name: str) -> int:
        """What is in one of its files."""
        return int((self._folder / name).read_text())


@contextmanager
def control_group(controller: str) -> Iterator[ControlGroup]:
    """A fresh one, gone at the end; what is in it must have ended by then. Skips the test where there can be none."""
    reasons = []
    for limit, hierarchy in LIMITS[controller]:
        folder = hierarchy / f"shmrpc-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            if (folder / limit).exists():
                yield ControlGroup(folder, limit)
                return
            reasons.append(f"{folder} has no {limit}")
        finally:
            _remove(folder)
    pytest.skip(f"no control group for {controller}: {'; '.join(reasons)}")


def _remove(folder: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            folder.rmdir()
        except OSError:  # the kernel still takes leave of a process
            assert time.monotonic() < until, f"{folder} cannot be removed"
            time.sleep(0.01)
        else:
            return
