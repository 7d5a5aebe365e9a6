"""Announcements: a ring without a record keeps a member awake until the record comes, if it comes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from inboxes import NEVER, Inbox, send, started, turns
from joined import two_channels
from life_api import Keeper, Life
from life_waiting import until

import shmrpc
from shmrpc.shm import poller
from shmrpc.shm.channel import Channel
from shmrpc.shm.poller import HOLD_NS, Polling, Setting
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


class Hands:
    """A clock that stands still until a test moves it, so that windows last as long as the test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**12
        monkeypatch.setattr(poller, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(poller, "usable_cpus", lambda _: 2)


async def asleep(inbox: Inbox, hands: Hands) -> None:
    """Returns when the member sleeps, and is not held."""
    while not inbox.armed:
        hands.now_ns += 2 * HOLD_NS
        await turns(1)


def test_an_announced_record_finds_its_receiver_awake(
    runner: asyncio.Runner, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hands = Hands(monkeypatch)
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        inbox.member.window_ns = 0
        made = started(inbox)
        for call_id in range(1, 10):
            await asleep(inbox, hands)
            far.announce()
            await until(lambda call_id=call_id: inbox.rings == call_id, "the ring to be heard")  # type: ignore[misc]
            hands.now_ns += HOLD_NS - 1
            await turns()
            assert not inbox.armed
            send(far, call_id)
            await until(lambda call_id=call_id: inbox.records[-1:] == [call_id], "the record to be taken")  # type: ignore[misc]
            assert inbox.rings == call_id
        made.remove(inbox.member)

    runner.run(main())


def test_one_who_is_awake_stays_so_for_what_was_announced(
    runner: asyncio.Runner, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hands = Hands(monkeypatch)
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        made = started(inbox)
        far.announce()
        await until(lambda: inbox.rings == 1, "the ring to be heard")
        hands.now_ns += HOLD_NS - 1
        await turns()
        assert inbox.member.awake
        hands.now_ns += 1
        await until(lambda: inbox.armed, "the member to sleep")
        made.remove(inbox.member)

    runner.run(main())


def test_after_one_in_vain_it_takes_a_record_in_time_until_an_announcement_holds_again(
    runner: asyncio.Runner, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hands = Hands(monkeypatch)
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        inbox.member.window_ns = 0
        made = started(inbox)

        async def held() -> bool:
            await asleep(inbox, hands)
            rings = inbox.rings
            far._ringer.ring()
            await until(lambda: inbox.rings > rings, "the ring to be heard")
            hands.now_ns += HOLD_NS - 1
            await turns()
            return inbox.member.awake

        assert [await held() for _ in range(4)] == [True, False, False, False]
        send(far, 1)
        await until(lambda: inbox.records == [1], "the record to be taken")
        inbox.member.window_ns = 0
        assert await held()
        made.remove(inbox.member)

    runner.run(main())


@pytest.mark.parametrize("polling", [NEVER, Polling(1, adaptive=False)])
def test_whoever_does_not_wait_for_what_was_announced_is_rung_for_it(
    runner: asyncio.Runner, pair: Pair, polling: Polling
) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], polling), pair[1]
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        far.announce()
        await until(lambda: inbox.rings == 1, "the ring to be heard")
        await until(lambda: inbox.armed, "the member to sleep again")
        send(far, 1)
        await until(lambda: inbox.records == [1], "the record to be taken")
        assert inbox.rings == 2
        made.remove(inbox.member)

    runner.run(main())


def test_a_ring_for_a_record_that_is_there_is_no_announcement(runner: asyncio.Runner, pair: Pair) -> None:
    async def main() -> None:
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        made = started(inbox)
        await until(lambda: inbox.armed, "the member to sleep")
        send(far, 1)
        await until(lambda: inbox.records == [1], "the record to be taken")
        for call_id in (2, 3):
            send(far, call_id)
            far._ringer.ring()
            made._on_doorbell(inbox.member)  # at once, before a look can find the record
            assert inbox.records[-1] == call_id
        assert not inbox.member.announced_ns
        made.remove(inbox.member)

    runner.run(main())


def test_rings_that_do_not_end_keep_nobody_awake(
    runner: asyncio.Runner, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hands = Hands(monkeypatch)
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        made = started(inbox)
        for rings in range(1, 11):
            far._ringer.ring()
            await until(lambda rings=rings: inbox.rings == rings, "the ring to be heard")  # type: ignore[misc]
            hands.now_ns += HOLD_NS // 10
        await until(lambda: inbox.armed, "the member to sleep")
        made.remove(inbox.member)

    runner.run(main())


def test_a_peer_that_rings_for_nothing_again_and_again_is_looked_for_once(
    runner: asyncio.Runner, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        hands = Hands(monkeypatch)
        inbox, far = Inbox(pair[0], Polling.of("adaptive")), pair[1]
        made = started(inbox)
        looks = []
        for rings in range(1, 101):
            while not inbox.armed:
                hands.now_ns += HOLD_NS // 50
                await turns(1)
            looks.append(made.looks)
            far._ringer.ring()
            while inbox.rings < rings:  # as few turns as it takes: each is a look
                await turns(1)
        assert looks[1] - looks[0] >= 50  # it waits for what the first one may have announced
        assert looks[-1] - looks[10] <= 3 * 90  # a window now and then, less and less often
        made.remove(inbox.member)

    runner.run(main())


def test_one_who_is_held_looks_for_what_was_announced(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    def watch(consumers: list[Consumer], spin_ns: int) -> bool:
        looked.append(spin_ns)
        return False

    async def main() -> None:
        with two_channels() as (near, _):
            inbox = Inbox(near, Polling.of("adaptive"))
            inbox.member.window_ns = 0
            inbox.member.held_until_ns = 1 << 62
            made = started(inbox)
            await until(lambda: any(looked), "a look that lasts")
            made.remove(inbox.member)

    monkeypatch.setattr(poller, "watch", watch)
    runner.run(main())


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("polling", ["adaptive", "never"])
async def test_nobody_announces_anything_where_both_processes_share_one_processor(
    path: str, cpus: int, polling: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "usable_cpus", lambda _: cpus)
    async with shmrpc.Server(Keeper(), at=path, polling=polling) as server, shmrpc.connect(Life, path):
        (session,) = server._listener.sessions
        assert session.channel.announces == (cpus > 1)
