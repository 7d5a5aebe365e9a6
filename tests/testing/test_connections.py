"""Memory of a client that is taken on purpose. Connections that break are met in the tests of faults."""

import asyncio

import numpy as np
import pytest
from faulty_api import Shop, ShopService

import shmrpc
from shmrpc.testing import Faults, all_released, exhausted, pair
from shmrpc.testing.connections import drop

IMAGE = np.ones(100_000, np.uint8)


async def test_large_arguments_find_no_memory_until_the_block_ends() -> None:
    faults = Faults()
    async with pair(Shop, ShopService(), faults=faults, max_extent_bytes=8 << 20) as shop:
        async with exhausted(shop):
            with pytest.raises(shmrpc.ResourceExhausted, match=r"no room for 97\.68 KiB .* \(max_extent_bytes\)"):
                await shmrpc.options(shop, timeout=0.1).copy(IMAGE)
            assert await shop.add(1) == 2
        assert (await shop.copy(IMAGE) == 1).all()


async def test_what_is_still_out_of_calls_before_is_waited_for_and_taken_too() -> None:
    service = ShopService()
    async with pair(Shop, service, max_extent_bytes=0) as shop:
        await shop.keep(IMAGE)
        asyncio.get_running_loop().call_later(0.05, service.kept.clear)
        async with exhausted(shop):
            assert service.kept == []
            with pytest.raises(shmrpc.ResourceExhausted):
                await shmrpc.options(shop, timeout=0.2).copy(IMAGE)


async def test_memory_that_the_server_keeps_does_not_hold_it_up_for_ever() -> None:
    async with pair(Shop, ShopService(), max_extent_bytes=0) as shop:
        await shop.keep(IMAGE)
        async with exhausted(shop):
            with pytest.raises(shmrpc.ResourceExhausted, match=r"holds 97\.66 KiB in 1 block of Shop\.keep"):
                await shmrpc.options(shop, timeout=0.01).copy(IMAGE)


async def test_so_much_memory_is_not_taken() -> None:
    async with pair(Shop, ShopService()) as shop:
        with pytest.raises(shmrpc.RpcError, match="all memory is 1024 MiB, which is too much to take") as caught:
            async with exhausted(shop):
                raise AssertionError("it was taken")
    assert caught.value.code is shmrpc.Code.FAILED_PRECONDITION


async def test_memory_of_one_process_has_no_limit_to_be_reached() -> None:
    async with shmrpc.local(Shop, ShopService()) as shop:
        with pytest.raises(shmrpc.RpcError, match="no limit to the memory here"):
            async with exhausted(shop):
                raise AssertionError("it was taken")


async def test_without_a_connection_there_is_no_memory_to_take() -> None:
    both = pair(Shop, ShopService())
    async with both as shop:
        await both.server.drain()
        await all_released(both.server)
        with pytest.raises(shmrpc.Unavailable, match="no connection now whose memory could be taken"):
            while True:  # until the client has noticed
                async with exhausted(shop):
                    raise AssertionError("it was taken")


async def test_only_a_stub_has_memory_to_take() -> None:
    with pytest.raises(TypeError, match="expected a stub"):
        async with exhausted(ShopService()):
            raise AssertionError("it was taken")


async def test_a_call_of_an_unknown_kind_cannot_be_dropped() -> None:
    with pytest.raises(TypeError, match="object has no connection that could be dropped"):
        await drop(object())  # type: ignore[arg-type]
