"""The contract of the tests of pools, and a service that says where a call went."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

import shmrpc


class Listener(Protocol):
    """What a client may expose."""

    async def hear(self, name: str) -> str: ...


class Spread(Protocol):
    """Methods that say which server served them."""

    async def name(self) -> str: ...
    async def hold(self) -> str: ...
    def ticks(self) -> AsyncIterator[str]: ...
    async def name_of(self, array: npt.NDArray[np.uint8]) -> str: ...
    def ticks_of(self, array: npt.NDArray[np.uint8]) -> AsyncIterator[str]: ...
    async def keep(self, array: npt.NDArray[np.uint8]) -> str: ...
    async def made(self) -> npt.NDArray[np.uint8]: ...
    async def tell(self) -> str:
        """Calls back."""
        ...


class Named(Spread):
    """One of several servers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.held = 0
        self.gate = asyncio.Event()
        self.kept: list[npt.NDArray[np.uint8]] = []

    async def name(self) -> str:
        return self._name

    async def hold(self) -> str:
        self.held += 1
        try:
            await self.gate.wait()
        finally:
            self.held -= 1
        return self._name

    async def ticks(self) -> AsyncIterator[str]:
        self.held += 1
        try:
            while True:
                yield self._name
        finally:
            self.held -= 1

    async def name_of(self, array: npt.NDArray[np.uint8]) -> str:
        return self._name

    async def ticks_of(self, array: npt.NDArray[np.uint8]) -> AsyncIterator[str]:
        yield self._name

    async def keep(self, array: npt.NDArray[np.uint8]) -> str:
        self.kept.append(array)
        return self._name

    async def made(self) -> npt.NDArray[np.uint8]:
        array = shmrpc.empty(100_000, np.uint8)
        array[:] = ord(self._name)
        return array

    async def tell(self) -> str:
        return await shmrpc.current_call().client(Listener).hear(self._name)
