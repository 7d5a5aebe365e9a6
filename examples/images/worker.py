"""The image worker: the contract, served by `operations.py`. To start one:

python -m shmrpc serve examples.images.worker:Worker --at /tmp/images.sock
"""

import asyncio
from collections.abc import Callable
from time import perf_counter_ns
from typing import ParamSpec, TypeVar

import numpy as np

import shmrpc
from examples.images import operations
from examples.images.api import BadImage, Edges, Histogram, Images, Pixels, Resized

P = ParamSpec("P")
R = TypeVar("R")

CHANNELS = 3


class Worker(Images):
    """Reads a picture where the caller wrote it, and writes the result where the caller will read it.

    `shmrpc.empty` in a handler gives memory on the way back to the caller: what is computed into it is not copied
    again. The computation has a thread of its own, because it takes long, and other calls are answered meanwhile.
    """

    async def resize(self, image: Pixels, rows: int, columns: int) -> Resized:
        check(image)
        out = shmrpc.empty((*checked_size(image, rows, columns), CHANNELS), np.uint8)
        _, compute_ns = await asyncio.to_thread(timed, operations.resize, image, out)
        return Resized(out, compute_ns)

    async def histogram(self, image: Pixels) -> Histogram:
        check(image)
        out = shmrpc.empty((CHANNELS, 256), np.int64)
        _, compute_ns = await asyncio.to_thread(timed, operations.histogram, image, out)
        return Histogram(out, compute_ns)

    async def edges(self, image: Pixels) -> Edges:
        check(image)
        out = shmrpc.empty(image.shape[:2], np.float32)
        strongest, compute_ns = await asyncio.to_thread(timed, operations.edges, image, out)
        return Edges(out, strongest, compute_ns)


def check(image: Pixels) -> None:
    """Refuse what is no picture; that its elements are bytes, the contract has checked.

    Raises:
        BadImage: it has other axes than a picture, or none of its pixels.
    """
    if image.ndim != 3 or image.shape[2] != CHANNELS:
        raise BadImage(image.shape, f"a picture has rows, columns and {CHANNELS} channels")
    if not image.size:
        raise BadImage(image.shape, "a picture has at least one pixel")


def checked_size(image: Pixels, rows: int, columns: int) -> tuple[int, int]:
    """Refuse a size that a picture cannot be shrunk to.

    Raises:
        BadImage: the size is larger than the picture, or nothing.
    """
    if not (1 <= rows <= image.shape[0] and 1 <= columns <= image.shape[1]):
        raise BadImage(image.shape, f"it cannot be shrunk to {rows} rows and {columns} columns")
    return rows, columns


def timed(compute: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, int]:
    """What this returns, and the nanoseconds that it took."""
    started = perf_counter_ns()
    result = compute(*args, **kwargs)
    return result, perf_counter_ns() - started
