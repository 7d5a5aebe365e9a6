"""Rings at the very end of a heap block: under the address sanitizer (``.ci/asan``) one byte too far is an error.

A mapping has no guarded ends, an object from malloc has.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import taken

from shmrpc.shm import layout, ring
from shmrpc.shm.ring import Consumer, Producer, Reaper, Releaser, RingCorrupt

RING = 512
ENTRIES = 8
INLINE = 120
OFFSET = layout.RING_OFFSET


class Heap:
    """A record ring in `mine`, sent by me, and a release ring in `theirs`, sent by them."""

    def __init__(self) -> None:
        self.mine = bytearray(OFFSET + RING)
        self.theirs = bytearray(OFFSET + ENTRIES * layout.RELEASE_ENTRY)
        self.producer = Producer(self.mine, self.theirs, OFFSET, RING, INLINE)
        self.consumer = Consumer(self.theirs, self.mine, OFFSET, RING, INLINE)
        self.releaser = Releaser(self.theirs, self.mine, OFFSET, ENTRIES)
        self.reaper = Reaper(self.mine, self.theirs, OFFSET, ENTRIES)

    def send(self, call_id: int, payload: bytes) -> int:
        """Pushes one record."""
        return self.producer.send(1, 0, 0, call_id, 0, payload)


def set_word(segment: bytearray, offset: int, value: int) -> None:
    """Writes a shared word; in place, since a segment in use cannot be resized."""
    memoryview(segment)[offset : offset + 8] = value.to_bytes(8, "little")


@given(st.lists(st.integers(0, INLINE), min_size=20, max_size=100))
def test_records_reach_up_to_the_last_byte(lengths: list[int]) -> None:
    heap = Heap()
    for number, length in enumerate(lengths):
        payload = bytes([number]) * length
        assert heap.send(number, payload) == ring.SENT
        assert taken(heap.consumer) == [(1, 0, 0, number, 0, payload)]


def test_releases_reach_up_to_the_last_byte() -> None:
    heap = Heap()
    for number in range(10 * ENTRIES):
        heap.releaser.release(number, number)
        assert heap.reaper.take() == [(number, number)]


@given(st.binary(min_size=RING, max_size=RING), st.lists(st.integers(0, RING // 4), min_size=1, max_size=5))
def test_garbage_is_taken_for_records_or_refused(garbage: bytes, tails: list[int]) -> None:
    heap = Heap()
    memoryview(heap.mine)[OFFSET:] = garbage
    for at in range(0, RING, 40):  # else nearly every length is out of bounds
        set_word(heap.mine, OFFSET + at, garbage[at] % 64 | garbage[at + 1] % 3 << 32)
    for tail in tails:
        set_word(heap.mine, layout.CURSOR_TAIL, tail * 8)
        try:
            records = taken(heap.consumer)
        except RingCorrupt:
            break
        assert all(len(record[5]) <= INLINE for record in records)


@pytest.mark.parametrize("room", [8, 16])
@pytest.mark.parametrize(("kind", "length"), [(1, 0), (1, INLINE), (0, 0), (0, 24), (0, 2**32 - 1)])
def test_a_header_that_the_end_cuts_off_is_not_read_beyond_it(room: int, kind: int, length: int) -> None:
    heap = Heap()
    end = RING - room
    heap.send(1, bytes(end % 24))  # 24 bytes are an empty record
    for _ in range(end // 24 - 1):
        heap.send(1, b"")
    assert len(taken(heap.consumer)) == end // 24
    set_word(heap.mine, OFFSET + end, length | kind << 32)
    set_word(heap.mine, layout.CURSOR_TAIL, end + 64)
    with pytest.raises(RingCorrupt, match="a record of the peer does not fit"):
        taken(heap.consumer)


@given(st.integers(0, RING // 8), st.lists(st.binary(max_size=INLINE), min_size=1))
def test_unread_survives_a_peer_that_points_into_the_middle(position: int, payloads: list[bytes]) -> None:
    heap = Heap()
    for payload in payloads:
        heap.send(1, payload)
    tail = int.from_bytes(heap.mine[layout.CURSOR_TAIL : layout.CURSOR_TAIL + 8], "little")
    set_word(heap.theirs, layout.CURSOR_HEAD, position * 8)
    if position * 8 <= tail:
        assert len(heap.producer.unread()) <= RING // 8
    else:
        with pytest.raises(RingCorrupt):
            heap.producer.unread()


def test_unread_stops_at_a_header_that_the_end_cuts_off() -> None:
    heap = Heap()
    for _ in range(4):
        assert heap.send(1, b"\xff" * 104) == ring.SENT  # up to the last byte
    set_word(heap.theirs, layout.CURSOR_HEAD, RING - 8)
    assert heap.producer.unread() == []


@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 100).map(lambda words: words * 8)), max_size=50))
def test_a_cursor_of_garbage_moves_nobody_out_of_the_ring(positions: list[int]) -> None:
    heap = Heap()
    for position in positions:
        set_word(heap.theirs, layout.CURSOR_HEAD, position)
        set_word(heap.mine, layout.CURSOR_RELEASE_HEAD, position)
        for push in (lambda: heap.send(1, bytes(INLINE)), lambda: heap.releaser.release(1, 1), heap.producer.unread):
            try:
                push()
            except RingCorrupt:
                continue
