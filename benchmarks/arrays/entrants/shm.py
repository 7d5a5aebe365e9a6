"""shmrpc itself, as a user would write it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import numpy as np

import shmrpc
from benchmarks.arrays.workload import WORD_BYTES, Words, total
from benchmarks.entrants.shm import CONNECT_WAIT_S, polling_of
from benchmarks.workload import Item


class ArrayContract(Protocol):
    """The contract."""

    async def small(self, item: Item) -> Item:
        """Return the item."""
        ...

    async def first(self, array: Words) -> int:
        """Return the first word."""
        ...

    async def echo(self, array: Words) -> Words:
        """Return the array."""
        ...

    async def echo_summed(self, array: Words) -> Words:
        """Read all of the array, and return it."""
        ...


class ArrayService(ArrayContract):
    """The service."""

    async def small(self, item: Item) -> Item:
        """Return the item."""
        return item

    async def first(self, array: Words) -> int:
        """Return the first word."""
        return int(array[0])

    async def echo(self, array: Words) -> Words:
        """Return the array: the caller gets its own memory back."""
        return array

    async def echo_summed(self, array: Words) -> Words:
        """Read all of the array, and return it."""
        total(array)
        return array


class Client:
    """The stub's methods, and arrays that are born in the connection's memory."""

    def __init__(self, stub: ArrayContract) -> None:
        self._stub = stub
        self.small, self.first = stub.small, stub.first
        self.echo, self.echo_summed = stub.echo, stub.echo_summed

    def new(self, nbytes: int) -> Words:
        """An array born in shared memory."""
        return shmrpc.empty(nbytes // WORD_BYTES, np.uint64, to=self._stub)


async def serve(path: str, variant: str) -> None:
    """Answer calls at `path` until cancelled."""
    await shmrpc.serve(ArrayService(), at=path, polling=polling_of(variant))


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    async with shmrpc.connect(ArrayContract, path, polling=polling_of(variant), wait=CONNECT_WAIT_S) as stub:
        yield Client(stub)
