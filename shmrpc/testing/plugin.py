"""Fixtures for pytest. A project asks for them in its top ``conftest.py``: ``pytest_plugins = ["shmrpc.testing.plugin"]``.

There is no entry point, which would load this in every run of pytest beside which shmrpc is installed. No fixture needs an
event loop, so all of them work with pytest-asyncio, with anyio's plugin, and in tests without either.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from shmrpc.testing.commands import process
from shmrpc.testing.holdings import Held, left_since, settle_process
from shmrpc.testing.pairs import short_folder
from shmrpc.testing.processes import ServerProcess, running_processes

StartServer = Callable[..., ServerProcess]

_before: Final = pytest.StashKey[Held]()
_failed: Final = pytest.StashKey[bool]()
_now: Final = pytest.StashKey[pytest.Item]()


@pytest.fixture
def shmrpc_path() -> Iterator[str]:
    """A path where a test's server may listen: in a shorter folder than ``tmp_path``; a socket's has at most 107 bytes."""
    with short_folder() as folder:
        yield str(folder / "test.sock")


@pytest.fixture
def shmrpc_server() -> Iterator[StartServer]:
    """Starts servers in processes of their own: called as `shmrpc.testing.process`, gives the running process.

    They are killed at the end of the test. When it fails, their logs are in the report.
    """
    with ExitStack() as stack:

        def start(*services: str | type | ServerProcess, **options: Any) -> ServerProcess:
            if len(services) == 1 and isinstance(services[0], ServerProcess):
                return stack.enter_context(services[0])
            return stack.enter_context(process(*services, **options))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def shmrpc_no_leaks(request: pytest.FixtureRequest) -> None:
    """Fails the test if it leaves an fd, a shared mapping, a thread or a child process behind.

    All of the test counts, its other fixtures and its event loop included, but not what fixtures of a wider scope hold.
    To be named where it is known before the test begins: as a parameter, in ``@pytest.mark.usefixtures``, or for all
    tests in the option ``usefixtures`` of the configuration.
    """
    if _before not in request.node.stash:
        raise pytest.UsageError(
            "shmrpc_no_leaks must be named by the test, its module or the configuration, not asked for"
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Notes what is held before any fixture of the test is made, its event loop included."""
    if "shmrpc_no_leaks" in getattr(item, "fixturenames", ()):
        settle_process()
        item.stash[_before] = Held.now()
        item.config.stash[_now] = item
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """What a fixture of a wider scope makes is not the test's that happens to be its first."""
    item = request.config.stash.get(_now, None)
    if item is None or fixturedef.scope == "function":
        return (yield)
    before = Held.now()
    try:
        return (yield)
    finally:
        item.stash[_before] |= Held.now().without(before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Fails a test that leaves something behind; not one that failed already, whose traceback keeps what it had."""
    result = yield
    if item.config.stash.get(_now, None) is item:
        del item.config.stash[_now]
    before = item.stash.get(_before, None)
    if before is not None:
        del item.stash[_before]
    if before is not None and not item.stash.get(_failed, False):
        left = str(left_since(before))
        assert not left, f"the test left behind: {left}"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, Any, Any]:
    """Shows what servers of tests logged, when one fails."""
    report = yield
    if report.failed and report.when == "call":
        item.stash[_failed] = True
        report.sections += [(f"log of {server!r}", server.tail()) for server in running_processes()]
    return report
