"""One executioner for all tests of random kills: it takes most of a second until it is warm."""

from collections.abc import Iterator

import pytest
from load_processes import Executioner, executioner


@pytest.fixture(scope="session")
def deaths() -> Iterator[Executioner]:
    """Who begins and kills processes of the load."""
    with executioner() as made:
        yield made
