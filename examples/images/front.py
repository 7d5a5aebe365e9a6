"""The front end: has pictures developed by a worker, and writes what comes back into files. To develop one:

python -m examples.images.front /tmp/images.sock picture.jpg --out /tmp/pictures
"""

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import shmrpc
from examples.images.api import BadImage, Edges, Histogram, Images, Pixels, Resized
from examples.images.pictures import decode, drawn_edges, drawn_histogram, encode

SMALL_ROWS = 160


@dataclass(frozen=True)
class Developed:
    """A picture and what the worker made of it."""

    image: Pixels
    resized: Resized
    histogram: Histogram
    edges: Edges


def share(pixels: Pixels, images: Images) -> Pixels:
    """The same picture in memory that the worker reads.

    Decoders that write into memory of the caller's need not be followed by a copy. Pillow has memory of its own.
    """
    image = shmrpc.empty(pixels.shape, np.uint8, to=images)
    image[:] = pixels
    return image


def small_size(pixels: Pixels) -> tuple[int, int]:
    """Rows and columns of the picture when it is `SMALL_ROWS` high, or as high as it is if that is less."""
    height, width = pixels.shape[:2]
    rows = min(SMALL_ROWS, height)
    return rows, max(width * rows // height, 1)


async def develop(images: Images, pixels: Pixels) -> Developed:
    """Ask for everything at once: all three calls read the same memory.

    Raises:
        BadImage: It is no picture.
    """
    image = share(pixels, images)
    resized, histogram, edges = await asyncio.gather(
        images.resize(image, *small_size(image)), images.histogram(image), images.edges(image)
    )
    return Developed(image, resized, histogram, edges)


def write(developed: Developed, folder: Path, name: str) -> list[Path]:
    """Write the results into a folder, which is made if it does not exist; return the files.

    Raises:
        OSError: A file cannot be written.
    """
    pictures = {
        "small": developed.resized.pixels,
        "histogram": drawn_histogram(developed.histogram.counts),
        "edges": drawn_edges(developed.edges.magnitude, developed.edges.strongest),
    }
    paths = {folder / f"{name}-{kind}.png": pixels for kind, pixels in pictures.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for path, pixels in paths.items():
        encode(pixels, path)
    return list(paths)


async def develop_file(address: str, path: Path, folder: Path) -> int:
    """Develop one file and print what was written; return the exit status."""
    async with shmrpc.connect(Images, address, wait=10.0) as images:
        patient = shmrpc.options(images, timeout=30.0)
        try:
            developed = await develop(patient, decode(path))
        except BadImage as error:
            print(f"{path}: {error.reason}, this has the shape {error.shape}")
            return 1
    # The worker may be gone by now: what came back stays readable for as long as somebody holds it.
    for written in write(developed, folder, path.stem):
        print(written)
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Develop a picture: a small one, its histogram and its edges.")
    parser.add_argument("address", help="where the worker listens")
    parser.add_argument("picture", type=Path, help="any file that Pillow reads, in colour")
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to (default: the current one)")
    arguments = parser.parse_args()
    return asyncio.run(develop_file(arguments.address, arguments.picture, arguments.out))


if __name__ == "__main__":
    raise SystemExit(main())
