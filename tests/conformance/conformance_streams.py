"""Streams for the conformance suite: the contract, and a service that keeps a journal of what happened to them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from conformance_service import Journal

import shmrpc

Bytes = npt.NDArray[np.uint8]


class Numbered(msgspec.Struct, frozen=True):
    number: int
    text: str = ""


@dataclass(eq=False)
class OutOfItems(shmrpc.RpcError, code=shmrpc.Code.OUT_OF_RANGE):
    after: int


class Streams(Protocol):
    """Methods of all kinds. What is noted under a key can be waited for."""

    def count(self, most: int, key: str = "") -> AsyncIterator[int]: ...
    def records(self, sizes: list[int]) -> AsyncIterator[Numbered]: ...
    def arrays(self, count: int, nbytes: int, born: bool = True) -> AsyncIterator[Bytes]: ...
    def anything(self, values: list[Any]) -> AsyncIterator[Any]: ...
    def fail_after(self, items: int) -> AsyncIterator[int]: ...
    def sleep_after(self, items: int, key: str) -> AsyncIterator[int]: ...
    def misfits(self) -> AsyncIterator[int]: ...
    def plain(self, most: int, key: str) -> AsyncIterator[int]: ...
    def given(self, most: int) -> AsyncIterator[int]: ...
    def by_name(self, *, most: int) -> AsyncIterator[int]: ...
    def name_of_call(self) -> AsyncIterator[str]: ...
    async def total(self, parts: AsyncIterator[int], times: int = 1) -> int: ...
    async def lengths(self, scale: int, parts: AsyncIterator[Bytes]) -> list[int]: ...
    async def take(self, parts: AsyncIterator[int], most: int, key: str) -> int: ...
    async def ignore(self, parts: AsyncIterator[int]) -> str: ...
    async def read_slowly(self, parts: AsyncIterator[int], key: str) -> int: ...
    async def keep_on_reading(self, parts: AsyncIterator[int], key: str) -> None: ...
    async def read_twice(self, parts: AsyncIterator[int]) -> str: ...
    def echo(self, parts: AsyncIterator[Numbered], key: str = "") -> AsyncIterator[Numbered]: ...
    def negate(self, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...
    def stubborn(self, key: str) -> AsyncIterator[int]: ...
    async def deadline(self, parts: AsyncIterator[int]) -> float | None: ...
    async def attach(self, initial: dict[str, str], trailing: dict[str, bytes], fail: bool = False) -> str: ...
    def attach_in_thread(self, initial: dict[str, str], trailing: dict[str, bytes]) -> Bytes: ...
    def attach_to_items(self, initial: dict[str, str], trailing: dict[str, bytes]) -> AsyncIterator[int]: ...
    async def attach_twice(self) -> str: ...
    @shmrpc.oneway
    async def attach_unheard(self, trailing: dict[str, bytes], key: str) -> None: ...
    async def keep_call(self) -> None: ...
    async def attach_to_kept(self) -> str: ...
    async def step(self, key: str) -> None: ...
    async def until(self, key: str, word: str) -> None: ...
    async def words(self, key: str) -> list[str]: ...


def attach(initial: dict[str, str], trailing: dict[str, bytes]) -> None:
    call = shmrpc.current_call()
    if initial:
        call.send_initial_metadata(initial)
    if trailing:
        call.set_trailing_metadata(trailing)


class StreamService(Streams):
    """Implements `Streams`."""

    def __init__(self) -> None:
        self._journal = Journal()

    async def count(self, most: int, key: str = "") -> AsyncIterator[int]:
        try:
            for number in range(most):
                yield number
                if key:
                    self._journal.words[key] = [f"sent {number}"]
        finally:
            self._journal.note(key, "closed")

    async def records(self, sizes: list[int]) -> AsyncIterator[Numbered]:
        for number, size in enumerate(sizes):
            yield Numbered(number, "x" * size)

    async def arrays(self, count: int, nbytes: int, born: bool = True) -> AsyncIterator[Bytes]:
        for number in range(count):
            array: Bytes = shmrpc.empty(nbytes, np.uint8) if born else np.empty(nbytes, np.uint8)
            array[:] = number % 256
            yield array

    async def anything(self, values: list[Any]) -> AsyncIterator[Any]:
        for value in values:
            yield value

    async def fail_after(self, items: int) -> AsyncIterator[int]:
        for number in range(items):
            yield number
        raise OutOfItems(items)

    async def sleep_after(self, items: int, key: str) -> AsyncIterator[int]:
        try:
            for number in range(items):
                yield number
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            raise

    async def misfits(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]

    def plain(self, most: int, key: str) -> Any:
        try:
            yield from range(most)
        finally:
            self._journal.note(key, "closed")

    def given(self, most: int) -> AsyncIterator[int]:
        return self.count(most)

    def name_of_call(self) -> AsyncIterator[str]:
        before = shmrpc.current_call().method

        async def names() -> AsyncIterator[str]:
            yield before
            yield shmrpc.current_call().method

        return names()

    async def by_name(self, *, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    async def total(self, parts: AsyncIterator[int], times: int = 1) -> int:
        return times * sum([part async for part in parts])

    async def lengths(self, scale: int, parts: AsyncIterator[Bytes]) -> list[int]:
        return [scale * len(part) async for part in parts if not part.flags.writeable]

    async def take(self, parts: AsyncIterator[int], most: int, key: str) -> int:
        taken = 0
        async for part in parts:
            taken += part
            most -= 1
            if not most:
                break
        self._journal.note(key, "taken")
        return taken

    async def ignore(self, parts: AsyncIterator[int]) -> str:
        return "ignored"

    async def read_slowly(self, parts: AsyncIterator[int], key: str) -> int:
        read = 0
        async for _ in parts:
            read += 1
            self._journal.note(key, f"read {read}")
            if read == 1:
                await self._journal.gates[key].wait()
        return read

    async def keep_on_reading(self, parts: AsyncIterator[int], key: str) -> None:
        async def read_on() -> None:
            self._journal.note(key, "reading")
            try:
                async for _ in parts:
                    self._journal.note(key, "an item")
            except shmrpc.Cancelled:
                self._journal.note(key, "cut off")

        self._reader = asyncio.create_task(read_on())
        await self._journal.until(key, "an item")

    async def read_twice(self, parts: AsyncIterator[int]) -> str:
        other = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0)
        try:
            await anext(parts)
        except RuntimeError as error:
            return str(error)
        finally:
            other.cancel()
            await asyncio.wait((other,))
        return "both"

    async def echo(self, parts: AsyncIterator[Numbered], key: str = "") -> AsyncIterator[Numbered]:
        try:
            async for part in parts:
                yield part
        except BaseException:
            self._journal.note(key, "left")
            raise

    async def negate(self, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        async for part in parts:
            out: Bytes = shmrpc.empty(part.shape, np.uint8)
            np.subtract(255, part, out=out)
            yield out

    async def stubborn(self, key: str) -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            await self._journal.gates[key].wait()
        self._journal.note(key, "ended")

    async def deadline(self, parts: AsyncIterator[int]) -> float | None:
        return shmrpc.current_call().deadline

    async def attach(self, initial: dict[str, str], trailing: dict[str, bytes], fail: bool = False) -> str:
        attach(initial, trailing)
        if fail:
            raise OutOfItems(0)
        return "attached"

    def attach_in_thread(self, initial: dict[str, str], trailing: dict[str, bytes]) -> Bytes:
        attach(initial, trailing)
        return np.full(100_000, 7, np.uint8)

    async def attach_to_items(self, initial: dict[str, str], trailing: dict[str, bytes]) -> AsyncIterator[int]:
        attach(initial, trailing)
        yield 1

    async def attach_twice(self) -> str:
        attach({"a": "b"}, {})
        try:
            attach({"a": "b"}, {})
        except RuntimeError as error:
            return str(error)
        return ""

    async def attach_unheard(self, trailing: dict[str, bytes], key: str) -> None:
        await self._journal.gates[key].wait()
        attach({}, trailing)
        self._journal.note(key, "attached")

    async def keep_call(self) -> None:
        self._kept = shmrpc.current_call()

    async def attach_to_kept(self) -> str:
        try:
            self._kept.send_initial_metadata({"late": "1"})
        except RuntimeError as error:
            return str(error)
        return "attached"

    async def step(self, key: str) -> None:
        self._journal.gates[key].set()

    async def until(self, key: str, word: str) -> None:
        await self._journal.until(key, word)

    async def words(self, key: str) -> list[str]:
        return list(self._journal.words[key])
