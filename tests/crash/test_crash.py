"""One side dies at every point of every step: the other one loses nothing, and goes on with the next."""

from pathlib import Path
from typing import Final

import pytest
from crash_death import Way
from crash_nursery import Nursery
from crash_points import CLIENT, CLIENT_NATIVE, SERVER, SERVER_NATIVE, Point, cases
from crash_scene import Scene, client_dies, server_dies
from figures import Figures

pytest_plugins = ["crash_fixtures"]

DEATHS: Final = {"server": server_dies, "client": client_dies}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every point both ways for ``--long``, else a spread selection."""
    native = "stepped_nursery" in metafunc.fixturenames
    long = metafunc.config.getoption("--long")
    chosen = [
        case
        for points in ((SERVER_NATIVE, CLIENT_NATIVE) if native else (SERVER, CLIENT))
        for case in cases(points, long=long)
    ]
    metafunc.parametrize(("point", "way"), chosen, ids=[f"{point.role} {point}-{way}" for point, way in chosen])


async def test_the_other_side_outlives_it(
    point: Point, way: Way, nursery: Nursery, folder: Path, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    scene = Scene(point, way, nursery, folder, caplog)
    await DEATHS[point.role](scene)
    scene.verdict(figures)


async def test_the_other_side_outlives_a_death_in_the_native_core(
    point: Point, way: Way, stepped_nursery: Nursery, folder: Path, caplog: pytest.LogCaptureFixture, figures: Figures
) -> None:
    scene = Scene(point, way, stepped_nursery, folder, caplog)
    await DEATHS[point.role](scene)
    scene.verdict(figures)
