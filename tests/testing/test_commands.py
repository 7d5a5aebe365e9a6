"""What is run in a server process for tests, and what cannot be."""

import asyncio
import os
import signal
from typing import Any, cast

import numpy as np
import pytest
from faulty_api import NoSuchItem, Shop, ShopService

import shmrpc
from shmrpc.shm.layout import Geometry
from shmrpc.testing import Faults, command, process


async def test_any_setting_can_be_given(path: str) -> None:
    server = process(
        ShopService,
        at=path,
        loop="asyncio",
        grace=0.5,
        mode=0o660,
        max_extent_bytes=0,
        geometry=Geometry(slab_bytes=128 << 10),
        allow_uids={0, 12345},
        allow_gids=frozenset({54321}),
    )
    with server:
        assert server.address == path
        assert os.stat(path).st_mode & 0o777 == 0o660
        async with shmrpc.connect(Shop, path, timeout=0.1) as shop:
            with pytest.raises(shmrpc.ResourceExhausted, match=r"may have 128 KiB \(max_extent_bytes"):
                await shop.copy(np.zeros(200_000, np.uint8))


def test_a_setting_that_there_is_not_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="there is no setting 'speed'"):
        process(ShopService, speed=3)


def test_a_class_that_cannot_be_imported_there_is_refused() -> None:
    class Hidden(ShopService):
        pass

    with pytest.raises(ValueError, match=r"<locals>\.Hidden cannot be imported in another process"):
        process(Hidden)
    with pytest.raises(ValueError, match="name at least one service"):
        process()


@pytest.mark.parametrize("at", ["start", "end"])
async def test_faults_go_with_it_and_a_drop_kills_it(at: str) -> None:
    faults = Faults()
    faults.delay("wait", 60)
    faults.fail("count", shmrpc.PermissionDenied("not today"))
    faults.drop("add", at="end" if at == "end" else "start")
    with process(ShopService, faults=faults) as server:
        async with shmrpc.connect(Shop, server.address, reconnect_timeout=0) as shop:
            waiting = asyncio.ensure_future(shop.wait())
            with pytest.raises(shmrpc.PermissionDenied, match="not today"):
                await anext(aiter(shop.count(3)))
            with pytest.raises(shmrpc.ConnectionLost, match=r"Shop\.add was under way there") as caught:
                await shop.add(1)
            assert caught.value.maybe_executed
            with pytest.raises(shmrpc.ConnectionLost):
                await waiting
        assert await server.wait_async() == -signal.SIGKILL


async def test_a_stream_of_a_process_that_dies_gives_the_items_before() -> None:
    faults = Faults()
    faults.drop("count", at=2)
    with process(ShopService, faults=faults) as server:
        async with shmrpc.connect(Shop, server.address) as shop:
            seen = []
            with pytest.raises(shmrpc.ConnectionLost):
                async for number in shop.count(5):
                    seen.append(number)
    assert seen == [0, 1]


def test_an_object_of_this_process_is_refused_with_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"pass the class, ShopService, or a text like 'worker:ShopService', not <"):
        process(cast(Any, ShopService()))


def test_faults_that_cannot_go_there_are_refused() -> None:
    faults = Faults()
    faults.fail("add", NoSuchItem("x"))
    with pytest.raises(ValueError, match="cannot be put into another process"):
        process(ShopService, faults=faults)


def test_a_fault_of_no_method_ends_it_with_a_reason() -> None:
    faults = Faults()
    faults.delay("ad", 1)
    with pytest.raises(RuntimeError, match="ValueError: no method matches 'ad'"):
        with process(ShopService, faults=faults):
            pass


async def test_a_command_is_run_as_it_is_given(path: str) -> None:
    server = command("shmrpc", "serve", "faulty_api:ShopService", "--at", "{path}", at=path, env={"COLUMNS": "80"})
    with server:
        assert server.address == path
        async with shmrpc.connect(Shop, path) as shop:
            assert await shop.pid() == server.pid
