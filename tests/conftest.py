"""Fixtures that every test may use, and the check that no test leaves anything behind."""

import asyncio
import gc
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a socket's path has at most 107 bytes, and pytest's tmp_path can be longer."""
    with tempfile.TemporaryDirectory(prefix="shmrpc-") as path:
        yield Path(path)


@pytest.fixture
def path(folder: Path) -> str:
    """Where a test's server may listen."""
    return str(folder / "test.sock")


class Held:
    """What this process holds that a test could leak."""

    def __init__(self) -> None:
        self.fds = {fd: _target(fd) for fd in os.listdir("/proc/self/fd")}
        maps = Path("/proc/self/maps").read_text()
        self.mappings = sum("shmrpc" in line and ".so" not in line for line in maps.splitlines())
        self.threads = {thread.name for thread in threading.enumerate()}
        self.children = _children()

    def left_since(self, before: "Held") -> list[str]:
        """What is held now and was not before."""
        left = [
            f"fd {fd} -> {target}"
            for fd, target in self.fds.items()
            if before.fds.get(fd) != target and target is not None
        ]
        if self.mappings > before.mappings:
            left.append(f"{self.mappings - before.mappings} shared mappings")
        left += [f"thread {name}" for name in self.threads - before.threads]
        left += [f"child process {pid}" for pid in self.children - before.children]
        return left


def _target(fd: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # the fd of the listing itself
        return None


def _children() -> set[str]:
    return {
        pid
        for task in os.listdir("/proc/self/task")
        for pid in Path(f"/proc/self/task/{task}/children").read_text().split()
    }


_before = pytest.StashKey[Held]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Notes what is held before any fixture of the test is made, its event loop included."""
    gc.collect()
    item.stash[_before] = Held()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fails a test that leaves an fd, a shared mapping, a thread or a child process behind."""
    result = yield
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":  # told to end with its event loop, and on a busy machine still at it
            thread.join(10)
    gc.collect()
    left = Held().left_since(item.stash[_before])
    assert not left, f"the test left behind: {left}"
    return result


@pytest.fixture
async def no_tasks_left() -> AsyncIterator[None]:
    """Fails an async test that leaves a task running. Put on every async test by `pytest_collection_modifyitems`."""
    before = asyncio.all_tasks()
    yield
    left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task() and not task.done()]
    assert not left, f"the test left tasks running: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds `no_tasks_left` to every async test."""
    for item in items:
        if isinstance(item, pytest.Function) and asyncio.iscoroutinefunction(item.obj):
            item.fixturenames.insert(0, "no_tasks_left")
