"""The images example: what it computes, and how files become arrays and arrays become pictures."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from examples.images import operations
from examples.images.api import Pixels
from examples.images.pictures import GRAY, PHOTOGRAPHS, decode, drawn_edges, drawn_histogram, encode, path_of


def noise(rows: int, columns: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (rows, columns, channels), np.uint8)


def resized(image: Pixels, rows: int, columns: int) -> Pixels:
    out = np.empty((rows, columns, image.shape[2]), np.uint8)
    operations.resize(image, out)
    return out


# The operations


def test_resizing_by_a_whole_factor_averages_blocks() -> None:
    image = noise(12, 20)
    blocks = image.reshape(4, 3, 5, 4, 3).sum(axis=(1, 3), dtype=np.int64)
    assert np.array_equal(resized(image, 4, 5), (blocks + 6) // 12)


def test_a_pixel_on_a_border_counts_for_both_sides() -> None:
    image = np.array([0, 90, 240], np.uint8).reshape(3, 1, 1)
    assert resized(image, 2, 1).ravel().tolist() == [30, 190]  # (0 + 90 / 2) / 1.5 and (90 / 2 + 240) / 1.5


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 23), (30, 1), (29, 40), (30, 41)])
def test_resizing_is_the_average_of_the_covered_area_rounded(rows: int, columns: int) -> None:
    def weights(samples: int, intervals: int) -> npt.NDArray[np.float64]:
        edges = np.arange(intervals + 1) * samples / intervals
        cells = np.arange(samples)
        covered = np.minimum(edges[1:, np.newaxis], cells + 1) - np.maximum(edges[:-1, np.newaxis], cells)
        mean: npt.NDArray[np.float64] = np.maximum(covered, 0) * intervals / samples
        return mean

    image = noise(30, 41)
    exact = np.einsum("rR,cC,RCk->rck", weights(30, rows), weights(41, columns), image)
    assert np.abs(resized(image, rows, columns) - exact).max() <= 0.5 + 1e-9


def test_a_histogram_counts_each_channel() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0] = 7, 8, 255
    counts = np.ones((3, 256), np.int64)
    operations.histogram(image, counts)
    assert counts.sum(axis=1).tolist() == [6, 6, 6]
    assert [counts[0, 7], counts[1, 8], counts[2, 255]] == [1, 1, 1]
    assert counts[:, 0].tolist() == [5, 5, 5]


def test_an_edge_is_where_the_brightness_changes() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 200
    magnitude = np.ones((4, 6), np.float32)
    assert operations.edges(image, magnitude) == 4 * 200
    assert magnitude[1].tolist() == [0, 0, 800, 800, 0, 0]
    assert magnitude[0].tolist() == magnitude[-1].tolist() == [0] * 6


def test_edges_do_not_depend_on_the_bands_in_which_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(2 * operations.BAND_ROWS + 3, 9)
    in_bands, at_once = np.empty((2, *image.shape[:2]), np.float32)
    strongest = operations.edges(image, in_bands)
    monkeypatch.setattr(operations, "BAND_ROWS", len(image))
    assert operations.edges(image, at_once) == strongest
    assert np.array_equal(in_bands, at_once)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 5), (2, 2), (5, 1)])
def test_a_picture_without_an_inside_has_no_edges(rows: int, columns: int) -> None:
    magnitude = np.ones((rows, columns), np.float32)
    assert operations.edges(noise(rows, columns), magnitude) == 0
    assert not magnitude.any()


# The pictures


def test_the_photographs_are_there_and_come_by_size() -> None:
    pictures = [decode(path_of(name)) for name in PHOTOGRAPHS]
    assert all(picture.ndim == 3 and picture.shape[2] == 3 for picture in pictures)
    assert [picture.nbytes for picture in pictures] == sorted(picture.nbytes for picture in pictures)
    assert decode(path_of(GRAY)).ndim == 2


def test_a_picture_written_is_the_picture_read(tmp_path: Path) -> None:
    image = noise(5, 7)
    encode(image, tmp_path / "noise.png")
    assert np.array_equal(decode(tmp_path / "noise.png"), image)


def test_the_strongest_edge_is_drawn_white() -> None:
    assert drawn_edges(np.array([[0, 2, 4]], np.float32), 4).tolist() == [[0, 127, 255]]
    assert drawn_edges(np.zeros((1, 2), np.float32), 0).tolist() == [[0, 0]]


def test_the_highest_column_of_a_histogram_fills_the_chart() -> None:
    counts = np.zeros((3, 256), np.int64)
    counts[0, 5], counts[1, 5] = 10, 5
    chart = drawn_histogram(counts, rows=4)
    assert chart.shape == (4, 256, 3)
    assert chart[:, 5].tolist() == [[255, 0, 0], [255, 0, 0], [255, 255, 0], [255, 255, 0]]
    assert not chart[:, :5].any()
