"""Extents: made when memory is short, committed beside the event loop, kept warm, and detached when they were idle."""

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from life_waiting import until
from memories import MIB, End, Gate, Pair, is_ordinary, numbered, reached, two_ends, with_extent

from shmrpc.errors import ResourceExhausted
from shmrpc.shm import segment
from shmrpc.shm.extents import MIN_EXTENT, extent_bytes
from shmrpc.shm.layout import PAGE
from shmrpc.shm.settings import Settings

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

IMPATIENT = Settings(extent_idle=0.05)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def place(end: End, *arrays: Any, deadline_ns: int = 0) -> "asyncio.Task[int]":
    return asyncio.get_running_loop().create_task(end.send_when_possible(*arrays, deadline_ns=deadline_ns))


async def attached(end: End) -> None:
    await until(lambda: end.arena.extents and all(region.attached for region in end.arena.extents), "the extents")


# Sizes


@given(st.integers(1, 1 << 40))
def test_a_size_class_has_room_and_wastes_at_most_a_fifth(nbytes: int) -> None:
    size = extent_bytes(nbytes)
    assert size >= nbytes
    assert size % PAGE == 0
    assert size == MIN_EXTENT or size - nbytes <= size / 5


@given(st.integers(23, 39))
def test_there_are_four_size_classes_in_each_power_of_two(bits: int) -> None:
    classes = {extent_bytes((1 << bits) + share * ((1 << bits) // 64)) for share in range(1, 65)}
    assert len(classes) == 4
    assert all(extent_bytes(size) == size for size in classes), "a size class is its own"


async def test_the_first_message_over_the_slab_makes_an_extent(pair: Pair) -> None:
    left, right = pair
    array = numbered(5 * MIB)
    await left.send_when_possible(array)
    assert left.extent_sizes == [extent_bytes(5 * MIB)]
    [arrived] = right.receive_arrays()
    assert (arrived == array).all()


async def test_small_arrays_share_an_extent(pair: Pair) -> None:
    left, right = pair
    await asyncio.gather(*(left.send_when_possible(numbered(MIB)) for _ in range(4)))
    assert left.extent_sizes == [MIN_EXTENT]
    assert len(right.receive()) == 4


# The limit


async def test_near_the_limit_an_extent_fits_exactly() -> None:
    async with two_ends(max_extent_bytes=9 * MIB - PAGE) as (left, right):
        await left.send_when_possible(numbered(4 * MIB))
        await left.send_when_possible(numbered(9 * MIB // 2 - 100))
        assert left.extent_sizes == [9 * MIB // 2, 4 * MIB]
        assert len(right.receive()) == 2


async def test_a_limit_that_is_met_makes_wait_and_no_extent() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, right):
        array = numbered(5 * MIB)
        await left.send_when_possible(array)
        second = place(left, array)
        await asyncio.sleep(0)
        assert left.extent_sizes == [extent_bytes(5 * MIB)]
        del array
        right.receive()  # and drops it
        left.turn()
        await second
        assert left.extent_sizes == [extent_bytes(5 * MIB)]


async def test_the_coldest_extents_make_room_for_a_larger_one() -> None:
    async with two_ends(max_extent_bytes=24 * MIB) as (left, right):
        arrays = [left.allocate(size * MIB) for size in (5, 6, 7)]
        await attached(left)
        first, second, third = (region.number for region in reversed(left.arena.extents))
        arrays[1:2] = []
        left.channel.collect()
        arrays[0:1] = []
        left.channel.collect()
        assert [region.number for region in left.arena.extents] == [first, second, third]
        left.allocate(11 * MIB)  # 24 - 18 are free, 6 more are those of the second
        assert [region.number for region in left.arena.extents] == [4, first, third]
        await attached(left)
        right.memory.control.read()
        assert right.attached == {4, first, third}


async def test_an_extent_in_use_does_not_make_room() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, _):
        kept = left.allocate(8 * MIB)
        await attached(left)
        assert is_ordinary(left.memory.allocate(5 * MIB))
        assert left.extent_sizes == [8 * MIB]
        assert kept.nbytes == 8 * MIB


async def test_no_extent_is_given_up_for_one_that_would_not_fit_all_the_same() -> None:
    async with two_ends(max_extent_bytes=16 * MIB) as (left, _):
        await with_extent(left)
        kept = left.allocate(10 * MIB)
        assert is_ordinary(left.memory.allocate(12 * MIB))
        assert left.extent_sizes == [10 * MIB, 4 * MIB]
        assert kept.nbytes == 10 * MIB


# Committing


async def test_extents_are_committed_beside_the_event_loop(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    gate.opened.set()
    await left.send_when_possible(numbered(MIB))
    [thread] = gate.threads
    assert thread != threading.get_ident()


async def test_an_array_can_be_written_while_its_extent_is_being_committed(pair: Pair, gate: Gate) -> None:
    left, right = pair
    array = left.allocate(5 * MIB)
    await reached(gate)
    array[:] = 7
    sent = place(left, array)
    gate.opened.set()
    await sent
    [arrived] = right.receive_arrays()
    assert (arrived == 7).all()
    assert left.blocks[0].handles == 1, "it went by reference"
    assert len(left.blocks) == 1


async def test_who_waits_for_an_extent_on_its_way_shares_it(pair: Pair, gate: Gate) -> None:
    left, right = pair
    sent = [place(left, numbered(MIB)) for _ in range(9)]
    await reached(gate)
    assert left.extent_sizes == [MIN_EXTENT] * 3
    gate.opened.set()
    await asyncio.gather(*sent)
    assert left.extent_sizes == [MIN_EXTENT] * 3
    assert len(right.receive()) == 9


async def test_arrays_and_messages_share_extents_on_their_way(pair: Pair, gate: Gate) -> None:
    left, right = pair
    kept = [left.allocate(size * MIB // 2) for size in (2, 4, 3)]
    assert left.extent_sizes == [MIN_EXTENT] * 2
    sent = place(left, *kept, numbered(2 * MIB))
    gate.opened.set()
    await sent
    assert left.extent_sizes == [MIN_EXTENT] * 2
    assert [array.nbytes for array in right.receive_arrays()] == [MIB, 2 * MIB, 3 * MIB // 2, 2 * MIB]


async def test_those_who_wait_are_told_each_by_an_error_of_their_own(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    gate.error = OSError(28, "No space left on device")
    waiting = [place(left, numbered(MIB)) for _ in range(2)]
    gate.opened.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ResourceExhausted] * 2
    assert errors[0] is not errors[1]


async def test_a_failed_commit_is_told_to_all_that_wait_and_leaves_nothing(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    gate.error = OSError(28, "No space left on device")
    waiting = [place(left, numbered(5 * MIB)) for _ in range(2)]
    await reached(gate)
    gate.opened.set()
    for sent in waiting:
        with pytest.raises(ResourceExhausted, match=r"no memory for an extent of \d+ bytes: .*No space left"):
            await sent
    assert left.extent_sizes == []
    assert left.at_home
    assert left.memory._extents.limit == 64 * MIB


async def test_after_a_failed_commit_the_next_message_tries_again(pair: Pair, gate: Gate) -> None:
    left, right = pair
    gate.opened.set()
    gate.error = OSError(12, "Cannot allocate memory")
    with pytest.raises(ResourceExhausted):
        await left.send_when_possible(numbered(5 * MIB))
    gate.error = None
    await left.send_when_possible(numbered(5 * MIB))
    assert len(right.receive()) == 1


async def test_a_failed_commit_that_nobody_waits_for_is_logged(
    pair: Pair, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    left, _ = pair
    gate.opened.set()
    gate.error = OSError(28, "No space left on device")
    left.allocate(5 * MIB)
    await until(lambda: caplog.records, "the log")
    assert "No space left on device" in caplog.text


async def test_an_array_in_an_extent_that_could_not_be_attached_says_so_and_takes_it_along(
    pair: Pair, gate: Gate
) -> None:
    left, _ = pair
    gate.error = OSError(28, "No space left on device")
    gate.opened.set()
    array = left.allocate(5 * MIB - 200_000)  # so that there is room beside it
    with pytest.raises(ResourceExhausted, match="No space left on device"):
        await left.send_when_possible(array)
    with pytest.raises(ResourceExhausted, match="an extent of 5242880 bytes that could not be attached"):
        await left.send_when_possible(array)
    gate.error = None
    await left.send_when_possible(left.allocate(100_000))  # which is not put beside it
    assert left.extent_sizes == [MIN_EXTENT, 5 * MIB]
    del array
    gc.collect()  # the errors keep it
    left.channel.collect()
    left.memory._extents.detach_idle(0)
    assert left.extent_sizes == [MIN_EXTENT]


async def test_the_system_may_refuse_an_extent_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    left, _ = pair

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(segment, "create_extent", refuse)
    with pytest.raises(ResourceExhausted, match=r"no memory for an extent of 5242880 bytes: .*Too many open files"):
        await left.send_when_possible(numbered(5 * MIB))
    assert is_ordinary(left.memory.allocate(5 * MIB))
    assert left.at_home
