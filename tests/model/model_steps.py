"""What a process of a model can do that other processes see, and the kinds of doorbells.

A process is a generator that yields these, and is sent the answers: see `interleavings.py`.
"""

from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple, TypeVar

T = TypeVar("T")


class Load(NamedTuple):
    """Reads a shared word; answered with its value."""

    word: str


class Store(NamedTuple):
    """Writes a shared word, through the store buffer."""

    word: str
    value: Any


class Fence(NamedTuple):
    """Goes on when the store buffer is empty."""


class Update(NamedTuple):
    """Changes a word in one locked step, and is answered with what was there: appends an item, or (None) takes all."""

    word: str
    item: Any


class Choose(NamedTuple):
    """Anything may happen here: answered with a number from 0 to below `ways`."""

    ways: int


class Ring(NamedTuple):
    """Rings a doorbell. Never waits."""

    bell: str


class Clear(NamedTuple):
    """Takes the rings of a doorbell. Never waits."""

    bell: str


class Turn(NamedTuple):
    """A turn of an event loop: answered with one of `todo`, or with "rings" if the bell does. Sleeps if there is neither."""

    todo: tuple[str, ...]
    bell: str
    content: bool
    """Whether it may sleep for ever."""


class Await(NamedTuple):
    """Waits until a word is not empty or zero, as a thread does on a condition."""

    word: str
    content: bool


Op = Load | Store | Fence | Update | Choose | Ring | Clear | Turn | Await
Steps = Generator[Op, Any, T]
Process = Callable[[], Steps[None]]


class Bell(NamedTuple):
    """A kind of doorbell."""

    most: int
    """How many rings it holds; a ring more is dropped."""
    takes: int
    """How many a clear takes away."""


EVENTFD: Final = Bell(most=1 << 64, takes=1 << 64)
PIPE: Final = Bell(most=1, takes=1)
"""Nearly always full, so that most rings are dropped."""
LONG_PIPE: Final = Bell(most=2, takes=1)
"""One that the peer has made longer: it may still be readable when it was read."""
