"""Where the pictures come from, and how files become arrays and arrays become files. All of Pillow is here.

The photographs are those that the package scikit-image brings along, so that none have to be downloaded.
"""

from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.images.api import Pixels

PHOTOGRAPHS = (
    "chelsea.png",
    "coffee.png",
    "astronaut.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "hubble_deep_field.jpg",
    "retina.jpg",
)
"""In the order of their sizes: from 0.4 to 6 MB of pixels."""

GRAY = "camera.png"
"""A photograph without colours, which has no channels."""


def path_of(name: str) -> Path:
    """The file of a photograph."""
    return Path(str(files("skimage"))) / "data" / name


def decode(path: Path) -> npt.NDArray[np.uint8]:
    """The pixels of a file: rows, columns and, unless it is gray, channels.

    Raises:
        OSError: The file cannot be read, or is no picture.
    """
    with Image.open(path) as picture:
        return np.asarray(picture, np.uint8)


def encode(pixels: Pixels, path: Path) -> None:
    """Write a picture to a file, in the format that its name says.

    Raises:
        OSError: The file cannot be written.
    """
    Image.fromarray(pixels).save(path)


def drawn_edges(magnitude: npt.NDArray[np.float32], strongest: float) -> npt.NDArray[np.uint8]:
    """A picture of edges, the strongest white."""
    return (magnitude * (255 / (strongest or 1))).astype(np.uint8)


def drawn_histogram(counts: npt.NDArray[np.int64], rows: int = 128) -> Pixels:
    """A chart of a histogram: a column for each value, the highest as high as the chart."""
    heights = counts.T * rows // max(counts.max(), 1)
    height_of_row = np.arange(rows, 0, -1)[:, np.newaxis, np.newaxis]
    return np.where(height_of_row <= heights, 255, 0).astype(np.uint8)
