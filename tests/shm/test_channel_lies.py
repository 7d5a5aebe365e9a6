"""A channel whose peer keeps no rules: every lie about blocks, releases and cursors ends in a ProtocolError."""

from collections.abc import Iterator

import pytest
from joined import INLINE, SMALL, crowd, fill, received, send, set_word, two_channels

from shmrpc.errors import ProtocolError
from shmrpc.shm import envelope, layout, ring
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import GRANULE

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two joined channels, for each kind of doorbell."""
    with two_channels(bell=request.param) as channels:
        yield channels


def reference(*fields: object) -> bytes:
    return envelope.encode_reference(fields)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((16, 1, 1), "block 16 with 1 bytes is outside of the peer's slab of 16384 bytes"),
        ((15, 1, GRANULE + 1), "is outside"),
        ((0, 1, SMALL.slab_bytes + 1), "is outside"),
        ((-1, 1, 1), "is outside"),
        ((0, 1, -1), "is outside"),
        ((2**63, 1, 1), "is outside"),
        ((0, -1, 1), "block 0 cannot be released"),
        ((0, 1), "cannot be decoded"),
        ((0, 1, 2, 3), "cannot be decoded"),
        (("0", 1, 2), "cannot be decoded"),
    ],
)
def test_a_reference_outside_of_the_slab_is_refused(pair: Pair, fields: tuple[object, ...], text: str) -> None:
    left, right = pair
    left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, reference(*fields))
    with pytest.raises(ProtocolError, match=text):
        received(right)


def test_a_reference_over_the_agreed_message_size_is_refused() -> None:
    with two_channels(max_message=2000) as (left, right):
        left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, reference(0, 1, 2001))
        with pytest.raises(ProtocolError, match="block 0 with 2001 bytes"):
            received(right)


@pytest.mark.parametrize(("budget", "slabs"), [(1, 1), (ring.CHUNK, 1), (ring.CHUNK + 1, 2)])
def test_no_more_than_the_slab_holds_can_come_at_once(pair: Pair, budget: int, slabs: int) -> None:
    left, right = pair
    whole = reference(0, 1, SMALL.slab_bytes)
    for _ in range(slabs):
        left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, whole)
    assert len(received(right, budget)) == slabs
    if budget > 1:
        for _ in range(slabs + 1):
            left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, whole)
        with pytest.raises(ProtocolError, match="it names a block again before that has come home"):
            received(right, budget)


def test_what_a_peer_leaves_behind_is_one_slab_however_it_is_taken(pair: Pair) -> None:
    left, right = pair
    right.peer_is_gone()
    for _ in range(2):
        left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, reference(0, 1, SMALL.slab_bytes))
    assert len(received(right, 1)) == 1
    with pytest.raises(ProtocolError, match="it names a block again"):
        received(right, 1)


def test_garbage_for_a_reference_is_refused(pair: Pair) -> None:
    left, right = pair
    left.send(envelope.REQUEST, envelope.IN_BLOCK, 0, 1, 0, b"\xc1")
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        received(right)


def test_a_forged_release_is_refused(pair: Pair) -> None:
    left, right = pair
    send(left, 1, bytes(SMALL.slab_bytes))
    right._releaser.release(0, 99)
    with pytest.raises(ProtocolError, match="block 0, generation 99 was released, but it is out as generation 1"):
        send(left, 2, bytes(GRANULE))


def test_a_peer_that_does_not_take_blocks_home_cannot_overrun_the_release_ring(pair: Pair) -> None:
    left, right = pair
    for _ in range(SMALL.release_entries):
        right.open_block(reference(0, 1, 1))
    with pytest.raises(ProtocolError, match="block 0 cannot be released"):
        right.open_block(reference(0, 1, 1))
    assert left.slab.lent_blocks == 0


@pytest.mark.parametrize("payload", [bytes(INLINE), bytes(GRANULE)])
def test_an_impossible_cursor_ends_in_a_protocol_error(pair: Pair, payload: bytes) -> None:
    left, right = pair
    crowd(left)
    set_word(right.own, layout.CURSOR_HEAD, 2**64 - 8)
    with pytest.raises(ProtocolError, match="the peer's read position"):
        send(left, 1, payload)
    set_word(left.own, layout.CURSOR_TAIL, 2**64 - 8)
    with pytest.raises(ProtocolError, match="the peer's write position"):
        received(right)


def test_an_impossible_cursor_is_found_by_flushing_too(pair: Pair) -> None:
    left, right = pair
    fill(left)
    set_word(right.own, layout.CURSOR_HEAD, 4)
    with pytest.raises(ProtocolError, match="the peer's read position"):
        left.flush()


def test_an_impossible_release_cursor_ends_in_a_protocol_error(pair: Pair) -> None:
    left, right = pair
    send(left, 1, bytes(SMALL.slab_bytes))
    set_word(right.own, layout.CURSOR_RELEASE_TAIL, 2**63)
    with pytest.raises(ProtocolError, match="the peer's write position"):
        send(left, 2, bytes(GRANULE))
