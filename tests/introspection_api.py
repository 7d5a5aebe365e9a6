"""A contract with a method of every kind, for the tests of what a server tells of itself, and what serves it."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

Image = npt.NDArray[np.uint8]


class Mode(Enum):
    FAST = "fast"
    GOOD = "good"


class Label(msgspec.Struct, frozen=True):
    """What can be seen."""

    name: str
    score: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    mask: Image | None = None


@dataclass(eq=False)
class BadImage(shmrpc.RpcError, code=shmrpc.Code.INVALID_ARGUMENT):
    """It cannot be looked at."""

    shape: tuple[int, ...]


class Vision(Protocol):
    """Looks at images.

    Slowly.
    """

    @shmrpc.method(idempotent=True)
    async def classify(self, image: Image, top: int = 3, mode: Mode = Mode.FAST) -> list[Label]:
        """What can be seen, best first.

        At most `top`.
        """
        ...

    def count(self, to: int) -> AsyncIterator[int]:
        """The numbers from 0 up to `to`."""
        ...

    async def total(self, parts: AsyncIterator[list[int]], start: int = 0) -> int: ...

    def negate(self, parts: AsyncIterator[Image]) -> AsyncIterator[Image]: ...

    @shmrpc.oneway
    async def warm_up(self, model: str) -> None: ...

    async def teach(self, label: Label, at: tuple[int, str], where: dict[str, list[Label]]) -> None: ...

    def wait(self, started: str, ended: str) -> AsyncIterator[int]:
        """Says by files that it has begun and, when it is cancelled, that it has ended."""
        ...


class Worker(Vision):
    async def classify(self, image: Image, top: int = 3, mode: Mode = Mode.FAST) -> list[Label]:
        if not image.size:
            raise BadImage(image.shape)
        return [Label(str(number), mask=image) for number in range(top)]

    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number
            await asyncio.sleep(0)

    async def total(self, parts: AsyncIterator[list[int]], start: int = 0) -> int:
        async for part in parts:
            start += sum(part)
        return start

    async def negate(self, parts: AsyncIterator[Image]) -> AsyncIterator[Image]:
        async for part in parts:
            yield ~part

    async def warm_up(self, model: str) -> None:
        shmrpc.set_health(self, shmrpc.Health[model])

    async def teach(self, label: Label, at: tuple[int, str], where: dict[str, list[Label]]) -> None:
        return None

    async def wait(self, started: str, ended: str) -> AsyncIterator[int]:
        yield 0
        os.close(os.open(started, os.O_CREAT))
        try:
            await asyncio.Event().wait()
        finally:
            os.close(os.open(ended, os.O_CREAT))
