"""Record rings and release rings from Python: what is sent arrives, and a peer's lies end in RingCorrupt."""

import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import FITTING, INLINE, RECORD, SMALL, Ends, handlers_of, taken, two_ends, word

from shmrpc.shm import layout, ring
from shmrpc.shm.channel import Record
from shmrpc.shm.ring import RingCorrupt, watch


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A small ring of each kind."""
    with two_ends() as made:
        yield made


# What is sent arrives


def test_every_field_of_a_record_arrives(ends: Ends) -> None:
    record = (127, 0xFE, 0xFFFF, 2**64 - 1, 2**64 - 2, b"payload")
    assert ends.producer.send(*record) == ring.SENT
    assert taken(ends.consumer) == [record]
    assert taken(ends.consumer) == []


def test_a_payload_over_the_inline_limit_is_for_the_slab(ends: Ends) -> None:
    assert ends.send(1, bytes(INLINE)) == ring.SENT
    assert ends.send(2, bytes(INLINE + 1)) == ring.LARGE
    assert ends.call_ids() == [1]


def test_a_full_ring_takes_nothing_until_its_records_are_taken(ends: Ends) -> None:
    sent = ends.fill()
    assert sent == FITTING
    assert ends.send(99, bytes(INLINE)) == ring.FULL
    assert ends.call_ids() == list(range(1, sent + 1))
    assert ends.send(99, bytes(INLINE)) == ring.SENT
    assert ends.call_ids() == [99]


def test_a_corked_producer_says_full_so_that_older_records_go_first(ends: Ends) -> None:
    ends.producer.corked = True
    assert ends.producer.corked
    assert ends.send(1) == ring.FULL
    assert ends.send(1, bytes(INLINE + 1)) == ring.LARGE
    ends.producer.corked = False
    assert ends.send(1) == ring.SENT
    assert ends.call_ids() == [1]


def test_no_more_than_the_budget_is_taken(ends: Ends) -> None:
    for call_id in range(1, 150):
        assert ends.send(call_id) == ring.SENT
    assert ends.call_ids(3) == [1, 2, 3]
    assert ends.call_ids(100) == list(range(4, 104))
    assert taken(ends.consumer, 0) == taken(ends.consumer, -1) == []
    assert ends.call_ids() == list(range(104, 150))


@given(st.lists(st.one_of(st.integers(-1, 5), st.binary(max_size=INLINE)), max_size=200))
def test_any_sequence_of_pushes_and_takes_keeps_order_and_content(steps: list[int | bytes]) -> None:
    with two_ends() as ends:
        sent: deque[Record] = deque()
        for number, step in enumerate(steps):
            if isinstance(step, bytes):
                record = (1 + number % 127, number % 256 & 0xFE, number, number * 2**40, 2**63 - number, step)
                if ends.producer.send(*record) == ring.SENT:
                    sent.append(record)
                else:
                    assert sum(RECORD + len(record[5]) + 8 for record in sent) > SMALL.ring_bytes - 2 * (
                        RECORD + INLINE
                    )
            else:
                records = taken(ends.consumer, step)
                assert records == [sent.popleft() for _ in range(min(max(step, 0), len(sent)))]
        assert [(record[0], record[3]) for record in sent] == ends.producer.unread()
        assert taken(ends.consumer) == list(sent)


# Who wakes whom


def test_a_ring_is_due_once_for_each_sleep(ends: Ends) -> None:
    assert ends.send(1) == ring.SENT
    taken(ends.consumer)
    for _ in range(3):
        assert ends.consumer.arm()
        assert ends.send(1) == ring.RING
        assert ends.send(1) == ring.SENT
        ends.consumer.disarm()
        assert ends.send(1) == ring.SENT
        taken(ends.consumer)


def test_an_announcement_is_the_ring_of_the_sleep_that_it_ends(ends: Ends) -> None:
    assert ends.producer.announce()  # to one who is awake
    assert ends.consumer.arm()
    assert ends.send(1) == ring.RING
    ends.consumer.disarm()
    assert ends.call_ids() == [1]
    assert ends.consumer.arm()
    assert ends.producer.announce()
    assert not ends.producer.announce()
    assert ends.send(2) == ring.SENT


def test_a_closed_producer_announces_nothing(ends: Ends) -> None:
    ends.producer.close()
    with pytest.raises(ValueError, match="the channel is closed"):
        ends.producer.announce()


def test_nobody_falls_asleep_before_a_full_inbox(ends: Ends) -> None:
    ends.send(1)
    assert not ends.consumer.arm()
    assert word(ends.right.own, layout.CURSOR_DOORBELL_EPOCH) % 2 == 0
    assert ends.send(2) == ring.SENT


def test_room_is_rung_for_once_when_somebody_wants_it(ends: Ends) -> None:
    ends.fill()
    taken(ends.consumer, 1)
    assert not ends.consumer.room_due
    ends.fill()
    ends.producer.want_room()
    taken(ends.consumer, 1)
    taken(ends.consumer, 1)  # the first of the two answered the epoch, and is not forgotten
    assert ends.consumer.room_due
    assert not ends.consumer.room_due
    taken(ends.consumer, 1)
    assert not ends.consumer.room_due
    ends.producer.room_found()
    ends.producer.want_room()
    taken(ends.consumer, 1)
    assert ends.consumer.room_due


def test_a_block_that_comes_home_is_rung_for_when_somebody_wants_room(ends: Ends) -> None:
    assert not ends.releaser.release(1, 1)
    ends.producer.want_room()
    assert ends.releaser.release(2, 1)
    assert not ends.releaser.release(3, 1)


def test_watch_sees_what_any_consumer_has(ends: Ends) -> None:
    other = ring.open_consumer(*ends.left)
    assert not watch([], 1000)
    assert not watch([other, ends.consumer], 0)
    assert not watch([other, ends.consumer], 5000)
    ends.send(1)
    assert watch([other, ends.consumer], 0)
    assert watch([other, ends.consumer], 10**12)
    assert ends.consumer.ready()
    assert not other.ready()
    other.close()


# What the peer has not taken


def test_unread_is_what_was_sent_and_not_taken(ends: Ends) -> None:
    assert ends.producer.unread() == []
    for call_id in (1, 2, 3):
        ends.send(call_id, bytes(call_id), kind=call_id + 1)
    assert ends.producer.unread() == [(2, 1), (3, 2), (4, 3)]
    taken(ends.consumer, 2)
    assert ends.producer.unread() == [(4, 3)]


def test_unread_passes_the_end_of_the_ring(ends: Ends) -> None:
    ends.fill()
    taken(ends.consumer, FITTING - 1)
    for call_id in (100, 101):
        assert ends.send(call_id, bytes(INLINE)) == ring.SENT
    assert ends.producer.unread() == [(1, FITTING), (1, 100), (1, 101)]


# How far the peer has published, and how far that was handled


def test_what_was_handled_reaches_what_was_published(ends: Ends) -> None:
    assert ends.consumer.handled == ends.consumer.published() == 0
    ends.send(1, bytes(8))
    first = ends.consumer.published()
    assert (ends.consumer.handled, first) == (0, RECORD + 8)
    ends.send(2, bytes(INLINE))
    assert ends.call_ids(1) == [1]
    assert ends.consumer.handled == first < ends.consumer.published()
    assert ends.call_ids() == [2]
    assert ends.consumer.handled == ends.consumer.published()


def test_padding_at_the_end_of_the_ring_counts_with_the_record_behind_it(ends: Ends) -> None:
    for _ in range(5):
        ends.fill()
        ends.call_ids()
        assert ends.consumer.handled == ends.consumer.published()
    assert ends.consumer.handled > SMALL.ring_bytes


def test_a_handler_sees_its_own_record_as_handled_and_none_of_those_that_were_copied_out_with_it(ends: Ends) -> None:
    for call_id in range(1, 100):
        ends.send(call_id)
    seen: list[int] = []
    ends.consumer.dispatch(100, handlers_of(lambda record: seen.append(ends.consumer.handled)), {})
    assert seen == [count * RECORD for count in range(1, 100)]


def test_a_release_comes_with_the_records_that_were_published_before_it(ends: Ends) -> None:
    back = ring.open_producer(*ends.right)
    records = ring.open_consumer(*ends.left)
    back.send(1, 0, 0, 1, 0, b"")
    ends.releaser.release(1, 1)
    back.send(1, 0, 0, 2, 0, b"")
    assert ends.reaper.take() == [(1, 1)]
    before = records.published()
    assert before >= RECORD
    taken(records)
    assert records.handled == before
    back.close()
    records.close()


def test_the_position_that_was_handled_outlives_the_channel(ends: Ends) -> None:
    ends.send(1)
    ends.call_ids()
    ends.close()
    assert ends.consumer.handled == RECORD


def test_a_releaser_counts(ends: Ends) -> None:
    assert ends.releaser.pushed == 0
    ends.releaser.release(1, 1)
    ends.releaser.release(1, 2)
    assert ends.releaser.pushed == 2
    assert not ends.releaser.corrupt


# Release rings


def test_blocks_come_home_in_order(ends: Ends) -> None:
    ends.releaser.release(5, 2**64 - 1)
    ends.releaser.release(3, 1)
    assert ends.reaper.take() == [(5, 2**64 - 1), (3, 1)]
    assert ends.reaper.take() == []


@given(st.lists(st.integers(1, SMALL.release_entries), max_size=50))
def test_any_sequence_of_releases_keeps_order(batches: list[int]) -> None:
    with two_ends() as ends:
        number = 0
        for batch in batches:
            released = [(block, block + 7) for block in range(number, number + batch)]
            for block in released:
                ends.releaser.release(*block)
            assert ends.reaper.take() == released
            number += batch


# Dispatching


def test_an_error_of_a_handler_ends_the_dispatch(ends: Ends) -> None:
    for call_id in (1, 2, 3):
        ends.send(call_id)
    seen: list[int] = []

    def handle(record: Record) -> None:
        seen.append(record[3])
        if record[3] == 2:
            raise LookupError("no")

    with pytest.raises(LookupError):
        ends.consumer.dispatch(10, handlers_of(handle), {})
    assert seen == [1, 2]


def test_what_ends_the_process_does_not_take_the_other_records_with_it(ends: Ends) -> None:
    for call_id in (1, 2, 3):
        ends.send(call_id)
    seen: list[int] = []

    def handle(record: Record) -> None:
        seen.append(record[3])
        if record[3] < 3:
            raise KeyboardInterrupt(record[3])

    with pytest.raises(KeyboardInterrupt, match="1"):
        ends.consumer.dispatch(10, handlers_of(handle), {})
    assert seen == [1, 2, 3]


def test_a_channel_that_broke_while_the_process_ended_stays_broken(ends: Ends) -> None:
    for call_id in (1, 2, 3):
        ends.send(call_id)

    def handle(record: Record) -> None:
        raise KeyboardInterrupt if record[3] == 1 else LookupError

    with pytest.raises(KeyboardInterrupt):
        ends.consumer.dispatch(10, handlers_of(handle), {})
    assert ends.consumer.ready()
    with pytest.raises(RingCorrupt, match="the peer broke the rules"):
        taken(ends.consumer)


@pytest.mark.parametrize("count", [3, 200])
def test_a_handler_that_closes_the_channel_sees_the_last_record(ends: Ends, count: int) -> None:
    count = sum(ends.send(call_id) == ring.SENT for call_id in range(1, count + 1))
    seen: list[int] = []

    def handle(record: Record) -> None:
        seen.append(record[3])
        if record[3] == count - 1:
            ends.consumer.close()

    ends.consumer.dispatch(1000, handlers_of(handle), {})
    assert seen == list(range(1, count))


def test_blocks_have_handlers_of_their_own(ends: Ends) -> None:
    seen: list[Any] = []
    ends.producer.send(3, 1, 0, 7, 0, b"reference")
    ends.consumer.dispatch(1, handlers_of(seen.append, lambda payload: payload + b" opened"), {})
    assert seen == [(3, 1, 0, 7, 0, b"reference opened")]


def test_nothing_that_was_dispatched_is_kept(ends: Ends) -> None:
    handlers = handlers_of(lambda record: None)
    pending: dict[int, Any] = {}
    counted = [handlers, pending, handlers[1], ends.consumer]
    before = [sys.getrefcount(each) for each in counted]
    for _ in range(100):
        ends.send(1, b"payload")
        ends.consumer.dispatch(10, handlers, pending)
    assert [sys.getrefcount(each) for each in counted] == before
    ends.send(1, b"payload")
    [record] = taken(ends.consumer)
    payload, fresh = record[5], bytes(bytearray(b"payload"))
    del record
    assert sys.getrefcount(payload) == sys.getrefcount(fresh)
