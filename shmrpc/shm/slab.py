"""The slab's allocator: which granules of my own slab are lent out, and to which generation.

All of it is private memory of the owner. First fit by address, so that the warm low end is used again first; neighbours
coalesce at once. A block is named by its first granule; each lending raises the granule's generation, so that a release
that is stale, doubled or forged is told from a true one. No I/O and no shared memory here.
"""

from bisect import bisect_left, insort
from typing import Final, NamedTuple

from shmrpc.shm.layout import GRANULE


class ForgedRelease(ValueError):
    """A release that does not belong to a block that is out."""


class Block(NamedTuple):
    """One extent of the slab, lent out."""

    number: int
    """The first granule."""
    generation: int
    nbytes: int

    @property
    def offset(self) -> int:
        """Bytes from the beginning of the slab."""
        return self.number * GRANULE


class Slab:
    """The free and the lent granules of one slab."""

    def __init__(self, nbytes: int) -> None:
        self.granules: Final = nbytes // GRANULE
        self._free: list[tuple[int, int]] = [(0, self.granules)]  # (first granule, length), by address
        self._lent: dict[int, tuple[int, int]] = {}  # first granule: (generation, granules)
        self._generations = [0] * self.granules

    def __repr__(self) -> str:
        return f"<Slab {self.lent_bytes} of {self.granules * GRANULE} bytes lent in {len(self._lent)} blocks>"

    @property
    def capacity(self) -> int:
        """The largest block that can ever be lent, bytes."""
        return self.granules * GRANULE

    @property
    def lent_blocks(self) -> int:
        """How many blocks are out."""
        return len(self._lent)

    @property
    def lent_bytes(self) -> int:
        """How many bytes are out, in whole granules."""
        return sum(length for _, length in self._lent.values()) * GRANULE

    def lend(self, nbytes: int) -> Block | None:
        """A block of at least `nbytes`, or None when no free extent is that large now."""
        need = max(1, -(-nbytes // GRANULE))
        for index, (first, length) in enumerate(self._free):
            if length >= need:
                if length == need:
                    del self._free[index]
                else:
                    self._free[index] = (first + need, length - need)
                self._generations[first] += 1
                self._lent[first] = (self._generations[first], need)
                return Block(first, self._generations[first], nbytes)
        return None

    def take_back(self, number: int, generation: int) -> None:
        """Ends a block's lease.

        Raises:
            ForgedRelease: no such block is out, or it is out under another generation.
        """
        lent = self._lent.get(number)
        if lent is None or lent[0] != generation:
            state = "is not out" if lent is None else f"is out as generation {lent[0]}"
            raise ForgedRelease(f"block {number}, generation {generation} was released, but it {state}")
        del self._lent[number]
        first, length = number, lent[1]
        index = bisect_left(self._free, (first,))
        if index < len(self._free) and self._free[index][0] == first + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == first:
            first, before = self._free.pop(index - 1)
            length += before
        insort(self._free, (first, length))
