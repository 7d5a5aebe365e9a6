"""One timer for all the deadlines of a session, however many calls it has."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from time import monotonic_ns
from typing import Final

NEVER: Final = 1 << 63


class DeadlineTimer:
    """Calls `expire` when the earliest known deadline has passed.

    There is no queue of deadlines: whoever keeps the calls looks through them when the timer fires (there are at most as
    many as may be in flight) and answers with the earliest that is left. So a call that ends in time costs one comparison.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[int], int]) -> None:
        self._loop = loop
        self._expire = expire
        self._handle: asyncio.TimerHandle | None = None
        self._context: Final = Context()
        """Not the caller's: a timer keeps it, also one that was cancelled, and it leads to the call that is being served."""
        self.next_ns = NEVER
        """When it fires; a deadline before this must be given to `advance`. 0 once it is closed: none is."""

    def advance(self, deadline_ns: int) -> None:
        """Fires at `deadline_ns`, which is earlier than `next_ns`."""
        if self._handle is not None:
            self._handle.cancel()
        self.next_ns = deadline_ns
        self._handle = self._loop.call_later(
            max(0, deadline_ns - monotonic_ns()) / 1e9, self._fire, context=self._context
        )

    def _fire(self) -> None:
        now_ns = monotonic_ns()
        self._handle = None
        self.next_ns, earliest_ns = NEVER, self.next_ns
        if now_ns >= earliest_ns:  # loops may fire a little early: their clocks have milliseconds
            earliest_ns = self._expire(now_ns)
        if earliest_ns < self.next_ns:
            self.advance(earliest_ns)

    def close(self) -> None:
        """Stops the timer for good; also from within `expire`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self.next_ns = 0
