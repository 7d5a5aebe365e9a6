"""The native core; the sources are in the folder of the same name."""

from asyncio import AbstractEventLoop, Task
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context, ContextVar
from typing import Any, Final, Generic, TypeVar, final

from typing_extensions import Buffer

B = TypeVar("B", bound="Block")
L = TypeVar("L", bound=tuple[Any, ...])

CURSOR_TAIL: Final[int]
CURSOR_HEAD: Final[int]
CURSOR_RELEASE_TAIL: Final[int]
CURSOR_RELEASE_HEAD: Final[int]
CURSOR_DOORBELL_EPOCH: Final[int]
CURSOR_ROOM_EPOCH: Final[int]
CURSOR_END: Final[int]
RECORD_HEADER: Final[int]
RECORD_ALIGN: Final[int]
KIND_PAD: Final[int]
KIND_REQUEST: Final[int]
KIND_REPLY: Final[int]
FLAG_IN_BLOCK: Final[int]
RELEASE_ENTRY: Final[int]
GRANULE: Final[int]

class RingCorrupt(ValueError): ...

@final
class Producer:
    corked: bool
    def __new__(cls, own: Buffer, peer: Buffer, ring_offset: int, ring_bytes: int, inline_limit: int) -> Producer: ...
    def send(self, kind: int, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes, /) -> int: ...
    def announce(self) -> bool: ...
    def want_room(self) -> None: ...
    def room_found(self) -> None: ...
    def unread(self) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...

@final
class Consumer:
    def __new__(cls, own: Buffer, peer: Buffer, ring_offset: int, ring_bytes: int, inline_limit: int) -> Consumer: ...
    @property
    def room_due(self) -> bool: ...
    @property
    def handled(self) -> int: ...
    def published(self) -> int: ...
    def dispatch(self, budget: int, handlers: tuple[Handler, ...], pending: dict[int, PendingCall], /) -> None: ...
    def ready(self) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...
    def close(self) -> None: ...

class Block:
    """The numbers of a block, all zero at first; to be subclassed."""

    number: int
    address: int
    nbytes: int
    handles: int
    leases: int

@final
class Ledger(Generic[B, L]):
    """The leases that are out."""

    @property
    def loans(self) -> dict[int, L]: ...
    @property
    def blocks(self) -> dict[int, B]: ...
    mark: int
    longest_body: int
    largest_message: int
    def __new__(cls, loan: type[L]) -> Ledger[B, L]: ...
    def lend(self, block: B, offset: int, nbytes: int, method: str, /) -> int: ...
    def refer(self, exporter: object, method: str, body: bytes, /) -> tuple[bytes, int] | None: ...
    def take_back(self, entries: list[tuple[int, int]], unused: list[B], /) -> int: ...

@final
class Releaser:
    opened: int

    def __new__(
        cls,
        own: Buffer,
        peer: Buffer,
        ring_offset: int,
        entries: int,
        on_ring: Callable[[], object] | None = None,
    ) -> Releaser: ...
    @property
    def corrupt(self) -> bool: ...
    @property
    def out(self) -> int: ...
    @property
    def pushed(self) -> int: ...
    def release(self, block: int, generation: int, /) -> bool: ...
    def close(self) -> None: ...

@final
class Reaper:
    def __new__(cls, own: Buffer, peer: Buffer, ring_offset: int, entries: int) -> Reaper: ...
    def take(self) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...

@final
class View:
    """Part of a mapping, whose death sends its block home once."""

    def __new__(
        cls,
        mapping: Buffer,
        offset: int,
        nbytes: int,
        end: Releaser | Callable[[int, int], object] | None,
        block: int,
        generation: int,
        writable: bool = False,
    ) -> View: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def generation(self) -> int: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class PendingCall:
    """One call on its way, to be awaited once."""

    @property
    def call_id(self) -> int: ...
    @property
    def deadline_ns(self) -> int: ...
    @property
    def method(self) -> Any: ...
    def set_result(self, answer: object, /) -> None: ...
    def answer(self, answer: object, /) -> None: ...
    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def add_done_callback(
        self, callback: Callable[[PendingCall], object], /, *, context: Context | None = None
    ) -> None: ...
    def __await__(self) -> Generator[Any, None, Any]: ...

@final
class Requester:
    def __new__(
        cls,
        loop: AbstractEventLoop,
        producer: Producer,
        pending: dict[int, PendingCall],
        settle: Callable[[int, tuple[int, int, int, int, int, bytes]], None],
    ) -> Requester: ...
    def start(
        self, method: object, number: int, flags: int, deadline_ns: int, payload: bytes, /
    ) -> PendingCall | None: ...
    def lend(
        self,
        ledger: Ledger[Any, Any],
        method: object,
        number: int,
        deadline_ns: int,
        body: bytes,
        exporter: object,
        name: str,
        /,
    ) -> PendingCall | None: ...

Handler = Callable[[int, int, int, int, bytes], None]

def first_step(
    loop: AbstractEventLoop,
    task: Task[Any],
    coroutine: Awaitable[Any],
    context: Context,
    variable: ContextVar[Any],
    value: object,
    /,
) -> tuple[bool, Any, Context] | None: ...
def address_of(object: object, /) -> tuple[int, int, bool, bool] | None: ...
def open_references(
    payload: bytes, extents: dict[int, tuple[Buffer, int, int]], releaser: Releaser, most: int, /
) -> tuple[bytes, list[View | tuple[int, int, int, int]]]: ...
def pack_references(references: list[tuple[int, int, int, int]], body: bytes, /) -> bytes: ...
def watch(consumers: list[Consumer], spin_ns: int, /) -> bool: ...
