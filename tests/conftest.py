"""Fixtures that every test may use, and the check that no test leaves a task behind.

That none leaves anything else behind is checked by the fixture ``shmrpc_no_leaks``, which pyproject.toml puts on all.
"""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from shmrpc.testing.pairs import short_folder

settings.register_profile("shmrpc", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("shmrpc")

pytest_plugins = ["figures", "native_builds", "stepped", "shmrpc.testing.plugin"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a socket's path has at most 107 bytes, and pytest's tmp_path can be longer."""
    with short_folder() as path:
        yield path


@pytest.fixture
def path(folder: Path) -> str:
    """Where a test's server may listen."""
    return str(folder / "test.sock")


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Fails an async test that leaves a task running. Put on every async test by `pytest_collection_modifyitems`."""
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task() and not task.done()]
    assert not left, f"the test left tasks running: {left}"


def pytest_configure() -> None:
    """Ctrl-C works in the processes that tests start, also where a shell runs the tests in the background, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds `no_tasks_left` to every async test."""
    for item in items:
        if isinstance(item, pytest.Function) and asyncio.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "no_tasks_left")


def pytest_collection_finish() -> None:
    """Keeps what there is before the first test out of every later collection: each test makes several."""
    gc.collect()
    gc.freeze()
