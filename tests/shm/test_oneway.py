"""What becomes of one-way calls whose callers have gone."""

import asyncio
import logging
from typing import Protocol

import pytest
from life_waiting import until

import shmrpc


class Notes(Protocol):
    @shmrpc.oneway
    async def note(self) -> None: ...
    async def tidy_up(self) -> None: ...
    async def ask_back(self) -> None: ...


class Keeper(Notes):
    """Notes until it is told to stop, or is cancelled."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.ends: list[str] = []
        self.open = False
        self.callers_left: list[bool] = []

    async def __aenter__(self) -> "Keeper":
        self.open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.open = False

    async def note(self) -> None:
        self.running += 1
        call = shmrpc.current_call()
        try:
            await self.gate.wait()
            self.callers_left.append(call.cancelled)
            self.ends.append("done")
        except asyncio.CancelledError:
            self.ends.append(f"cancelled while {'open' if self.open else 'closed'}")
            raise
        finally:
            self.running -= 1

    async def tidy_up(self) -> None:
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            await self.gate.wait()
            self.running -= 1

    async def ask_back(self) -> None:
        await shmrpc.current_call().client(Notes).note()


@pytest.fixture
async def keeper() -> Keeper:
    return Keeper()


async def leave_a_note(path: str, keeper: Keeper, timeout: float | None = None) -> None:
    before = keeper.running
    async with shmrpc.connect(Notes, path, timeout=timeout) as notes:
        await notes.note()
        await until(lambda: keeper.running > before, "the handler")


async def test_they_run_on(path: str, keeper: Keeper) -> None:
    async with shmrpc.Server(keeper, at=path) as server:
        await leave_a_note(path, keeper)
        await until(lambda: not server.connections, "the end of the connection")
        assert keeper.running == 1
        keeper.gate.set()
        await until(lambda: keeper.ends, "the end of the handler")
        assert keeper.ends == ["done"]
        assert keeper.callers_left == [False], "nobody ever waited for it"


async def test_they_have_their_deadlines(path: str, keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    async with shmrpc.Server(keeper, at=path) as server:
        await leave_a_note(path, keeper, timeout=0.3)
        await until(lambda: not server.connections, "the end of the connection")
        await until(lambda: keeper.ends, "the deadline")
        assert keeper.ends == ["cancelled while open"]
    text = "Notes.note failed, and is one-way, so that nobody is told: Notes.note did not end before its deadline"
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, text)]


async def test_a_server_cancels_them_at_the_end_of_its_grace_time(path: str, keeper: Keeper) -> None:
    async with shmrpc.Server(keeper, at=path, grace=0.05) as server:
        await leave_a_note(path, keeper)
        await until(lambda: not server.connections, "the end of the connection")
    assert keeper.ends == ["cancelled while open"]
    assert not keeper.running


async def test_a_client_that_closes_cancels_those_that_it_was_asked_for(path: str, keeper: Keeper) -> None:
    server = Keeper()
    async with shmrpc.Server(server, at=path), shmrpc.connect(Notes, path, exposes=keeper) as notes:
        await notes.ask_back()
        await until(lambda: keeper.running, "the handler at the client")
    assert keeper.ends == ["cancelled while open"]
    assert not keeper.running


async def test_the_connections_that_they_came_by_count_until_they_have_ended(path: str, keeper: Keeper) -> None:
    """Else one who connects again and again has any number of them run at once."""
    async with shmrpc.Server(keeper, at=path, max_connections=3) as server:
        for _ in range(3):
            await leave_a_note(path, keeper)
        await until(lambda: not server.connections, "the end of the connections")
        text = "the limit .max_connections.; 3 of them have ended, and their one-way calls still run"
        with pytest.raises(shmrpc.HandshakeError, match=text):
            await leave_a_note(path, keeper)
        keeper.gate.set()
        await until(lambda: not keeper.running, "their ends")
        keeper.gate.clear()
        await leave_a_note(path, keeper)
        keeper.gate.set()


async def test_no_other_call_counts_when_its_caller_has_gone(path: str, keeper: Keeper) -> None:
    """Its handler was cancelled, and ends when it likes; a client that comes again has nothing to do with it."""
    async with shmrpc.Server(keeper, at=path, max_connections=1) as server:
        async with shmrpc.connect(Notes, path) as notes:
            call = asyncio.ensure_future(notes.tidy_up())
            await until(lambda: keeper.running, "the handler")
        with pytest.raises(shmrpc.Closed):
            await call
        await until(lambda: not server.connections, "the end of the connection")
        assert keeper.running
        async with shmrpc.connect(Notes, path):
            keeper.gate.set()
        await until(lambda: not keeper.running, "the end of the handler")
