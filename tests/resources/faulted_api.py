"""The contracts that the tests of scarce resources share, and a service that uses a connection in every way there is."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

import shmrpc

Words = npt.NDArray[np.int64]


class Caller(Protocol):
    """What the client exposes."""

    async def twice(self, number: int) -> int: ...


class Faulted(Protocol):
    """What the server serves."""

    async def add(self, left: int, right: int) -> int: ...

    async def negate(self, words: Words) -> Words:
        """A large array each way needs an extent at each side."""
        ...

    async def make(self, words: int) -> Words:
        """So many of them, which takes memory of the server alone."""
        ...

    def count(self, until: int) -> AsyncIterator[int]: ...

    async def total(self, numbers: AsyncIterator[int]) -> int: ...

    async def ask_back(self, number: int) -> int:
        """What the caller answers, who exposes `Caller`."""
        ...

    async def hold(self) -> None:
        """Waits until it is cancelled."""
        ...

    async def holding(self) -> int:
        """How many calls of `hold` there are."""
        ...

    async def in_thread(self, number: int) -> int:
        """Its handler is a plain function."""
        ...

    def steps_in_thread(self, until: int) -> AsyncIterator[int]:
        """Its handler is a plain generator."""
        ...


class Exposed(Caller):
    async def twice(self, number: int) -> int:
        return 2 * number


class Service:
    """The service; given to `shmrpc.service` since two of its handlers are plain functions."""

    def __init__(self) -> None:
        self._holding = 0

    async def add(self, left: int, right: int) -> int:
        return left + right

    async def negate(self, words: Words) -> Words:
        return -words

    async def make(self, words: int) -> Words:
        return np.arange(words)

    async def count(self, until: int) -> AsyncIterator[int]:
        for number in range(until):
            yield number

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def ask_back(self, number: int) -> int:
        return await shmrpc.current_call().client(Caller).twice(number)

    async def hold(self) -> None:
        self._holding += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._holding -= 1

    async def holding(self) -> int:
        return self._holding

    def in_thread(self, number: int) -> int:
        return number

    def steps_in_thread(self, until: int) -> Iterator[int]:
        yield from range(until)


def service() -> object:
    """One to be served."""
    return shmrpc.service(Service(), Faulted)
