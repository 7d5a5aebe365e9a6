"""What the commands share: the event loop that they run on, options, and their own kind of error."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from shmrpc.context import timeout_to_ns

T = TypeVar("T")


class UsageError(Exception):
    """What the user asked for cannot be done; the text says why and what can."""


def check_timeout(seconds: float) -> None:
    """Refuses a ``--timeout`` that is none.

    Raises:
        UsageError: it is not a positive number of seconds.
    """
    try:
        timeout_to_ns(seconds)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None


def run_loop(main: Coroutine[Any, Any, T], loop: str) -> T:
    """Runs a coroutine on ``"uvloop"``, on ``"asyncio"``, or with ``"auto"`` on uvloop where it is installed."""
    factory = None
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop == "uvloop":
                main.close()
                raise UsageError("uvloop is not installed; choose --loop asyncio") from None
        else:
            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)
