"""What waits for an extent when its connection goes, or its caller: closing waits for the thread, and nothing is left."""

import asyncio
import gc
import weakref
import zlib

import numpy as np
import pytest
from buffer_api import MIB, Buffers, Holder, client_playing, numbered, serving
from life_processes import kill
from life_waiting import until
from memories import Gate, reached

import shmrpc


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def ends_with_the_thread(closing: "asyncio.Task[None]", gate: Gate) -> None:
    """Sees a close wait for the thread that makes an extent, and end with it."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    gate.opened.set()
    await closing
    assert not [task for task in asyncio.all_tasks() if "extent" in task.get_name()]


async def test_a_server_is_closed_when_the_last_extent_for_a_client_that_died_is_done(path: str, gate: Gate) -> None:
    serving = shmrpc.Server(Holder(), at=path)
    server = await serving.__aenter__()
    with client_playing(path, "a wait") as client:
        await reached(gate)
        kill(client.process)
        await until(lambda: server.connections == 0, "the death to be noticed")
    await ends_with_the_thread(asyncio.create_task(serving.__aexit__(None, None, None)), gate)


async def test_a_stub_is_closed_when_the_last_extent_for_a_server_that_died_is_done(path: str, gate: Gate) -> None:
    with serving(path) as server:
        connection = shmrpc.connect(Buffers, path, reconnect_timeout=0.05)
        stub = await connection.__aenter__()
        call = asyncio.ensure_future(stub.checksum(numbered(MIB)))
        await reached(gate)
        kill(server)
        with pytest.raises(shmrpc.Unavailable):
            await call
        await ends_with_the_thread(asyncio.create_task(connection.__aexit__(None, None, None)), gate)


@pytest.mark.parametrize("fails", [False, True], ids=["made again", "never made again"])
async def test_an_array_that_waited_when_its_server_died_goes_at_once(path: str, gate: Gate, fails: bool) -> None:
    """Without a run of the garbage collector, whether the call is made again or its error raised."""
    gc.collect()
    gc.disable()
    try:
        with serving(path) as server:
            async with shmrpc.connect(Buffers, path, reconnect_timeout=0.05 if fails else 60.0) as stub:
                array = shmrpc.empty(MIB, np.uint8, to=stub)
                array[:] = 7
                seen = weakref.ref(array)
                call = asyncio.ensure_future(stub.checksum(array))
                del array
                await reached(gate)
                kill(server)
                if fails:
                    with pytest.raises(shmrpc.Unavailable):
                        await call
                else:
                    with serving(path):
                        gate.opened.set()
                        assert await call == zlib.crc32(b"\7" * MIB)
                del call
                await until(lambda: seen() is None, "the array to go")
                gate.opened.set()
    finally:
        gc.enable()


async def test_an_answer_that_is_cancelled_before_it_waits_for_its_extent_goes_at_once(path: str, gate: Gate) -> None:
    async with shmrpc.Server(Holder(), at=path) as server, shmrpc.connect(Buffers, path) as stub:
        assert await stub.small(1) == 1
        gc.collect()
        gc.disable()
        try:
            call = asyncio.ensure_future(stub.give_born(MIB, 7))
            await asyncio.sleep(0)  # it is sent; the server takes it in the same turn as its cancellation
            call.cancel()
            await reached(gate)
            await until(lambda: not shmrpc.leases(server), "the answer to go, without a garbage collection")
        finally:
            gc.enable()
            gate.opened.set()
