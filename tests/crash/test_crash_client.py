"""A client dies at every point of every step: its server loses nothing, and serves the next one."""

from pathlib import Path

import pytest
from crash_death import Way
from crash_nursery import Nursery
from crash_points import CLIENT, CLIENT_NATIVE, Point, cases
from crash_scene import Scene, client_dies
from figures import Figures

pytest_plugins = ["crash_fixtures"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point both ways for ``--long``, else a spread selection."""
    points = CLIENT_NATIVE if "stepped_nursery" in metafunc.fixturenames else CLIENT
    chosen = cases(points, long=metafunc.config.getoption("--long"))
    metafunc.parametrize(("point", "way"), chosen, ids=[f"{point}-{way}" for point, way in chosen])


async def test_a_server_outlives_its_client(
    point: Point, way: Way, nursery: Nursery, folder: Path, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    scene = Scene(point, way, nursery, folder, caplog)
    await client_dies(scene)
    scene.verdict(figures)


async def test_a_server_outlives_its_client_that_dies_in_the_native_core(
    point: Point, way: Way, stepped_nursery: Nursery, folder: Path, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    scene = Scene(point, way, stepped_nursery, folder, caplog)
    await client_dies(scene)
    scene.verdict(figures)
