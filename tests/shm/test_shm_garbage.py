"""A call leaves nothing for the garbage collector, at either side and however it ends: what it saw goes with its end."""

import asyncio
import gc
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import uvloop
from garbage import uncollected
from life_waiting import until

import shmrpc

Bytes = npt.NDArray[np.uint8]


class NotToday(shmrpc.RpcError):
    """Declared by the contract's module."""


class Service:
    """Its handlers end in every way."""

    nbytes = 2_000_000

    async def length(self, array: Bytes) -> int:
        return len(array)

    async def refuse(self, array: Bytes) -> int:
        raise NotToday("no")

    async def fail(self, array: Bytes) -> int:
        raise ValueError(len(array))

    async def wait(self, array: Bytes) -> int:
        await asyncio.sleep(0.001)
        return len(array)

    async def wait_and_refuse(self, array: Bytes) -> int:
        await asyncio.sleep(0.001)
        raise NotToday("no")

    async def wait_and_fail(self, array: Bytes) -> int:
        await asyncio.sleep(0.001)
        raise ValueError(len(array))

    async def refuse_what_it_got(self, array: Bytes) -> int:
        return await _refused()

    async def wait_for_memory(self, array: Bytes) -> Bytes:
        await asyncio.sleep(0)
        self.nbytes *= 2  # so that no extent that there is has room
        return np.ones(self.nbytes, np.uint8)

    def refuse_in_thread(self, array: Bytes) -> int:
        raise NotToday("no")

    def give_in_thread(self, array: Bytes) -> Bytes:
        return array

    async def misfit(self, array: Bytes) -> int:
        return array  # type: ignore[return-value]

    async def hang(self, array: Bytes) -> int:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def items(self, array: Bytes) -> AsyncIterator[Bytes]:
        for _ in range(3):
            yield array

    async def refuse_after_items(self, array: Bytes) -> AsyncIterator[Bytes]:
        yield array
        raise NotToday("no")

    async def refuse_item(self, parts: AsyncIterator[Bytes]) -> int:
        async for part in parts:
            raise NotToday(str(len(part)))
        return 0


def _refused() -> "asyncio.Future[int]":
    refused: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(refused.set_exception, NotToday("no"))
    return refused


async def _all(items: AsyncIterator[Bytes], most: int = 99) -> None:
    async for _ in items:
        most -= 1
        if not most:
            break


async def _parts(array: Bytes) -> AsyncIterator[Bytes]:
    for _ in range(3):
        yield array


CALLS: Final[dict[str, Callable[[Service, Bytes], Awaitable[object]]]] = {
    **{
        name: lambda stub, array, name=name: getattr(stub, name)(array)  # type: ignore[misc]
        for name, method in vars(Service).items()
        if callable(method) and name not in ("hang", "items", "refuse_after_items", "refuse_item")
    },
    "two answers wait": lambda stub, array: asyncio.gather(stub.wait_for_memory(array), stub.wait_for_memory(array)),
    "late": lambda stub, array: shmrpc.options(stub, timeout=0.01).hang(array),
    "cancelled": lambda stub, array: asyncio.wait_for(stub.hang(array), 0.01),
    "items": lambda stub, array: _all(stub.items(array)),
    "left": lambda stub, array: _all(stub.items(array), 1),
    "refuse_after_items": lambda stub, array: _all(stub.refuse_after_items(array)),
    "refuse_item": lambda stub, array: stub.refuse_item(_parts(array)),
}


async def _garbage_of(name: str, path: str) -> list[Any]:
    async with shmrpc.Server(Service(), at=path) as server, shmrpc.connect(Service, path) as stub:
        sessions: Any = server._listener.sessions

        async def call() -> None:
            with suppress(shmrpc.RpcError, TimeoutError):
                await CALLS[name](stub, np.ones(50_000, np.uint8))
            await until(lambda: not (shmrpc.leases(stub) or server.leases()), "the memory to come home")
            await until(lambda: not any(one.incoming.running for one in sessions), "the handler to end")
            for _ in range(3):
                await asyncio.sleep(0)

        await call()  # what is made once
        with uncollected() as garbage:
            await call()
            await call()
        return garbage


@pytest.mark.parametrize("connections", [1, 2])
async def test_who_waits_for_a_connection_in_vain_gets_an_error_of_its_own_that_keeps_nothing(
    connections: int, path: str
) -> None:
    async def call(seen: list["weakref.ref[Bytes]"]) -> shmrpc.RpcError:
        array = np.ones(50_000, np.uint8)
        seen.append(weakref.ref(array))
        try:
            await stub.length(array)
        except shmrpc.RpcError as error:
            return error
        raise AssertionError("there was a connection")

    seen: list[weakref.ref[Bytes]] = []
    connection = shmrpc.connect(Service, path, connections=connections)
    async with shmrpc.Server(Service(), at=path):
        stub = await connection.__aenter__()
    await until(lambda: shmrpc.peer(stub) is None, "the connection to go")
    gc.collect()
    gc.disable()
    try:
        calls = [asyncio.ensure_future(call(seen)) for _ in range(2)]
        await asyncio.sleep(0)
        await connection.__aexit__(None, None, None)
        one, other = await asyncio.gather(*calls)
        assert one is not other
        assert one.__traceback__ is not other.__traceback__
        del calls, one
        await until(lambda: seen[0]() is None, "the arguments to go")
        del other
        await until(lambda: seen[1]() is None, "the other's arguments to go")
    finally:
        gc.enable()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_nothing_for_the_garbage_collector(
    name: str, loop: Callable[[], asyncio.AbstractEventLoop], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "shmrpc.server")  # else pytest keeps the failure of a handler, and what it saw
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(asyncio.wait_for(_garbage_of(name, path), 30.0)) == []
