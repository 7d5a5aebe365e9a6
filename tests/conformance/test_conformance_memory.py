"""Memory that is born to be passed, and what may be done with arrays after the call. Stated once, for every transport."""

import asyncio
import gc
import threading
from typing import Any, cast

import numpy as np
import pytest
from conformance_arrays import Arrays, ArrayThreads, Pixels
from conformance_checks import SIZES, assert_same, numbers
from conformance_transports import Transport, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

# What was born to be passed


@on_every_transport
async def test_an_array_can_be_born_for_its_receiver(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for shape in (0, 5, (10_000,), (300, 200, 3), (1000, 1000, 3), ()):
            for order in ("C", "F"):
                born = shmrpc.empty(shape, np.uint8, to=arrays, order=cast(Any, order))
                assert (born.shape, born.dtype) == (np.empty(shape).shape, np.dtype(np.uint8))
                assert born.flags.writeable
                assert born.flags.c_contiguous if order == "C" else born.flags.f_contiguous
                born[...] = 7
                back = await arrays.pixels(born)
                assert_same(back, born, shape)
                if born.nbytes > 8_000:
                    assert np.shares_memory(back, born)
        for dtype in (np.float64, ">i2", [("a", "u1"), ("b", "<f8")], "M8[s]"):
            records = shmrpc.empty((5000, 2), dtype, to=arrays)
            records[...] = np.zeros((), dtype)
            assert_same(await arrays.anything(records), records, dtype)
        default = shmrpc.empty(3, to=arrays)
        assert default.dtype == np.float64


@on_every_transport
async def test_parts_of_what_was_born_go_as_they_are(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        born = shmrpc.empty((400, 500), np.uint8, to=arrays)
        born[...] = numbers(200_000).reshape(400, 500)
        for part in (born[100:300], born[3:], born.reshape(-1)[7:70_000], born.ravel()[50_000:]):
            back = await arrays.pixels(part)
            assert_same(back, part, part.shape)
            assert np.shares_memory(back, born)
        for part in (born[::2], born[:, 5:400], born.T[::-1]):
            assert_same(await arrays.pixels(part), part, part.shape)
        assert_same(await arrays.pixels(born.T), born.T, "turned")


@on_every_transport
async def test_memory_can_be_born_as_bytes(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in (0, *SIZES):
            memory = shmrpc.buffer(count, to=arrays)
            assert (memory.nbytes, memory.format, memory.readonly) == (count, "B", False)
            memory[:] = numbers(count).tobytes()
            assert await arrays.view(memory) == memory
            assert await arrays.text(cast(Any, memory)) == memory.tobytes()
            assert_same(await arrays.pixels(cast(Any, memory)), numbers(count), count)


@on_every_transport
async def test_a_handler_can_let_its_result_be_born_on_its_way(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays, transport.connect(ArrayThreads) as threads:
        for count in SIZES:
            for give in (arrays.born, arrays.born_late, threads.born):
                assert_same(await give(count, 7), np.full(count, 7, np.uint8), count)
            assert_same(await arrays.born_part(count, 3, count - 2), numbers(count)[3:-2], count)
            assert await arrays.born_buffer(count, 7) == b"\7" * count
            assert_same(await threads.turned(cast(Pixels, numbers(count))), numbers(count)[::-1], count)


@on_every_transport
async def test_memory_cannot_be_born_for_nobody(transport: Transport) -> None:
    with pytest.raises(RuntimeError, match="say to=stub"):
        shmrpc.empty(3)
    with pytest.raises(RuntimeError, match="say to=stub"):
        shmrpc.buffer(3)
    async with transport.connect(Arrays) as arrays:
        with pytest.raises(TypeError, match="expected a stub"):
            shmrpc.empty(3, to="somebody")
        with pytest.raises(TypeError):
            shmrpc.empty(3, object, to=arrays)
        with pytest.raises(ValueError, match="negative"):
            shmrpc.empty((3, -1), to=arrays)
        with pytest.raises(ValueError, match="negative"):
            shmrpc.buffer(-1, to=arrays)
    with pytest.raises(shmrpc.Closed):
        shmrpc.empty(3, to=arrays)


# What may be done with it afterwards


@on_every_transport
async def test_a_handler_may_keep_its_argument_and_give_it_back_later(transport: Transport, key: str) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in SIZES:
            sent = cast(Pixels, numbers(count))
            await arrays.keep(key, sent)
            gc.collect()
            assert await arrays.kept(key) == [0]
            assert_same(await arrays.forget(key), sent, count)


@on_every_transport
async def test_an_array_that_was_copied_may_be_changed_after_the_call(transport: Transport, key: str) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in SIZES:
            sent = np.full(count, 1, np.uint8)
            await arrays.keep(key, sent)
            sent[:] = 2
            assert await arrays.kept(key) == [1]
            await arrays.forget(key)


@on_every_transport
async def test_an_array_that_was_born_is_shared_after_the_call(transport: Transport, key: str) -> None:
    async with transport.connect(Arrays) as arrays:
        born = shmrpc.empty(100_000, np.uint8, to=arrays)
        born[:] = 1
        await arrays.keep(key, born)
        born[:] = 2
        assert await arrays.kept(key) == [2]
        back = await arrays.forget(key)
        mine = back.copy()
        born[:] = 3
        assert (back == 3).all()
        assert (mine == 2).all()
        mine[:] = 4
        assert mine.flags.writeable


@on_every_transport
async def test_what_arrived_outlives_the_connection(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        results = [await arrays.born(count, 7) for count in SIZES]
        born = shmrpc.empty(100_000, np.uint8, to=arrays)
        results.append(await arrays.pixels(born))
    born[:] = 8
    assert all((result == 7).all() for result in results[:-1])
    assert (results[-1] == 8).all()


@on_every_transport
async def test_what_arrived_may_go_out_again(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in SIZES:
            result = await arrays.born(count, 7)
            for _ in range(3):
                result = await arrays.pixels(result)
            assert_same(result, np.full(count, 7, np.uint8), count)
            assert_same((await arrays.several(result, result[1:]))[1], result[1:], count)


@on_every_transport
async def test_results_may_die_on_other_threads(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for _ in range(20):
            boxes = [[await arrays.born(100_000, 7)] for _ in range(5)]
            threads = [threading.Thread(target=box.clear) for box in boxes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert await arrays.text(b"alive") == b"alive"


@on_every_transport
async def test_many_calls_at_once_each_get_their_own_arrays(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:

        async def call(caller: int) -> None:
            for turn in range(5):
                sent = np.full(20_000 * (1 + (caller + turn) % 7), caller, np.uint8)
                assert_same(await arrays.pixels(sent), sent, caller)

        await asyncio.gather(*map(call, range(40)))


@on_every_transport
async def test_it_can_be_seen_who_holds_what(transport: Transport, key: str) -> None:
    async with transport.connect(Arrays) as arrays:
        assert shmrpc.leases(arrays) == []
        born = shmrpc.empty(50_000, np.uint8, to=arrays)
        await arrays.keep(key, cast(Pixels, numbers(100_000)))
        await arrays.keep(key, cast(Pixels, numbers(20_000)))
        keeping, making = shmrpc.leases(arrays)
        assert (keeping.method, keeping.blocks, keeping.nbytes) == ("Arrays.keep", 2, 120_000)
        assert keeping.holder == shmrpc.peer(arrays)
        assert (making.method, making.blocks, making.nbytes, making.holder) == ("", 1, 50_000, None)
        assert 0 <= making.age < 60
        del born
        await arrays.forget(key)
        async with asyncio.timeout(20):
            while shmrpc.leases(arrays):
                gc.collect()
                await arrays.text(b"")
