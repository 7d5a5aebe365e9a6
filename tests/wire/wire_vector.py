"""What a golden vector is."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Vector(NamedTuple):
    """One golden vector."""

    name: str
    kind: str
    """How the independent decoder reads it: frame, header, record, segment or digest."""
    make: Callable[[], bytes]
    meaning: Any
    """Plain values, as its JSON has them."""
    today: Callable[[bytes], Any]
    """What today's code reads from the bytes."""
    value: Any
    """What that is."""
