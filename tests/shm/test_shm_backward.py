"""Calls from a server to its client between processes: deaths on either side, and clients that do not fit."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import life_processes
import pytest
from backward_api import Door, House
from life_waiting import PATIENCE, until

import shmrpc


class Visits(House):
    """Does with each visitor's door what a test says."""

    def __init__(self, act: Callable[[Door], Awaitable[object]]) -> None:
        self.act = act
        self.outcomes: list[object] = []

    async def visit(self) -> None:
        try:
            self.outcomes.append(await self.act(shmrpc.current_call().client(Door)))
        except BaseException as error:
            self.outcomes.append(error)
            raise


@asynccontextmanager
async def visitor(path: str) -> AsyncIterator[asyncio.subprocess.Process]:
    script = str(life_processes.HERE / "backward_client.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", script, path),
        env={**os.environ, "PYTHONPATH": str(life_processes.ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipe is closed some time later


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await process.stdout.readline()).decode().strip()


async def test_the_call_goes_to_the_clients_process(path: str) -> None:
    visits = Visits(lambda door: door.knock("Ada"))
    async with shmrpc.Server(visits, at=path), visitor(path) as process:
        assert await line(process) == "knock Ada"
        assert await process.wait() == 0
        assert visits.outcomes == ["welcome Ada"]


async def test_a_client_that_is_killed_in_a_call_of_the_servers_ends_it(path: str) -> None:
    visits = Visits(lambda door: door.wait_outside())
    async with shmrpc.Server(visits, at=path) as server, visitor(path) as process:
        assert await line(process) == "waiting"
        process.kill()
        await until(lambda: bool(visits.outcomes), "the handler to hear of it")
        (outcome,) = visits.outcomes
        # The death cancels the handler, and ends the call that it waits for; either may come first.
        assert isinstance(outcome, (shmrpc.ConnectionLost, asyncio.CancelledError))
        await until(lambda: server.connections == 0, "the connection to go")


async def test_a_server_that_goes_cancels_what_it_called(path: str) -> None:
    visits = Visits(lambda door: door.wait_outside())
    async with visitor_of(path, visits) as process:
        assert await line(process) == "left"
        assert await line(process) == "Unavailable"


@asynccontextmanager
async def visitor_of(path: str, visits: Visits) -> AsyncIterator[asyncio.subprocess.Process]:
    """A visitor whose server has gone while it waited outside."""
    async with shmrpc.Server(visits, at=path, grace=0.1) as server, visitor(path) as process:
        assert await line(process) == "waiting"
        await server.drain()
        yield process


async def test_a_stub_that_outlives_its_connection_says_so(path: str) -> None:
    kept: list[Door] = []

    async def keep(door: Door) -> None:
        kept.append(door)

    async with shmrpc.Server(Visits(keep), at=path) as server:
        async with visitor(path) as process:
            assert await process.wait() == 0
        await until(lambda: server.connections == 0, "the connection to go")
        with pytest.raises(shmrpc.ConnectionLost, match=r"Door.knock was not sent: the peer pid \d+ .*"):
            await kept[0].knock("late")


async def test_a_client_whose_contract_does_not_fit_is_told_apart(path: str) -> None:
    class Else:
        async def knock(self, who: int) -> str:
            return str(who)

    Else.__name__ = "Door"
    visits = Visits(lambda door: door.knock("Ada"))
    async with (
        shmrpc.Server(visits, at=path),
        shmrpc.connect(House, path, exposes=Else()) as house,
    ):
        why = r"parameter 'who' is sent as str.*the client has"
        with pytest.raises(
            shmrpc.RpcError, match=rf"(?s)Door at the client pid .* not what the server expects:.*{why}"
        ):
            await house.visit()
        assert isinstance(visits.outcomes[0], shmrpc.ContractMismatch)


async def test_a_client_that_is_older_than_its_server_is_said_to_be(path: str) -> None:
    class Door(Protocol):
        async def knock(self, who: str, times: int = 1) -> str: ...
        async def ring(self) -> None: ...

    class Older:
        async def knock(self, who: str) -> str:
            return who

    Older.__name__ = "Door"

    class Visiting:
        async def visit(self) -> list[str]:
            door = shmrpc.current_call().client(Door)
            answers = [await door.knock("Ada")]
            calls: list[Callable[[], Awaitable[Any]]] = [door.ring, partial(door.knock, "Ada", 2)]
            for call in calls:
                try:
                    await call()
                except shmrpc.RpcError as error:
                    answers.append(str(error))
            return answers

    async with shmrpc.Server(Visiting(), at=path), shmrpc.connect(Visiting, path, exposes=Older()) as visiting:
        ada, ring, knock = await visiting.visit()
        assert ada == "Ada"
        assert re.fullmatch(r"the client pid .* has no method Door\.ring; it is older than this side", ring)
        assert re.search(r"2 arguments were given, the client pid .* takes 1; it is older than this side", knock)


async def test_a_client_that_exposes_nothing_cannot_be_called_by_a_server_that_lies(path: str) -> None:
    """A request to a client that takes none ends the connection, and nothing else."""
    visits = Visits(lambda door: door.knock("Ada"))
    async with shmrpc.Server(visits, at=path) as server, shmrpc.connect(House, path) as house:
        await asyncio.sleep(0)
        (session,) = server._listener.sessions
        session.channel.send(1, 0, 0, 1, 0, b"\x90")
        with pytest.raises(shmrpc.RpcError):
            await shmrpc.options(house, timeout=1.0).visit()
