"""shmrpc itself, as a user would write it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import numpy as np

import shmrpc
from benchmarks.arrays.workload import WORD_BYTES, Words
from benchmarks.entrants.shm import CONNECT_WAIT_S, polling_of
from benchmarks.streams.workload import count_of, items, stamp
from benchmarks.workload import Item


class StreamContract(Protocol):
    """The contract."""

    def give(self, count: int) -> AsyncIterator[Item]:
        """So many items."""
        ...

    async def take(self, source: AsyncIterator[Item]) -> int:
        """How many there were."""
        ...

    def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back."""
        ...

    def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays."""
        ...


class StreamService(StreamContract):
    """The service."""

    def give(self, count: int) -> AsyncIterator[Item]:
        """So many items."""
        return items(count)

    async def take(self, source: AsyncIterator[Item]) -> int:
        """How many there were."""
        return await count_of(source)

    async def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back."""
        async for item in source:
            yield item

    async def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays, each a new one, born in shared memory."""
        for number in range(count):
            array: Words = shmrpc.empty(nbytes // WORD_BYTES, np.uint64)
            stamp(array, number, touch_all=touch_all)
            yield array


async def serve(path: str, variant: str) -> None:
    """Serve streams at `path` until cancelled."""
    await shmrpc.serve(StreamService(), at=path, polling=polling_of(variant))


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[StreamContract]:
    """Connect to `path`."""
    async with shmrpc.connect(StreamContract, path, polling=polling_of(variant), wait=CONNECT_WAIT_S) as stub:
        yield stub
