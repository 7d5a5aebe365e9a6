"""The contract between the image worker and whoever has pictures; both sides import it.

A picture is an array of rows, columns and three channels (red, green, blue), one byte each. Arrays of any size travel
without being copied if they were made with `shmrpc.empty`, and arrive read-only.
"""

from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

Pixels = npt.NDArray[np.uint8]


class Resized(msgspec.Struct, frozen=True):
    """A picture of another size."""

    pixels: Pixels
    compute_ns: int
    """What the worker needed for the pixels alone, by its own clock; so in the other results."""


class Histogram(msgspec.Struct, frozen=True):
    """How often each channel has each value."""

    counts: npt.NDArray[np.int64]
    """Three channels, 256 counts each."""
    compute_ns: int


class Edges(msgspec.Struct, frozen=True):
    """Where the brightness of a picture changes."""

    magnitude: npt.NDArray[np.float32]
    """How steeply it changes at each pixel; as many rows and columns as the picture."""
    strongest: float
    """The largest magnitude."""
    compute_ns: int


@dataclass(eq=False)
class BadImage(shmrpc.RpcError, code=shmrpc.Code.INVALID_ARGUMENT):
    """The array is no picture, or not one with which this can be done."""

    shape: tuple[int, ...]
    reason: str


class Images(Protocol):
    """Work on pictures; every method may raise `BadImage`."""

    async def resize(self, image: Pixels, rows: int, columns: int) -> Resized:
        """Shrink a picture to so many rows and columns: each new pixel is the average of the area that it covers."""
        ...

    async def histogram(self, image: Pixels) -> Histogram:
        """Count the values of each channel."""
        ...

    async def edges(self, image: Pixels) -> Edges:
        """Find the edges, by Sobel's operator."""
        ...
