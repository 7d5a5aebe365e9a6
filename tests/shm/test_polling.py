"""How long a member looks for work before it sleeps: the setting, and the window that adapts."""

import asyncio
import os

import pytest
from joined import handlers_of, two_channels
from life_waiting import until

from shmrpc.shm import poller
from shmrpc.shm.channel import Channel
from shmrpc.shm.poller import (
    CPU_CHECK_NS,
    HOLD_NS,
    PENALTY,
    SOON_NS,
    WINDOW_NS,
    Member,
    Poller,
    Polling,
    Setting,
)

NOW = 10**12


class Nobody:
    """An owner of no interest."""

    def on_records(self) -> None: ...

    def on_rung(self) -> None: ...

    def on_silenced(self) -> None: ...


def member(setting: Setting = "adaptive") -> Member:
    with two_channels() as (channel, _):
        made = Member(Nobody(), channel.consumer, channel.doorbell, Polling.of(setting), os.getpid())
    made._cpus_checked_ns = made.last_work_ns = NOW  # the processors are a matter of other tests
    return made


def wake_late(looking: Member, times: int) -> None:
    """Wake-ups that come long after the last work."""
    for _ in range(times):
        looking.woken(looking.last_work_ns + SOON_NS)
        looking._cpus_checked_ns = looking.last_work_ns


def give_up(looking: Member) -> None:
    """Wake-ups until looking is not tried any more."""
    while looking.window_ns:
        wake_late(looking, 1)


# The setting


@pytest.mark.parametrize(
    ("setting", "window_ns", "adaptive"),
    [("adaptive", WINDOW_NS, True), ("never", 0, False), (0.0002, 200_000, False), (0, 0, False), (1, 10**9, False)],
)
def test_a_setting_is_a_window_that_may_adapt(setting: Setting, window_ns: int, adaptive: bool) -> None:
    assert Polling.of(setting) == Polling(window_ns, adaptive)
    assert member(setting).window_ns == window_ns


@pytest.mark.parametrize("setting", ["always", "", -0.001, 1.001, float("nan"), True, None, (1,)])
def test_any_other_setting_is_refused(setting: Setting) -> None:
    with pytest.raises(ValueError, match=r"polling is 'adaptive', 'never' or seconds from 0 to 1, not "):
        Polling.of(setting)


# The window


def test_the_window_shrinks_to_nothing_while_looking_does_not_pay() -> None:
    looking, windows = member(), []
    for _ in range(4):
        wake_late(looking, 1)
        windows.append(looking.window_ns)
    assert windows == [WINDOW_NS // 2, WINDOW_NS // 4, WINDOW_NS // 8, 0]


def test_the_window_is_full_again_as_soon_as_looking_pays() -> None:
    looking = member()
    wake_late(looking, 2)
    looking.paid(NOW)
    assert looking.window_ns == WINDOW_NS
    assert looking.last_work_ns == NOW


def test_looking_is_tried_in_full_when_wake_ups_come_close_together() -> None:
    looking = member()
    give_up(looking)
    for _ in range(PENALTY[0]):
        looking.woken(looking.last_work_ns + SOON_NS - 1)
        assert looking.window_ns == 0
    looking.woken(looking.last_work_ns + SOON_NS - 1)
    assert looking.window_ns == WINDOW_NS


def test_looking_is_not_tried_when_wake_ups_are_far_apart() -> None:
    looking = member()
    give_up(looking)
    for _ in range(10 * PENALTY[0]):
        wake_late(looking, 1)
        assert looking.window_ns == 0


def test_after_each_vain_try_twice_as_many_wake_ups_pass_up_to_a_limit() -> None:
    looking, penalties = member(), []
    for _ in range(10):
        give_up(looking)
        penalties.append(looking.sit_out)
        for _ in range(looking.sit_out):
            looking.woken(looking.last_work_ns)
        looking.woken(looking.last_work_ns)
        assert looking.window_ns == WINDOW_NS
    assert penalties == [min(PENALTY[0] << step, PENALTY[1]) for step in range(10)]


def test_looking_that_paid_clears_the_record() -> None:
    looking = member()
    give_up(looking)
    for _ in range(looking.sit_out + 1):
        looking.woken(looking.last_work_ns)
    looking.paid(looking.last_work_ns)
    give_up(looking)
    assert looking.sit_out == PENALTY[0]


def test_work_that_is_found_by_the_way_does_not_begin_the_looking() -> None:
    looking = member()
    give_up(looking)
    looking.paid(looking.last_work_ns)
    assert looking.window_ns == 0


@pytest.mark.parametrize("setting", ["never", 0.0005])
def test_a_fixed_window_stays_what_it_is(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "usable_cpus", lambda _: 1)
    looking = member(setting)
    before = looking.window_ns
    looking.check_cpus(NOW)
    wake_late(looking, 20)
    for _ in range(20):
        looking.woken(looking.last_work_ns)
        looking.paid(looking.last_work_ns)
    assert looking.window_ns == before


# Announcements


def tell(looking: Member, gap_ns: int = 0) -> int:
    """An announcement so long after the last work; gives when that is."""
    now_ns = looking.last_work_ns + gap_ns
    looking._cpus_checked_ns = now_ns
    looking.announced(now_ns)
    return now_ns


@pytest.mark.parametrize("awake", [True, False])
@pytest.mark.parametrize("window_ns", [0, WINDOW_NS // 4, WINDOW_NS])
def test_whoever_is_told_of_a_record_stays_awake_for_it_whatever_its_window(awake: bool, window_ns: int) -> None:
    looking = member()
    looking.awake, looking.window_ns = awake, window_ns
    now_ns = tell(looking)
    assert looking.held_until_ns == now_ns + HOLD_NS
    looking.paid(now_ns + 1)
    assert looking.held_until_ns == 0


def test_it_is_held_once_for_each_record_however_often_it_is_told() -> None:
    looking = member()
    held_until_ns = tell(looking) + HOLD_NS
    for step in range(1, 10):
        looking.announced(NOW + step * HOLD_NS // 20)
        assert looking.held_until_ns == held_until_ns


def test_after_an_announcement_in_vain_the_next_ones_hold_nobody() -> None:
    looking = member()
    tell(looking)
    looking.waited_in_vain()
    for _ in range(100):
        tell(looking, HOLD_NS)
        assert looking.held_until_ns == 0
    assert looking.window_ns == 0


@pytest.mark.parametrize(("late_ns", "holds"), [(HOLD_NS, True), (HOLD_NS + WINDOW_NS, False)])
@pytest.mark.parametrize("looked", [True, False])
def test_a_record_that_comes_in_time_makes_announcements_credible_again(
    looked: bool, late_ns: int, holds: bool
) -> None:
    looking = member()
    tell(looking)
    looking.waited_in_vain()
    came_ns = tell(looking, HOLD_NS) + late_ns
    (looking.paid if looked else looking.woken)(came_ns)
    tell(looking)
    assert bool(looking.held_until_ns) == holds


def test_a_record_without_an_announcement_makes_none_credible() -> None:
    looking = member()
    tell(looking)
    looking.waited_in_vain()
    looking.woken(NOW + 10 * HOLD_NS)
    looking.paid(NOW + 11 * HOLD_NS)
    tell(looking)
    assert looking.held_until_ns == 0


def test_the_record_that_was_announced_says_nothing_of_the_window() -> None:
    for window_ns in (0, WINDOW_NS // 8, WINDOW_NS):
        looking = member()
        tell(looking)
        looking.window_ns = window_ns
        looking.penalty = 4 * PENALTY[0]
        looking.paid(looking.last_work_ns + HOLD_NS // 2)
        assert (looking.window_ns, looking.penalty) == (window_ns, 4 * PENALTY[0])


def test_transfers_whose_announcements_come_late_shrink_the_window_but_not_to_nothing() -> None:
    looking, windows = member(), []
    for _ in range(5):
        now_ns = tell(looking, SOON_NS)
        looking.paid(now_ns + HOLD_NS // 2)
        windows.append(looking.window_ns)
    assert windows == [WINDOW_NS // 2, WINDOW_NS // 4, WINDOW_NS // 8, WINDOW_NS // 8, WINDOW_NS // 8]


def test_a_window_that_is_nothing_stays_so_when_announcements_come_late() -> None:
    looking = member()
    give_up(looking)
    for _ in range(10):
        looking.paid(tell(looking, SOON_NS))
        assert looking.window_ns == 0


@pytest.mark.parametrize("given_up", [True, False])
@pytest.mark.parametrize("awake", [True, False])
def test_an_announcement_that_looking_finds_makes_looking_worth_while(given_up: bool, awake: bool) -> None:
    looking = member()
    if given_up:
        give_up(looking)
    looking.awake = awake
    for _ in range(3):
        looking.paid(tell(looking, WINDOW_NS - 1))
        assert looking.window_ns == WINDOW_NS
        assert looking.penalty == PENALTY[0]
    looking.paid(looking.last_work_ns)
    assert looking.window_ns == WINDOW_NS


@pytest.mark.parametrize("setting", ["never", 0.0005])
@pytest.mark.parametrize("awake", [True, False])
def test_a_fixed_window_is_not_stretched(setting: Setting, awake: bool) -> None:
    looking = member(setting)
    looking.awake = awake
    before = looking.window_ns
    tell(looking)
    looking.paid(NOW + 1)
    assert looking.held_until_ns == 0
    assert looking.window_ns == before


def test_nobody_is_held_where_both_processes_share_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, {0}, {0})
    looking = member()
    looking.announced(NOW + CPU_CHECK_NS + 1)  # it is found out when it matters
    for _ in range(2 * PENALTY[0]):
        assert looking.held_until_ns == 0
        tell(looking)
    use_cpus(monkeypatch, {0, 1}, {0})
    looking.announced(NOW + 3 * CPU_CHECK_NS)
    assert looking.held_until_ns


# Processors


def use_cpus(monkeypatch: pytest.MonkeyPatch, of_peer: set[int], own: set[int]) -> list[int]:
    """Sets where the two processes may run; gives the list of the pids that are asked for."""
    asked: list[int] = []

    def sched_getaffinity(pid: int) -> set[int]:
        asked.append(pid)
        if pid == 4242:
            raise ProcessLookupError
        return of_peer if pid else own

    monkeypatch.setattr(os, "sched_getaffinity", sched_getaffinity)
    return asked


@pytest.mark.parametrize(
    ("own", "of_peer", "pid", "count"),
    [
        ({0}, {0}, 7, 1),
        ({0}, {1}, 7, 2),
        ({0, 1}, {0}, 7, 2),
        ({0, 1}, {2, 3}, 7, 4),
        ({0, 1}, {9}, 4242, 2),  # gone
        ({0}, {9}, 0, 1),  # in another pid namespace
        ({0}, {9}, -1, 1),
    ],
)
def test_the_processors_of_both_processes_count(
    monkeypatch: pytest.MonkeyPatch, own: set[int], of_peer: set[int], pid: int, count: int
) -> None:
    use_cpus(monkeypatch, of_peer, own)
    assert poller.usable_cpus(pid) == count


def test_a_system_that_does_not_tell_is_asked_for_all_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert poller.usable_cpus(7) == 6


def test_nobody_looks_where_both_processes_share_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, {0}, {0})
    looking = member()
    looking.check_cpus(NOW)
    assert looking.window_ns == 0
    assert looking.sit_out == PENALTY[0]


def test_a_try_on_one_processor_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    use_cpus(monkeypatch, {0}, {0})
    looking = member()
    looking.check_cpus(NOW)
    looking._cpus_checked_ns = 0
    for _ in range(PENALTY[0] + 1):
        looking.woken(looking.last_work_ns)
    assert looking.window_ns == 0
    assert looking.sit_out == PENALTY[0]


def test_the_processors_are_asked_for_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = member()
    asked = use_cpus(monkeypatch, {0, 1}, {0, 1})
    for step in range(100):
        looking.woken(NOW + step)
        looking.paid(NOW + step)
    assert not asked
    looking.woken(NOW + CPU_CHECK_NS + 1)
    assert asked == [0, os.getpid()]


# From when the window counts


class Clock:
    """Stands still until somebody works."""

    def __init__(self) -> None:
        self.now_ns = NOW

    def __call__(self) -> int:
        return self.now_ns


class Slow(Nobody):
    """An owner whose work takes longer than it is looked for."""

    def __init__(self, channel: Channel, clock: Clock) -> None:
        self.worked = 0
        self._channel = channel
        self._clock = clock

    def on_records(self) -> None:
        self._channel.dispatch(64, handlers_of(lambda record: None), {})
        self._clock.now_ns += 10 * WINDOW_NS
        self.worked += 1


async def test_the_window_counts_from_the_end_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(poller, "monotonic_ns", clock)
    with two_channels() as (near, far):
        owner = Slow(near, clock)
        looking = Member(owner, near.consumer, near.doorbell, Polling(WINDOW_NS, adaptive=False), os.getpid())
        made = Poller(asyncio.get_running_loop())
        made.add(looking)
        far.send(1, 0, 0, 1, 0, b"")
        await until(lambda: owner.worked == 1, "the work to be done")
        for _ in range(10):
            await asyncio.sleep(0)
            assert looking.awake
        clock.now_ns += WINDOW_NS
        await until(lambda: not looking.awake, "it to fall asleep")
        made.remove(looking)
