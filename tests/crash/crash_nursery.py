"""The test's side of the nursery: starts the processes that are to die, waits for their deaths, and kills the rest.

A fork of a process that has imported everything takes a tenth of the time of a fresh one, and the crash matrix has
hundreds of them. The fork happens before there is any connection.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PATIENCE: Final = 60.0
"""Seconds after which a test that waits has failed."""


class Nursery:
    """Forks processes, and reaps them."""

    def __init__(self, package: Path = ROOT) -> None:
        """`package` is the folder that shmrpc is imported from."""
        self._process: Final = subprocess.Popen(
            [sys.executable, str(HERE / "crash_nursery_main.py")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(package), str(HERE))), "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, what: Mapping[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, plan: Mapping[str, object]) -> "Child":
        """A new process that does as it is told."""
        return Child(self, self._ask({"start": plan}), Path(str(plan["log"])))

    def reap(self, pid: int) -> int:
        """The status of a process; waits for its end."""
        return self._ask({"reap": pid})

    def close(self) -> None:
        """Kills whatever still runs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Child:
    """One process of the nursery."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self.pid: Final = pid
        self._nursery = nursery
        self._log = log
        self._pidfd = os.pidfd_open(pid)  # it is not reaped before `end`
        self._gone: asyncio.Future[None] | None = None
        self.status: int | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid}, {'running' if self.status is None else f'status {self.status}'}>"

    async def ended(self) -> int:
        """Returns its status, when it has one: an exit status, or a negative signal."""
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._pidfd, self._on_gone, loop)
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(self._gone)
        assert self.status is not None
        return self.status

    def _on_gone(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._pidfd)
        self._reap()

    def wait_dead(self) -> None:
        """Returns when it is dead; the event loop stands still meanwhile."""
        assert select.select([self._pidfd], [], [], PATIENCE)[0]

    def end(self) -> None:
        """Kills it, if it still runs."""
        if self.status is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if self._gone is not None and not self._gone.get_loop().is_closed():
                self._gone.get_loop().remove_reader(self._pidfd)
            self._reap()

    def _reap(self) -> None:
        self.status = self._nursery.reap(self.pid)
        os.close(self._pidfd)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    @property
    def log(self) -> str:
        """What it and those before it wrote to standard error."""
        return self._log.read_text() if self._log.exists() else ""


@contextmanager
def child_of(nursery: Nursery, plan: Mapping[str, Any]) -> Iterator[Child]:
    """A process that is gone at the end."""
    child = nursery.start(plan)
    try:
        yield child
    except BaseException as error:
        child.end()
        error.add_note(f"log of {child}:\n{child.log}")
        raise
    finally:
        child.end()
