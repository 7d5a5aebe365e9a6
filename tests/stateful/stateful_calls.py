"""The calls of the stateful test, and what the model says of each: which outcomes are possible, and what they imply.

A call knows what happened around it while it was under way, its *troubles*. When it has ended, `judge` holds the outcome
against them; at the end of an example `judge_effect` holds it against the journal.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from stateful_api import Refused

import shmrpc

MOST_ATTEMPTS: Final = 3
KILLED, DRAINED, CUT, CLOSED = "killed", "drained", "cut", "closed"
"""What can befall a call: its server was killed, or drains; or drains and was told to end at once; its stub was closed."""

STREAMING: Final = frozenset({"numbers", "arrays", "both"})
"""Calls that give a stream."""
FED: Final = frozenset({"total", "weigh", "both"})
"""Calls that take one."""
LARGE: Final = frozenset({"keep", "echo", "make", "arrays", "weigh"})
"""Calls that may have to wait for memory."""


class Sour(Exception):
    """What a caller's own stream raises."""


class Source:
    """A caller's own stream, to which items are given while it is read."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self.given = 0
        self.finished = self.failed = self.begun = self.closed = False
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> AsyncIterator[Any]:
        """What is passed to the stub."""
        self.begun = True
        try:
            while self._items or not self.finished:
                if not self._items:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
                    continue
                yield self._items.popleft()
            if self.failed:
                raise Sour
        finally:
            self.closed = True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def give(self, item: Any) -> None:
        """One more item."""
        self._items.append(item)
        self.given += 1
        self._wake()

    def finish(self, *, failing: bool) -> None:
        """There are no more."""
        self.finished, self.failed = True, failing
        self._wake()


@dataclass(eq=False)
class Call:
    """One call, from its beginning until its outcome was judged."""

    token: int
    kind: str
    conn: int
    patient: bool
    """Whether it waits for a connection as long as it takes."""
    timed: bool
    """Whether it has a deadline."""
    troubles: set[str]
    total: int = 0
    """Items of its result."""
    source: Source | None = None
    task: "asyncio.Task[Any] | None" = None
    stream: Any = None
    received: int = 0
    allowed: int = 0
    """How many items it may read by now."""
    leaving: bool = False
    cancelled: bool = False
    shaky: bool = False
    """For an impatient one: whether there may have been no connection when it began."""
    sure: bool = False
    """For a one-way call: whether a later one was answered, so that nothing can befall this one any more."""
    outcome: Any = None
    _permit: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        troubles = "+".join(sorted(self.troubles)) or "no trouble"
        return f"call {self.token} ({self.kind} over connection {self.conn}, {troubles})"

    def permit(self, items: int) -> None:
        """Lets it read so many items more."""
        self.allowed += items
        self._permit.set()

    def leave(self) -> None:
        """Lets it leave its stream, as soon as it has not to wait for an item."""
        self.leaving = True
        self._permit.set()

    async def may_read(self) -> bool:
        """Waits until it may read one more item. Whether it stays."""
        while self.received >= self.allowed and not self.leaving:
            self._permit.clear()
            await self._permit.wait()
        return not self.leaving

    @property
    def ended(self) -> bool:
        """Whether it has an outcome."""
        return self.task is not None and self.task.done()

    @property
    def waits_for_us(self) -> bool:
        """Whether it goes on only when this side does something."""
        if self.source is not None and not self.source.finished:
            return True
        return self.kind == "hold" or (self.kind in STREAMING and self.received >= self.allowed and not self.leaving)


def judge(call: Call) -> None:
    """Checks that a call may have ended the way it did.

    Raises:
        AssertionError: it may not.
    """
    assert call.task is not None
    if call.task.cancelled():
        call.outcome = asyncio.CancelledError()
        assert call.cancelled, f"{call} was cancelled, and nobody did that"
        return
    call.outcome = error = call.task.exception()
    if error is None:
        call.outcome = call.task.result()
        _judge_result(call)
    elif isinstance(error, Refused):
        assert (call.kind, call.token) == ("refuse", error.token), f"{call} was refused as {error}"
    elif isinstance(error, Sour):
        assert call.source is None or call.source.failed, f"{call} failed with its stream, which did not"
    elif isinstance(error, shmrpc.DeadlineExceeded):
        assert call.timed, f"{call} has no deadline, and ended so: {error}"
    elif isinstance(error, shmrpc.ResourceExhausted):
        assert call.timed, f"{call} has no deadline, and got no room: {error}"
        assert "before the deadline" in str(error), f"{call} got no room: {error}"
    elif isinstance(error, shmrpc.Unavailable):
        assert _may_be_lost(call, error), f"{call} was lost: {error!r}, maybe_executed={error.maybe_executed}"
    else:
        raise AssertionError(f"{call} ended with {error!r}") from error


def _judge_result(call: Call) -> None:
    assert call.kind != "refuse", f"{call} ended well"
    if call.source is not None and call.outcome != "left":
        assert call.source.finished, f"{call} ended before its stream"
        assert not call.source.failed, f"{call} ended well, and its stream did not"
        assert call.kind != "weigh" or call.outcome == call.source.given, f"{call}: {call.outcome} arrays came"
    if call.kind in STREAMING and call.outcome != "left":
        total = call.source.given if call.source is not None else call.total
        assert call.received == total, f"{call} ended after {call.received} of {total} items"
    assert call.outcome != "left" or call.leaving, f"{call} left its stream too early"


def _may_be_lost(call: Call, error: shmrpc.Unavailable) -> bool:
    """Whether a call may be told that it could not be carried."""
    troubles = call.troubles
    if isinstance(error, shmrpc.Closed):
        return CLOSED in troubles
    if CLOSED in troubles and isinstance(error, shmrpc.ConnectionLost):  # and there is no connection to try again with
        return KILLED in troubles or CUT in troubles or (DRAINED in troubles and not error.maybe_executed)
    if type(error) is shmrpc.Unavailable and not error.maybe_executed and "no connection to" in str(error):
        return not call.patient and (call.shaky or bool(troubles))
    if type(error) is shmrpc.Unavailable:
        return CUT in troubles and error.maybe_executed and "was cut off" in str(error)
    if not isinstance(error, shmrpc.ConnectionLost):
        return False
    if error.maybe_executed:
        return KILLED in troubles or CUT in troubles
    repeatable = call.patient and (call.source is None or not call.source.begun)
    return not repeatable and bool(troubles)


def judge_effect(call: Call, times: int) -> None:
    """Checks the outcome of a call against how often its handler began.

    Raises:
        AssertionError: they do not agree.
    """
    outcome = call.outcome
    if call.kind == "again":
        assert times <= MOST_ATTEMPTS, f"{call} was executed {times} times"
    else:
        assert times <= 1, f"{call} was executed {times} times, and may not be repeated"
    if isinstance(outcome, shmrpc.Unavailable):
        assert outcome.maybe_executed or not times, f"{call} was executed, which its error denies: {outcome}"
    elif isinstance(outcome, (shmrpc.DeadlineExceeded, shmrpc.ResourceExhausted)):
        unsent = "not sent" in str(outcome) or "never sent" in str(outcome)
        assert not (unsent and times) or call.kind == "again", f"{call} was executed, and its error says: {outcome}"
    elif isinstance(outcome, Refused):
        assert times == 1, f"{call} was refused by nobody"
    elif call.kind == "note":
        assert times or call.troubles or call.timed or outcome is not None, f"{call} was lost"
    elif not isinstance(outcome, BaseException) and (outcome != "left" or call.received):
        assert times, f"{call} was acknowledged, and nobody did it"
