"""A contract whose methods have policies, and its service, for the conformance suite."""

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Protocol

import shmrpc

SOON = 0.2
"""Seconds: the declared timeout of what never ends."""


class Policed(Protocol):
    """Methods that are limited, guarded, timed and repeated."""

    @shmrpc.method(timeout=SOON)
    async def hang(self) -> None:
        """Never ends."""
        ...

    @shmrpc.method(timeout=100.0)
    async def deadline(self) -> float | None:
        """When this call's time is up."""
        ...

    async def calls_deadline(self) -> tuple[float | None, float | None]:
        """The deadlines of this call, and of `deadline` called by it."""
        ...

    async def fail(self, key: str, times: int, code: int) -> int:
        """Fails that often; then says how often it was called."""
        ...

    @shmrpc.method(idempotent=True)
    async def fail_again(self, key: str, times: int, code: int) -> int:
        """The same, and may be repeated."""
        ...

    @shmrpc.method(idempotent=True)
    def items(self, key: str, fails: int, before: int) -> AsyncIterator[int]:
        """Fails that often, after so many items; then gives three."""
        ...

    @shmrpc.method(idempotent=True)
    async def total(self, key: str, items: AsyncIterator[int], fails: int) -> int:
        """Fails that often when it has read all items."""
        ...

    async def called(self, key: str) -> int:
        """How often the handlers above were called under a key."""
        ...

    async def two(self, key: str) -> str:
        """Waits to be released. Two run, three more may wait."""
        ...

    async def one_in_thread(self, key: str) -> str:
        """The same in a thread. One runs."""
        ...

    def one_stream(self, key: str) -> AsyncIterator[int]:
        """Counts without end. One runs."""
        ...

    async def began(self, key: str, times: int) -> int:
        """Waits until so many of the three above have begun under a key; says how many have."""
        ...

    async def release(self, key: str) -> None:
        """Lets all of a key go on, also those that come later."""
        ...

    async def guarded(self) -> str:
        """Answers who has ``token`` = ``right`` in the metadata."""
        ...

    async def guarded_in_thread(self) -> str:
        """The same in a thread."""
        ...

    def guarded_stream(self) -> AsyncIterator[str]:
        """The same, as a stream."""
        ...

    async def guarded_by(self, what: str) -> None:
        """Its guard does what the metadata say under ``do``."""
        ...

    async def seen(self) -> tuple[str, tuple[int, int, int], str, float | None]:
        """What its guard saw: method, peer, the metadata's ``key``, deadline."""
        ...


async def has_token(call: shmrpc.Call) -> bool:
    await asyncio.sleep(0)
    return call.metadata.get("token") == "right"


def does_as_told(call: shmrpc.Call) -> bool | None:
    match call.metadata.get("do"):
        case "refuse":
            raise shmrpc.RpcError("log in first", code=shmrpc.Code.UNAUTHENTICATED)
        case "break":
            raise ValueError("the secret of the guard")
        case "nothing":
            return None
    return False


_seen: dict[str, tuple[str, tuple[int, int, int], str, float | None]] = {}


def remembers(call: shmrpc.Call) -> None:
    key = str(call.metadata.get("key"))
    _seen[key] = (call.method, tuple(call.peer), key, call.deadline)  # type: ignore[assignment]


class PolicedService:
    """Serves `Policed`."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._began: Counter[str] = Counter()
        self._gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._lock = threading.Lock()

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def deadline(self) -> float | None:
        return shmrpc.current_call().deadline

    async def calls_deadline(self) -> tuple[float | None, float | None]:
        async with shmrpc.local(Policed, self) as myself:
            return shmrpc.current_call().deadline, await myself.deadline()

    def _count(self, key: str, times: int, code: int = shmrpc.Code.UNAVAILABLE) -> int:
        self._calls[key] += 1
        if self._calls[key] <= times:
            raise shmrpc.RpcError(f"failure {self._calls[key]}", code=shmrpc.Code(code))
        return self._calls[key]

    async def fail(self, key: str, times: int, code: int) -> int:
        return self._count(key, times, code)

    async def fail_again(self, key: str, times: int, code: int) -> int:
        return self._count(key, times, code)

    async def items(self, key: str, fails: int, before: int) -> AsyncIterator[int]:
        for number in range(3):
            if number == before:
                self._count(key, fails)
            yield number

    async def total(self, key: str, items: AsyncIterator[int], fails: int) -> int:
        found = [item async for item in items]
        self._count(key, fails)
        return sum(found)

    async def called(self, key: str) -> int:
        return self._calls[key]

    def _begin(self, key: str) -> threading.Event:
        with self._lock:
            self._began[key] += 1
            return self._gates[key]

    @shmrpc.method(max_concurrency=2, max_waiting=3)
    async def two(self, key: str) -> str:
        gate = self._begin(key)
        while not gate.is_set():  # noqa: ASYNC110 - it is shared with threads
            await asyncio.sleep(0.001)
        return key

    @shmrpc.method(max_concurrency=1)
    def one_in_thread(self, key: str) -> str:
        self._begin(key).wait(60.0)
        return key

    @shmrpc.method(max_concurrency=1)
    async def one_stream(self, key: str) -> AsyncIterator[int]:
        self._begin(key)
        number = 0
        while True:
            yield number
            number += 1

    async def began(self, key: str, times: int) -> int:
        while self._began[key] < times:  # noqa: ASYNC110 - it is shared with threads
            await asyncio.sleep(0.001)
        return self._began[key]

    async def release(self, key: str) -> None:
        self._gates[key].set()

    @shmrpc.method(guard=has_token)
    async def guarded(self) -> str:
        return "welcome"

    @shmrpc.method(guard=has_token)
    def guarded_in_thread(self) -> str:
        return "welcome"

    @shmrpc.method(guard=has_token)
    async def guarded_stream(self) -> AsyncIterator[str]:
        yield "welcome"

    @shmrpc.method(guard=does_as_told)
    async def guarded_by(self, what: str) -> None:
        self._calls[what] += 1

    @shmrpc.method(guard=remembers)
    async def seen(self) -> tuple[str, tuple[int, int, int], str, float | None]:
        return _seen[str(shmrpc.current_call().metadata.get("key"))]
