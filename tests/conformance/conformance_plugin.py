"""Starts the host processes before the first test and stops them after the last, so that no test has to pay for them, and
none is blamed for what they hold."""

import pytest
from conformance_transports import SharedMemory


def _needed(session: pytest.Session) -> set[SharedMemory]:
    specs = (getattr(item, "callspec", None) for item in session.items)
    transports = {spec.params.get("transport") for spec in specs if spec is not None}
    return {transport for transport in transports if isinstance(transport, SharedMemory)}


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        for transport in _needed(session):
            transport.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    for transport in _needed(session):
        if (problem := transport.stop()) is not None:
            print(f"\n{problem}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
