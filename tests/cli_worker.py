"""What the tests of the command line serve."""

import abc
import asyncio
import os
import time
from dataclasses import dataclass
from typing import Protocol

import shmrpc


@dataclass(eq=False)
class Refused(shmrpc.RpcError, code=shmrpc.Code.ABORTED):
    reason: str


class Worker:
    """Its contract is itself."""

    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def pid(self) -> int:
        return os.getpid()

    async def loop(self) -> str:
        return type(asyncio.get_running_loop()).__module__

    async def metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in shmrpc.current_call().metadata.items()}

    async def refuse(self, reason: str) -> None:
        raise Refused(reason)

    async def fail(self, secret: str) -> None:
        raise ValueError(secret)

    async def bytes(self) -> bytes:
        return b"bytes"

    async def hold(self, started: str, gate: str) -> str:
        """Says that it has started by making a file, and ends when another one is there."""
        os.close(os.open(started, os.O_CREAT))
        while not os.access(gate, os.F_OK):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.005)
        return "held"

    def sleep_for_ever(self, started: str) -> None:
        os.close(os.open(started, os.O_CREAT))
        while True:
            time.sleep(1000)


class Other:
    async def add(self, left: int) -> int:
        return left

    async def greet(self) -> str:
        return "hello"


class NeedsArguments:
    def __init__(self, size: int) -> None:
        self.size = size

    async def measure(self) -> int:
        return self.size


class FailsToStart:
    def __init__(self) -> None:
        raise TypeError("not on this machine")

    async def measure(self) -> int:
        return 0


class Nested:
    worker = Worker()


made = NeedsArguments(7)


class Asked(Protocol):
    async def ask(self) -> str: ...


class Abstract(abc.ABC):
    @abc.abstractmethod
    async def ask(self) -> str: ...

    @abc.abstractmethod
    async def tell(self, word: str) -> None: ...

    @abc.abstractmethod
    async def greet(self) -> str: ...


class Unfinished(Abstract):
    async def greet(self) -> str:
        return "hello"
