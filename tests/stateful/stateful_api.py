"""The contracts of the stateful test, and the service whose effects are in a journal that outlives a killed server.

Every call has a token that no other call has. What a handler did is a line of the journal, written before it goes on:
``b TOKEN`` it began, ``x TOKEN`` an array that it kept was changed meanwhile. SIGUSR1 lets every held call go, and drops
the arrays that are kept.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

import shmrpc

Array = npt.NDArray[np.uint8]


def fill(array: Array, token: int) -> Array:
    """Writes what only the array of this token holds."""
    array[:] = token % 251
    array[:8] = np.frombuffer(token.to_bytes(8, "little"), np.uint8)
    return array


def fits(array: Array, token: int) -> bool:
    """Whether all of it is what `fill` wrote."""
    return int.from_bytes(array[:8].tobytes(), "little") == token and bool((array[8:] == token % 251).all())


@dataclass(eq=False)
class Refused(shmrpc.RpcError, code=shmrpc.Code.NOT_FOUND):
    """What `Work.refuse` raises."""

    token: int


class Home(Protocol):
    """What the client exposes."""

    async def answer(self, token: int) -> int: ...


class Work(Protocol):
    """Calls of every kind."""

    async def effect(self, token: int) -> int: ...

    @shmrpc.method(idempotent=True)
    async def again(self, token: int) -> int: ...

    @shmrpc.oneway
    async def note(self, token: int) -> None: ...

    async def hold(self, token: int) -> int:
        """Ends when it is let go."""
        ...

    async def refuse(self, token: int) -> int: ...

    async def ask(self, token: int) -> int:
        """What the client answers."""
        ...

    async def keep(self, token: int, array: Array) -> bool:
        """Keeps an array; whether it fits."""
        ...

    async def echo(self, token: int, array: Array) -> Array: ...

    async def make(self, token: int, nbytes: int, born: bool) -> Array:
        """An array, born in shared memory or copied there."""
        ...

    def numbers(self, token: int, count: int) -> AsyncIterator[int]: ...

    def arrays(self, token: int, count: int, nbytes: int) -> AsyncIterator[Array]: ...

    async def total(self, token: int, parts: AsyncIterator[int]) -> int: ...

    async def weigh(self, token: int, parts: AsyncIterator[Array]) -> int:
        """How many arrays came, if all of them fit; else -1."""
        ...

    def both(self, token: int, parts: AsyncIterator[int]) -> AsyncIterator[int]: ...


class Worker(Work):
    """The service."""

    def __init__(self, journal: str) -> None:
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._held: list[asyncio.Future[None]] = []
        self._kept: dict[int, Array] = {}

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()

        def hear(*_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._let_go)

        signal.signal(signal.SIGUSR1, hear)  # not the loop's, which would end the process when the loop has ended

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing: a signal may still come."""

    def _write(self, event: str, token: int) -> None:
        os.write(self._journal, f"{event} {token}\n".encode())

    def _let_go(self) -> None:
        for held in self._held:
            if not held.done():
                held.set_result(None)
        self._held.clear()
        for token, array in self._kept.items():
            if not fits(array, token):
                self._write("x", token)
        self._kept.clear()

    async def effect(self, token: int) -> int:
        self._write("b", token)
        return token

    async def again(self, token: int) -> int:
        self._write("b", token)
        return token

    async def note(self, token: int) -> None:
        self._write("b", token)

    async def hold(self, token: int) -> int:
        self._write("b", token)
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(held)
        await held
        return token

    async def refuse(self, token: int) -> int:
        self._write("b", token)
        raise Refused(token)

    async def ask(self, token: int) -> int:
        self._write("b", token)
        return await shmrpc.current_call().client(Home).answer(token)

    async def keep(self, token: int, array: Array) -> bool:
        self._write("b", token)
        self._kept[token] = array
        return fits(array, token)

    async def echo(self, token: int, array: Array) -> Array:
        self._write("b", token)
        return array

    async def make(self, token: int, nbytes: int, born: bool) -> Array:
        self._write("b", token)
        return fill(shmrpc.empty(nbytes, np.uint8) if born else np.empty(nbytes, np.uint8), token)

    async def numbers(self, token: int, count: int) -> AsyncIterator[int]:
        self._write("b", token)
        for number in range(count):
            yield token + number
            if number % 3 == 0:
                await asyncio.sleep(0)

    async def arrays(self, token: int, count: int, nbytes: int) -> AsyncIterator[Array]:
        self._write("b", token)
        for number in range(count):
            yield fill(shmrpc.empty(nbytes, np.uint8), token + number)

    async def total(self, token: int, parts: AsyncIterator[int]) -> int:
        self._write("b", token)
        total = 0
        async for part in parts:
            total += part
        return total

    async def weigh(self, token: int, parts: AsyncIterator[Array]) -> int:
        self._write("b", token)
        count, good = 0, True
        async for part in parts:
            good = good and fits(part, token + count)
            count += 1
        return count if good else -1

    async def both(self, token: int, parts: AsyncIterator[int]) -> AsyncIterator[int]:
        self._write("b", token)
        async for part in parts:
            yield part + 1


def journalled(folder: Path, event: str = "b") -> Counter[int]:
    """How often each token is in the journals of a folder."""
    lines = [line.split() for journal in folder.glob("*.journal") for line in journal.read_text().splitlines()]
    return Counter(int(token) for what, token in lines if what == event)
