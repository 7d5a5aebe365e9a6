"""Starts the host processes before the first test and stops them after the last, so that no test has to pay for them, and
none is blamed for what they hold."""

import contextlib
import gc

import pytest
from conformance_transports import SharedMemory


def _needed(session: pytest.Session) -> set[SharedMemory]:
    specs = (getattr(item, "callspec", None) for item in session.items)
    transports = {spec.params.get("transport") for spec in specs if spec is not None}
    return {transport for transport in transports if isinstance(transport, SharedMemory)}


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for transport in _needed(session):
        transport.start()
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()  # makes a pipe that libuv keeps for the whole process, whatever test comes first
    gc.freeze()  # every test collects garbage before and after, which need not look at what collecting tests has made


def pytest_sessionfinish(session: pytest.Session) -> None:
    for transport in _needed(session):
        if (problem := transport.stop()) is not None:
            print(f"\n{problem}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
