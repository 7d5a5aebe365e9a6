"""Views for the tests: what the right side of two ends sees of blocks of the left one."""

from typing import Any

import numpy as np
import numpy.typing as npt
from joined import SMALL, Ends

from shmrpc.shm.layout import GRANULE
from shmrpc.shm.ring import Releaser, View


def at(block: int) -> int:
    """Where a block begins in the segment."""
    return SMALL.slab_offset + block * GRANULE


def view_of(
    ends: Ends, block: int = 1, generation: int = 7, nbytes: int = 16, releaser: Releaser | None = None
) -> View:
    """What the right side sees of a block of the left one, which holds its own number and counts from there."""
    ends.left.own.mapping[at(block) : at(block) + nbytes] = bytes((block + byte) % 256 for byte in range(nbytes))
    return View(ends.right.peer.mapping, at(block), nbytes, releaser or ends.releaser, block, generation)


def array_on(view: Any) -> npt.NDArray[np.uint8]:
    """An array that lies on a view. numpy's types do not know of exporters."""
    return np.frombuffer(view, np.uint8)
