"""The same computation done in this process, and compared with a worker's results bit for bit."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from examples.images import operations
from examples.images.api import Edges, Histogram, Images, Pixels, Resized
from examples.images.worker import CHANNELS, check, checked_size, timed

Result: TypeAlias = Resized | Histogram | Edges


class InProcess(Images):
    """The contract in ordinary memory, without another process."""

    async def resize(self, image: Pixels, rows: int, columns: int) -> Resized:
        check(image)
        out = np.empty((*checked_size(image, rows, columns), CHANNELS), np.uint8)
        _, compute_ns = timed(operations.resize, image, out)
        return Resized(out, compute_ns)

    async def histogram(self, image: Pixels) -> Histogram:
        check(image)
        out = np.empty((CHANNELS, 256), np.int64)
        _, compute_ns = timed(operations.histogram, image, out)
        return Histogram(out, compute_ns)

    async def edges(self, image: Pixels) -> Edges:
        check(image)
        out = np.empty(image.shape[:2], np.float32)
        strongest, compute_ns = timed(operations.edges, image, out)
        return Edges(out, strongest, compute_ns)


def difference(result: Result, expected: Result) -> str | None:
    """Which part of a result is not what was expected, and how; None if all of it is. Times do not count."""
    if type(result) is not type(expected):
        return f"got a {type(result).__name__}, expected a {type(expected).__name__}"
    for name in result.__struct_fields__:
        got, wanted = getattr(result, name), getattr(expected, name)
        if name == "compute_ns":
            continue
        if isinstance(wanted, np.ndarray):
            if told := _difference_of_arrays(got, wanted):
                return f"{name}: {told}"
        elif got != wanted:
            return f"{name} is {got}, expected {wanted}"
    return None


def _difference_of_arrays(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str | None:
    if (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
        return f"got {got.dtype} of shape {got.shape}, expected {wanted.dtype} of shape {wanted.shape}"
    different = np.count_nonzero(got.view(np.uint8) != wanted.view(np.uint8))
    return f"{different:,} of {got.nbytes:,} bytes differ" if different else None
