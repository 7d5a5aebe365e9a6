"""Record rings and release rings from Python: a peer's lies end in RingCorrupt, wrong arguments in an error."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joined import FITTING, INLINE, RECORD, SMALL, Ends, handlers_of, set_word, taken, two_ends

from shmrpc.shm import layout
from shmrpc.shm.ring import Consumer, Producer, Reaper, Releaser, RingCorrupt, watch


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A small ring of each kind."""
    with two_ends() as made:
        yield made


# Lies


@pytest.mark.parametrize("lie", [FITTING * (RECORD + INLINE) + 8, 4, 2**64 - 8])
def test_an_impossible_head_is_refused(ends: Ends, lie: int) -> None:
    ends.fill()
    set_word(ends.right.own, layout.CURSOR_HEAD, lie)
    with pytest.raises(
        RingCorrupt, match=rf"the peer's read position .*\(got {lie}, allowed {FITTING * (RECORD + INLINE)}\)"
    ):
        ends.send(1, bytes(INLINE))
    with pytest.raises(RingCorrupt):
        ends.producer.unread()


def test_a_head_in_the_middle_of_a_record_makes_no_record_of_its_payload(ends: Ends) -> None:
    ends.send(1, b"\xff" * 64)
    ends.send(2)
    set_word(ends.right.own, layout.CURSOR_HEAD, RECORD + 8)
    assert ends.producer.unread() == []


@pytest.mark.parametrize("lie", [SMALL.ring_bytes + 8, 12, 2**64 - 8])
def test_an_impossible_tail_is_refused(ends: Ends, lie: int) -> None:
    set_word(ends.left.own, layout.CURSOR_TAIL, lie)
    with pytest.raises(RingCorrupt, match=rf"the peer's write position .*\(got {lie}, allowed {SMALL.ring_bytes}\)"):
        taken(ends.consumer)


def test_a_tail_that_goes_back_is_refused(ends: Ends) -> None:
    ends.send(1)
    taken(ends.consumer)
    set_word(ends.left.own, layout.CURSOR_TAIL, 0)
    with pytest.raises(RingCorrupt, match="went back"):
        taken(ends.consumer)


def lie_about_record(ends: Ends, at: int, length: int, kind: int = 1) -> None:
    set_word(ends.left.own, layout.RING_OFFSET + at, length | kind << 32)


@pytest.mark.parametrize("length", [INLINE + 1, 3 * (RECORD + INLINE) - RECORD, 2**32 - 1])
def test_a_record_over_the_agreed_limit_is_refused_even_where_it_fits(ends: Ends, length: int) -> None:
    for _ in range(3):
        ends.send(1, bytes(INLINE))
    lie_about_record(ends, 0, length)
    for _ in range(2):  # it does not get past it
        with pytest.raises(RingCorrupt, match="a record of the peer does not fit"):
            taken(ends.consumer)


def test_what_came_before_a_bad_record_is_good(ends: Ends) -> None:
    for call_id in (1, 2, 3):
        ends.send(call_id)
    lie_about_record(ends, 2 * RECORD, 4000)
    assert ends.call_ids() == [1, 2]
    for _ in range(2):
        with pytest.raises(RingCorrupt):
            taken(ends.consumer)


def test_a_kind_beyond_all_tables_is_the_peers_fault(ends: Ends) -> None:
    ends.send(1, kind=128)
    with pytest.raises(RingCorrupt, match="the peer sent a record of kind 128, the highest is 127"):
        taken(ends.consumer)


def test_a_lie_about_what_was_published_is_only_told_on(ends: Ends) -> None:
    set_word(ends.left.own, layout.CURSOR_TAIL, 2**64 - 1)
    assert ends.consumer.published() == 2**64 - 1
    assert ends.consumer.handled == 0


# Lies about releases


def test_a_release_ring_that_is_full_belongs_to_a_liar(ends: Ends) -> None:
    for block in range(SMALL.release_entries):
        ends.releaser.release(block, 1)
    with pytest.raises(RingCorrupt, match="the peer's read position"):
        ends.releaser.release(99, 1)


def test_an_impossible_release_head_is_refused(ends: Ends) -> None:
    set_word(ends.left.own, layout.CURSOR_RELEASE_HEAD, 1)
    with pytest.raises(RingCorrupt, match="got 1, allowed 0"):
        ends.releaser.release(0, 1)


@pytest.mark.parametrize("lie", [0, SMALL.release_entries + 2, 2**64 - 1])
def test_an_impossible_release_tail_is_refused(ends: Ends, lie: int) -> None:
    ends.releaser.release(0, 1)
    assert ends.reaper.take() == [(0, 1)]
    set_word(ends.right.own, layout.CURSOR_RELEASE_TAIL, lie)
    with pytest.raises(RingCorrupt, match="the peer's write position"):
        ends.reaper.take()


# Arguments


def test_ends_that_are_closed_say_so(ends: Ends) -> None:
    ends.send(1)
    ends.close()
    ends.close()
    uses: list[Callable[[], object]] = [
        lambda: ends.send(1),
        ends.producer.want_room,
        ends.producer.room_found,
        ends.producer.unread,
        ends.consumer.arm,
        ends.consumer.disarm,
        ends.consumer.published,
        lambda: taken(ends.consumer),
        lambda: ends.releaser.release(1, 1),
        ends.reaper.take,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="the channel is closed") as caught:
            use()
        assert not isinstance(caught.value, RingCorrupt)
    assert not ends.consumer.ready()
    assert not watch([ends.consumer], 1000)


Call = Callable[[Any], object]
WRONG_CALLS: list[tuple[type[Exception], Call]] = [
    (TypeError, lambda ends: ends.producer.send(1, 0, 0, 1, 0)),
    (TypeError, lambda ends: ends.producer.send(1, 0, 0, 1, 0, bytearray(1))),
    (TypeError, lambda ends: ends.producer.send("1", 0, 0, 1, 0, b"")),
    (TypeError, lambda ends: ends.producer.send(1, 0, 0, 1.5, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(0, 0, 0, 1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(256, 0, 0, 1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(1, 256, 0, 1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(1, 0, 65536, 1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(-1, 0, 0, 1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(1, 0, 0, -1, 0, b"")),
    (OverflowError, lambda ends: ends.producer.send(1, 0, 0, 1, 2**64, b"")),
    (TypeError, lambda ends: ends.consumer.dispatch(1, handlers_of(print))),
    (TypeError, lambda ends: ends.consumer.dispatch(1, handlers_of(print)[:-1], {})),
    (TypeError, lambda ends: ends.consumer.dispatch(1, list(handlers_of(print)), {})),
    (TypeError, lambda ends: ends.consumer.dispatch(1, handlers_of(print), None)),
    (TypeError, lambda ends: ends.consumer.dispatch("1", handlers_of(print), {})),
    (TypeError, lambda ends: ends.releaser.release(1)),
    (TypeError, lambda ends: ends.releaser.release("1", 1)),
    (OverflowError, lambda ends: ends.releaser.release(-1, 1)),
    (OverflowError, lambda ends: ends.releaser.release(1, 2**64)),
    (TypeError, lambda ends: watch([ends.producer], 0)),
    (TypeError, lambda ends: watch((ends.consumer,), 0)),  # type: ignore[arg-type]
    (TypeError, lambda ends: watch([ends.consumer], "0")),  # type: ignore[arg-type]
    (TypeError, lambda ends: watch([ends.consumer])),  # type: ignore[call-arg]
]


@pytest.mark.parametrize(("error", "call"), WRONG_CALLS)
def test_wrong_arguments_are_refused_and_nothing_is_sent(ends: Ends, error: type[Exception], call: Call) -> None:
    with pytest.raises(error):
        call(ends)
    assert taken(ends.consumer) == []
    assert ends.reaper.take() == []


SEGMENT, OFFSET = SMALL.segment_bytes, layout.RING_OFFSET
WRONG_PLACES: list[tuple[str, bytearray | bytes, bytes, int, int]] = [
    ("must be a power of two", bytearray(SEGMENT), bytes(SEGMENT), OFFSET, 5000),
    ("must be a power of two", bytearray(SEGMENT), bytes(SEGMENT), OFFSET, 4),
    ("must be a power of two", bytearray(SEGMENT), bytes(SEGMENT), OFFSET, -8),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), OFFSET, 1 << 20),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), SEGMENT, 4096),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), 2**62, 4096),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), -8, 4096),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), OFFSET + 4, 4096),
    ("does not fit", bytearray(SEGMENT), bytes(SEGMENT), 0x1000, 4096),
    ("shorter than its cursor page", bytearray(0x1000), bytes(SEGMENT), OFFSET, 4096),
    ("shorter than its cursor page", bytearray(SEGMENT), bytes(0x1000), OFFSET, 4096),
]


@pytest.mark.parametrize(("text", "own", "peer", "offset", "size"), WRONG_PLACES)
def test_a_ring_must_lie_in_its_segment(text: str, own: bytearray, peer: bytes, offset: int, size: int) -> None:
    makers: list[Callable[[], object]] = [
        lambda: Producer(own, peer, offset, size, INLINE),
        lambda: Consumer(own, peer, offset, size, INLINE),
        lambda: Releaser(own, peer, offset, size),
        lambda: Reaper(own, peer, offset, size),
    ]
    for make in makers:
        with pytest.raises(ValueError, match=text):
            make()
    own.append(0)  # its buffer was given back


def test_ones_own_segment_must_be_writable() -> None:
    own = bytes(SEGMENT)
    makers: list[Callable[[], object]] = [
        lambda: Producer(own, own, OFFSET, 4096, INLINE),
        lambda: Consumer(own, own, OFFSET, 4096, INLINE),
        lambda: Releaser(own, own, OFFSET, 16),
        lambda: Reaper(own, own, OFFSET, 16),
    ]
    for make in makers:
        with pytest.raises(BufferError):
            make()


def test_a_segment_must_be_aligned() -> None:
    odd = memoryview(bytearray(SEGMENT + 1))[1:]
    with pytest.raises(ValueError, match="aligned to eight bytes"):
        Producer(odd, bytes(SEGMENT), OFFSET, 4096, INLINE)


def test_an_end_holds_its_mappings_until_it_is_closed(ends: Ends) -> None:
    with pytest.raises(BufferError):
        ends.left.own.mapping.close()
    ends.close()
    ends.left.own.mapping.close()
