"""The contract of the conformance suite that has arrays and other buffers in it, and its services."""

import asyncio
from collections import defaultdict
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

Pixels = npt.NDArray[np.uint8]
Colours = np.ndarray[tuple[int, int, Literal[3]], np.dtype[np.uint8]]
AnyArray = np.ndarray[Any, np.dtype[Any]]


class Frame(msgspec.Struct):
    """Arrays in a value."""

    pixels: Pixels
    label: str = ""
    mask: npt.NDArray[np.bool_] | None = None
    rest: list[npt.NDArray[np.float64]] = []


class Seen(msgspec.Struct, frozen=True):
    """What a handler sees of an array."""

    dtype: str
    shape: tuple[int, ...]
    writeable: bool
    type: str


class Arrays(Protocol):
    """Gives back what it is given, in every place where an array may be."""

    async def anything(self, value: AnyArray) -> AnyArray: ...
    async def pixels(self, value: Pixels) -> Pixels: ...
    async def real(self, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...
    async def number(self, value: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]: ...
    async def colours(self, value: Colours) -> Colours: ...
    async def frame(self, value: Frame) -> Frame: ...
    async def row(self, value: list[Pixels]) -> list[Pixels]: ...
    async def pair(self, value: tuple[Pixels, npt.NDArray[np.float64]]) -> tuple[Pixels, npt.NDArray[np.float64]]: ...
    async def table(self, value: dict[str, Pixels]) -> dict[str, Pixels]: ...
    async def optional(self, value: Pixels | None = None) -> Pixels | None: ...
    async def either(self, value: Pixels | str | list[int]) -> Pixels | str | list[int]: ...
    async def frames(self, value: list[Frame | None]) -> list[Frame | None]: ...
    async def free(self, value: Any) -> Any: ...
    async def several(self, one: Pixels, other: Pixels, *, third: Pixels | None = None) -> list[Pixels]: ...
    async def text(self, value: bytes) -> bytes: ...
    async def changeable(self, value: bytearray) -> bytearray: ...
    async def view(self, value: memoryview) -> memoryview: ...
    async def buffer(self, value: shmrpc.Buffer) -> shmrpc.Buffer: ...
    async def look(self, value: AnyArray) -> Seen: ...
    async def look_at_buffer(self, value: shmrpc.Buffer) -> tuple[str, bool, int]: ...
    async def write(self, value: Pixels) -> str:
        """Tries to write into its argument; says what came of it."""
        ...

    async def keep(self, key: str, value: Pixels) -> None: ...
    async def kept(self, key: str) -> list[int]:
        """The first element of what was kept, after the calls that brought it have ended."""
        ...

    async def forget(self, key: str) -> Pixels: ...
    async def born(self, count: int, value: int) -> Pixels:
        """Made with `shmrpc.empty`."""
        ...

    async def born_late(self, count: int, value: int) -> Pixels:
        """The same, after the handler has waited."""
        ...

    async def born_part(self, count: int, begin: int, end: int) -> Pixels:
        """Part of one, in which each number is its position."""
        ...

    async def born_buffer(self, count: int, value: int) -> memoryview:
        """Made with `shmrpc.buffer`."""
        ...

    async def give_objects(self) -> AnyArray: ...
    async def give_reals(self) -> Pixels:
        """What it gives are reals."""
        ...


class ArrayThreads(Protocol):
    """Whose handlers are plain functions."""

    async def turned(self, value: Pixels) -> Pixels: ...
    async def born(self, count: int, value: int) -> Pixels: ...


class ArrayService(Arrays):
    """Implements `Arrays`."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, list[Pixels]] = defaultdict(list)

    async def anything(self, value: AnyArray) -> AnyArray:
        return value

    async def pixels(self, value: Pixels) -> Pixels:
        return value

    async def real(self, value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return value

    async def number(self, value: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
        return value

    async def colours(self, value: Colours) -> Colours:
        return value

    async def frame(self, value: Frame) -> Frame:
        return value

    async def row(self, value: list[Pixels]) -> list[Pixels]:
        return value

    async def pair(self, value: tuple[Pixels, npt.NDArray[np.float64]]) -> tuple[Pixels, npt.NDArray[np.float64]]:
        return value

    async def table(self, value: dict[str, Pixels]) -> dict[str, Pixels]:
        return value

    async def optional(self, value: Pixels | None = None) -> Pixels | None:
        return value

    async def either(self, value: Pixels | str | list[int]) -> Pixels | str | list[int]:
        return value

    async def frames(self, value: list[Frame | None]) -> list[Frame | None]:
        return value

    async def free(self, value: Any) -> Any:
        return value

    async def several(self, one: Pixels, other: Pixels, *, third: Pixels | None = None) -> list[Pixels]:
        return [one, other] if third is None else [one, other, third]

    async def text(self, value: bytes) -> bytes:
        return value

    async def changeable(self, value: bytearray) -> bytearray:
        return value

    async def view(self, value: memoryview) -> memoryview:
        return value

    async def buffer(self, value: shmrpc.Buffer) -> shmrpc.Buffer:
        return value

    async def look(self, value: AnyArray) -> Seen:
        return Seen(str(value.dtype), value.shape, value.flags.writeable, type(value).__name__)

    async def look_at_buffer(self, value: shmrpc.Buffer) -> tuple[str, bool, int]:
        return type(value).__name__, memoryview(value).readonly, memoryview(value).nbytes

    async def write(self, value: Pixels) -> str:
        try:
            value[0] = 99
        except ValueError as error:
            return str(error)
        return "written"

    async def keep(self, key: str, value: Pixels) -> None:
        self._kept[key].append(value)

    async def kept(self, key: str) -> list[int]:
        return [int(array[0]) for array in self._kept[key]]

    async def forget(self, key: str) -> Pixels:
        return self._kept.pop(key)[0]

    async def born(self, count: int, value: int) -> Pixels:
        array = shmrpc.empty(count, np.uint8)
        array[:] = value
        return array

    async def born_late(self, count: int, value: int) -> Pixels:
        await asyncio.sleep(0)
        return await self.born(count, value)

    async def born_part(self, count: int, begin: int, end: int) -> Pixels:
        array = shmrpc.empty((count,), np.uint8)
        array[:] = np.arange(count, dtype=np.uint32) % 251
        return array[begin:end]

    async def born_buffer(self, count: int, value: int) -> memoryview:
        memory = shmrpc.buffer(count)
        memory[:] = bytes([value]) * count
        return memory

    async def give_objects(self) -> AnyArray:
        return np.array([object()])

    async def give_reals(self) -> Pixels:
        return np.zeros(3)  # type: ignore[return-value]


class ArrayThreadHandlers:
    """Serves `ArrayThreads` with plain functions, so that it cannot inherit from it."""

    def turned(self, value: Pixels) -> Pixels:
        return value[::-1]

    def born(self, count: int, value: int) -> Pixels:
        array = shmrpc.empty(count, np.uint8)
        array[:] = value
        return array
