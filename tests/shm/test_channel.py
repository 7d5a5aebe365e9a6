"""A channel: what goes at once, what waits in the outbox, and what wakes whom."""

import asyncio
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import FITTING, INLINE, fill, received, rung, send, set_word, two_channels

from shmrpc.shm import envelope, layout, ring
from shmrpc.shm.channel import Channel

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two joined channels, for each kind of doorbell."""
    with two_channels(bell=request.param) as channels:
        yield channels


def call_ids(channel: Channel, budget: int = 1000) -> list[int]:
    return [record[3] for record in received(channel, budget)]


# What goes at once


@pytest.mark.parametrize("nbytes", [0, 1, INLINE])
def test_a_payload_arrives_whatever_its_size(pair: Pair, nbytes: int) -> None:
    left, right = pair
    payload = bytes(number % 251 for number in range(nbytes))
    left.send(envelope.REPLY, envelope.AS_JSON, 3, 7, 9, payload)
    assert received(right) == [(envelope.REPLY, envelope.AS_JSON, 3, 7, 9, payload)]


def test_a_payload_that_needs_a_block_is_not_taken(pair: Pair) -> None:
    left, right = pair
    assert left.inline_limit == INLINE
    assert left.push(envelope.REPLY, 0, 0, 1, 0, bytes(INLINE + 1)) == ring.LARGE
    with pytest.raises(AssertionError, match=f"a payload of {INLINE + 1} bytes was not put into a block"):
        send(left, 1, bytes(INLINE + 1))
    assert received(right) == []
    assert not left.outbox


def test_a_message_limit_below_the_inline_limit_counts() -> None:
    with two_channels(max_message=100) as (left, _):
        assert left.inline_limit == 100
        assert left.push(envelope.REPLY, 0, 0, 1, 0, bytes(101)) == ring.LARGE


@given(st.lists(st.one_of(st.integers(0, 4), st.integers(5, INLINE)), max_size=60))
def test_everything_arrives_in_order_however_full_it_gets(steps: list[int]) -> None:
    with two_channels() as (left, right):
        sent: list[tuple[int, bytes]] = []
        got: list[tuple[int, bytes]] = []
        for number, step in enumerate(steps, 1):
            if step > 4:
                sent.append((number, bytes([number]) * step))
                send(left, *sent[-1])
            else:
                got += [(record[3], record[5]) for record in received(right, step)]
                left.flush()
        while records := received(right):
            got += [(record[3], record[5]) for record in records]
            left.flush()
        assert got == sent
        assert not left.outbox


# Waiting for room


def test_what_finds_no_room_waits_in_order_and_goes_when_there_is_some(pair: Pair) -> None:
    left, right = pair
    sent = fill(left)
    assert sent == FITTING
    send(left, sent + 2)  # small enough for the rest of the ring, but the order counts
    send(left, sent + 3, bytes(INLINE))
    assert [record[3] for record in left.outbox] == [sent + 1, sent + 2, sent + 3]
    assert call_ids(right) == list(range(1, sent + 1))
    left.flush()
    assert not left.outbox
    send(left, sent + 4)
    assert call_ids(right) == [sent + 1, sent + 2, sent + 3, sent + 4]


def test_whoever_waits_for_room_is_rung_once_when_there_is_some(pair: Pair) -> None:
    left, right = pair
    fill(left)
    assert not rung(left)
    received(right, 1)
    assert rung(left)
    left.doorbell.clear()
    received(right)
    assert not rung(left)
    left.flush()
    assert not left.outbox


def test_nobody_is_rung_who_does_not_wait(pair: Pair) -> None:
    left, right = pair
    fill(left)
    received(right)
    left.flush()
    left.doorbell.clear()
    for call_id in (1, 2):
        send(left, call_id, bytes(INLINE))
        received(right)
    assert not rung(left)
    assert not rung(right)


def test_a_sleeping_peer_is_rung_once(pair: Pair) -> None:
    left, right = pair
    assert right.consumer.arm()
    send(left, 1)
    assert rung(right)
    right.doorbell.clear()
    send(left, 2, bytes(INLINE))
    assert not rung(right)
    right.consumer.disarm()
    assert call_ids(right) == [1, 2]
    assert right.consumer.arm()
    send(left, 3, bytes(INLINE))
    assert rung(right)


# Announcing


def sleep_and_wake(channel: Channel) -> None:
    """What a peer does that is rung, and falls asleep again."""
    channel.doorbell.clear()
    channel.consumer.disarm()
    assert channel.consumer.arm()


def test_a_record_that_was_announced_rings_no_second_time(pair: Pair) -> None:
    left, right = pair
    assert right.consumer.arm()
    left.announce()
    assert rung(right)
    right.doorbell.clear()
    send(left, 1)  # before the peer has disarmed: it looks after that
    assert not rung(right)
    right.consumer.disarm()
    assert call_ids(right) == [1]


def test_a_peer_that_slept_again_after_the_announcement_is_rung_for_the_record(pair: Pair) -> None:
    left, right = pair
    assert right.consumer.arm()
    left.announce()
    sleep_and_wake(right)
    assert not rung(right)
    send(left, 1)
    assert rung(right)


def test_a_peer_that_is_awake_is_told_too_and_rung_if_it_sleeps_by_then(pair: Pair) -> None:
    left, right = pair
    left.announce()
    assert rung(right)
    right.doorbell.clear()
    assert right.consumer.arm()
    send(left, 1)
    assert rung(right)


def test_one_who_keeps_falling_asleep_is_told_less_often_and_rung_for_every_record(pair: Pair) -> None:
    left, right = pair
    told = 0
    for call_id in range(1, 201):
        right.doorbell.clear()
        right.consumer.disarm()
        assert right.consumer.arm()
        left.announce()
        told += rung(right)
        sleep_and_wake(right)
        send(left, call_id)
        assert rung(right)
        assert call_ids(right) == [call_id]
    assert told == 10  # one more after 1, 2, 4, 8, 16, 32, 64 that were not made


def test_nothing_is_announced_that_has_to_wait_for_room(pair: Pair) -> None:
    left, right = pair
    fill(left)
    left.announce()
    assert not rung(right)


def test_nothing_is_announced_where_that_is_switched_off(pair: Pair) -> None:
    left, right = pair
    left.announces = False
    left.announce()
    assert not rung(right)
    assert right.consumer.arm()
    send(left, 1)
    assert rung(right)


def test_nothing_is_announced_when_the_channel_is_closed(pair: Pair) -> None:
    left, right = pair
    left.close()
    left.announce()
    assert right.doorbell.kind == "pipe" or not rung(right)  # a pipe without a writer rings for ever


def test_a_record_that_waits_rings_a_sleeping_peer_when_it_goes(pair: Pair) -> None:
    left, right = pair
    fill(left)
    received(right)
    right.doorbell.clear()
    assert right.consumer.arm()
    left.flush()
    assert rung(right)


def test_a_peer_that_waits_for_room_is_rung_even_when_a_handler_ends_the_process(pair: Pair) -> None:
    left, right = pair
    fill(left)

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        right.dispatch(1000, (leave,) * 256, {})
    assert rung(left)


# Withdrawing


def test_a_record_that_still_waits_can_be_withdrawn(pair: Pair) -> None:
    left, right = pair
    sent = fill(left)
    send(left, 100)
    assert left.withdraw(envelope.REQUEST, 100) == (True, None)
    assert left.withdraw(envelope.REQUEST, 100) == (False, None)
    assert left.withdraw(envelope.CANCEL, sent + 1) == (False, None)
    assert left.withdraw(envelope.REQUEST, 1) == (False, None)  # on its way
    assert left.withdraw(envelope.REQUEST, sent + 1) == (True, None)
    send(left, 101, bytes(INLINE))
    assert call_ids(right) == list(range(1, sent + 1))
    left.flush()
    assert call_ids(right) == [101]


@pytest.mark.parametrize("payload", [b"", bytes(INLINE)])
def test_after_the_last_one_that_waited_is_withdrawn_sending_goes_on(pair: Pair, payload: bytes) -> None:
    left, right = pair
    sent = fill(left)
    assert left.withdraw(envelope.REQUEST, sent + 1)[0]
    received(right)
    send(left, 100, payload)
    assert not left.outbox
    assert call_ids(right) == [100]


def test_unread_is_what_was_sent_and_what_waits(pair: Pair) -> None:
    left, right = pair
    sent = fill(left)
    call_ids(right, 2)
    assert left.unread() == [(envelope.REQUEST, call_id) for call_id in range(3, sent + 2)]
    assert left.unsent() == [(envelope.REQUEST, sent + 1)]


def test_a_peer_with_an_impossible_cursor_may_have_taken_everything(pair: Pair) -> None:
    left, right = pair
    fill(left)
    waiting = len(left.outbox)
    set_word(right.own, layout.CURSOR_HEAD, 4)
    assert len(left.unread()) == waiting


# What is kept until a record is published


class Kept:
    """Something that a record needs."""


def test_nothing_is_kept_for_a_record_that_went_at_once(pair: Pair) -> None:
    left, _ = pair
    send(left, 1)
    kept = Kept()
    seen = weakref.ref(kept)
    left.keep(envelope.REQUEST, 1, kept)
    del kept
    assert seen() is None


def test_what_a_waiting_record_needs_is_kept_until_it_is_published(pair: Pair) -> None:
    left, right = pair
    sent = fill(left)
    kept = Kept()
    seen = weakref.ref(kept)
    left.keep(envelope.REQUEST, sent + 1, kept)
    del kept
    left.flush()
    assert seen() is not None
    received(right)
    left.flush()
    assert seen() is None


def test_what_a_withdrawn_record_needed_is_given_back(pair: Pair) -> None:
    left, _ = pair
    sent = fill(left)
    kept = Kept()
    left.keep(envelope.REQUEST, sent + 1, kept)
    assert left.withdraw(envelope.REQUEST, sent + 1) == (True, kept)
    seen = weakref.ref(kept)
    del kept
    assert seen() is None


def test_closing_lets_go_of_what_was_kept(pair: Pair) -> None:
    left, _ = pair
    sent = fill(left)
    kept = Kept()
    seen = weakref.ref(kept)
    left.keep(envelope.REQUEST, sent + 1, kept)
    del kept
    left.close()
    assert seen() is None


# The end


def test_closing_gives_everything_back_and_may_be_repeated(pair: Pair) -> None:
    left, right = pair
    fill(left)
    left.close()
    left.close()
    assert repr(left).startswith("<Channel ")
    assert " closed, " in repr(left)
    with pytest.raises(ValueError, match="the channel is closed"):
        left.push(1, 0, 0, 1, 0, b"")
    assert not left.outbox
    assert len(call_ids(right)) == FITTING  # what was sent is still there for the peer


def test_a_channel_that_is_closed_by_a_handler_rings_nobody(pair: Pair) -> None:
    left, right = pair
    fill(left)
    handlers: list[Any] = [lambda *_: right.close()] * 256
    right.dispatch(1000, tuple(handlers), {})
    assert not right.consumer.ready()


def test_it_says_what_waits(pair: Pair) -> None:
    left, _ = pair
    fill(left)
    assert repr(left) == f"<Channel {left.doorbell.kind} 1 records waiting, {left.arena!r}>"


# Waiting for room


async def test_who_waits_for_room_longest_goes_first_also_when_another_one_took_it() -> None:
    with two_channels() as (near, far):
        order: list[str] = []

        async def wait(name: str, turns: int) -> None:
            for _ in range(turns):
                await near.room()
                order.append(name)
                fill(near)

        fill(near)
        waiting = [asyncio.ensure_future(wait(name, 2)) for name in "abc"]
        await asyncio.sleep(0)
        while len(order) < 6:
            while near.outbox:
                received(far)
                near.flush()
            for _ in range(5):
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert order == ["a", "b", "c", "a", "b", "c"]


async def test_a_channel_that_closes_keeps_nobody_waiting_for_room() -> None:
    with two_channels() as (near, _):
        fill(near)
        waiting = asyncio.ensure_future(near.room())
        await asyncio.sleep(0)
        near.close()
        await asyncio.wait_for(waiting, 20)


async def test_who_gives_up_waiting_for_room_is_forgotten() -> None:
    with two_channels() as (near, _):
        fill(near)
        waiting = asyncio.ensure_future(near.room())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert near._roomless == []
