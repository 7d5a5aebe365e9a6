"""The contract of the tests of blocking stubs, its service, and how they serve it: in a thread, or in another process."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import uvloop

import shmrpc
from shmrpc.loop_thread import LoopThread

PATIENCE: Final = 20.0
"""Seconds after which a test that waits has failed."""

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@dataclass(eq=False)
class Odd(shmrpc.RpcError, code=shmrpc.Code.OUT_OF_RANGE):
    """Arrives with its field."""

    number: int


class Listener(Protocol):
    """What a client may expose."""

    async def hear(self) -> str: ...


class Work(Protocol):
    """Methods of every kind."""

    async def add(self, left: int, right: int = 1) -> int:
        """Adds."""
        ...

    async def half(self, number: int) -> int: ...
    async def fail(self) -> None: ...
    async def hold(self, name: str) -> str: ...
    async def open_gate(self) -> None:
        """Ends what is held."""
        ...

    async def time_left(self) -> float | None: ...
    async def metadata(self) -> dict[str, str]: ...
    async def process(self) -> int: ...
    async def call_back(self) -> str: ...
    async def total_of(self, array: npt.NDArray[np.uint8]) -> int: ...

    @shmrpc.oneway
    async def note(self, name: str) -> None: ...

    def count(self, most: int) -> AsyncIterator[int]: ...
    def count_then_fail(self, most: int) -> AsyncIterator[int]: ...
    async def total(self, parts: AsyncIterator[int], *, most: int = 1 << 30) -> int: ...
    def double(self, parts: AsyncIterator[int]) -> AsyncIterator[int]: ...


class Worker(Work):
    """What happened is in its `diary`, and in the file that WORKER_DIARY names."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.gate = asyncio.Event()

    def record(self, line: str) -> None:
        self.diary.append(line)
        if path := os.environ.get("WORKER_DIARY"):
            with Path(path).open("a") as file:
                file.write(f"{line}\n")

    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def half(self, number: int) -> int:
        if number % 2:
            raise Odd(number)
        return number // 2

    async def fail(self) -> None:
        raise KeyError("secret")

    async def hold(self, name: str) -> str:
        self.record(f"{name} began")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.record(f"{name} was cancelled")
            raise
        return name

    async def open_gate(self) -> None:
        self.gate.set()

    async def time_left(self) -> float | None:
        return shmrpc.current_call().time_left

    async def metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in shmrpc.current_call().metadata.items()}

    async def process(self) -> int:
        shmrpc.current_call().set_trailing_metadata({"served": "yes"})
        return os.getpid()

    async def call_back(self) -> str:
        return await shmrpc.current_call().client(Listener).hear()

    async def total_of(self, array: npt.NDArray[np.uint8]) -> int:
        return int(array.sum())

    async def note(self, name: str) -> None:
        self.record(f"{name} was noted")

    async def count(self, most: int) -> AsyncIterator[int]:
        number = 0
        try:
            for number in range(most):
                yield number
        except (asyncio.CancelledError, GeneratorExit):  # the latter when it stands at the yield
            self.record("the count was cancelled")
            raise

    async def count_then_fail(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number
        raise Odd(most)

    async def total(self, parts: AsyncIterator[int], *, most: int = 1 << 30) -> int:
        self.record("the total began")
        total = 0
        try:
            async for part in parts:
                total += part
                if total > most:
                    raise Odd(total)
        except asyncio.CancelledError:
            self.record("the total was cancelled")
            raise
        return total

    async def double(self, parts: AsyncIterator[int]) -> AsyncIterator[int]:
        self.record("the doubling began")
        try:
            async for part in parts:
                yield 2 * part
        except (asyncio.CancelledError, GeneratorExit):
            self.record("the doubling was cancelled")
            raise


class PlainWork(Protocol):
    """The contract made plain."""

    def add(self, left: int, right: int = 1) -> int: ...
    def count(self, most: int) -> Iterator[int]: ...


@contextmanager
def serving(service: object, path: str) -> Iterator[None]:
    """A server in a thread of this process."""
    thread = LoopThread("test server")
    thread.start()
    try:
        thread.enter(shmrpc.Server(service, at=path))
        yield
    finally:
        thread.stop()


class InThread:
    """A call in a thread of its own, and how it ended."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, *arguments))
        self._thread.start()

    def _run(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self.result = function(*arguments)
        except BaseException as error:
            self.error = error

    def wait(self) -> "InThread":
        """Returns when it has ended."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call does not end"
        return self
