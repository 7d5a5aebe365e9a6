"""What a review of buffers found: each of these went wrong once."""

import asyncio
import gc
import os
import signal
import threading
import time
from typing import Protocol

import anyio.from_thread
import anyio.to_thread
import numpy as np
import numpy.typing as npt
import pytest
import uvloop
from joined import SMALL, set_word
from life_waiting import until
from memories import METHOD, MIB, SLAB, numbered, packed, two_ends

import shmrpc
from shmrpc import arrays, buffers
from shmrpc.errors import ProtocolError
from shmrpc.shm import doorbell, layout, segment
from shmrpc.shm.control import MOST_EXTENTS, Attach
from shmrpc.shm.layout import PAGE
from shmrpc.shm.placed import Placed

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


class Stock(Protocol):
    """A contract whose results need memory."""

    async def ones(self, count: int) -> npt.NDArray[np.uint8]: ...

    async def shelf(self) -> bytearray: ...

    async def first(self, array: npt.NDArray[np.uint8]) -> int: ...


class Store(Stock):
    """Gives away what it still has."""

    def __init__(self) -> None:
        self.kept = bytearray(200_000)
        self.call: shmrpc.Call | None = None

    async def ones(self, count: int) -> npt.NDArray[np.uint8]:
        return np.ones(count, np.uint8)

    async def shelf(self) -> bytearray:
        self.call = shmrpc.current_call()
        return self.kept

    async def first(self, array: npt.NDArray[np.uint8]) -> int:
        return int(array[0])


async def test_what_was_placed_and_not_sent_wakes_who_waits_for_memory() -> None:
    async with two_ends(max_extent_bytes=0) as (left, _):
        placed = left.lender.try_place(packed([numbered(SLAB)]), METHOD)
        assert isinstance(placed, Placed)
        waiting = asyncio.ensure_future(left.lender.place(packed([numbered(5000)]), METHOD, 0))
        await until(lambda: left.lender._waiters, "somebody to wait")
        left.lender.undo(placed)
        await asyncio.wait_for(waiting, 20)


async def test_an_array_that_dies_wakes_who_waits_whoever_looks_in_between() -> None:
    async with two_ends(max_extent_bytes=0) as (left, _):
        array = left.allocate(SLAB)
        waiting = asyncio.ensure_future(left.lender.place(packed([numbered(5000)]), METHOD, 0))
        await until(lambda: left.lender._waiters, "somebody to wait")
        del array
        left.arena.usage()
        left.arena.take(1 << 40, attached=True)
        await asyncio.wait_for(waiting, 20)


async def test_a_peer_that_lies_about_its_records_cannot_fill_the_memory_with_releases() -> None:
    async with two_ends() as (left, right):
        left.send(numbered(1000))
        true_tail = int.from_bytes(right.channel.own.mapping[layout.CURSOR_TAIL : layout.CURSOR_TAIL + 8], "little")
        right.channel.releaser.release(0, 99)
        set_word(right.channel.own, layout.CURSOR_TAIL, 1 << 62)
        left.channel.collect()
        set_word(right.channel.own, layout.CURSOR_TAIL, true_tail)
        for _ in range(SMALL.release_entries - 1):
            right.channel.releaser.release(0, 99)
        with pytest.raises(ProtocolError, match=f"{SMALL.release_entries} leases were released, 1 are out"):
            left.channel.collect()


async def test_a_peer_cannot_take_all_fds_with_small_extents() -> None:
    async with two_ends() as (left, right):
        for number in range(1, MOST_EXTENTS + 2):
            extent = segment.create_extent(PAGE, "memfd")
            extent.commit()
            await left.memory.control.send(Attach(number, PAGE, "memfd"), [extent.fd])
            extent.close()
        await until(lambda: right.broken, "the peer to be found out")
        assert f"attached an extent beside {MOST_EXTENTS}" in str(right.broken[0])


async def test_many_small_blocks_reach_the_limit_of_bytes_before_that_of_extents() -> None:
    async with two_ends(max_extent_bytes=512 * MIB) as (left, _):
        held = []
        for _ in range(1000):
            if left.arena.extent_bytes > 256 * MIB:
                break
            held.append(left.memory.allocate(3 * MIB))
            await until(lambda: all(region.attached for region in left.arena.extents), "the extents")
        assert left.arena.extent_bytes > 256 * MIB
        assert len(left.arena.extents) < MOST_EXTENTS // 2
        del held


async def test_a_release_is_sent_after_the_mapping_was_let_go() -> None:
    async with two_ends(max_extent_bytes=4 * MIB) as (left, right):
        await left.send_when_possible(numbered(4 * MIB))
        arrived = right.receive_arrays()
        waiting = asyncio.ensure_future(left.lender.place(packed([numbered(3 * MIB)]), METHOD, 0))
        await until(lambda: left.lender._waiters, "somebody to wait")
        lingering: list[int] = []

        def rung() -> None:
            """What other threads, and the peer, may do while the doorbell is being rung."""
            left.channel.flush()
            left.memory._extents.detach_idle(1 << 62)
            right.memory.control.read()
            lingering.append(len(right.borrowed._lingering))

        right.channel._ringer._write = rung  # type: ignore[attr-defined]
        arrived.clear()
        assert lingering == [0]
        waiting.cancel()
        await asyncio.wait([waiting])


def test_a_child_is_not_held_up_by_a_thread_of_its_parent_that_was_ringing() -> None:
    bell = doorbell.Doorbell("eventfd")
    ringer = doorbell.open_ringer(os.dup(bell.far_fd), "eventfd")
    over = threading.Event()

    def ring() -> None:
        while not over.is_set():
            ringer.ring()

    thread = threading.Thread(target=ring)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)  # ends a child that hangs
                ringer.forget()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        over.set()
        thread.join()
        ringer.close()
        bell.close()


async def test_a_reply_that_cannot_be_copied_any_more_ends_its_call(path: str) -> None:
    store = Store()
    async with (
        shmrpc.Server(store, at=path, max_extent_bytes=0) as server,
        shmrpc.connect(Stock, path) as stock,
    ):
        held = await stock.ones(300_000)
        waiting = asyncio.ensure_future(stock.shelf())
        (session,) = server._listener.sessions
        await until(lambda: session.memory.lender._waiters, "the reply to wait for room")
        store.kept.extend(b"more")
        del held
        gc.collect()
        with pytest.raises(shmrpc.Internal, match="its result cannot be encoded"):
            await asyncio.wait_for(waiting, 20)
        assert not session.incoming.running
        assert (await stock.ones(9000)).all()


async def test_a_failure_that_waits_for_memory_in_its_turn_ends_with_its_call(path: str) -> None:
    """It takes the place of an answer that waited: a deadline ends this second wait as well."""
    store = Store()
    store.kept = bytearray(50_000)
    async with (
        shmrpc.Server(store, at=path, max_extent_bytes=0) as server,
        shmrpc.connect(Stock, path) as stock,
    ):
        held = [await stock.ones(311_296), await stock.ones(8192)]
        waiting = asyncio.ensure_future(shmrpc.options(stock, timeout=2.0).shelf())
        (session,) = server._listener.sessions
        await until(lambda: session.memory.lender._waiters, "the reply to wait for room")
        store.kept.extend(b"more")
        assert store.call is not None
        store.call.set_trailing_metadata({"why": "x" * 60_000})  # with which its failure needs a block
        first = session.memory.lender._waiters[0]
        held.pop()
        gc.collect()
        await until(lambda: session.memory.lender._waiters not in ([], [first]), "the failure to wait for room")
        with pytest.raises(shmrpc.DeadlineExceeded):
            await waiting
        await until(lambda: not session.incoming.running, "the call to end")
        held.clear()


async def test_callers_in_all_of_anyios_threads_do_not_wait_for_each_other(path: str) -> None:
    async with shmrpc.Server(Store(), at=path), shmrpc.connect(Stock, path) as stock:

        async def call(array: npt.NDArray[np.uint8]) -> int:
            return await shmrpc.options(stock, timeout=20).first(array)

        def work(number: int) -> int:
            return anyio.from_thread.run(call, np.full(1 << 20, number, np.uint8))

        threads = int(anyio.to_thread.current_default_thread_limiter().total_tokens)
        began = time.monotonic()
        numbers = await asyncio.gather(*(anyio.to_thread.run_sync(work, number) for number in range(threads)))
        assert numbers == list(range(threads))
        assert time.monotonic() - began < 20  # else each waited for its deadline


@pytest.mark.parametrize("element", [b"|S0", b"<U0", b"|V0"])
def test_an_array_of_elements_without_bytes_cannot_have_more_of_them_than_can_be_counted(element: bytes) -> None:
    head = buffers.head_of_array(element, (2**62, 2**62), buffers.ROWS_FIRST)
    with pytest.raises(ValueError, match="fits into no memory"):
        arrays._read_head(head)
