"""How the tests of a connection's life wait: for a condition, with a deadline, never for a time."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

PATIENCE: Final = 20.0
"""Seconds after which a test that waits has failed."""


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns when a condition holds; the event loop runs meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Returns when a condition holds; the event loop of this process, if any, stands still meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.001)


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended does not, whether it was reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it went while its line was read
        return False
