"""The allocator of one slab: which of its granules are taken.

All of it is private memory of the owner. First fit by address, so that the warm low end is used again first; neighbours
coalesce at once. No I/O and no shared memory here.
"""

from bisect import bisect_left, insort
from typing import Final

from shmrpc.shm.layout import GRANULE


class Slab:
    """The free and the taken granules of one slab."""

    def __init__(self, nbytes: int) -> None:
        self.granules: Final = nbytes // GRANULE
        self._free: list[tuple[int, int]] = [(0, self.granules)]  # (first granule, length), by address
        self._taken: dict[int, int] = {}  # first granule: length

    def __repr__(self) -> str:
        return f"<Slab {self.taken_bytes} of {self.capacity} bytes taken in {len(self._taken)} blocks>"

    @property
    def capacity(self) -> int:
        """The largest block that it can ever give, bytes."""
        return self.granules * GRANULE

    @property
    def taken_bytes(self) -> int:
        """How many bytes are taken, in whole granules."""
        return sum(self._taken.values()) * GRANULE

    @property
    def empty(self) -> bool:
        """Whether nothing is taken."""
        return not self._taken

    def take(self, nbytes: int) -> int | None:
        """The first granule of a block of at least `nbytes`, or None when no free run is that long now."""
        need = max(1, -(-nbytes // GRANULE))
        for index, (first, length) in enumerate(self._free):
            if length >= need:
                if length == need:
                    del self._free[index]
                else:
                    self._free[index] = (first + need, length - need)
                self._taken[first] = need
                return first
        return None

    def give_back(self, first: int) -> None:
        """Frees the block that begins at a granule.

        Raises:
            KeyError: none does.
        """
        length = self._taken.pop(first)
        index = bisect_left(self._free, (first,))
        if index < len(self._free) and self._free[index][0] == first + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == first:
            first, before = self._free.pop(index - 1)
            length += before
        insort(self._free, (first, length))
