"""The arena: blocks live as long as a handle or a lease does, and only a true release ends a lease."""

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from arenas import BASE, EXTENT, Backing, add_extent, is_empty, lend, new_arena, take
from joined import two_channels

from shmrpc.shm.arena import EXTENT_SHIFT, Arena, Block, ForgedRelease, Usage
from shmrpc.shm.borrowing import own_view
from shmrpc.shm.layout import GRANULE


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena that must be empty again at the end, but for what a test keeps on purpose."""
    made = new_arena()
    yield made
    made.settle_drops()


# Leases


def test_a_block_goes_home_with_its_last_lease(arena: Arena) -> None:
    block = take(arena)
    first, second = lend(arena, block), lend(arena, block)
    arena.take_back(block.number, first)
    assert not is_empty(arena)
    arena.take_back(block.number, second)
    assert is_empty(arena)


def test_every_sending_is_a_lease_of_its_own(arena: Arena) -> None:
    leases = []
    for _ in range(3):
        block = take(arena)
        leases.append(lend(arena, block))
        arena.take_back(block.number, leases[-1])
    assert leases == [1, 2, 3]


@pytest.mark.parametrize(("number", "lease"), [(0, 2), (0, 0), (0, -1), (0, 2**64 - 1)])
def test_a_release_of_a_lease_that_never_was_is_refused(arena: Arena, number: int, lease: int) -> None:
    block = take(arena)
    assert (block.number, lend(arena, block)) == (0, 1)
    with pytest.raises(ForgedRelease, match=f"block {number} was released under lease {lease}, which is not out"):
        arena.take_back(number, lease)
    assert list(arena.loans) == [1]
    assert block.leases == 1


def test_a_second_release_is_refused_though_the_block_is_out_again(arena: Arena) -> None:
    block = take(arena)
    stale = lend(arena, block)
    arena.take_back(block.number, stale)
    again = take(arena)
    assert again.number == block.number
    lease = lend(arena, again)
    with pytest.raises(ForgedRelease, match="is not out"):
        arena.take_back(block.number, stale)
    assert list(arena.loans) == [lease]


@pytest.mark.parametrize("number", [1, 1 << EXTENT_SHIFT, 1 << 63, -1])
def test_a_release_that_names_another_block_is_refused(arena: Arena, number: int) -> None:
    lease = lend(arena, take(arena))
    with pytest.raises(ForgedRelease, match=f"block {number} was released under lease 1, which is on block 0"):
        arena.take_back(number, lease)
    assert list(arena.loans) == [lease]


def test_a_lease_that_the_peer_never_got_can_be_ended(arena: Arena) -> None:
    arena.end_lease(lend(arena, take(arena)))
    assert is_empty(arena)


# Blocks that the peer sends back


def test_what_the_peer_sends_back_is_its_block(arena: Arena) -> None:
    block = take(arena, 4 * GRANULE)
    lease = lend(arena, block, 1000, 2000)
    assert arena.returned(block.number, lease, 1000, 2000) is block
    assert arena.returned(block.number, lease, 1500, 10) is block
    assert arena.returned(block.number, lease, 3000, 0) is block
    assert list(arena.loans) == [lease], "to send it back is not to release it"


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(999, 10), (1000, 2001), (0, 4096), (3000, 1), (2**64 - 1, 2), (1000, 2**64)]
)
def test_bytes_that_were_not_lent_cannot_be_sent_back(arena: Arena, offset: int, nbytes: int) -> None:
    block = take(arena, 4 * GRANULE)
    lease = lend(arena, block, 1000, 2000)
    text = f"bytes {offset} to {offset + nbytes} of block 0, and was lent 1000 to 3000"
    with pytest.raises(ForgedRelease, match=text):
        arena.returned(block.number, lease, offset, nbytes)


@pytest.mark.parametrize(("number", "lease"), [(0, 2), (1, 1), (1 << EXTENT_SHIFT, 1)])
def test_a_block_cannot_be_sent_back_without_its_lease(arena: Arena, number: int, lease: int) -> None:
    lend(arena, take(arena))
    with pytest.raises(ForgedRelease, match=f"sent back block {number} under lease {lease}, which is not out"):
        arena.returned(number, lease, 0, 1)


def test_a_block_cannot_be_sent_back_after_its_release(arena: Arena) -> None:
    block = take(arena)
    lease = lend(arena, block)
    arena.take_back(block.number, lease)
    with pytest.raises(ForgedRelease, match="is not out"):
        arena.returned(block.number, lease, 0, 1)


# Handles


def test_a_block_goes_home_when_neither_handles_nor_leases_are_left(arena: Arena) -> None:
    block = take(arena)
    view = own_view(arena, block, 0, 10)
    lease = lend(arena, block)
    arena.take_back(block.number, lease)
    assert not is_empty(arena)
    lease = lend(arena, block)
    del view
    assert not arena.settle_drops()  # it frees nothing yet
    assert not is_empty(arena)
    arena.take_back(block.number, lease)
    assert is_empty(arena)


def test_of_many_handles_the_last_one_counts(arena: Arena) -> None:
    block = take(arena)
    views = [own_view(arena, block, 0, 10) for _ in range(3)]
    while views:
        assert arena.base.blocks
        views.pop()
        assert arena.settle_drops() is not bool(views)
    assert is_empty(arena)
    assert not arena.settle_drops()


def test_a_handle_that_dies_is_only_noted_until_somebody_looks(arena: Arena) -> None:
    told: list[bool] = []
    arena.on_drop = lambda: told.append(is_empty(arena))
    view = own_view(arena, take(arena), 0, 10)
    del view
    assert told == [False]
    assert arena.settle_drops()
    assert is_empty(arena)


def test_a_dead_handle_makes_room_for_the_next_block(arena: Arena) -> None:
    view = own_view(arena, take(arena, BASE), 0, 10)
    assert arena.take(1, attached=True) is None
    del view
    arena.settle_drops()
    assert take(arena, BASE).number == 0


def test_handles_may_die_on_other_threads_and_in_cycles(arena: Arena) -> None:
    class Knot:
        def __init__(self, view: object) -> None:
            self.view = view
            self.self = self

    def drop_all(views: list[object]) -> None:
        while views:
            Knot(views.pop())
        gc.collect()

    blocks = [take(arena) for _ in range(16)]
    shares: list[list[object]] = [[own_view(arena, block, 0, 1) for block in blocks] for _ in range(4)]
    threads = [threading.Thread(target=drop_all, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        arena.settle_drops()
    for thread in threads:
        thread.join()
    gc.collect()  # one thread's collection is skipped while another one's runs
    arena.settle_drops()
    assert is_empty(arena)


def test_a_view_of_a_block_shows_its_bytes_and_nothing_else(arena: Arena) -> None:
    arena.base.take(GRANULE)
    block = take(arena, 3000)
    memory = memoryview(own_view(arena, block, 100, 50, writable=True))
    memory[:] = bytes(range(50))
    assert bytes(block.memory(3000)[90:160]) == bytes(10) + bytes(range(50)) + bytes(10)
    assert memoryview(own_view(arena, block, 100, 50)).readonly


# Finding


@pytest.mark.parametrize("where", ["base", "extent"])
def test_memory_is_found_by_its_address(arena: Arena, where: str) -> None:
    if where == "extent":
        take(arena, BASE)
        add_extent(arena)
    before, block = take(arena, 2 * GRANULE), take(arena, 2 * GRANULE + 10)
    array = np.frombuffer(memoryview(own_view(arena, block, 0, block.nbytes, writable=True)), np.uint8)

    def found(part: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> tuple[Block, int] | None:
        return arena.find(part.ctypes.data, part.nbytes)

    assert found(array) == (block, 0)
    assert found(array[1:]) == (block, 1)
    assert found(array[GRANULE : GRANULE + 1]) == (block, GRANULE)
    assert found(array[-1:]) == (block, block.nbytes - 1)
    assert arena.find(array.ctypes.data - 1, 1) == (before, 2 * GRANULE - 1)
    assert arena.find(array.ctypes.data - 1, 2) is None, "it begins in one block and ends in another"
    assert arena.find(array.ctypes.data, block.nbytes + 1) is None, "it ends behind its block"
    assert arena.find(array.ctypes.data + block.nbytes, 1) is None, "it begins behind its block, in its last granule"
    assert arena.find(array.ctypes.data + 3 * GRANULE, 1) is None, "nothing was taken there"


def test_other_memory_is_not_found(arena: Arena) -> None:
    region = add_extent(arena)
    take(arena, BASE)
    take(arena, EXTENT)
    other = np.zeros(100, np.uint8)
    assert arena.find(other.ctypes.data, 100) is None
    assert arena.find(arena.base.address - 1, 1) is None
    assert arena.find(arena.base.address + BASE, 1) is None
    assert arena.find(region.address + EXTENT, 1) is None


# Extents


def test_extents_are_numbered_from_one_and_never_again(arena: Arena) -> None:
    first, second = add_extent(arena), add_extent(arena)
    arena.remove(second)
    third = add_extent(arena)
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert isinstance(second.backing, Backing)
    assert second.backing.closed
    assert arena.extent_bytes == 2 * EXTENT


def test_a_block_says_its_extent_and_its_first_granule(arena: Arena) -> None:
    take(arena, BASE)
    add_extent(arena)
    take(arena, 3 * GRANULE)
    block = take(arena)
    assert block.number == 1 << EXTENT_SHIFT | 3
    assert block.offset == 3 * GRANULE


def test_only_what_the_peer_has_is_used_to_send(arena: Arena) -> None:
    take(arena, BASE)
    fresh = add_extent(arena, attached=False)
    assert arena.take(1, attached=True) is None
    assert take(arena, 1, attached=False).region is fresh
    fresh.attached = True
    assert take(arena, 1).region is fresh


def test_the_slab_is_used_before_any_extent(arena: Arena) -> None:
    add_extent(arena)
    assert take(arena).region is arena.base


def test_the_extent_that_was_freed_last_is_used_first(arena: Arena) -> None:
    take(arena, BASE)
    regions = [add_extent(arena) for _ in range(3)]
    blocks = {block.region: block for block in [take(arena, EXTENT) for _ in range(3)]}
    for index in (1, 2, 0):
        arena.give_back(blocks[regions[index]])
    assert arena.extents == [regions[0], regions[2], regions[1]]
    assert [take(arena, EXTENT).region for _ in range(3)] == [regions[0], regions[2], regions[1]]


def test_an_extent_without_blocks_says_since_when(arena: Arena) -> None:
    take(arena, BASE)
    region = add_extent(arena)
    made_ns = region.idle_since_ns
    block = take(arena)
    assert region.blocks
    arena.give_back(block)
    assert not region.blocks
    assert region.idle_since_ns > made_ns


# Usage


def test_usage_counts_by_method_and_by_what_this_process_keeps(arena: Arena) -> None:
    big, small, own = take(arena, 5000), take(arena, 100), take(arena, 3000)
    lend(arena, big, 0, 2000, "A.a")
    lend(arena, big, 2000, 3000, "A.a")
    lend(arena, small, method="B.b")
    keep = [own_view(arena, own, 0, 10), own_view(arena, own, 0, 10)]
    usage = arena.usage()
    assert [(each.method, each.blocks, each.nbytes) for each in usage] == [
        ("A.a", 2, 5000),
        ("", 1, 3000),
        ("B.b", 1, 100),
    ]
    assert all(isinstance(each, Usage) and each.since_ns > 0 for each in usage)
    del keep
    arena.settle_drops()
    assert [each.method for each in arena.usage()] == ["A.a", "B.b"]


def test_usage_is_as_old_as_the_oldest_of_it(arena: Arena) -> None:
    block = take(arena)
    first = lend(arena, block)
    lend(arena, block)
    since_ns = arena.loans[first].since_ns
    assert since_ns < arena.loans[first + 1].since_ns
    assert arena.usage()[0].since_ns == since_ns
    arena.take_back(block.number, first)
    assert arena.usage()[0].since_ns > since_ns


def test_an_arena_and_its_blocks_say_what_is_out(arena: Arena) -> None:
    add_extent(arena)
    block = take(arena, 1500)
    lend(arena, block)
    assert repr(arena) == f"<Arena 1 leases, 1 extents of {EXTENT} bytes>"
    assert repr(block) == "<Block 0x0, 1500 bytes, 0 handles, 1 leases>"
    assert repr(arena.base) == "<Region 0 attached, <Slab 2048 of 16384 bytes taken in 1 blocks>>"


def test_the_base_region_of_a_channel_is_the_slab_of_its_segment() -> None:
    with two_channels() as (left, right):
        block = take(left.arena, 5000)
        block.memory(3)[:] = b"abc"
        at = right.peer.geometry.slab_offset + block.offset
        assert right.peer.mapping[at : at + 3] == b"abc"
        assert left.arena.base.nbytes == left.own.geometry.slab_bytes
        assert left.arena.most_leases == right.own.geometry.release_entries
