"""A contract with a method of each kind, its service, and interceptors that write down what they see."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import shmrpc

marked: ContextVar[str] = ContextVar("marked", default="nothing")


class Api(Protocol):
    async def add(self, left: int, right: int = 1, *, factor: int = 1) -> int: ...
    def count(self, upto: int, *, fail_at: int = -1) -> AsyncIterator[int]: ...
    async def total(self, parts: AsyncIterator[int], start: int = 0) -> int: ...
    def negate(self, parts: AsyncIterator[int]) -> AsyncIterator[int]: ...
    @shmrpc.oneway
    async def tell(self, word: str) -> None: ...
    async def about(self) -> tuple[dict[str, str], float | None]:
        """The metadata and the deadline that arrived."""

    async def mark(self) -> str: ...
    def marks(self) -> AsyncIterator[str]: ...
    async def hang(self) -> None: ...
    def hang_after(self, count: int) -> AsyncIterator[int]: ...
    async def nested(self) -> float | None:
        """The deadline that an interceptor sees of a call that the handler makes."""


class Service(Api):
    """Implements `Api`, and keeps a diary."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.started = asyncio.Event()
        self.told = asyncio.Event()

    async def add(self, left: int, right: int = 1, *, factor: int = 1) -> int:
        self.diary.append(f"add {left} {right} {factor}")
        return (left + right) * factor

    async def count(self, upto: int, *, fail_at: int = -1) -> AsyncIterator[int]:
        self.diary.append("count")
        try:
            for number in range(upto):
                if number == fail_at:
                    raise shmrpc.RpcError("that far", code=shmrpc.Code.OUT_OF_RANGE)
                yield number
        finally:
            self.diary.append("count left")

    async def total(self, parts: AsyncIterator[int], start: int = 0) -> int:
        return start + sum([part async for part in parts])

    async def negate(self, parts: AsyncIterator[int]) -> AsyncIterator[int]:
        async for part in parts:
            yield -part

    async def tell(self, word: str) -> None:
        self.diary.append(word)
        self.told.set()

    async def about(self) -> tuple[dict[str, str], float | None]:
        call = shmrpc.current_call()
        return {key: str(value) for key, value in call.metadata.items()}, call.deadline

    async def mark(self) -> str:
        return marked.get()

    async def marks(self) -> AsyncIterator[str]:
        yield marked.get()
        await asyncio.sleep(0)
        yield marked.get()

    async def hang(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.diary.append("hang left")

    async def hang_after(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
            self.started.set()
            await asyncio.Event().wait()
        finally:
            self.diary.append("hang_after left")

    async def nested(self) -> float | None:
        seen: list[float | None] = []

        async def look(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
            seen.append(call.deadline)
            return await proceed()

        async with shmrpc.local(Api, self, interceptors=[look]) as api:
            await api.add(1)
        return seen[0]


class Diary:
    """An interceptor that writes down the beginning and the end of each call, and how it ended."""

    def __init__(self, name: str = "", lines: list[str] | None = None) -> None:
        self.name = name
        self.lines = [] if lines is None else lines
        self.calls: list[shmrpc.Intercepted] = []
        self.ended = asyncio.Event()

    async def __call__(self, call: shmrpc.Intercepted, proceed: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append(call)
        self.lines.append(f"{self.name}before")
        try:
            result = await proceed()
        except BaseException as error:
            self.lines.append(f"{self.name}{type(error).__name__}")
            raise
        else:
            self.lines.append(f"{self.name}{result}")
            return result
        finally:
            self.ended.set()


async def numbers(upto: int) -> AsyncIterator[int]:
    """A stream to pass."""
    for number in range(upto):
        yield number
