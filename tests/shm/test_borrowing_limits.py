"""Borrowing, continued: payloads in blocks, and the extents of the peer, with a peer that keeps no rules."""

import gc
import os
from collections.abc import AsyncIterator

import pytest
import uvloop
from joined import SMALL, handlers_of, rung
from life_waiting import until
from memories import MIB, SLAB, End, Ledger, Pair, numbered, reference, two_ends, with_extent

from shmrpc.errors import ProtocolError
from shmrpc.shm import envelope, segment
from shmrpc.shm.arena import EXTENT_SHIFT
from shmrpc.shm.borrowing import Borrowed
from shmrpc.shm.control import Attach, Detach
from shmrpc.shm.layout import GRANULE, PAGE
from shmrpc.shm.ring import pack_references

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

ENTRIES = SMALL.release_entries


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def say(end: End, *references: tuple[int, int, int, int]) -> None:
    """Sends a record with references that say anything."""
    end.send_record(envelope.HAS_BUFFERS, pack_references(list(references), b""))


# Payloads in blocks


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ((16, 1, 1), "block 16 with 1 bytes is outside of the peer's slab of 16384 bytes"),
        ((15, 1, GRANULE + 1), "is outside"),
        ((0, 1, SLAB + 1), "is outside"),
        ((-1, 1, 1), "is outside"),
        ((0, 1, -1), "is outside"),
        ((1 << EXTENT_SHIFT, 1, 1), "refers to extent 1, which it never attached"),
        ((2**63, 1, 1), "refers to extent"),
        ((2**64 - 1, 1, 1), "refers to extent"),
        ((0, -1, 1), "block 0 cannot be released"),
        ((0, 1), "cannot be decoded"),
        ((0, 1, 2, 3), "cannot be decoded"),
        (("0", 1, 2), "cannot be decoded"),
    ],
)
async def test_a_payload_outside_of_the_slab_is_refused(pair: Pair, fields: tuple[object, ...], text: str) -> None:
    left, right = pair
    left.send_record(envelope.IN_BLOCK, reference(*fields))
    with pytest.raises(ProtocolError, match=text):
        right.receive()


async def test_garbage_for_a_payload_is_refused(pair: Pair) -> None:
    left, right = pair
    left.send_record(envelope.IN_BLOCK, b"\xc1")
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        right.receive()


async def test_a_payload_over_the_agreed_message_size_is_refused() -> None:
    async with two_ends(max_message=2000) as (left, right):
        left.send_record(envelope.IN_BLOCK, reference(0, 1, 2001))
        with pytest.raises(ProtocolError, match="block 0 with 2001 bytes"):
            right.receive()


@pytest.mark.parametrize("chunks", [1, 2])
async def test_no_more_than_the_peer_has_can_come_at_once(pair: Pair, chunks: int) -> None:
    left, right = pair
    for _ in range(chunks):
        left.send_record(envelope.IN_BLOCK, reference(0, 1, SLAB))
    assert len(right.receive(chunks)) == chunks
    for _ in range(chunks):
        left.send_record(envelope.IN_BLOCK, reference(0, 1, SLAB))
    left.send_record(envelope.IN_BLOCK, reference(0, 1, 1))
    with pytest.raises(ProtocolError, match="it names a block again before that has come home"):
        right.receive(chunks)


async def test_extents_count_as_what_the_peer_has(pair: Pair) -> None:
    left, right = pair
    await with_extent(left)
    assert right.attached == {1}
    whole = reference(1 << EXTENT_SHIFT, 1, 4 * MIB)
    left.send_record(envelope.IN_BLOCK, whole)
    left.send_record(envelope.IN_BLOCK, reference(0, 1, SLAB))
    assert len(right.receive()) == 2
    left.send_record(envelope.IN_BLOCK, whole)
    left.send_record(envelope.IN_BLOCK, whole)
    with pytest.raises(ProtocolError, match=f"sent {8 * MIB} bytes in blocks at once, it has {4 * MIB + SLAB}"):
        right.receive()


async def test_what_a_peer_leaves_behind_is_once_what_it_had_however_it_is_taken(pair: Pair) -> None:
    left, right = pair
    for _ in range(2):
        left.send_record(envelope.IN_BLOCK, reference(0, 1, SLAB))
    right.borrowed.begin_dispatch(1)
    handlers = handlers_of(lambda _: None, right.borrowed.open_block)
    right.channel.dispatch(1, handlers, {})
    with pytest.raises(ProtocolError, match="it names a block again"):
        right.channel.dispatch(1, handlers, {})


async def test_a_peer_that_does_not_take_blocks_home_cannot_overrun_the_release_ring(pair: Pair) -> None:
    left, right = pair
    for _ in range(ENTRIES):
        right.borrowed.open_block(reference(0, 1, 1))
    with pytest.raises(ProtocolError, match="block 0 cannot be released"):
        right.borrowed.open_block(reference(0, 1, 1))
    assert left.arena.loans == {}


async def test_buffers_over_the_agreed_message_size_are_refused() -> None:
    async with two_ends(max_message=2000) as (left, right):
        say(left, (0, 1, 0, 1000), (0, 2, 0, 1000))
        assert len(right.receive_arrays()) == 2
        say(left, (0, 3, 0, 1000), (0, 4, 0, 1001))
        with pytest.raises(ProtocolError, match="sent a message of 2001 bytes, the limit is 2000"):
            right.receive()


async def test_a_peer_that_waits_for_memory_is_rung_when_a_payload_was_copied(pair: Pair) -> None:
    left, right = pair
    left.send(payload=bytes(SLAB))
    left.channel.on_home = lambda: None
    left.channel.flush()
    assert not rung(left.channel)
    right.receive()
    assert rung(left.channel)


# Extents of the peer


def sealed(nbytes: int) -> int:
    """The fd of a true extent."""
    extent = segment.create_extent(nbytes, "memfd")
    extent.commit()
    fd = os.dup(extent.fd)
    extent.close()
    return fd


def attach(borrowed: Borrowed, number: int, nbytes: int, **changes: int) -> None:
    borrowed.on_attach(Attach(number, changes.get("declared", nbytes), "memfd"), sealed(nbytes))


async def test_extents_beyond_the_limit_are_refused_in_all() -> None:
    async with two_ends(max_extent_bytes=8 * PAGE) as (_, right):
        attach(right.borrowed, 1, 5 * PAGE)
        text = rf"attached an extent of {4 * PAGE} bytes to {5 * PAGE}; allowed .* up to {8 * PAGE} in all"
        with pytest.raises(ProtocolError, match=text):
            attach(right.borrowed, 2, 4 * PAGE)
        attach(right.borrowed, 3, 3 * PAGE)
        right.borrowed.on_detach(Detach(1))
        attach(right.borrowed, 4, 5 * PAGE)
        assert set(right.borrowed._extents) == {3, 4}


async def test_a_number_cannot_be_attached_twice(pair: Pair) -> None:
    _, right = pair
    attach(right.borrowed, 1, PAGE)
    with pytest.raises(ProtocolError, match="attached extent 1, which is attached already"):
        attach(right.borrowed, 1, PAGE)


@pytest.mark.parametrize("declared", [PAGE - 1, PAGE + 1, 2 * PAGE + 8])
async def test_an_extent_of_an_odd_size_is_refused(pair: Pair, declared: int) -> None:
    with pytest.raises(ProtocolError, match="allowed are multiples of 4096"):
        attach(pair[1].borrowed, 1, 4 * PAGE, declared=declared)


async def test_an_extent_that_is_not_what_was_declared_is_refused_and_refunded() -> None:
    ledger = Ledger()
    async with two_ends(charge=ledger.charge) as (left, _):
        with pytest.raises(
            ProtocolError, match=r"the peer's extent 1 cannot be used: .* has 4096 bytes, it declared 8192"
        ):
            attach(left.borrowed, 1, PAGE, declared=2 * PAGE)
        assert ledger.charged == 0
        assert left.borrowed._extents == {}


async def test_an_extent_that_is_not_sealed_is_refused(pair: Pair) -> None:
    fd = os.memfd_create("unsealed")
    os.posix_fallocate(fd, 0, PAGE)
    with pytest.raises(ProtocolError, match=r"cannot be used: .*seal"):
        pair[1].borrowed.on_attach(Attach(1, PAGE, "memfd"), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


async def test_posix_memory_is_refused_where_memfds_work(pair: Pair) -> None:
    with pytest.raises(ProtocolError, match="POSIX shared memory, which cannot be sealed"):
        pair[1].borrowed.on_attach(Attach(1, PAGE, "posix"), sealed(PAGE))


async def test_what_a_peer_attaches_is_charged_until_it_is_detached() -> None:
    ledger = Ledger(limit=3 * PAGE)
    async with two_ends(charge=ledger.charge) as (left, _):
        attach(left.borrowed, 1, 2 * PAGE)
        assert ledger.charged == 2 * PAGE
        with pytest.raises(ProtocolError, match="the peer's extent was refused: its uid has enough"):
            attach(left.borrowed, 2, 2 * PAGE)
        left.borrowed.on_detach(Detach(1))
        assert ledger.charged == 0
        attach(left.borrowed, 3, 2 * PAGE)
        left.close()
        assert ledger.charged == 0


async def test_an_extent_that_is_detached_while_it_is_seen_counts_until_its_last_view_is_gone() -> None:
    ledger = Ledger(limit=8 * PAGE)
    async with two_ends(max_extent_bytes=3 * PAGE, charge=ledger.charge) as (left, right):
        attach(left.borrowed, 1, 2 * PAGE)
        say(right, (1 << EXTENT_SHIFT, 1, 0, 100))
        (parcel,) = left.receive()
        left.borrowed.on_detach(Detach(1))
        with pytest.raises(ProtocolError, match=f"attached an extent of {2 * PAGE} bytes to {2 * PAGE}"):
            attach(left.borrowed, 2, 2 * PAGE)
        assert ledger.charged == 2 * PAGE
        assert bytes(parcel.views[0]) == bytes(100)
        del parcel
        attach(left.borrowed, 3, 2 * PAGE)
        assert ledger.charged == 2 * PAGE
        left.close()
        assert ledger.charged == 0


@pytest.mark.parametrize("extent", [0, 1, 7])
async def test_an_extent_that_is_not_there_cannot_be_detached(pair: Pair, extent: int) -> None:
    with pytest.raises(ProtocolError, match=f"detached extent {extent}, which is not attached"):
        pair[1].borrowed.on_detach(Detach(extent))


async def test_an_extent_is_detached_once(pair: Pair) -> None:
    left, right = pair
    await with_extent(left)
    assert right.attached == {1}
    for _ in range(2):
        left.memory.control.send_soon(Detach(1))
    await until(lambda: right.broken, "the error")
    assert "detached extent 1, which is not attached" in str(right.broken[0])


async def test_it_says_how_much_the_peer_has(pair: Pair) -> None:
    _, right = pair
    attach(right.borrowed, 1, PAGE)
    assert repr(right.borrowed) == f"<Borrowed 1 extents of {SLAB + PAGE} bytes with the slab>"


async def test_nothing_that_was_borrowed_makes_a_cycle(pair: Pair) -> None:
    left, right = pair
    gc.collect()
    gc.disable()
    try:
        left.send(numbered(5000))
        right.send(*right.receive_arrays())
        left.receive()
        assert left.at_home
    finally:
        gc.enable()
