"""Waiting for memory: what wakes who waits, in what order they go on, and what is said when nothing came home."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar, copy_context
from time import monotonic_ns
from typing import Any

import pytest
import uvloop
from joined import SMALL, rung
from life_waiting import until
from memories import METHOD, MIB, SLAB, End, Pair, numbered, on, packed, two_ends

from shmrpc.errors import ConnectionLost, DeadlineExceeded, ProtocolError, ResourceExhausted
from shmrpc.shm import segment
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.placed import Placed

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Without extents, so that a slab of 16 KiB is all there is."""
    async with two_ends(max_extent_bytes=0) as ends:
        yield ends


def place(end: End, *arrays: Any, payload: bytes = b"", deadline_ns: int = 0) -> "asyncio.Task[Placed]":
    return asyncio.get_running_loop().create_task(end.lender.place(packed(arrays, payload), METHOD, deadline_ns))


async def waits(end: End, count: int = 1) -> None:
    """Returns when so many wait for memory to come home."""
    await until(lambda: len(end.lender._waiters) == count, f"{count} waiters")


async def settle() -> None:
    """Lets tasks go on as far as they can."""
    for _ in range(5):
        await asyncio.sleep(0)


# The timer


async def test_the_timer_keeps_nothing_of_the_call_in_which_it_was_set(pair: Pair) -> None:
    class Call:
        """What the context of a served call leads to."""

    left, _ = pair
    variable, context, served = ContextVar[Call]("served"), copy_context(), Call()
    context.run(variable.set, served)
    context.run(left.send, numbered(5000))
    assert left.lender._timer is not None
    gone = weakref.ref(served)
    del served, context
    assert gone() is None


# What wakes


async def test_what_finds_room_does_not_wait(pair: Pair) -> None:
    left, _ = pair
    placed = await left.lender.place(packed([numbered(SLAB)]), METHOD, 1)  # although the deadline has passed
    assert len(placed.leases) == 1


async def test_a_release_wakes_who_waits(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive()
    waiting = place(left, numbered(5000))
    await waits(left)
    assert not rung(left.channel)
    arrived.clear()
    left.turn()
    left.send_placed(await waiting)
    assert (right.receive_arrays()[0] == numbered(5000)).all()
    assert left.at_home


async def test_a_release_that_came_before_the_wait_is_found(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    right.receive().clear()
    await asyncio.wait_for(left.lender.place(packed([numbered(5000)]), METHOD, 0), 20)


async def test_a_payload_in_a_block_waits_as_well(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive()
    waiting = place(left, payload=bytes(5000))
    await waits(left)
    arrived.clear()
    left.turn()
    assert not (await waiting).keep


async def test_a_release_that_is_not_enough_leaves_it_waiting(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB // 2))
    left.send(numbered(SLAB // 2))
    arrived = right.receive()
    waiting = place(left, numbered(SLAB))
    await waits(left)
    for _ in range(2):
        assert not waiting.done()
        arrived.pop()
        left.turn()
        await settle()
    await waiting


async def test_an_array_of_this_process_that_dies_wakes_who_waits(pair: Pair) -> None:
    left, _ = pair
    array = left.allocate(SLAB)
    waiting = place(left, numbered(5000))
    await waits(left)
    assert array.nbytes
    del array
    await asyncio.wait_for(waiting, 20)


async def test_an_array_that_dies_in_another_thread_wakes_who_waits(pair: Pair) -> None:
    left, _ = pair
    arrays = [left.allocate(SLAB)]
    waiting = place(left, numbered(5000))
    await waits(left)
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    await asyncio.wait_for(waiting, 20)
    thread.join()


async def test_a_view_that_dies_in_another_thread_at_the_peer_wakes_who_waits(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive()
    waiting = place(left, numbered(5000))
    await waits(left)
    thread = threading.Thread(target=arrived.clear)
    thread.start()
    await until(lambda: rung(left.channel), "the doorbell")
    left.turn()
    await waiting
    thread.join()


async def test_a_release_whose_record_was_not_handled_wakes_when_it_is(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive_arrays()
    right.send(payload=b"first")
    arrived.clear()
    waiting = place(left, numbered(5000))
    await settle()
    assert not waiting.done()
    assert [parcel.payload for parcel in left.receive()] == [b"first"]
    await asyncio.wait_for(waiting, 20)


async def test_who_waits_for_leases_goes_on_when_there_are_some(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    for _ in range(SMALL.release_entries):
        left.send(array)
    parcels = right.receive()
    waiting = place(left, array)
    await waits(left)
    parcels.pop()
    left.turn()
    await waiting
    assert len(left.arena.loans) == SMALL.release_entries


async def test_what_somebody_else_took_home_wakes_who_waits_for_it(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB // 2))
    left.send(numbered(SLAB // 2))
    arrived = right.receive()
    waiting = place(left, numbered(SLAB // 2))
    await waits(left)
    arrived.pop()
    left.lender.leases()  # looks what came home, as any call does that needs memory
    await asyncio.wait_for(waiting, 20)


async def test_all_that_wait_go_on_in_their_order(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive()
    order: list[int] = []

    async def wait(number: int) -> None:
        await left.lender.place(packed([numbered(SLAB // 4)]), METHOD, 0)
        order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await waits(left, 4)
    arrived.clear()
    left.turn()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3]


async def test_one_that_is_cancelled_holds_up_nobody_and_keeps_nothing(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    arrived = right.receive()
    cancelled, waiting = place(left, numbered(3000), numbered(5000)), place(left, numbered(5000))
    await waits(left, 2)
    cancelled.cancel()
    await waits(left, 1)
    arrived.clear()
    left.turn()
    left.lender.undo(await waiting)
    assert cancelled.cancelled()
    assert left.at_home


# Extents


async def test_an_extent_that_is_attached_wakes_who_waits_for_it() -> None:
    async with two_ends() as (left, right):
        waiting = [place(left, numbered(3 * MIB, number)) for number in range(3)]
        for number, task in enumerate(waiting):
            left.send_placed(await asyncio.wait_for(task, 20))
            assert (right.receive_arrays()[0] == numbered(3 * MIB, number)).all()
        assert left.at_home


async def test_those_who_wait_for_a_small_extent_fill_it() -> None:
    async with two_ends(max_extent_bytes=4 * MIB) as (left, _):
        waiting = [place(left, numbered(MIB)) for _ in range(4)]
        await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert left.extent_sizes == [4 * MIB]


async def test_an_extent_whose_maker_went_away_wakes_who_waits_for_memory_to_come_home() -> None:
    async with two_ends(max_extent_bytes=4 * MIB) as (left, _):
        maker = place(left, numbered(4 * MIB))
        await settle()
        waiting = place(left, numbered(MIB))
        await settle()
        assert len(left.lender._waiters) == 1
        maker.cancel()
        await asyncio.wait((maker, waiting), timeout=20)
        assert maker.cancelled()
        assert waiting.result().leases


@pytest.mark.parametrize(
    ("sizes", "limit"),
    [([3, 3], 6), ([3, 4], 7), ([3, 4, 5], 12), ([5, 3], 8), ([1, 1, 1, 1, 1, 1, 1], 7), ([4, 5, 4], 14)],
)
async def test_a_message_that_fits_only_just_is_sent(sizes: list[int], limit: int) -> None:
    """However the extents for its parts are cut, in the end there is one for all of them."""
    async with two_ends(max_extent_bytes=limit * MIB) as (left, right):
        arrays = [numbered(size * MIB, number) for number, size in enumerate(sizes)]
        await asyncio.wait_for(left.send_when_possible(*arrays, payload=b""), 20)
        arrived = right.receive_arrays()
        assert all((one == other).all() for one, other in zip(arrived, arrays, strict=True))
        assert sum(left.extent_sizes) <= limit * MIB


async def test_a_message_that_fits_only_beside_what_is_held_waits_for_that() -> None:
    async with two_ends(max_extent_bytes=8 * MIB) as (left, right):
        await left.send_when_possible(numbered(2 * MIB))
        held = right.receive()
        waiting = place(left, numbered(3 * MIB), numbered(4 * MIB))
        await waits(left)
        held.clear()
        left.turn()
        left.send_placed(await asyncio.wait_for(waiting, 20))
        assert len(right.receive_arrays()) == 2


async def test_who_waits_for_an_extent_can_be_cancelled() -> None:
    async with two_ends() as (left, right):
        cancelled, waiting = place(left, numbered(3 * MIB)), place(left, numbered(3 * MIB))
        await settle()
        cancelled.cancel()
        left.send_placed(await asyncio.wait_for(waiting, 20))
        assert cancelled.cancelled()
        right.receive().clear()
        assert left.at_home


# Deadlines


async def test_after_the_deadline_it_is_said_who_holds_what(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(10_000))
    arrived = right.receive()
    kept = left.allocate(2000)
    text = (
        rf"{METHOD} was not sent: no room for 4.883 KiB before the deadline; extents have 0 bytes of 0 bytes "
        r"\(max_extent_bytes\), 1 of 16 leases are out \(release_entries\); pid 4711 \(uid 1000, gid 1000\) holds 9.766 KiB "
        rf"in 1 block of {METHOD}, the oldest for 0.\d s; this process holds 1.953 KiB in 1 block in arrays of its own"
    )
    with pytest.raises(ResourceExhausted, match=text):
        await left.lender.place(packed([numbered(5000)]), METHOD, monotonic_ns() + 20_000_000)
    assert not left.lender._waiters
    del kept
    arrived.clear()
    assert left.at_home


async def test_a_deadline_that_has_passed_is_said_at_once(pair: Pair) -> None:
    left, _ = pair
    left.send(numbered(SLAB))
    with pytest.raises(ResourceExhausted, match="before the deadline"):
        await left.lender.place(packed([numbered(5000)]), METHOD, 1)


async def test_the_deadline_counts_while_an_extent_is_made(monkeypatch: pytest.MonkeyPatch) -> None:

    opened = threading.Event()
    commit = segment.Extent.commit

    def wait_and_commit(extent: segment.Extent) -> None:
        assert opened.wait(20)
        commit(extent)

    monkeypatch.setattr(segment.Extent, "commit", wait_and_commit)
    async with two_ends() as (left, _):
        with pytest.raises(DeadlineExceeded, match=rf"{METHOD} was not sent: an extent for 1 MiB was not ready"):
            await left.lender.place(packed([numbered(MIB)]), METHOD, monotonic_ns() + 20_000_000)
        opened.set()
        await until(lambda: left.arena.extents[0].attached, "the extent, which others can use")


# The end


async def test_the_end_of_the_connection_ends_the_waiting(pair: Pair) -> None:
    left, _ = pair
    left.send(numbered(SLAB))
    waiting = [place(left, numbered(5000)) for _ in range(2)]
    await waits(left, 2)
    left.close()
    for task in waiting:
        with pytest.raises(ConnectionLost, match="the connection ended"):
            await task
    assert not left.lender._waiters


async def test_a_forged_release_is_told_to_who_ends_the_connection(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(SLAB))
    waiting = place(left, numbered(5000))
    await waits(left)
    right.channel.release(0, 99)
    with pytest.raises(ProtocolError, match="which is not out"):
        left.turn()
    left.close()
    with pytest.raises(ConnectionLost):
        await waiting


async def test_a_forged_release_that_comes_while_it_looks_once_more_ends_the_connection(pair: Pair) -> None:
    left, right = pair
    kept = [left.allocate(SLAB)]
    waiting = place(left, numbered(5000))
    await waits(left)
    right.channel.release(0, 99)
    kept.clear()  # whoever this wakes looks for releases too
    await until(lambda: left.broken, "the error")
    assert "which is not out" in str(left.broken[0])
    left.close()
    with pytest.raises(ConnectionLost):
        await waiting


async def test_an_array_that_dies_after_the_end_wakes_nobody(pair: Pair) -> None:
    left, _ = pair
    view = left.memory.allocate(SLAB)
    waiting = place(left, numbered(GRANULE))
    await waits(left)
    left.close()
    with pytest.raises(ConnectionLost):
        await waiting
    array = on(view)
    del view, array
    await settle()
    assert left.broken == []
