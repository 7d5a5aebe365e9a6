"""Interceptors for the conformance suite: a contract of all kinds, its service, and an interceptor that obeys the caller."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from conformance_service import Journal

import shmrpc

Bytes = npt.NDArray[np.uint8]


class Kinds(Protocol):
    """A method of each kind, and how to hear what the server's interceptor saw of a call."""

    async def double(self, value: int) -> int: ...
    def count(self, most: int, fail_at: int = -1) -> AsyncIterator[int]: ...
    async def total(self, parts: AsyncIterator[int]) -> int: ...
    def negate(self, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...
    @shmrpc.oneway
    async def tell(self, word: str) -> None: ...
    async def hang(self) -> None: ...
    def hang_after(self, items: int) -> AsyncIterator[int]: ...
    async def metadata(self) -> dict[str, str]: ...
    async def until(self, key: str, word: str) -> None: ...
    async def words(self, key: str) -> list[str]: ...


class KindsService(Kinds):
    """Implements `Kinds`."""

    def __init__(self) -> None:
        self.journal = Journal()

    def _note(self, word: str) -> None:
        self.journal.note(str(shmrpc.current_call().metadata.get("key")), word)

    async def double(self, value: int) -> int:
        self._note(f"double {value}")
        return 2 * value

    async def count(self, most: int, fail_at: int = -1) -> AsyncIterator[int]:
        self._note(f"count {most}")
        for number in range(most):
            if number == fail_at:
                raise shmrpc.RpcError("that far", code=shmrpc.Code.OUT_OF_RANGE)
            yield number

    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def negate(self, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        async for part in parts:
            out: Bytes = shmrpc.empty(part.shape, np.uint8)
            np.subtract(255, part, out=out)
            del part
            yield out

    async def tell(self, word: str) -> None:
        self._note(word)

    async def hang(self) -> None:
        self._note("hanging")
        try:
            await asyncio.Event().wait()
        finally:
            self._note("handler left")

    async def hang_after(self, items: int) -> AsyncIterator[int]:
        try:
            for number in range(items):
                yield number
            self._note("hanging")
            await asyncio.Event().wait()
        finally:
            self._note("handler left")

    async def metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in shmrpc.current_call().metadata.items()}

    async def until(self, key: str, word: str) -> None:
        await self.journal.until(key, word)

    async def words(self, key: str) -> list[str]:
        return list(self.journal.words[key])


class Obedient:
    """An interceptor for the server. It notes what it sees of a call under the ``key`` in the call's metadata, and does what
    the ``order`` there says."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def __call__(self, call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        if "key" not in call.metadata:
            return await proceed()
        key, order = str(call.metadata["key"]), call.metadata.get("order")
        self._journal.note(key, f"{call.method} {call.kind} from {call.peer.pid if call.peer else None}")
        try:
            if order == "refuse":
                raise shmrpc.PermissionDenied("not today")
            if order == "break down":
                raise ValueError("a secret")
            if order == "more":
                call.arguments[0] += 1
            result = await proceed(each=(lambda item: 10 * item) if order == "tenfold" else None)
            if order == "tenfold" and result is not None:
                result *= 10
        except BaseException as error:
            word = f"{type(error).__name__}, {call.code_of(error).name}"
            self._journal.note(key, f"{word} again" if word in self._journal.words[key] else word)
            raise
        self._journal.note(key, f"returned {result}")
        return result
