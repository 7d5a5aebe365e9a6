"""What the worker computes, in plain NumPy: no I/O, no RPC.

Every operation writes into an array that its caller made, so that the caller decides where the result is born. All of
it is done in integers up to the last step, so that the same picture gives the same bits in every process.
"""

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

LUMA = (77, 150, 29)
"""Red's, green's and blue's part in the brightness that an eye sees, in 256ths (ITU-R BT.601)."""

BAND_ROWS = 64
"""Rows whose edges are found at a time: few enough for what lies between the steps to stay in the processor's cache."""


def resize(image: Pixels, out: Pixels) -> None:
    """Shrink a picture to the size of `out`: each new pixel is the average of the area that it covers.

    A pixel on a border between two areas counts for both, for each with the part that lies in it.

    Args:
        image: Rows, columns and channels.
        out: As many channels, and at most as many rows and columns, of each at least one.
    """
    area = image.shape[0] * image.shape[1]
    sums = _interval_sums(_interval_sums(image, out.shape[0]).swapaxes(0, 1), out.shape[1]).swapaxes(0, 1)
    sums += area // 2
    np.floor_divide(sums, area, out=out, casting="unsafe")


def _interval_sums(samples: npt.NDArray[np.integer], intervals: int) -> npt.NDArray[np.int64]:
    """The sums over equal intervals of the first axis, times the number of intervals, which keeps them whole."""
    first, before = np.divmod(np.arange(intervals) * len(samples), intervals)
    sums = np.add.reduceat(samples, first, axis=0, dtype=np.int64) * intervals
    shared = samples[first] * before[:, np.newaxis, np.newaxis]  # what of an interval's first sample lies before it
    sums -= shared
    sums[:-1] += shared[1:]
    return sums


def histogram(image: Pixels, out: npt.NDArray[np.int64]) -> None:
    """Count how often each channel has each value.

    Args:
        image: Rows, columns and channels.
        out: Channels, and 256 counts.
    """
    for channel, counts in enumerate(out):
        counts[:] = np.bincount(image[:, :, channel].ravel(), minlength=256)


def edges(image: Pixels, out: npt.NDArray[np.float32]) -> float:
    """How steeply the brightness changes at each pixel, by Sobel's operator; the steepest is returned.

    Args:
        image: Rows, columns, and red, green and blue.
        out: As many rows and columns. The outermost become zero: they lack neighbours.
    """
    out[0] = out[-1] = 0
    out[:, 0] = out[:, -1] = 0
    for top in range(1, len(image) - 1, BAND_ROWS):
        end = min(top + BAND_ROWS, len(image) - 1)
        _edges_of_band(image[top - 1 : end + 1], out[top:end, 1:-1])
    return float(out.max())


def _edges_of_band(image: Pixels, out: npt.NDArray[np.float32]) -> None:
    """The edges of all rows and columns that have neighbours; only those are in `out`."""
    red, green, blue = (image[:, :, channel] * np.int32(weight) for channel, weight in enumerate(LUMA))
    bright = (red + green + blue) >> 8
    down = bright[:-2] + 2 * bright[1:-1] + bright[2:]
    across = bright[:, :-2] + 2 * bright[:, 1:-1] + bright[:, 2:]
    horizontal = down[:, 2:] - down[:, :-2]
    vertical = across[2:] - across[:-2]
    np.sqrt(horizontal * horizontal + vertical * vertical, out=out, dtype=np.float32, casting="unsafe")
