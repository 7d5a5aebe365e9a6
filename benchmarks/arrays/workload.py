"""What every entrant of the array benchmark carries: vectors of 64-bit words, and the small call beside them.

A handler gets a usable array, whatever brought it. Who touches what of it:

- `first`: the handler reads one word, and its result is small
- `echo`: the handler touches nothing and returns the array; the caller reads one word of what comes back
- `echo_summed`: the handler reads every word, then returns the array; the caller reads every word of what comes back
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.workload import Item

Words = npt.NDArray[np.uint64]

WORD_BYTES = 8


def numbered(nbytes: int) -> Words:
    """An array of the process's own heap, every page of it written."""
    return np.arange(nbytes // WORD_BYTES, dtype=np.uint64)


def total(array: Words) -> int:
    """Reads every word."""
    return int(array.sum())


class Calls(Protocol):
    """What a connected client offers. A result may be overwritten by the next call: look at it at once."""

    def new(self, nbytes: int) -> Words:
        """An array to write into and pass to `first`, made as this entrant likes it best."""
        ...

    async def small(self, item: Item) -> Item:
        """Return the item."""
        ...

    async def first(self, array: Words) -> int:
        """Return the first word."""
        ...

    async def echo(self, array: Words) -> Words:
        """Return the array."""
        ...

    async def echo_summed(self, array: Words) -> Words:
        """Read all of the array, and return it."""
        ...


class Warm:
    """`Calls.new` for those whose arrays lie on the heap anyway: one for each size, used again and again."""

    def __init__(self) -> None:
        self._arrays: dict[int, Words] = {}

    def new(self, nbytes: int) -> Words:
        """The array of that size."""
        array = self._arrays.get(nbytes)
        if array is None:
            array = self._arrays[nbytes] = numbered(nbytes)
        return array
