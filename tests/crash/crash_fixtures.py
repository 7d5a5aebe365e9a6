"""The nurseries of a run of the tests: processes of which the servers and clients that die are forks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """With the package as it is."""
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


@pytest.fixture(scope="session")
def stepped_nursery(stepped_package: Path) -> Iterator[Nursery]:
    """With numbered steps in the native core."""
    nursery = Nursery(stepped_package)
    try:
        yield nursery
    finally:
        nursery.close()
