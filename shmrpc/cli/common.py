"""What the commands share: the event loop that they run on, and their own kind of error."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """What the user asked for cannot be done; the text says why and what can."""


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
