"""The limits of lending, the memory that arrays are born in, and who is said to hold how much of it."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from time import monotonic_ns

import pytest
import uvloop
from joined import SMALL
from memories import METHOD, MIB, PEER, SLAB, End, Pair, is_ordinary, numbered, on, packed, two_ends

from shmrpc.buffers import Packed
from shmrpc.context import Lease
from shmrpc.errors import ConnectionLost, ProtocolError, ResourceExhausted
from shmrpc.shm.arena import size_text
from shmrpc.shm.layout import GRANULE, Geometry
from shmrpc.shm.placed import Placed, Shortage, check_size

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def _placed(end: End, message: Packed) -> Placed:
    placed = end.lender.try_place(message, METHOD)
    assert isinstance(placed, Placed)
    return placed


@pytest.mark.parametrize(("payload", "buffer"), [(5001, 0), (1, 5000), (5001 - 3000, 3000)])
async def test_a_message_over_the_limit_is_refused_with_both_sizes(payload: int, buffer: int) -> None:
    async with two_ends(max_message=5000) as (left, _):
        arrays = [numbered(buffer)] if buffer else []
        with pytest.raises(ResourceExhausted, match=r"message is 4.884 KiB, the limit is 4.883 KiB \(max_message\)"):
            left.send(*arrays, payload=bytes(payload))
        assert left.at_home


async def test_the_limit_counts_for_what_goes_by_reference_too() -> None:
    async with two_ends(max_message=5000) as (left, right):
        array = left.allocate(5000)
        left.send(array, payload=b"")
        assert right.receive()
        with pytest.raises(ResourceExhausted, match=r"message is 4.884 KiB, the limit is 4.883 KiB \(max_message\)"):
            left.send(array, payload=b"1")


async def test_an_array_may_take_all_memory_of_the_connection() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, right):
        await left.send_when_possible(numbered(8 * MIB), payload=b"beside it")
        assert right.receive()


async def test_what_fits_only_until_it_is_rounded_up_is_refused_at_once() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, _):
        halves = [numbered(4 * MIB - GRANULE // 2 * 3) for _ in range(2)]
        await left.send_when_possible(*halves, payload=b"")
        with pytest.raises(ResourceExhausted, match="the memory of this connection may have 8 MiB"):
            left.send(numbered(4 * MIB - 1), numbered(4 * MIB - 1), numbered(1), payload=b"")


async def test_a_message_over_all_memory_of_the_connection_is_refused() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, _):
        text = r"message is 9 MiB, the memory of this connection may have 8 MiB \(max_extent_bytes"
        with pytest.raises(ResourceExhausted, match=text):
            left.send(numbered(5 * MIB), numbered(4 * MIB), payload=b"")
        with pytest.raises(ResourceExhausted, match=text):
            left.allocate(9 * MIB)


async def test_without_extents_the_slab_is_all_there_is() -> None:
    async with two_ends(max_extent_bytes=0) as (left, right):
        await left.send_when_possible(numbered(SLAB), payload=b"")
        assert len(right.receive()) == 1
        with pytest.raises(ResourceExhausted, match="the memory of this connection may have 16 KiB"):
            left.send(numbered(SLAB + 1))
        assert left.extent_sizes == []


async def test_a_message_with_more_buffers_than_leases_is_refused(pair: Pair) -> None:
    left, _ = pair
    most = SMALL.release_entries
    text = f"message has {most} buffers, and its payload takes the place of one more, the limit is {most} (release_entries)"
    with pytest.raises(ResourceExhausted, match=re.escape(text)):
        left.send(*(numbered(10) for _ in range(most)), payload=b"")  # whose table takes a block
    assert left.at_home


def test_a_payload_that_takes_no_block_is_not_counted() -> None:
    check_size(100, 100, 4, False, 1 << 20, 1 << 20, 4)
    check_size(100, 100, 3, True, 1 << 20, 1 << 20, 4)
    with pytest.raises(ResourceExhausted, match=r"^message has 5 buffers, the limit is 4 \(release_entries\)$"):
        check_size(100, 100, 5, False, 1 << 20, 1 << 20, 4)


async def test_more_leases_than_the_peer_can_release_are_never_out(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    for _ in range(SMALL.release_entries):
        left.send(array)
    assert left.lender.try_place(packed([array]), METHOD) == Shortage()
    parcels = right.receive()
    parcels.pop()
    left.send(array)
    assert len(left.arena.loans) == SMALL.release_entries


async def test_what_finds_no_room_takes_none(pair: Pair) -> None:
    left, _ = pair
    kept = left.allocate(SLAB - 4 * GRANULE)
    shortage = left.lender.try_place(packed([numbered(2000), numbered(3000)]), METHOD)
    assert isinstance(shortage, Shortage)
    assert shortage.nbytes == 3000
    shortage = left.lender.try_place(packed([numbered(3000)], bytes(2000)), METHOD)
    assert isinstance(shortage, Shortage)
    assert len(left.blocks) == 1
    assert left.arena.loans == {}
    assert kept.nbytes


async def test_what_was_placed_and_not_sent_is_taken_back(pair: Pair) -> None:
    left, _ = pair
    array = left.allocate(5000)
    placed = _placed(left, packed([array, numbered(3000)], bytes(2000)))
    assert (len(left.blocks), len(left.arena.loans)) == (3, 3)
    left.lender.undo(placed)
    assert (len(left.blocks), len(left.arena.loans)) == (1, 0)
    del array, placed
    assert left.at_home


# Memory that arrays are born in


async def test_memory_is_writable_and_free_again_when_nobody_sees_it(pair: Pair) -> None:
    left, _ = pair
    array = left.allocate(5000)
    part = array[100:200]
    del array
    part[:] = 1
    assert not left.at_home
    del part
    assert left.at_home


@pytest.mark.parametrize("nbytes", [0, 1])
async def test_the_smallest_memory_has_a_block_too(pair: Pair, nbytes: int) -> None:
    left, _ = pair
    view = left.memory.allocate(nbytes)
    assert len(memoryview(view)) == nbytes
    assert len(left.blocks) == 1
    del view
    assert left.at_home


async def test_memory_can_be_had_before_its_extent_is_attached(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(MIB)
    array[:] = 3
    assert not left.arena.extents[0].attached
    assert isinstance(left.lender.try_place(packed([array]), METHOD), Shortage)
    await left.send_when_possible(array)
    assert len(left.blocks) == 1
    [arrived] = right.receive_arrays()
    assert (arrived == 3).all()


async def test_memory_can_be_had_in_other_threads(pair: Pair) -> None:
    left, _ = pair
    loop_thread = threading.get_ident()

    def work() -> int:
        assert threading.get_ident() != loop_thread
        array = left.allocate(5000)
        array[:] = 1
        return int(array.sum())

    def fail() -> None:
        with pytest.raises(ResourceExhausted, match="message is 1 GiB, the memory"):
            left.allocate(1 << 30)

    assert await asyncio.to_thread(work) == 5000
    await asyncio.to_thread(fail)
    assert left.at_home


async def test_where_there_is_no_room_it_is_ordinary_memory_which_is_copied() -> None:
    async with two_ends(max_extent_bytes=0) as (left, right):
        kept = left.allocate(2000)
        held = left.allocate(5000)
        ordinary = left.memory.allocate(10_000)
        assert is_ordinary(ordinary)
        assert len(left.blocks) == 2
        del held
        memoryview(ordinary)[:] = numbered(10_000).tobytes()
        left.send(on(ordinary))
        assert len(left.blocks) == 2
        assert (right.receive_arrays()[0] == numbered(10_000)).all()
        assert not is_ordinary(left.memory.allocate(10_000))
        assert kept.nbytes


async def test_a_forged_release_that_is_found_while_memory_is_made_ends_the_connection(pair: Pair) -> None:
    left, right = pair
    kept = left.allocate(SLAB)
    right.channel.release(0, 99)
    assert is_ordinary(left.memory.allocate(1000))
    assert [str(error) for error in left.broken] == ["block 0 was released under lease 99, which is not out"]
    del kept


# Who holds what


async def test_leases_say_who_holds_how_much_since_when(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000), numbered(2000))
    kept = left.allocate(1000)
    [theirs, own] = left.memory.leases()
    assert theirs == Lease(METHOD, PEER, 2, 7000, theirs.age)
    assert own == Lease("", None, 1, 1000, own.age)
    assert 0 <= own.age <= theirs.age < 20
    del kept
    right.receive()
    assert left.memory.leases() == []


async def test_leases_that_a_peer_forges_cut_the_connection(pair: Pair) -> None:
    left, right = pair
    right.channel.release(0, 99)
    assert left.memory.leases() == []
    assert [str(error) for error in left.broken] == ["block 0 was released under lease 99, which is not out"]


async def test_a_forged_release_is_found_by_who_sends(pair: Pair) -> None:
    left, right = pair
    kept = left.allocate(SLAB)
    right.channel.release(0, 99)
    with pytest.raises(ProtocolError, match="which is not out"):
        left.send(numbered(1000))
    assert kept.nbytes


# The end


async def test_after_the_end_there_is_no_memory(pair: Pair) -> None:
    left, _ = pair
    left.close()
    assert is_ordinary(left.memory.allocate(10))
    with pytest.raises(ConnectionLost):
        await left.lender.place(packed([numbered(10)]), METHOD, monotonic_ns() + 10**10)


async def test_arrays_outlive_the_connection() -> None:
    async with two_ends() as (left, right):
        own = left.allocate(5000)
        own[:] = 1
        left.send(own)
        [arrived] = right.receive_arrays()
        left.close()
        right.close()
        own[:] = 2
        assert (arrived == 2).all()


async def test_it_says_how_much_is_out_and_who_waits(pair: Pair) -> None:
    left, _ = pair
    left.send(numbered(5000))
    assert repr(left.lender) == "<Lender <Arena 1 leases, 0 extents of 0 bytes>, 0 waiting>"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (5 << 19, "2.5 MiB"), (3 << 30, "3 GiB")],
)
def test_sizes_are_written_for_people(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


async def test_a_larger_geometry_makes_no_difference() -> None:
    async with two_ends(geometry=Geometry()) as (left, right):
        left.send(numbered(100_000), on(left.memory.allocate(50_000)), payload=bytes(20_000))
        [parcel] = right.receive()
        assert parcel.payload == bytes(20_000)
        assert (on(parcel.views[0]) == numbered(100_000)).all()
