"""The service whose calls meet faults in these tests."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import shmrpc

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class NoSuchItem(shmrpc.RpcError, code=shmrpc.Code.NOT_FOUND):
    name: str


class Shop(Protocol):
    async def add(self, number: int, *, more: int = 1) -> int: ...

    async def add_in_thread(self, number: int) -> int: ...

    async def wait(self) -> None: ...

    async def copy(self, image: Bytes) -> Bytes: ...

    async def keep(self, image: Bytes) -> None: ...

    async def pid(self) -> int: ...

    async def end(self, status: int) -> None: ...

    def count(self, to: int) -> AsyncIterator[int]: ...

    def count_in_thread(self, to: int) -> AsyncIterator[int]: ...

    async def total(self, numbers: AsyncIterator[int]) -> int: ...


class ShopService(Shop):
    """Writes down what was executed."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.kept: list[Bytes] = []

    async def __aenter__(self) -> None:
        self.diary.append("entered")

    async def __aexit__(self, *exc_info: object) -> None:
        self.diary.append("left")

    async def add(self, number: int, *, more: int = 1) -> int:
        self.diary.append(f"add {number}")
        return number + more

    def add_in_thread(self, number: int) -> int:  # type: ignore[override]
        self.diary.append(f"add_in_thread {number}")
        return number + 1

    async def wait(self) -> None:
        print("waiting", flush=True)
        await asyncio.Event().wait()

    async def copy(self, image: Bytes) -> Bytes:
        return image.copy()

    async def keep(self, image: Bytes) -> None:
        self.kept.append(image)

    async def pid(self) -> int:
        return os.getpid()

    async def end(self, status: int) -> None:
        print("about to end", flush=True)
        os._exit(status)

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    def count_in_thread(self, to: int) -> Iterator[int]:  # type: ignore[override]
        yield from range(to)

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])
