"""What every entrant carries: one small struct, sent to the server and returned by it."""

from collections.abc import Awaitable, Callable

import msgspec


class Item(msgspec.Struct):
    """A small, typed argument and result, as a service would have it."""

    name: str
    number: int
    score: float


Echo = Callable[[Item], Awaitable[Item]]

ITEM = Item(name="a small struct", number=12345, score=0.5)
