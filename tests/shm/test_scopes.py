"""What is left in a scope of anyio's that was cancelled: such a scope cancels again whatever waits, until it is left."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio
import pytest
from life_waiting import until

import shmrpc


class Api(Protocol):
    async def hold(self) -> str: ...
    def items(self) -> AsyncIterator[int]: ...


class Worker(Api):
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.held = 0

    async def hold(self) -> str:
        self.held += 1
        await self.gate.wait()
        return "held"

    async def items(self) -> AsyncIterator[int]:
        yield 1
        await self.gate.wait()


class Told(Protocol):
    async def tell(self) -> None: ...


class Listening(Told):
    """Says whether it was entered and left."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def __aenter__(self) -> "Listening":
        self.steps.append("entered")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.sleep(0)
        self.steps.append("left")

    async def tell(self) -> None:
        """Nothing is done."""


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_connection_is_closed_and_what_it_exposes_is_left(path: str, connections: int) -> None:
    worker, exposed = Worker(), Listening()
    async with shmrpc.Server(worker, at=path) as server:
        with anyio.CancelScope() as scope:
            async with shmrpc.connect(Api, path, connections=connections, exposes=exposed) as api:
                assert server.connections == connections
                asyncio.get_running_loop().call_soon(scope.cancel)
                await api.hold()
        assert scope.cancelled_caught
        await until(lambda: not server.connections, "the server to see the end of the connections")
    assert exposed.steps == ["entered", "left"]


@pytest.mark.parametrize("names", [["absent"], ["", "absent"], ["absent", "absent"]], ids=str)
async def test_what_is_cancelled_while_it_connects_is_closed(path: str, names: list[str]) -> None:
    exposed = Listening()
    async with shmrpc.Server(Worker(), at=path) as server:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.05, scope.cancel)
            async with shmrpc.connect(Api, [f"{path}{name}" for name in names], exposes=exposed, wait=60.0) as api:
                await api.hold()
        assert scope.cancelled_caught
        await until(lambda: not server.connections, "the server to see the end of the connection")
    assert exposed.steps == ["entered", "left"]


async def test_a_server_drains_and_leaves_its_services(path: str) -> None:
    worker, service, scope = Worker(), Listening(), anyio.CancelScope()

    async def serve() -> None:
        with scope:
            await shmrpc.serve(worker, service, at=path, handle_signals=False)

    serving = asyncio.create_task(serve())
    async with shmrpc.connect(Api, path, wait=20.0) as api:
        call = asyncio.create_task(api.hold())
        await until(lambda: worker.held, "the call")
        scope.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(serving), 0.05)  # it is cancelled again and again meanwhile
        worker.gate.set()
        assert await call == "held"
    await serving
    assert service.steps == ["entered", "left"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_an_interceptor_shields_runs_to_its_end(path: str, streamed: bool) -> None:
    steps: list[str] = []

    async def shielding(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await asyncio.sleep(0)
                steps.append("cleaned up")

    async with shmrpc.Server(Worker(), at=path), shmrpc.connect(Api, path, interceptors=[shielding]) as api:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.01, scope.cancel)
            if streamed:
                async for _ in api.items():
                    pass
            else:
                await api.hold()
        assert scope.cancelled_caught
    assert steps == ["cleaned up"]


async def _hold(api: Api) -> None:
    await api.hold()


async def _read_on(api: Api) -> None:
    async for _ in api.items():
        pass


@pytest.mark.parametrize("wait", [_hold, _read_on])
async def test_two_time_limits_that_pass_in_one_turn_of_the_loop_end_the_wait_once(
    path: str, wait: Callable[[Api], Awaitable[None]]
) -> None:
    """anyio cancels a task again unless what it waits for has ended, and takes back as often as it thinks that it did."""

    async def limited(api: Api) -> str:
        asyncio.get_running_loop().call_later(0.02, time.sleep, 0.03)  # both pass meanwhile
        with anyio.move_on_after(0.04):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.03):
                    await wait(api)
            return "the inner one"
        return "the outer one"

    async with shmrpc.Server(Worker(), at=path), shmrpc.connect(Api, path) as api:
        task = asyncio.create_task(limited(api))
        await asyncio.wait([task])
        assert not task.cancelled()
        assert task.result() in ("the inner one", "the outer one")
