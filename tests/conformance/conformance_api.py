"""The contracts of the conformance suite, with their types and errors: both sides of every transport import this."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypedDict, TypeVar
from uuid import UUID

import msgspec

import shmrpc

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 0


class Node(msgspec.Struct):
    name: str
    children: "list[Node]" = []


class Circle(msgspec.Struct, frozen=True, tag=True):
    radius: float


class Square(msgspec.Struct, frozen=True, tag=True):
    side: float


class Box(msgspec.Struct, Generic[T]):
    content: T


class Compact(msgspec.Struct, array_like=True, rename="camel"):
    first_name: str
    last_name: str | None = None


@dataclass
class Person:
    name: str
    aliases: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: str


class Settings(TypedDict, total=False):
    depth: int


class Echo:
    """Gives back what it is given. A contract that is its own implementation, with a method for each supported type."""

    async def nothing(self, value: None) -> None:
        return value

    async def boolean(self, value: bool) -> bool:
        return value

    async def integer(self, value: int) -> int:
        return value

    async def real(self, value: float) -> float:
        return value

    async def text(self, value: str) -> str:
        return value

    async def binary(self, value: bytes) -> bytes:
        return value

    async def decimal(self, value: Decimal) -> Decimal:
        return value

    async def uuid(self, value: UUID) -> UUID:
        return value

    async def moment(self, value: datetime) -> datetime:
        return value

    async def day(self, value: date) -> date:
        return value

    async def clock(self, value: time) -> time:
        return value

    async def duration(self, value: timedelta) -> timedelta:
        return value

    async def colour(self, value: Colour) -> Colour:
        return value

    async def level(self, value: Level) -> Level:
        return value

    async def word(self, value: Literal["yes", "no"]) -> Literal["yes", "no"]:
        return value

    async def optional(self, value: str | None) -> str | None:
        return value

    async def either(self, value: int | str | list[int]) -> int | str | list[int]:
        return value

    async def shape(self, value: Circle | Square) -> Circle | Square:
        return value

    async def point(self, value: Point) -> Point:
        return value

    async def tree(self, value: Node) -> Node:
        return value

    async def box(self, value: Box[Point]) -> Box[Point]:
        return value

    async def compact(self, value: Compact) -> Compact:
        return value

    async def person(self, value: Person) -> Person:
        return value

    async def pair(self, value: Pair) -> Pair:
        return value

    async def settings(self, value: Settings) -> Settings:
        return value

    async def numbers(self, value: list[int]) -> list[int]:
        return value

    async def unique(self, value: set[int]) -> set[int]:
        return value

    async def frozen(self, value: frozenset[str]) -> frozenset[str]:
        return value

    async def fixed(self, value: tuple[int, str, bool]) -> tuple[int, str, bool]:
        return value

    async def several(self, value: tuple[int, ...]) -> tuple[int, ...]:
        return value

    async def mapping(self, value: dict[str, float]) -> dict[str, float]:
        return value

    async def by_number(self, value: dict[int, str]) -> dict[int, str]:
        return value

    async def by_place(self, value: dict[tuple[int, int], str]) -> dict[tuple[int, int], str]:
        return value

    async def nested(
        self, value: dict[str, list[tuple[Point | None, ...]]]
    ) -> dict[str, list[tuple[Point | None, ...]]]:
        return value

    async def anything(self, value: Any) -> Any:
        return value


class Fussy(msgspec.Struct):
    """Objects to some values with an error that is none of msgspec's."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise KeyError(self.size)


def shrunk() -> Fussy:
    """One that will not be read back."""
    fussy = Fussy(0)
    fussy.size = -1
    return fussy


@dataclass(eq=False)
class BadShape(shmrpc.RpcError, code=shmrpc.Code.INVALID_ARGUMENT):
    """An error with fields."""

    shape: tuple[int, ...]
    centre: Point
    hint: str = "none"


class NotToday(shmrpc.RpcError, code=shmrpc.Code.FAILED_PRECONDITION):
    """An error with a text only, and a constructor of its own."""

    def __init__(self, weekday: int) -> None:
        super().__init__(f"not on day {weekday}")


class About(msgspec.Struct):
    """What a handler sees of the call that it answers."""

    method: str
    deadline: float | None
    text_metadata: dict[str, str]
    binary_metadata: dict[str, bytes]
    peer: tuple[int, int, int]
    cancelled: bool
    server_pid: int


class Api(Protocol):
    """What the semantics of a call are shown with. A key names the entries of one test in the server's journal."""

    # Arguments and results
    async def place(self, x: int, y: int = 10, *, label: str = "none", scale: float = 1.0) -> str: ...
    async def point(self, point: Point, /, factor: int = 1) -> Point: ...
    async def measure(self, texts: list[str]) -> int: ...
    async def repeat(self, text: str, times: int) -> str: ...

    # Errors
    async def refuse_shape(self, shape: tuple[int, ...], hint: str) -> None: ...
    async def refuse_today(self, weekday: int, code: int = 0) -> None: ...
    async def refuse_with(self, code: int, text: str) -> None: ...
    async def refuse_path(self, path: bytes) -> None: ...
    async def break_down(self, secret: str) -> None: ...
    async def give_what_cannot_be_encoded(self) -> Any: ...
    async def give_what_does_not_fit(self) -> int: ...
    async def give_what_will_not_be_read(self) -> Fussy: ...
    async def take_fussy(self, fussy: Fussy) -> int: ...
    async def cancel_itself(self) -> None: ...

    # The ends of a call
    async def hang(self, key: str) -> None: ...
    async def ignore_cancellation(self, key: str) -> str: ...
    async def answer_when_cancelled(self) -> str: ...
    async def answer_when_released(self, key: str) -> str: ...
    async def call_after_the_deadline(self, key: str) -> None: ...
    async def nested_deadlines(self, timeout: float | None) -> tuple[float | None, float | None]: ...

    # What surrounds a call
    async def about(self) -> About: ...
    async def remember(self, value: str) -> tuple[str, str]: ...
    async def is_one_task(self) -> bool: ...
    async def time_out(self) -> str: ...
    async def gather(self, count: int) -> list[int]: ...

    # One-way
    @shmrpc.oneway
    async def note(self, key: str, word: str) -> None: ...
    @shmrpc.oneway
    async def note_and_fail(self, key: str) -> None: ...
    @shmrpc.oneway
    async def note_when_released(self, key: str) -> None: ...

    # The journal
    async def journal(self, key: str) -> list[str]: ...
    async def until(self, key: str, word: str) -> None:
        """Returns when the journal has this word under this key."""

    async def release(self, key: str) -> None: ...


class Inner(Protocol):
    """What the handlers of `Api` call themselves."""

    async def deadline(self) -> float | None: ...
    async def run(self, key: str) -> None: ...
    async def has_run(self, key: str) -> bool: ...


class Threads(Protocol):
    """Whose handlers are plain functions."""

    async def add(self, left: int, *, right: int = 1) -> int: ...
    async def is_off_the_loop(self) -> bool: ...
    async def about(self) -> tuple[str, dict[str, str]]: ...
    async def fail(self, shape: tuple[int, ...]) -> None: ...
    async def work_until_cancelled(self, key: str) -> None: ...
    async def until(self, key: str, word: str) -> None: ...


class Names(Protocol):
    """A contract may use any name, also those of the framework."""

    async def close(self) -> str: ...
    async def open(self) -> str: ...
    async def call(self) -> str: ...
    async def bind(self) -> str: ...
    async def peer(self) -> str: ...
    async def options(self, options: int, metadata: int) -> str: ...
    async def send(self, args: int, kwargs: int, method: int) -> str: ...


class Versioned(Protocol):
    """A newer version of the contract of this name in `conformance_older`."""

    async def greet(self, name: str, greeting: str = "hello") -> str: ...
    async def leave(self) -> str: ...


class Life(Protocol):
    """Of a service that is an async context manager."""

    async def live(self) -> None: ...


def text_of(metadata: Mapping[str, str | bytes]) -> dict[str, str]:
    """Those entries that are text."""
    return {key: value for key, value in metadata.items() if isinstance(value, str)}
