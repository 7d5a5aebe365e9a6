"""This side of the executioner: servers and clients of the load in processes that cost milliseconds to begin and to kill."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PATIENCE: Final = 60.0
"""Seconds after which something that must happen did not."""


class Executioner:
    """The process that begins and kills others. Takes one order at a time, whichever event loop gives it."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders

    async def order(self, **order: Any) -> int:
        """Gives an order; its answer."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            await loop.sock_sendall(self._orders, json.dumps(order).encode())
            answer = await loop.sock_recv(self._orders, 65536)
        assert answer, "the executioner has ended"
        return int(answer)


class Processes:
    """Processes of one kind, one after the other or several at once."""

    def __init__(self, executioner: Executioner, function: str, arguments: dict[str, Any]) -> None:
        self._executioner = executioner
        self._function = function
        self._arguments = arguments
        self.living: Final[set[int]] = set()
        """Pids."""
        self.pid = 0
        """Of the process that began last."""
        self.statuses: Counter[int] = Counter()
        """How many processes ended how; a signal's number is negative."""

    async def begin(self, **further: Any) -> int:
        """Begins one, which was forked before; its pid."""
        self.pid = await self._executioner.order(begin=self._function, arguments={**self._arguments, **further})
        self.living.add(self.pid)
        return self.pid

    async def kill(self, pid: int = 0, *, after: float = 0.0) -> None:
        """Kills one, or the last, so many seconds from now; returns when it is gone."""
        self._ended(pid or self.pid, await self._executioner.order(kill=pid or self.pid, after=after))

    async def wait(self, pid: int = 0) -> None:
        """Returns when one, or the last, has ended by itself."""
        self._ended(pid or self.pid, await self._executioner.order(**{"await": pid or self.pid}))

    async def kill_all(self) -> None:
        """Kills those that live."""
        for pid in tuple(self.living):
            await self.kill(pid)

    def _ended(self, pid: int, status: int) -> None:
        self.living.discard(pid)
        self.statuses[status] += 1


@contextmanager
def executioner(module: str = "load_bodies", *, pass_fds: tuple[int, ...] = ()) -> Iterator[Executioner]:
    """An executioner of processes whose functions are in a module; all that it forked is gone at the end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "load_executioner.py"), str(theirs.fileno()), module],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"},
        pass_fds=(theirs.fileno(), *pass_fds),
        start_new_session=True,  # a group of its own, to be killed with all that it forked
    )
    theirs.close()
    try:
        yield Executioner(ours)
    finally:
        ours.close()
        try:
            process.wait(PATIENCE)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.returncode == 0, f"the executioner ended with {process.returncode}"


@asynccontextmanager
async def processes(executioner: Executioner, function: str, **arguments: Any) -> AsyncIterator[Processes]:
    """Processes that run a function with these arguments, until the block ends."""
    made = Processes(executioner, function, arguments)
    try:
        yield made
    finally:
        await made.kill_all()


async def until(condition: Any, what: str) -> None:
    """Returns when a condition holds; the event loop runs meanwhile."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {PATIENCE} s for {what}"
        await asyncio.sleep(0.001)
