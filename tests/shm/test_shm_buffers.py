"""Buffers between real processes: what arrives can be read as long as it is seen, whatever becomes of its sender."""

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from buffer_api import KIB, MIB, Buffers, Bytes, Pair, client_playing, numbered, pair, serving
from life_processes import kill
from life_waiting import until

import shmrpc

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@pytest.fixture
async def both(path: str) -> AsyncIterator[Pair]:
    async with pair(path) as scene:
        yield scene


# How long it can be read


@pytest.mark.parametrize("nbytes", [100 * KIB, 5 * MIB])
@pytest.mark.parametrize("method", ["give", "give_born"])
async def test_a_result_can_be_read_after_the_connection_was_closed(path: str, method: str, nbytes: int) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            result: Bytes = await getattr(stub, method)(nbytes, 7)
        kill(server)
        assert (result == np.full(nbytes, 7, np.uint8)).all()
        assert not result.flags.writeable


@pytest.mark.parametrize("nbytes", [100 * KIB, 5 * MIB])
async def test_a_result_can_be_read_after_its_server_was_killed(path: str, nbytes: int) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            results = [await stub.give_born(nbytes, number) for number in range(3)]
            kill(server)
            await until(lambda: shmrpc.peer(stub) is None, "the client to notice")
            for number, result in enumerate(results):
                assert (result == number).all()
            results.pop()
            with serving(path):  # those that are left do not disturb the next session
                assert await stub.first(numbered(nbytes, 3)) == 3
                assert all((result == number).all() for number, result in enumerate(results))


@pytest.mark.parametrize("nbytes", [100 * KIB, 5 * MIB])
async def test_arguments_can_be_read_after_their_client_was_killed(path: str, nbytes: int) -> None:
    async with pair(path) as here:
        with client_playing(path, "a wait") as client:
            assert await client.hear() == "ready"
            (kept,) = here.holder.arrays
            kill(client.process)
            await until(lambda: here.server.connections == 1, "the server to notice")
            assert (kept == 8).all()
            del kept
        here.holder.arrays.clear()
        await here.at_home()


async def test_what_a_sender_kept_and_its_receiver_sees_is_one_memory(both: Pair) -> None:
    """Documented: the sender may go on writing, and the receiver sees it."""
    array = shmrpc.empty(100 * KIB, np.uint8, to=both.stub)
    array[:] = 1
    await both.stub.keep(array)
    safe = both.holder.arrays[0].copy()
    array[:] = 2
    assert await both.stub.kept() == [2]
    assert (safe == 1).all()
    assert safe.flags.writeable


async def test_an_array_that_was_copied_on_its_way_is_the_senders_own_again(both: Pair) -> None:
    array = numbered(100 * KIB, 1)
    await both.stub.keep(array)
    array[:] = 9
    assert await both.stub.kept() == [1]


async def test_what_came_back_is_the_memory_that_was_sent(both: Pair) -> None:
    array = shmrpc.empty(100 * KIB, np.uint8, to=both.stub)
    array[:] = 5
    back = await both.stub.echo(array)
    assert np.shares_memory(back, array)
    assert not back.flags.writeable
    part = await both.stub.echo(array[1000 : 50 * KIB])
    assert np.shares_memory(part, array[1000 : 50 * KIB])
    assert part.ctypes.data == array.ctypes.data + 1000
    again = await both.stub.echo(back)  # and what came back can go out again
    assert np.shares_memory(again, array)
    del back, part, again, array
    await both.at_home()


async def test_an_array_that_came_back_keeps_its_block_without_the_one_that_was_sent(both: Pair) -> None:
    array = shmrpc.empty(100 * KIB, np.uint8, to=both.stub)
    array[:] = 5
    back = await both.stub.echo(array)
    del array
    other = shmrpc.empty(100 * KIB, np.uint8, to=both.stub)
    other[:] = 6
    assert not np.shares_memory(back, other)
    assert (back == 5).all()


async def test_an_array_of_the_heap_comes_back_from_the_one_copy_that_was_made(both: Pair) -> None:
    """The copy lies in the memory of this side."""
    before = both.arenas[0].base.free_bytes
    back = await both.stub.echo(numbered(100 * KIB))
    assert (back == numbered(100 * KIB)).all()
    assert both.arenas[0].base.free_bytes == before  # the server's
    assert both.arenas[1].base.free_bytes == both.arenas[1].base.nbytes - 100 * KIB


async def test_a_result_that_is_sent_on_goes_back_by_reference(both: Pair) -> None:
    result = await both.stub.give(100 * KIB, 3)
    before = both.arenas[1].base.free_bytes
    assert await both.stub.first(result) == 3
    await both.stub.keep(result[500:])
    assert both.arenas[1].base.free_bytes == before  # the client's: nothing was copied
    assert both.holder.arrays[0].nbytes == 100 * KIB - 500
    both.holder.arrays.clear()
    del result
    await both.at_home()


async def test_an_array_of_another_connection_is_copied(both: Pair, path: str) -> None:
    async with shmrpc.connect(Buffers, path) as other:
        array = shmrpc.empty(100 * KIB, np.uint8, to=other)
        array[:] = 4
        result = await other.give(100 * KIB, 5)
        await both.stub.keep(array)
        await both.stub.keep(result)
        array[:] = 0
        assert await both.stub.kept() == [4, 5]
        del array, result
        await until(lambda: shmrpc.leases(other) == [], "the other's to be free")


async def test_an_array_that_was_born_for_a_session_that_is_gone_is_copied_to_the_next(path: str) -> None:
    with serving(path) as first:
        async with shmrpc.connect(Buffers, path) as stub:
            array = shmrpc.empty(5 * MIB, np.uint8, to=stub)
            array[:] = numbered(5 * MIB)
            assert await stub.first(array) == 0
            result = await stub.give(100 * KIB, 9)
            kill(first)
            with serving(path):
                back = await stub.echo(array)
                assert (back == array).all()
                assert not np.shares_memory(back, array)
                assert (await stub.echo(result) == 9).all()
                array[:] = 1  # and it can still be written
                assert await stub.first(array) == 1
                del back
                await until(lambda: shmrpc.leases(stub) == [], "all blocks to come home")


# Where and when it dies


async def test_the_last_reference_may_die_on_any_thread(both: Pair) -> None:
    results = [[await both.stub.give(20 * KIB, number)] for number in range(10)]
    assert sum(lease.blocks for lease in both.lent) == 10

    def let_go(box: list[Bytes]) -> None:
        box.clear()

    threads = [threading.Thread(target=let_go, args=(box,)) for box in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await both.at_home()


async def test_arguments_may_die_on_any_thread_too(both: Pair) -> None:
    for number in range(10):
        await both.stub.keep(numbered(20 * KIB, number))
    thread = threading.Thread(target=both.holder.arrays.clear)
    thread.start()
    thread.join()
    await both.at_home()


async def test_arrays_that_are_born_may_die_on_any_thread(both: Pair) -> None:
    boxes = [[shmrpc.empty(20 * KIB, np.uint8, to=both.stub)] for _ in range(10)]
    (lease,) = both.lent
    assert (lease.method, lease.holder, lease.blocks, lease.nbytes) == ("", None, 10, 200 * KIB)
    threads = [threading.Thread(target=box.clear) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    await both.at_home()


async def test_the_last_reference_may_die_in_a_garbage_cycle(both: Pair) -> None:
    result = await both.stub.give(100 * KIB, 7)
    await both.stub.keep(numbered(100 * KIB))
    gc.disable()
    try:
        for array in (result, shmrpc.empty(100 * KIB, np.uint8, to=both.stub), both.holder.arrays.pop()):
            knot: list[Any] = [array]
            knot.append(knot)
        del result, array, knot
        assert sum(lease.blocks for lease in both.lent) == 3
    finally:
        gc.enable()
    gc.collect()
    await both.at_home()


async def test_whatever_sees_a_part_of_it_keeps_the_whole(both: Pair) -> None:
    result = await both.stub.give(100 * KIB, 7)
    anything: Any = result
    parts: list[Any] = [result[100:200], result.reshape(-1, KIB)[3], memoryview(anything)[5:], result[::2]]
    del result, anything
    while parts:
        assert [lease.nbytes for lease in both.lent] == [100 * KIB]
        assert parts[0][0] == 7
        parts.pop(0)
    await both.at_home()


async def test_leases_end_in_any_order(both: Pair) -> None:
    choose = random.Random(5)
    results = [await both.stub.give(choose.randint(9, 40) * KIB, number) for number in range(60)]
    numbers = list(range(60))
    while results:
        at = choose.randrange(len(results))
        assert (results[at] == numbers[at]).all()
        del results[at], numbers[at]
    await both.at_home()


@pytest.mark.parametrize("part", ["a global", "a knot", "a finalizer", "a thread", "an exit", "nothing"])
async def test_arrays_may_outlive_the_interpreter_that_sees_them(path: str, part: str) -> None:
    async with pair(path) as here:
        with client_playing(path, part) as client:
            out, err = await asyncio.to_thread(client.process.communicate)
            assert (client.process.returncode, err.decode()) == (0, "")
            assert out == (b"" if part == "an exit" else b"done\n")
        await until(lambda: here.server.connections == 1, "the connection to end")
        assert (here.holder.arrays[0] == 8).all()
        here.holder.arrays.clear()
        await here.at_home()


def log_of(path: str) -> str:
    return Path(f"{path}.log").read_text()


async def test_a_server_that_ends_with_arrays_in_its_hands_ends_well(path: str) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            result = await stub.give_born(5 * MIB, 7)
            await stub.keep(shmrpc.empty(5 * MIB, np.uint8, to=stub))
            await stub.keep(result)
            server.terminate()
            assert await asyncio.to_thread(server.wait) == 0
            assert (result == 7).all()
    log = log_of(path)
    assert "Traceback" not in log
    assert "cut" not in log
