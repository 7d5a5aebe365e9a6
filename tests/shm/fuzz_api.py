"""A contract with one method of each sort of payload, and a service whose handlers fail for no valid argument."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

Bytes = npt.NDArray[np.uint8]


class Entry(msgspec.Struct):
    """A value with fields of several types."""

    name: str
    sizes: list[int] = []
    parts: dict[str, int | None] = {}
    when: float = 0.0


@dataclass(eq=False)
class Broken(shmrpc.RpcError, code=shmrpc.Code.FAILED_PRECONDITION):
    """A declared error with fields."""

    size: int
    names: list[str]


class Fuzzed(Protocol):
    """Numbers, texts, memory, anything; streams in both directions."""

    async def add(self, left: int, right: int = 1) -> float: ...
    async def record(self, entry: Entry) -> str: ...
    async def texts(self, texts: list[str], more: dict[str, str]) -> int: ...
    async def size_of_bytes(self, memory: memoryview) -> int: ...
    async def size_of_array(self, memory: Bytes) -> int: ...
    async def sizes_of_arrays(self, arrays: list[Bytes]) -> list[int]: ...
    async def anything(self, value: Any) -> str: ...
    @shmrpc.oneway
    async def forget(self, number: int) -> None: ...
    async def array(self, nbytes: int) -> Bytes: ...
    async def any_value(self) -> Any: ...
    def count(self, upto: int) -> AsyncIterator[int]: ...
    async def total(self, numbers: AsyncIterator[int]) -> float: ...
    def turn(self, arrays: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...


METHODS = [name for name in vars(Fuzzed) if not name.startswith("_")]


class Fuzzing(Fuzzed):
    """Touches every byte that it is given."""

    async def add(self, left: int, right: int = 1) -> float:
        return float(left) + float(right)

    async def record(self, entry: Entry) -> str:
        return repr(entry)[:1000]

    async def texts(self, texts: list[str], more: dict[str, str]) -> int:
        return sum(map(len, texts)) + sum(map(len, more.values()))

    async def size_of_bytes(self, memory: memoryview) -> int:
        return len(bytes(memory))

    async def size_of_array(self, memory: Bytes) -> int:
        return int(memory.astype(np.uint64).sum()) + memory.size

    async def sizes_of_arrays(self, arrays: list[Bytes]) -> list[int]:
        return [int(array.astype(np.uint64).sum()) for array in arrays]

    async def anything(self, value: Any) -> str:
        return repr(value)[:1000].encode(errors="replace").decode()

    async def forget(self, number: int) -> None:
        pass

    async def array(self, nbytes: int) -> Bytes:
        return np.zeros(nbytes % 100_000, np.uint8)

    async def any_value(self) -> Any:
        return {"a": np.zeros(3, np.uint8)}

    async def count(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto % 100):
            yield number

    async def total(self, numbers: AsyncIterator[int]) -> float:
        total = 0.0
        async for number in numbers:
            total += number
        return total

    async def turn(self, arrays: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        async for array in arrays:
            yield array
