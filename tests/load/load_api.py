"""The contract of the load, its service, and what its client exposes. What travels can be checked at every end.

Each call has a number that no other has. What is sent for a number, and in which order, follows from it, so that either
side knows what must arrive; arrays travel with their checksum. The service writes into a journal that a handler began,
before it does anything else, so that what was done is known of a process that was killed. It can be served by a command,
with LOAD_JOURNAL in the environment.
"""

import asyncio
import ctypes
import gc
import os
import signal
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import load_signals
import numpy as np
import numpy.typing as npt
from load_journal import BEGAN, CORRUPT, ENDED, Journal

import shmrpc

Bytes = npt.NDArray[np.uint8]


class Corrupt(shmrpc.RpcError, code=shmrpc.Code.DATA_LOSS):
    """What arrived is not what was sent."""


class Back(Protocol):
    """What the client exposes."""

    async def returned(self, number: int, array: Bytes) -> int:
        """The checksum of an array that came back."""
        ...


class Work(Protocol):
    """All kinds of calls."""

    async def effect(self, number: int, payload: bytes) -> int:
        """Does something that must not be done twice; gives the checksum of the payload."""
        ...

    @shmrpc.method(idempotent=True)
    async def again(self, number: int, payload: bytes) -> int:
        """The same, and may be done again."""
        ...

    @shmrpc.oneway
    async def drop(self, number: int) -> None: ...

    async def mirror(self, number: int, checksum: int, array: Bytes) -> Bytes:
        """The array inverted, in memory of its own."""
        ...

    async def handed_back(self, number: int, checksum: int, array: Bytes) -> Bytes:
        """The very array."""
        ...

    async def fetch(self, number: int, nbytes: int) -> Bytes: ...

    async def hold(self, number: int) -> None:
        """Ends when it is cancelled."""
        ...

    async def pause(self, number: int, seconds: float) -> int:
        """Ends after a while, and so is likely to be under way when its server dies."""
        ...

    async def bounce(self, number: int, array: Bytes) -> int:
        """Calls the client back with the array."""
        ...

    def count(self, number: int, most: int) -> AsyncIterator[int]: ...

    def items(self, number: int, count: int, nbytes: int) -> AsyncIterator[Bytes]: ...

    async def total(self, number: int, parts: AsyncIterator[Bytes]) -> int:
        """The checksum of all parts, one after the other."""
        ...

    def negate(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...

    async def block(self, number: int, seconds: float) -> int:
        """Keeps the event loop from doing anything else."""
        ...

    async def where(self) -> int:
        """The server's process."""
        ...

    async def out(self) -> int:
        """How many of the server's blocks are not home."""
        ...

    async def signals(self) -> int:
        """How many signals the server's process has handled."""
        ...

    async def beget(self, raw: bool) -> int:
        """Forks a child that does nothing but live on; `raw`: behind Python's back, so that it holds all that there is."""
        ...

    async def become(self, number: int, program: list[str]) -> None:
        """Executes a program in place of the server."""
        ...


def fill(array: Bytes, number: int, index: int = 0) -> None:
    """Puts into an array what belongs to a number."""
    array[:] = (number * 31 + index * 7) & 0xFF
    array[: min(8, array.size)] = np.frombuffer((number + index).to_bytes(8, "little"), np.uint8)[: array.size]


def filled(number: int, nbytes: int, index: int = 0) -> Bytes:
    """The same in ordinary memory."""
    array: Bytes = np.empty(nbytes, np.uint8)
    fill(array, number, index)
    return array


def checksum(array: Bytes, before: int = 0) -> int:
    """Of contents."""
    return zlib.crc32(array.data, before)


def is_filled(array: Bytes, number: int, index: int = 0, *, inverted: bool = False) -> bool:
    """Whether an array is what belongs to a number."""
    expected = filled(number, array.size, index)
    return bool(np.array_equal(array, np.subtract(255, expected) if inverted else expected))


class Worker(Work):
    """The service."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal or Journal(os.environ["LOAD_JOURNAL"])
        self.server: shmrpc.Server | None = None

    def _check(self, number: int, right: bool) -> None:
        if not right:
            self.journal.write(CORRUPT, number)
            raise Corrupt(f"call {number}")

    async def effect(self, number: int, payload: bytes) -> int:
        self.journal.write(BEGAN, number)
        return zlib.crc32(payload)

    async def again(self, number: int, payload: bytes) -> int:
        self.journal.write(BEGAN, number)
        return zlib.crc32(payload)

    async def drop(self, number: int) -> None:
        self.journal.write(BEGAN, number)

    async def mirror(self, number: int, checksum: int, array: Bytes) -> Bytes:
        self.journal.write(BEGAN, number)
        self._check(number, zlib.crc32(array.data) == checksum)
        out: Bytes = shmrpc.empty(array.shape, np.uint8)
        np.subtract(255, array, out=out)
        return out

    async def handed_back(self, number: int, checksum: int, array: Bytes) -> Bytes:
        self.journal.write(BEGAN, number)
        self._check(number, zlib.crc32(array.data) == checksum)
        return array

    async def fetch(self, number: int, nbytes: int) -> Bytes:
        self.journal.write(BEGAN, number)
        out: Bytes = shmrpc.empty(nbytes, np.uint8)
        fill(out, number)
        return out

    async def hold(self, number: int) -> None:
        self.journal.write(BEGAN, number)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.journal.write(ENDED, number)

    async def pause(self, number: int, seconds: float) -> int:
        self.journal.write(BEGAN, number)
        await asyncio.sleep(seconds)
        return number

    async def bounce(self, number: int, array: Bytes) -> int:
        self.journal.write(BEGAN, number)
        self._check(number, is_filled(array, number))
        return await shmrpc.current_call().client(Back).returned(number, array)

    async def count(self, number: int, most: int) -> AsyncIterator[int]:
        self.journal.write(BEGAN, number)
        try:
            for item in range(most):
                yield number + item
        finally:
            self.journal.write(ENDED, number)

    async def items(self, number: int, count: int, nbytes: int) -> AsyncIterator[Bytes]:
        self.journal.write(BEGAN, number)
        try:
            for index in range(count):
                out: Bytes = shmrpc.empty(nbytes, np.uint8)
                fill(out, number, index)
                yield out
                del out
        finally:
            self.journal.write(ENDED, number)

    async def total(self, number: int, parts: AsyncIterator[Bytes]) -> int:
        self.journal.write(BEGAN, number)
        total = index = 0
        async for part in parts:
            self._check(number, is_filled(part, number, index))
            total = checksum(part, total)
            index += 1
            del part
        return total

    async def negate(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        self.journal.write(BEGAN, number)
        index = 0
        async for part in parts:
            self._check(number, is_filled(part, number, index))
            out: Bytes = shmrpc.empty(part.shape, np.uint8)
            np.subtract(255, part, out=out)
            del part
            yield out
            del out
            index += 1

    async def block(self, number: int, seconds: float) -> int:
        self.journal.write(BEGAN, number)
        time.sleep(seconds)  # noqa: ASYNC251  # the purpose of it
        return number

    async def where(self) -> int:
        return os.getpid()

    async def out(self) -> int:
        assert self.server is not None
        gc.collect()  # an exception that is kept keeps the arrays of its frames
        return sum(lease.blocks for lease in self.server.leases())

    async def signals(self) -> int:
        return load_signals.handled()

    async def beget(self, raw: bool) -> int:
        begun, begin = os.pipe()
        child: int = ctypes.PyDLL(None).fork() if raw else os.fork()
        os.close(begin)  # in the child, after what the library does there
        while not child:
            signal.pause()
        os.read(begun, 1)
        os.close(begun)
        return child

    async def become(self, number: int, program: list[str]) -> None:
        self.journal.write(BEGAN, number)
        os.execv(program[0], program)


class Answering(Back):
    """What a client of the load exposes."""

    def __init__(self, on_returned: Callable[[int], Any]) -> None:
        self._on_returned = on_returned

    async def returned(self, number: int, array: Bytes) -> int:
        self._on_returned(number)
        if not is_filled(array, number):
            raise Corrupt(f"call {number} on its way back")
        return checksum(array)
