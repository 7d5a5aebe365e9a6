"""What every entrant of the stream benchmark carries, and what a connected client offers.

- `give`: small structs from the server to the client, as many as were asked for
- `take`: the same from the client to the server, which counts them
- `talk`: each item that the client gives comes back
- `arrays`: arrays from the server to the client; the writer numbers the first word of each, and the reader reads it
- `arrays_touched`: the same, but the writer writes every word, and the reader reads every word

On both sides the application is an async generator and an `async for`, whatever is in between. What is given without a
pause is there to be put together: how, is up to the entrant.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from benchmarks.arrays.workload import WORD_BYTES, Words
from benchmarks.workload import ITEM, Item

BATCH = 64
"""Items that the rivals put into one message, where they can: as many as shmrpc does."""


async def items(count: int) -> AsyncIterator[Item]:
    """The application that writes: so many items, one after the other."""
    for _ in range(count):
        yield ITEM


async def count_of(source: AsyncIterator[Item]) -> int:
    """The application that reads: how many there were."""
    count = 0
    async for _ in source:
        count += 1
    return count


def stamp(array: Words, number: int, *, touch_all: bool) -> None:
    """What the writer does to an array before it gives it."""
    if touch_all:
        array[:] = number
    else:
        array[0] = number


async def look(arrays: AsyncIterator[Words], nbytes: int, *, touch_all: bool) -> int:
    """What the reader does with arrays: how many there were, each the next one, of the right size."""
    count = 0
    words = nbytes // WORD_BYTES
    async for array in arrays:
        read = int(array.sum()) if touch_all else int(array[0])
        if len(array) != words or read != (count * words if touch_all else count):
            raise RuntimeError(f"array {count} has {len(array)} words, and {read} in them")
        count += 1
    return count


class Streams(Protocol):
    """What a connected client offers. An array may be overwritten when the next one is asked for: look at it at once."""

    def give(self, count: int) -> AsyncIterator[Item]:
        """So many items from the server."""
        ...

    async def take(self, source: AsyncIterator[Item]) -> int:
        """The server's count of what it was given."""
        ...

    def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back from the server."""
        ...

    def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays from the server, stamped with their numbers."""
        ...
