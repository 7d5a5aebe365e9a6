"""A contract with every type that can be described, for golden vectors. It never changes; a new one comes beside it."""

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

Matrix = np.ndarray[tuple[int, Literal[3]], np.dtype[np.float64]]
Pixels = npt.NDArray[np.uint8]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Circle(msgspec.Struct, tag="circle", forbid_unknown_fields=True):
    radius: int


class Square(msgspec.Struct, tag="square", forbid_unknown_fields=True):
    side: int


class Packed(msgspec.Struct, array_like=True):
    name: str
    size: int


class Pair(NamedTuple):
    left: int
    right: int


class Options(TypedDict):
    deep: bool


@dataclass
class Tree:
    label: str
    children: list["Tree"]


@dataclass(eq=False)
class Lost(shmrpc.RpcError, code=shmrpc.Code.NOT_FOUND):
    """An error of the contract."""

    key: str
    tries: int = 0


class Wire(Protocol):
    """Every kind of method."""

    async def plain(self, flag: bool, number: int, ratio: float, text: str, raw: bytes) -> None: ...

    async def times(
        self, when: dt.datetime, day: dt.date, hour: dt.time, span: dt.timedelta
    ) -> tuple[dt.datetime, ...]: ...

    async def named(self, key: uuid.UUID, price: decimal.Decimal, color: Color, mode: Literal["r", "w", 1]) -> Any: ...

    async def records(
        self, point: Point, shape: Circle | Square, packed: Packed, pair: Pair, options: Options, tree: Tree
    ) -> Point | None: ...

    async def containers(
        self, many: list[int], unique: set[str], fixed: tuple[int, str], table: dict[str, float], rest: int = 7
    ) -> list[int]: ...

    async def memory(self, image: Pixels, matrix: Matrix, blob: shmrpc.Buffer) -> npt.NDArray[Any]: ...

    @shmrpc.oneway
    async def told(self, text: str) -> None: ...

    def streamed(self, scale: float, parts: AsyncIterator[int]) -> AsyncIterator[Pixels]: ...


METHODS: list[str] = [name for name in vars(Wire) if not name.startswith("_")]
"""In the order of their numbers."""
