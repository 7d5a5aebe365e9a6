"""A channel whose peer keeps no rules: every lie about releases and cursors ends in a ProtocolError."""

from collections.abc import Iterator

import pytest
from joined import INLINE, SMALL, crowd, fill, received, send, set_word, two_channels

from shmrpc.errors import ProtocolError
from shmrpc.shm import layout, ring
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import GRANULE

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two joined channels, for each kind of doorbell."""
    with two_channels(bell=request.param) as channels:
        yield channels


def lend(channel: Channel) -> tuple[int, int]:
    """A block that is out: its number, and the lease."""
    block = channel.arena.take(GRANULE, attached=True)
    assert block is not None
    return block.number, channel.arena.lend(block, 0, GRANULE, "Service.method")


@pytest.mark.parametrize(
    ("block", "lease", "state"), [(0, 99, "is not out"), (1, 1, "is on block 0"), (2**63, 1, "is on block 0")]
)
def test_a_forged_release_is_refused(pair: Pair, block: int, lease: int, state: str) -> None:
    left, right = pair
    assert lend(left) == (0, 1)
    right.release(block, lease)
    with pytest.raises(ProtocolError, match=f"block {block} was released under lease {lease}, which {state}"):
        left.collect()


def test_a_release_that_comes_twice_is_refused(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    right.release(*out)
    right.release(*out)
    with pytest.raises(ProtocolError, match="block 0 was released under lease 1, which is not out"):
        left.collect()


def test_a_forged_release_is_found_by_who_waits_for_memory(pair: Pair) -> None:
    left, right = pair
    lend(left)
    right.release(0, 99)
    left.on_home = lambda: None
    with pytest.raises(ProtocolError, match="which is not out"):
        left.flush()


def test_a_peer_that_does_not_take_blocks_home_cannot_overrun_the_release_ring(pair: Pair) -> None:
    _, right = pair
    for _ in range(SMALL.release_entries):
        right.release(0, 1)
    with pytest.raises(ring.RingCorrupt, match="the peer's read position"):
        right.release(0, 1)


def test_an_impossible_cursor_ends_in_a_protocol_error(pair: Pair) -> None:
    left, right = pair
    crowd(left)
    set_word(right.own, layout.CURSOR_HEAD, 2**64 - 8)
    with pytest.raises(ProtocolError, match="the peer's read position"):
        send(left, 1, bytes(INLINE))
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
    lend(left)
    set_word(right.own, layout.CURSOR_RELEASE_TAIL, 2**63)
    with pytest.raises(ProtocolError, match="the peer's write position"):
        left.collect()


def test_an_impossible_cursor_beside_true_releases_ends_in_a_protocol_error(pair: Pair) -> None:
    left, right = pair
    right.release(*lend(left))
    set_word(right.own, layout.CURSOR_TAIL, 2**64 - 8)
    with pytest.raises(ProtocolError, match="the peer's write position"):
        received(left)
    assert not left.collect()  # what was to be handled before it never will be
