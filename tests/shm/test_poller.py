"""The poller: who is awake, who sleeps, who is woken, and how long looking goes on."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from inboxes import LONG, NEVER, Inbox, send, started, turns
from joined import two_channels
from life_waiting import until

from shmrpc.shm import poller
from shmrpc.shm.channel import Channel
from shmrpc.shm.poller import Poller, Polling, poller_of
from shmrpc.shm.ring import Consumer

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with two_channels(bell=request.param) as channels:
        yield channels


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Runs a test in either kind of event loop, and fails it when a callback of the loop fails."""
    failures: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=request.param) as made:
        made.get_loop().set_exception_handler(lambda _, context: failures.append(context))
        yield made
    assert not failures


# Sleeping and waking


def test_a_member_starts_awake_and_falls_asleep_when_nothing_comes(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox = Inbox(pair[0])
        made = started(inbox)
        assert inbox.member.awake
        assert repr(made) == "<Poller 1 awake>"
        await until(lambda: inbox.armed, "the member to sleep")
        assert not inbox.member.awake
        assert repr(made) == "<Poller 0 awake>"
        made.remove(inbox.member)

    runner.run(main())


def test_a_record_wakes_a_sleeping_member(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0]), pair[1]
        made = started(inbox)
        for call_id in range(1, 50):
            await until(lambda: inbox.armed, "the member to sleep")
            send(far, call_id)
            await until(lambda call_id=call_id: inbox.records[-1:] == [call_id], "the record to be taken")  # type: ignore[misc]
            assert inbox.rings == call_id
        made.remove(inbox.member)

    runner.run(main())


def test_an_idle_member_costs_no_look_and_no_wake_up(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox = Inbox(pair[0])
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        looks = made.looks
        await asyncio.sleep(0.05)  # time enough for what must not happen
        assert made.looks == looks
        assert inbox.rings == 0
        made.remove(inbox.member)

    runner.run(main())


def test_an_awake_member_gets_its_records_without_a_ring(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], LONG), pair[1]
        made = started(inbox)
        for call_id in range(1, 50):
            send(far, call_id)
            await until(lambda call_id=call_id: inbox.records[-1:] == [call_id], "the record to be taken")  # type: ignore[misc]
        assert inbox.rings == 0
        assert not inbox.armed
        made.remove(inbox.member)

    runner.run(main())


def test_a_spurious_ring_wakes_and_costs_nothing_else(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0]), pair[1]
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        far._ringer.ring()
        await until(lambda: inbox.rings == 1, "the ring to be heard")
        await until(lambda: inbox.armed, "the member to sleep again")
        send(far, 1)
        await until(lambda: inbox.records == [1], "the record to be taken")
        made.remove(inbox.member)

    runner.run(main())


def test_a_ring_for_one_who_is_awake_is_heard_too(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], LONG), pair[1]  # it may be about room, which a look does not see
        made = started(inbox)
        far._ringer.ring()
        await until(lambda: inbox.rings == 1, "the ring to be heard")
        assert inbox.member.awake
        made.remove(inbox.member)

    runner.run(main())


@pytest.mark.parametrize("polling", [NEVER, LONG])
def test_an_owner_whose_doorbell_cannot_be_rung_any_more_is_told_once(runner: asyncio.Runner, polling: Polling) -> None:
    async def main() -> None:
        with two_channels(bell="pipe") as (near, far):
            inbox = Inbox(near, polling)
            made = started(inbox)
            far.close()
            await until(lambda: inbox.silences, "the silence to be told")
            await turns()
            assert inbox.silences == 1
            assert not inbox.rings
            assert repr(made) == "<Poller 0 awake>"

    runner.run(main())


def test_the_loop_goes_on_while_a_member_is_awake(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox = Inbox(pair[0], LONG)
        made = started(inbox)
        before = made.looks
        await turns(30)
        assert 25 <= made.looks - before <= 35  # one look in each turn
        made.remove(inbox.member)

    runner.run(main())


def test_more_records_than_the_budget_are_taken_in_several_turns(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], budget=4), pair[1]
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        for call_id in range(1, 11):
            send(far, call_id)
        await until(lambda: len(inbox.records) == 10, "all records to be taken")
        assert inbox.turns == [4, 4, 2]
        assert inbox.rings == 1
        made.remove(inbox.member)

    runner.run(main())


# Several members


def test_a_busy_member_keeps_no_other_awake(runner: asyncio.Runner) -> None:
    async def main() -> None:
        with two_channels() as (near, far), two_channels() as (idle, _):
            busy, quiet = Inbox(near, LONG), Inbox(idle)
            made = started(busy)
            made.add(quiet.member)
            busy.then = lambda: send(far, len(busy.records) + 1)
            send(far, 1)
            await until(lambda: quiet.armed, "the idle member to sleep")
            await until(lambda: len(busy.records) > 50, "the busy member to be served")
            assert not quiet.turns
            made.remove(quiet.member)
            made.remove(busy.member)

    runner.run(main())


def test_members_are_served_in_turn(runner: asyncio.Runner) -> None:
    async def main() -> None:
        with two_channels() as (near_a, far_a), two_channels() as (near_b, far_b):
            first, second = Inbox(near_a, LONG, budget=2), Inbox(near_b, LONG, budget=2)
            order: list[str] = []
            first.then, second.then = lambda: order.append("a"), lambda: order.append("b")
            made = started(first)
            made.add(second.member)
            for call_id in range(1, 7):
                send(far_a, call_id)
                send(far_b, call_id)
            await until(lambda: len(first.records) == len(second.records) == 6, "all records to be taken")
            assert order == ["a", "b"] * 3
            made.remove(first.member)
            made.remove(second.member)

    runner.run(main())


def test_a_member_that_is_removed_is_left_alone(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0]), pair[1]
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        made.remove(inbox.member)
        send(far, 1)
        await turns()
        assert not inbox.turns
        assert repr(made) == "<Poller 0 awake>"

    runner.run(main())


@pytest.mark.parametrize("polling", [NEVER, LONG])
def test_a_member_may_end_itself_in_its_turn(runner: asyncio.Runner, pair: Pair, polling: Polling) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], polling), pair[1]
        made = started(inbox)

        def end() -> None:
            made.remove(inbox.member)
            inbox.channel.close()

        inbox.then = end
        if polling is NEVER:
            await until(lambda: inbox.armed, "the member to sleep")
        send(far, 1)
        await until(lambda: inbox.turns, "the record to be taken")
        await turns()
        assert inbox.turns == [1]
        assert repr(made) == "<Poller 0 awake>"

    runner.run(main())


def test_a_member_may_end_another_in_its_turn(runner: asyncio.Runner) -> None:
    async def main() -> None:
        with two_channels() as (near_a, far_a), two_channels() as (near_b, far_b):
            first, second = Inbox(near_a, LONG), Inbox(near_b)
            made = started(first)
            made.add(second.member)

            def end() -> None:
                made.remove(second.member)
                second.channel.close()

            first.then = end
            send(far_a, 1)
            send(far_b, 1)
            await until(lambda: first.turns, "the record to be taken")
            await turns()
            assert not second.turns
            made.remove(first.member)

    runner.run(main())


@pytest.mark.parametrize("polling", [NEVER, LONG])
def test_what_stops_the_loop_does_not_stop_the_poller(runner: asyncio.Runner, polling: Polling) -> None:
    with two_channels() as (near, far):
        inbox = Inbox(near, polling)
        made: list[Poller] = []

        def leave() -> None:
            inbox.then = lambda: None
            raise KeyboardInterrupt

        async def main() -> None:
            made.append(started(inbox))
            if polling is NEVER:
                await until(lambda: inbox.armed, "the member to sleep")
            inbox.then = leave
            send(far, 1)
            await asyncio.Event().wait()

        async def clean_up() -> None:
            send(far, 2)
            await until(lambda: inbox.records == [1, 2], "the record to be taken")
            made[0].remove(inbox.member)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        with pytest.raises(KeyboardInterrupt):
            runner.run(main())
        runner.run(clean_up())


def test_one_who_looks_is_enough_to_look_for_all(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def watch(consumers: list[Consumer], spin_ns: int) -> bool:
        looked.append(spin_ns if len(consumers) == 2 else 0)
        return False

    async def main() -> None:
        with two_channels() as (near_a, _), two_channels() as (near_b, _):
            sleepy, looking = Inbox(near_a, Polling(1, adaptive=False)), Inbox(near_b, LONG)
            sleepy.member.window_ns = 0
            made = started(sleepy)
            made.add(looking.member)
            sleepy.member.last_work_ns = looking.member.last_work_ns = 1 << 62  # both stay awake
            await until(lambda: any(looked), "a look that lasts")
            made.remove(sleepy.member)
            made.remove(looking.member)

    monkeypatch.setattr(poller, "watch", watch)
    runner.run(main())


async def test_there_is_one_poller_for_each_loop() -> None:
    loop = asyncio.get_running_loop()
    mine = poller_of(loop)
    assert poller_of(loop) is mine
    other = asyncio.new_event_loop()
    assert poller_of(other) is not mine
    other.close()


def test_a_poller_that_nobody_keeps_keeps_no_loop() -> None:
    loop = asyncio.new_event_loop()
    forgotten = weakref.ref(loop), weakref.ref(poller_of(loop))
    loop.close()
    del loop
    gc.collect()
    assert [each() for each in forgotten] == [None, None]
