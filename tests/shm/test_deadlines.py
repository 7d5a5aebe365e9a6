"""The timer of a session's deadlines: it fires once for the earliest, never early, and not after its end."""

import asyncio
import weakref
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from time import monotonic_ns
from typing import Any

import pytest
from life_waiting import until

from shmrpc.shm.deadlines import NEVER, DeadlineTimer

SOON_NS = 2_000_000
LATE_NS = 3_600 * 1_000_000_000


class Deadlines:
    """Whoever keeps the calls: looks through its deadlines when the timer fires."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.timer = DeadlineTimer(asyncio.get_running_loop(), self.expire)
        self.waiting: list[int] = []
        self.fired: list[int] = []
        self.ended: list[int] = []
        self._then = then

    def add(self, deadline_ns: int) -> None:
        """As `OutgoingCalls.start` does."""
        self.waiting.append(deadline_ns)
        if deadline_ns < self.timer.next_ns:
            self.timer.advance(deadline_ns)

    def expire(self, now_ns: int) -> int:
        """Ends what has passed."""
        self.fired.append(now_ns)
        self.ended += [deadline_ns for deadline_ns in self.waiting if deadline_ns <= now_ns]
        self.waiting = [deadline_ns for deadline_ns in self.waiting if deadline_ns > now_ns]
        self._then()
        return min(self.waiting, default=NEVER)


def timers() -> list[asyncio.TimerHandle]:
    """The timers that the running loop waits for."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [handle for handle in scheduled if not handle.cancelled()]


async def test_every_deadline_is_met_and_none_too_early() -> None:
    deadlines, now_ns = Deadlines(), monotonic_ns()
    given = [now_ns + offset for offset in (3 * SOON_NS, SOON_NS, 2 * SOON_NS, -SOON_NS, SOON_NS + 1)]
    for deadline_ns in given:
        deadlines.add(deadline_ns)
    await until(lambda: not deadlines.waiting, "all deadlines to pass")
    assert sorted(deadlines.ended) == sorted(given)
    assert deadlines.timer.next_ns == NEVER
    assert not timers()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_timer_keeps_nothing_of_the_call_that_set_it(cancelled: bool) -> None:
    class Call:
        """What the context of a served call leads to."""

    deadlines, variable, context = Deadlines(), ContextVar[Call]("served"), copy_context()
    served = Call()
    context.run(variable.set, served)
    context.run(deadlines.add, monotonic_ns() + LATE_NS)
    if cancelled:
        deadlines.timer.close()
    gone = weakref.ref(served)
    del served, context
    assert gone() is None
    deadlines.timer.close()


async def test_however_many_deadlines_there_is_one_timer() -> None:
    deadlines, now_ns = Deadlines(), monotonic_ns()
    for offset in range(1000):
        deadlines.add(now_ns + LATE_NS - offset)
    assert len(timers()) == 1
    deadlines.add(now_ns + 2 * LATE_NS)
    assert deadlines.timer.next_ns == now_ns + LATE_NS - 999
    deadlines.timer.close()
    assert not timers()


async def test_a_deadline_that_passed_already_fires_in_the_next_turns() -> None:
    deadlines = Deadlines()
    deadlines.add(1)
    assert not deadlines.ended
    await until(lambda: deadlines.ended, "the timer to fire")
    assert deadlines.ended == [1]


async def test_a_loop_that_fires_early_is_sent_back_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    call_later, delays = loop.call_later, []

    def early(delay: float, callback: Callable[..., object], *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        if args:  # asyncio.sleep's own
            return call_later(delay, callback, *args, **kwargs)
        delays.append(delay)
        return call_later(delay / 2, callback, **kwargs)

    monkeypatch.setattr(loop, "call_later", early)
    deadlines, deadline_ns = Deadlines(), monotonic_ns() + 150 * SOON_NS
    deadlines.add(deadline_ns)
    await until(lambda: deadlines.ended, "the timer to fire")
    assert len(delays) > 1
    assert len(deadlines.fired) == 1
    assert deadlines.fired[0] >= deadline_ns


async def test_a_deadline_that_comes_while_others_expire_is_not_lost() -> None:
    def add_one() -> None:
        if len(deadlines.fired) == 1:
            deadlines.add(monotonic_ns() + SOON_NS)

    deadlines = Deadlines(then=add_one)
    deadlines.add(monotonic_ns())
    await until(lambda: len(deadlines.ended) == 2, "both deadlines to pass")


async def test_a_timer_that_is_closed_fires_no_more() -> None:
    deadlines = Deadlines()
    deadlines.add(monotonic_ns() + SOON_NS)
    deadlines.timer.close()
    deadlines.timer.close()
    assert deadlines.timer.next_ns == 0  # so that no deadline is given to it
    deadlines.add(monotonic_ns() + SOON_NS)
    assert not timers()


async def test_a_timer_that_is_closed_by_what_expires_fires_no_more() -> None:
    deadlines = Deadlines(then=lambda: deadlines.timer.close())
    deadlines.add(monotonic_ns() + LATE_NS)
    deadlines.add(monotonic_ns())
    await until(lambda: deadlines.fired, "the timer to fire")
    assert not timers()
