"""A channel: what goes inline, what through the slab, what waits in the outbox, and what wakes whom."""

import select
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import FITTING, INLINE, SMALL, crowd, fill, received, send, set_word, taken, two_channels

from shmrpc.errors import ResourceExhausted
from shmrpc.shm import envelope, layout
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import GRANULE

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two joined channels, for each kind of doorbell."""
    with two_channels(bell=request.param) as channels:
        yield channels


def call_ids(channel: Channel, budget: int = 1000) -> list[int]:
    return [record[3] for record in received(channel, budget)]


def rung(channel: Channel) -> bool:
    """Whether the doorbell of a channel's owner rings."""
    return bool(select.select([channel.doorbell.fd], [], [], 0)[0])


# Tiers


@pytest.mark.parametrize("nbytes", [0, 1, INLINE, INLINE + 1, GRANULE, 5000, SMALL.slab_bytes])
def test_a_payload_arrives_whatever_its_size(pair: Pair, nbytes: int) -> None:
    left, right = pair
    payload = bytes(number % 251 for number in range(nbytes))
    left.send(envelope.REPLY, envelope.AS_JSON, 3, 7, 9, payload)
    assert received(right) == [(envelope.REPLY, envelope.AS_JSON | (nbytes > INLINE), 3, 7, 9, payload)]
    assert left.slab.lent_blocks == (nbytes > INLINE)


def test_blocks_come_home_when_they_are_needed(pair: Pair) -> None:
    left, right = pair
    for call_id in range(1, 10):
        send(left, call_id, bytes([call_id]) * SMALL.slab_bytes)
        assert [(record[3], record[5][:1]) for record in received(right)] == [(call_id, bytes([call_id]))]


@given(st.lists(st.one_of(st.integers(0, 4), st.integers(INLINE - 50, 4 * GRANULE)), max_size=60))
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


# Limits


def test_a_message_over_the_limit_is_refused_with_both_sizes() -> None:
    with two_channels(max_message=5000) as (left, right):
        with pytest.raises(ResourceExhausted, match=r"message is 4.884 KiB, the limit is 4.883 KiB \(max_message\)"):
            send(left, 1, bytes(5001))
        send(left, 2, bytes(5000))
        assert call_ids(right) == [2]


def test_a_message_over_the_slab_is_refused(pair: Pair) -> None:
    left, right = pair
    with pytest.raises(ResourceExhausted, match=r"message is 16 KiB, the largest .* base slab, 16 KiB"):
        send(left, 1, bytes(SMALL.slab_bytes + 1))
    assert not left.outbox
    assert call_ids(right) == []


# Waiting for room


def test_what_finds_no_room_waits_in_order_and_goes_when_there_is_some(pair: Pair) -> None:
    left, right = pair
    sent = fill(left)
    assert sent == FITTING
    send(left, sent + 2)  # small enough for the rest of the ring, but the order counts
    send(left, sent + 3, bytes(GRANULE))
    assert [record[3] for record in left.outbox] == [sent + 1, sent + 2, sent + 3]
    assert call_ids(right) == list(range(1, sent + 1))
    left.flush()
    assert not left.outbox
    send(left, sent + 4)
    assert call_ids(right) == [sent + 1, sent + 2, sent + 3, sent + 4]


def test_a_full_slab_makes_wait_too(pair: Pair) -> None:
    left, right = pair
    send(left, 1, bytes(SMALL.slab_bytes))
    send(left, 2, bytes(GRANULE))
    assert [record[3] for record in left.outbox] == [2]
    left.flush()
    assert left.outbox
    assert call_ids(right) == [1]
    left.flush()
    assert call_ids(right) == [2]
    assert left.slab.lent_blocks == 1


def test_a_block_whose_record_finds_no_room_is_not_lost(pair: Pair) -> None:
    left, right = pair
    crowd(left)
    send(left, 1000, bytes(GRANULE))
    assert [record[3] for record in left.outbox] == [1000]
    assert left.slab.lent_blocks == 0
    received(right)
    left.flush()
    assert call_ids(right) == [1000]


@pytest.mark.parametrize("payload", [bytes(INLINE), bytes(2 * GRANULE)])
def test_whoever_waits_for_room_is_rung_once_when_there_is_some(pair: Pair, payload: bytes) -> None:
    left, right = pair
    while not left.outbox:
        send(left, 1, payload)
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
        send(left, call_id, bytes(GRANULE))
        received(right)
    assert not rung(left)
    assert not rung(right)


def test_a_sleeping_peer_is_rung_once(pair: Pair) -> None:
    left, right = pair
    assert right.consumer.arm()
    send(left, 1)
    assert rung(right)
    right.doorbell.clear()
    send(left, 2, bytes(GRANULE))
    assert not rung(right)
    right.consumer.disarm()
    assert call_ids(right) == [1, 2]
    assert right.consumer.arm()
    send(left, 3, bytes(GRANULE))
    assert rung(right)


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
    assert left.withdraw(envelope.REQUEST, 100)
    assert not left.withdraw(envelope.REQUEST, 100)
    assert not left.withdraw(envelope.CANCEL, sent + 1)
    assert not left.withdraw(envelope.REQUEST, 1)  # on its way
    assert left.withdraw(envelope.REQUEST, sent + 1)
    send(left, 101, bytes(INLINE))
    assert call_ids(right) == list(range(1, sent + 1))
    left.flush()
    assert call_ids(right) == [101]


@pytest.mark.parametrize("payload", [b"", bytes(GRANULE)])
def test_after_the_last_one_that_waited_is_withdrawn_sending_goes_on(pair: Pair, payload: bytes) -> None:
    left, right = pair
    sent = fill(left)
    assert left.withdraw(envelope.REQUEST, sent + 1)
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
    assert repr(left) == f"<Channel {left.doorbell.kind} 1 records waiting, {left.slab!r}>"


def test_taking_raw_records_leaves_blocks_to_the_slab(pair: Pair) -> None:
    left, right = pair
    send(left, 1, bytes(GRANULE))
    [(_, flags, _, _, _, payload)] = taken(right.consumer)
    assert flags == envelope.IN_BLOCK
    assert envelope.decode_reference(payload) == envelope.BlockReference(0, 1, GRANULE)
    assert right.open_block(payload) == bytes(GRANULE)
