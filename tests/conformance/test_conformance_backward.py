"""Calls from a server's handler to its client, over the same connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType

import numpy as np
import pytest
from conformance_backward import Bytes, Desk, Front, NotHere
from conformance_transports import Transport, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]


class DeskService(Desk):
    """What the client exposes; an async context manager that notes when it is entered and left."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.cancelled = asyncio.Event()

    async def __aenter__(self) -> "DeskService":
        self.notes.append("entered")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.notes.append("left")

    async def ask(self, question: str) -> str:
        self.notes.append(question)
        return f"{question}? {shmrpc.current_call().peer.pid}"

    async def negate(self, array: Bytes) -> Bytes:
        return 255 - array

    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def refuse(self) -> None:
        raise NotHere("desk")

    async def hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def deadline(self) -> float | None:
        return shmrpc.current_call().deadline


@on_every_transport
async def test_a_handler_may_call_its_client(transport: Transport) -> None:
    desk = DeskService()
    async with transport.connect(Front, exposes=desk) as front:
        peer = shmrpc.peer(front)
        assert peer is not None
        assert await front.ask_back("why") == f"why? {peer.pid}"
        assert desk.notes == ["entered", "why"]
    assert desk.notes[-1] == "left"


@on_every_transport
async def test_calls_of_every_kind_go_backward(transport: Transport) -> None:
    async with transport.connect(Front, exposes=[DeskService()]) as front:
        big = np.arange(300_000, dtype=np.uint8)
        assert (await front.negate_back(big) == 255 - big).all()
        assert await front.count_back(1000) == sum(range(1000))
        assert await front.total_back(1000) == sum(range(1000))
        assert await front.many_back(200) == sum(range(200))


@on_every_transport
async def test_errors_of_the_client_arrive_at_the_handler_as_themselves(transport: Transport) -> None:
    async with transport.connect(Front, exposes=DeskService()) as front:
        assert await front.refuse_back() == "NotHere(where='desk')"


@on_every_transport
async def test_the_deadline_goes_there_and_back(transport: Transport) -> None:
    async with transport.connect(Front, exposes=DeskService()) as front:
        there, back = await shmrpc.options(front, timeout=100.0).deadline_back()
        assert there is not None
        assert there == back


@on_every_transport
async def test_a_cancellation_goes_there_and_back(transport: Transport) -> None:
    desk = DeskService()
    async with transport.connect(Front, exposes=desk) as front:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shmrpc.options(front, timeout=0.2).hang_back()
        await desk.cancelled.wait()
        desk.cancelled.clear()
        call = asyncio.create_task(front.hang_back())
        await asyncio.sleep(0.05)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await desk.cancelled.wait()
        assert await front.ask_back("still") != ""


@on_every_transport
async def test_a_client_that_exposes_nothing_or_something_else_is_named(transport: Transport) -> None:
    async with transport.connect(Front) as front:
        with pytest.raises(shmrpc.Unimplemented, match=r"the client pid \d+ .* exposes nothing, not Desk"):
            await front.ask_back("who")
    async with transport.connect(Front, exposes=DeskService()) as front:
        with pytest.raises(shmrpc.Unimplemented, match=r"exposes Desk, not Chair"):
            await front.sit_back()


@on_every_transport
async def test_a_handler_may_keep_its_clients_stub(transport: Transport) -> None:
    desk = DeskService()
    async with transport.connect(Front, exposes=desk) as front:
        await front.remember_me()
        assert "kept" in await front.call_remembered("kept")
    async with transport.connect(Front) as front:
        with pytest.raises(shmrpc.Unavailable):
            await front.call_remembered("gone")


def test_what_is_exposed_must_be_a_service() -> None:
    class Nothing:
        """No methods."""

    with pytest.raises(shmrpc.ContractError, match="Nothing has no public methods"):
        shmrpc.connect(Front, "/nowhere", exposes=Nothing())
    with pytest.raises(shmrpc.ContractError, match="a service is an instance"):
        shmrpc.connect(Front, "/nowhere", exposes=DeskService)
