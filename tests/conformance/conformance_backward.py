"""The contracts of the conformance suite for calls from a server to its client, and the server's part."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

import shmrpc

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class NotHere(shmrpc.RpcError, code=shmrpc.Code.NOT_FOUND):
    where: str


class Desk(Protocol):
    """What the client exposes."""

    async def ask(self, question: str) -> str: ...
    async def negate(self, array: Bytes) -> Bytes: ...
    def count(self, most: int) -> AsyncIterator[int]: ...
    async def total(self, parts: AsyncIterator[int]) -> int: ...
    async def refuse(self) -> None: ...
    async def hang(self) -> None: ...
    async def deadline(self) -> float | None: ...


class Chair(Protocol):
    """What it does not."""

    async def sit(self) -> None: ...


class Front(Protocol):
    """What the server serves: each method calls back."""

    async def ask_back(self, question: str) -> str: ...
    async def negate_back(self, array: Bytes) -> Bytes: ...
    async def count_back(self, most: int) -> int: ...
    async def total_back(self, most: int) -> int: ...
    async def many_back(self, most: int) -> int: ...
    async def refuse_back(self) -> str: ...
    async def hang_back(self) -> None: ...
    async def deadline_back(self) -> tuple[float | None, float | None]: ...
    async def sit_back(self) -> None: ...
    async def remember_me(self) -> None: ...
    async def call_remembered(self, question: str) -> str: ...


class FrontService(Front):
    """Implements `Front`."""

    remembered: Desk

    async def ask_back(self, question: str) -> str:
        return await self._desk.ask(question)

    @property
    def _desk(self) -> Desk:
        return shmrpc.current_call().client(Desk)

    async def negate_back(self, array: Bytes) -> Bytes:
        return await self._desk.negate(array)

    async def count_back(self, most: int) -> int:
        return sum([number async for number in self._desk.count(most)])

    async def total_back(self, most: int) -> int:
        async def each() -> AsyncIterator[int]:
            for number in range(most):
                yield number

        return await self._desk.total(each())

    async def many_back(self, most: int) -> int:
        desk = self._desk

        async def one(number: int) -> int:
            return int((await desk.ask(str(number))).partition("?")[0])

        return sum(await asyncio.gather(*map(one, range(most))))

    async def refuse_back(self) -> str:
        try:
            await self._desk.refuse()
        except NotHere as error:
            return repr(error)
        return ""

    async def hang_back(self) -> None:
        await self._desk.hang()

    async def deadline_back(self) -> tuple[float | None, float | None]:
        return shmrpc.current_call().deadline, await self._desk.deadline()

    async def sit_back(self) -> None:
        await shmrpc.current_call().client(Chair).sit()

    async def remember_me(self) -> None:
        self.remembered = self._desk

    async def call_remembered(self, question: str) -> str:
        return await self.remembered.ask(question)
