"""Lending: what goes by reference and what by one copy, what is refused, and that nothing that is not sent stays out."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import uvloop
from joined import INLINE, SMALL, fill, rung
from memories import METHOD, MIB, SLAB, Bytes, End, Pair, numbered, on, packed, two_ends, with_extent

from shmrpc.buffers import ANNOUNCED_BYTES, Packed, Piece
from shmrpc.shm import envelope
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.placed import Placed, Shortage

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def same_memory(end: End, array: Bytes, arrived: Bytes) -> bool:
    """Whether what arrived lies in the very block of an array that was born in the sender's memory."""
    array[0] ^= 0xFF
    return bool((array == arrived).all())


def memory_of(array: Any) -> memoryview:
    """numpy's types do not know the buffer protocol."""
    return memoryview(array)


# By reference


async def test_an_array_that_was_born_here_is_sent_by_reference(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    array[:] = numbered(5000)
    left.send(array)
    assert len(left.blocks) == 1
    [arrived] = right.receive_arrays()
    assert (arrived == numbered(5000)).all()
    assert same_memory(left, array, arrived)
    assert not arrived.flags.writeable


@pytest.mark.parametrize(("begin", "end"), [(0, 5000), (0, 4999), (1, 5000), (1500, 4600), (4999, 5000)])
async def test_a_contiguous_part_of_it_is_sent_by_reference(pair: Pair, begin: int, end: int) -> None:
    left, right = pair
    array = left.allocate(5000)
    array[:] = numbered(5000)
    left.send(array[begin:end])
    assert len(left.blocks) == 1
    [arrived] = right.receive_arrays()
    assert (arrived == numbered(5000)[begin:end]).all()
    assert same_memory(left, array[begin:end], arrived)


async def test_whatever_lies_in_a_block_is_sent_by_reference(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(4800)
    shaped = array.view("<f4").reshape(20, 60)
    for each in (shaped, memory_of(array), memory_of(array)[10:], shaped[3:5]):
        left.send(each)
    assert len(left.blocks) == 1
    assert len(right.receive()) == 4


async def test_an_array_that_is_sent_often_is_one_block_and_many_leases(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    for _ in range(3):
        left.send(array, array)
    assert (len(left.blocks), len(left.arena.loans)) == (1, 6)
    parcels = right.receive()
    del array
    for parcel in parcels:
        assert not left.at_home
        parcel.views.clear()
    assert left.at_home


async def test_a_block_is_kept_by_its_receiver_after_its_sender_has_dropped_it(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    array[:] = 5
    left.send(array)
    del array
    arrived = right.receive_arrays()
    other = left.allocate(5000)
    other[:] = 6
    assert (arrived[0] == 5).all()
    arrived.clear()
    del other
    assert left.at_home


async def test_an_array_of_another_connection_is_copied(pair: Pair) -> None:
    left, right = pair
    async with two_ends() as (other, _):
        array = other.allocate(5000)
        array[:] = numbered(5000)
        left.send(array)
        [arrived] = right.receive_arrays()
        assert (arrived == array).all()
        assert not same_memory(other, array, arrived)


# By one copy


async def test_an_array_of_the_heap_is_copied(pair: Pair) -> None:
    left, right = pair
    array = numbered(5000)
    left.send(array)
    [arrived] = right.receive_arrays()
    assert (arrived == array).all()
    array[:] = 0
    assert (arrived == numbered(5000)).all()
    assert [block.handles for block in left.blocks] == [0]


class Gathered(Piece):
    """A piece whose bytes must be gathered, which counts how often they are."""

    copies: int = 0

    def copy_into(self, target: memoryview, near_end: Callable[[], None] | None = None) -> None:
        self.copies += 1
        target[:] = self.source


async def test_what_is_scattered_is_gathered_once(pair: Pair) -> None:
    left, right = pair
    piece = Gathered(5000, None, numbered(5000).tobytes())
    left.send_placed(_placed(left, Packed(b"payload", [piece])))
    assert piece.copies == 1
    [arrived] = right.receive_arrays()
    assert (arrived == numbered(5000)).all()


async def test_nothing_is_gathered_before_there_is_room_for_all_of_it(pair: Pair) -> None:
    left, _ = pair
    kept = left.allocate(SLAB - 4 * GRANULE)
    piece = Gathered(2000, None, numbered(2000).tobytes())
    assert isinstance(left.lender.try_place(Packed(b"payload", [piece, Piece(3000, numbered(3000))]), METHOD), Shortage)
    assert piece.copies == 0
    assert kept.nbytes


async def test_part_of_a_block_that_is_scattered_is_copied(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(8000)
    array[:] = numbered(8000)
    memory = memory_of(array)[::2]
    left.send_placed(_placed(left, Packed(b"payload", [Piece(memory.nbytes, None, memory)])))
    assert len(left.blocks) == 2
    [arrived] = right.receive_arrays()
    assert (arrived == numbered(8000)[::2]).all()


def _placed(end: End, message: Packed) -> Placed:
    placed = end.lender.try_place(message, METHOD)
    assert isinstance(placed, Placed)
    return placed


class Broken(Piece):
    """A piece whose bytes cannot be had."""

    def copy_into(self, target: memoryview, near_end: Callable[[], None] | None = None) -> None:
        raise LookupError("no bytes")


async def test_a_copy_that_fails_gives_all_blocks_back(pair: Pair) -> None:
    left, _ = pair
    kept = left.allocate(2000)
    pieces = [Piece(3000, numbered(3000)), Piece(2000, kept), Broken(3000, None)]
    with pytest.raises(LookupError, match="no bytes"):
        left.lender.try_place(Packed(bytes(INLINE), pieces), METHOD)
    assert len(left.blocks) == 1
    assert left.arena.loans == {}
    assert kept.nbytes


async def test_nothing_keeps_what_was_sent_but_the_peer(pair: Pair) -> None:
    left, right = pair

    class Owner(np.ndarray):  # one that can be referred to weakly
        pass

    array: Any = numbered(5000).view(Owner)
    seen = weakref.ref(array)
    left.send(array)
    del array
    gc.collect()
    assert seen() is None
    assert right.receive()


# Announcing


@pytest.fixture
async def large() -> AsyncIterator[Pair]:
    """Two ends with an extent on the left, where what is sent is large."""
    async with two_ends() as ends:
        await with_extent(ends[0], 8 * MIB)
        yield ends


async def test_a_peer_that_sleeps_is_rung_while_a_large_array_is_copied(
    large: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = large
    rings: list[bool] = []
    announce = left.lender._announce

    def announce_and_listen() -> None:
        announce()
        rings.append(rung(right.channel))

    monkeypatch.setattr(left.lender, "_announce", announce_and_listen)
    right.channel.consumer.arm()
    left.send(numbered(MIB))
    assert rings == [True]
    assert len(right.receive_arrays()) == 1


async def test_what_takes_no_time_is_not_announced(large: Pair) -> None:
    left, right = large
    born = left.allocate(3 * MIB)
    left.send(numbered(ANNOUNCED_BYTES - 1))
    left.send(born)
    left.send(born, born)
    left.send(payload=b"short")
    assert not rung(right.channel)


async def test_of_several_arrays_the_largest_is_announced_which_is_copied_last(large: Pair) -> None:
    left, right = large
    told: list[tuple[int, bool]] = []

    class Telling(Piece):
        def copy_into(self, target: memoryview, near_end: Callable[[], None] | None = None) -> None:
            told.append((self.nbytes, near_end is not None))
            super().copy_into(target, near_end)

    sizes = [MIB, 3000, 2 * MIB, ANNOUNCED_BYTES]
    left.send_placed(_placed(left, Packed(b"", [Telling(size, numbered(size)) for size in sizes])))
    assert told == [(size, size == 2 * MIB) for size in sorted(sizes)]
    [parcel] = right.receive()
    for size, view in zip(sizes, parcel.views, strict=True):
        assert (on(view) == numbered(size)).all()


async def test_a_message_that_finds_no_room_is_not_announced(large: Pair) -> None:
    left, right = large
    outcome = left.lender.try_place(packed([numbered(MIB), numbered(8 * MIB)]), METHOD)
    assert isinstance(outcome, Shortage)
    assert not rung(right.channel)


# Payloads


@pytest.mark.parametrize("nbytes", [0, 1, INLINE, INLINE + 1, GRANULE, 5000, SLAB])
async def test_a_payload_arrives_whatever_its_size(pair: Pair, nbytes: int) -> None:
    left, right = pair
    payload = numbered(nbytes).tobytes()
    placed = _placed(left, Packed(payload, []))
    assert placed.flags == (envelope.IN_BLOCK if nbytes > INLINE else 0)
    left.send_placed(placed)
    assert [parcel.payload for parcel in right.receive()] == [payload]
    assert left.at_home


@pytest.mark.parametrize("nbytes", [0, INLINE - 72, INLINE - 71, INLINE, 5000])
async def test_a_payload_arrives_beside_its_buffers(pair: Pair, nbytes: int) -> None:
    left, right = pair
    payload = numbered(nbytes).tobytes()
    placed = _placed(left, packed([numbered(3000), numbered(4000)], payload))
    assert bool(placed.flags & envelope.IN_BLOCK) == (8 + 2 * 32 + nbytes > INLINE)
    left.send_placed(placed)
    [parcel] = right.receive()
    assert parcel.payload == payload
    assert [bytes(memoryview(view)) for view in parcel.views] == [numbered(3000).tobytes(), numbered(4000).tobytes()]


async def test_a_message_may_have_many_buffers(pair: Pair) -> None:
    left, right = pair
    left.send(*(numbered(500, index) for index in range(SMALL.release_entries - 1)), payload=bytes(100))
    assert len(left.arena.loans) == SMALL.release_entries, "the table is in a block too"
    arrived = right.receive_arrays()
    assert all((array == numbered(500, index)).all() for index, array in enumerate(arrived))
    arrived.clear()
    assert left.at_home


# What came goes back


async def test_what_was_received_goes_back_by_reference(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    array[:] = numbered(5000)
    left.send(array)
    arrived = right.receive_arrays()
    right.send(arrived[0], arrived[0][1000:2000])
    assert right.blocks == []
    assert right.arena.loans == {}
    back = left.receive_arrays()
    assert (back[0] == array).all()
    assert (back[1] == array[1000:2000]).all()
    array[:] = 9
    assert (back[0] == 9).all()
    arrived.clear()
    back.clear()
    del array
    assert left.at_home
    assert left.broken == right.broken == []


@pytest.mark.parametrize("where", ["slab", "extent"])
async def test_a_part_of_a_part_goes_back_with_its_place_in_the_block(where: str) -> None:
    async with two_ends() as (left, right):
        if where == "extent":
            await with_extent(left)
        nbytes = 10_000 if where == "slab" else 100_000
        left.allocate(GRANULE)
        array = left.allocate(nbytes)
        array[:] = numbered(nbytes)
        left.send(array[1500:])
        [arrived] = right.receive_arrays()
        right.send(arrived[2000:7000])
        [back] = left.receive_arrays()
        assert (back == numbered(nbytes)[3500:8500]).all()
        array[3500] ^= 1
        assert back[0] == array[3500]


async def test_the_release_of_what_goes_back_waits_for_the_record(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))  # nothing but the lease keeps the block
    arrived = right.receive_arrays()
    fill(right.channel)
    right.send(*arrived)
    arrived.clear()
    assert not left.channel.collect(), "the view is kept while its record waits"
    _take_plain(left)
    right.channel.flush()
    assert not right.channel.outbox
    assert not left.channel.collect(), "the release is there, and its record was not handled"
    back = [on(view) for parcel in left.receive() for view in parcel.views]
    assert (back[0] == numbered(5000)).all()
    left.channel.collect()
    assert left.arena.loans == {}
    assert len(left.blocks) == 1
    back.clear()
    assert left.at_home


def _take_plain(end: End) -> None:
    """Takes records without buffers."""
    end.channel.dispatch(1000, (lambda *_: None,) * 256, {})


async def test_a_record_with_returned_buffers_can_be_withdrawn(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    arrived = right.receive_arrays()
    fill(right.channel)
    call_id = right.send(arrived[0], numbered(3000))
    arrived.clear()
    waited, placed = right.channel.withdraw(envelope.REPLY, call_id)
    assert waited
    right.lender.undo(placed)
    del placed
    assert right.at_home
    _take_plain(left)
    assert left.at_home


async def test_a_block_that_came_home_can_be_sent_again(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    right.send(*right.receive_arrays())
    back = left.receive_arrays()
    left.send(*back)
    assert len(left.blocks) == 1, "by reference"
    again = right.receive_arrays()
    assert (again[0] == numbered(5000)).all()
    back.clear()
    again.clear()
    assert left.at_home
    assert right.at_home
