"""What is called while a process dies: the server's contract, the client's, their services, and the journal of effects.

Each call has a number of its own. What it does, its *effect*, is one line of the journal, written before anything is
answered; a file outlives whoever wrote it. So the journal says what happened, whatever the survivor was told.
"""

import asyncio
import os
import select
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from crash_ledger import Ledger

import shmrpc
from shmrpc.context import running
from shmrpc.testing import connections

Bytes = npt.NDArray[np.uint8]

TIMES: Final = 4
"""How often the padding of a call comes back."""
KEPT: Final = 7
"""What is in the arrays that the server keeps."""

DRAIN_SECONDS: Final = 0.02
"""How long a held call keeps a drain waiting."""


@dataclass(eq=False)
class Refused(shmrpc.RpcError, code=shmrpc.Code.FAILED_PRECONDITION):
    """A handler's own error."""

    number: int


class Home(Protocol):
    """What the client exposes to the server's handlers."""

    async def note(self, number: int) -> int: ...
    async def lone(self, array: Bytes) -> Bytes:
        """Its number is in the array: see `numbered`."""
        ...

    def count(self, number: int, most: int) -> AsyncIterator[int]: ...


class Crash(Protocol):
    """What the server serves. Every method has an effect, but the last two."""

    async def note(self, number: int) -> int: ...

    @shmrpc.method(idempotent=True)
    async def note_again(self, number: int) -> int: ...

    async def padded(self, number: int, padding: str) -> str: ...
    async def refuse(self, number: int) -> int: ...
    async def echo(self, number: int, array: Bytes) -> Bytes: ...
    async def lone(self, array: Bytes) -> Bytes:
        """An array as the only argument, with the number in it: see `numbered`."""
        ...

    async def give(self, number: int, nbytes: int) -> Bytes: ...
    async def keep(self, number: int, array: Bytes) -> int: ...
    def count(self, number: int, most: int) -> AsyncIterator[int]: ...
    async def total(self, number: int, parts: AsyncIterator[int]) -> int: ...
    def double(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...

    async def back(self, number: int) -> int:
        """Calls each method of the client's."""
        ...

    @shmrpc.oneway
    async def drop(self, number: int) -> None: ...

    async def hold(self, number: int) -> int:
        """Ends when it is let go."""
        ...

    async def cut(self, number: int) -> int:
        """Breaks the connection."""
        ...

    async def stall(self, number: int, until: int) -> int:
        """The server's event loop stands still until there is an effect of that number, or the caller is dead."""
        ...

    async def let_go(self) -> int:
        """Lets all held calls end, and what is kept go; says how many calls were held."""
        ...

    async def drain(self) -> None:
        """The server begins to drain."""
        ...


def numbered(array: Bytes, number: int) -> Bytes:
    """The array, filled with a call's number."""
    array[:8].view(np.int64)[0] = number
    array[8:] = number % 251
    return array


def number_in(array: Bytes) -> int:
    """The number of the call that an array belongs to; -1: it is not as it was made."""
    number = int(array[:8].view(np.int64)[0])
    return number if array[8] == array[-1] == number % 251 else -1


class Journal:
    """The effects of all processes of a test, as lines of one file."""

    def __init__(self, path: str) -> None:
        self.path: Final = path

    def write(self, number: int) -> None:
        """One effect has happened; returns when a death of this process cannot undo it."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"%d\n" % number)
        finally:
            os.close(fd)

    def read(self) -> list[int]:
        """The numbers of all effects, in order."""
        path = Path(self.path)
        return [int(line) for line in path.read_text().split()] if path.exists() else []


class HomeService(Home):
    """The client's service."""

    def __init__(self, journal: Journal) -> None:
        self.handlers = 0
        """That run."""
        self._journal = journal

    @contextmanager
    def _handling(self, number: int) -> Iterator[None]:
        self.handlers += 1
        try:
            self._journal.write(number)
            yield
        finally:
            self.handlers -= 1

    async def note(self, number: int) -> int:
        with self._handling(number):
            return number

    async def lone(self, array: Bytes) -> Bytes:
        with self._handling(number_in(array)):
            return array

    async def count(self, number: int, most: int) -> AsyncIterator[int]:
        with self._handling(number):
            for item in range(most):
                if item % 100 == 0:
                    await asyncio.sleep(0)
                yield item


class CrashService(Crash):
    """The server's service."""

    def __init__(self, journal: Journal, ledger: Ledger) -> None:
        """`ledger` is for the calls that its handlers make."""
        self.server: shmrpc.Server | None = None
        self.handlers = 0
        """That run."""
        self.ledger: Final = ledger
        self._journal = journal
        self._kept: list[Bytes] = []
        self._held: set[asyncio.Future[None]] = set()
        self._draining: asyncio.Task[bool] | None = None

    @contextmanager
    def _handling(self, number: int) -> Iterator[None]:
        self.handlers += 1
        try:
            self._journal.write(number)
            yield
        finally:
            self.handlers -= 1

    async def note(self, number: int) -> int:
        with self._handling(number):
            return number

    async def note_again(self, number: int) -> int:
        with self._handling(number):
            return number

    async def padded(self, number: int, padding: str) -> str:
        with self._handling(number):
            return padding * TIMES

    async def refuse(self, number: int) -> int:
        with self._handling(number):
            raise Refused(number)

    async def echo(self, number: int, array: Bytes) -> Bytes:
        with self._handling(number):
            return array

    async def lone(self, array: Bytes) -> Bytes:
        with self._handling(number_in(array)):
            return array

    async def give(self, number: int, nbytes: int) -> Bytes:
        with self._handling(number):
            array = shmrpc.empty(nbytes, np.uint8)
            array[:] = number % 251
            return array

    async def keep(self, number: int, array: Bytes) -> int:
        with self._handling(number):
            self._kept.append(array)
            return number

    async def count(self, number: int, most: int) -> AsyncIterator[int]:
        with self._handling(number):
            for item in range(most):
                if item % 100 == 0:
                    await asyncio.sleep(0)
                yield item

    async def total(self, number: int, parts: AsyncIterator[int]) -> int:
        with self._handling(number):
            return sum([part async for part in parts])

    async def double(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        with self._handling(number):
            async for part in parts:
                yield part * np.uint8(2)

    async def back(self, number: int) -> int:
        with self._handling(number):
            home = shmrpc.current_call().client(Home)

            async def lone(inner: int) -> int:
                return number_in(await home.lone(numbered(shmrpc.empty(20_000, np.uint8), inner)))

            async def count(inner: int) -> int:
                return sum([item async for item in home.count(inner, 300)])

            await self.ledger.call("Home.note", home.note)
            await self.ledger.call("Home.lone", lone)
            await self.ledger.call("Home.count", count, lambda _, total: total == sum(range(300)))
            return number

    async def drop(self, number: int) -> None:
        with self._handling(number):
            return

    async def hold(self, number: int) -> int:
        with self._handling(number):
            held = asyncio.get_running_loop().create_future()
            self._held.add(held)
            try:
                await held
            finally:
                self._held.discard(held)
            return number

    async def cut(self, number: int) -> int:
        with self._handling(number):
            await connections.drop(running.get())

    async def stall(self, number: int, until: int) -> int:
        with self._handling(number):
            stand_still(self._journal, [until], shmrpc.current_call().peer.pid)
            return number

    def kept_is_right(self) -> bool:
        """Whether what is kept is as it was sent, also of a client that is dead."""
        return all(array[0] == array[-1] == KEPT for array in self._kept)

    def let_kept_go(self) -> None:
        """Keeps nothing any more."""
        self._kept.clear()

    async def let_go(self) -> int:
        self.let_kept_go()
        count = len(self._held)
        for held in self._held:
            if not held.done():
                held.set_result(None)
        return count

    async def drain(self) -> None:
        assert self.server is not None
        loop = asyncio.get_running_loop()
        self._draining = loop.create_task(self.server.drain())
        loop.call_later(DRAIN_SECONDS, lambda: loop.create_task(self.let_go()))


def stand_still(journal: Journal, numbers: list[int], pid: int) -> None:
    """Blocks this process's event loop until one of some effects is in the journal, or a process is dead."""
    try:
        death = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        while not set(numbers) & set(journal.read()) and not select.select([death], [], [], 0.001)[0]:
            continue
    finally:
        os.close(death)
