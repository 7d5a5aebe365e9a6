"""What is particular to the transport within one process; what it shares with the others is in the conformance suite."""

import asyncio
import contextvars
import os
import sys
from typing import Protocol

import pytest

import shmrpc

marked: contextvars.ContextVar[str] = contextvars.ContextVar("marked", default="nothing")


class Api(Protocol):
    async def collect(self, values: list[int]) -> list[int]: ...
    async def wait(self, name: str) -> str: ...
    async def marked(self) -> str: ...
    @shmrpc.oneway
    async def tell(self, name: str) -> None: ...


class Service(Api):
    def __init__(self) -> None:
        self.kept: list[int] = []
        self.diary: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting = asyncio.Event()

    async def __aenter__(self) -> None:
        self.diary.append("entered")

    async def __aexit__(self, *exc_info: object) -> None:
        self.diary.append("left")

    async def collect(self, values: list[int]) -> list[int]:
        self.kept = values
        return self.kept

    async def wait(self, name: str) -> str:
        gate = self.gates.setdefault(name, asyncio.Event())
        self.waiting.set()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.diary.append(f"{name} cancelled")
            raise
        self.diary.append(f"{name} ended")
        return name

    async def marked(self) -> str:
        return marked.get()

    async def tell(self, name: str) -> None:
        await self.wait(name)


async def test_nothing_is_shared_between_caller_and_handler() -> None:
    service, values = Service(), [1]
    async with shmrpc.local(Api, service) as api:
        result = await api.collect(values)
        assert result == values == service.kept
        assert len({id(result), id(values), id(service.kept)}) == 3


async def test_the_peer_is_this_process() -> None:
    async with shmrpc.local(Api, Service()) as api:
        assert shmrpc.peer(api) == (os.getpid(), os.getuid(), os.getgid())


async def test_it_describes_itself() -> None:
    service = Service()
    async with shmrpc.local(Api, service) as api:
        call = asyncio.create_task(api.wait("call"))
        await service.waiting.wait()
        assert repr(api) == "<stub of Api over <LocalTransport open, 1 calls running>>"
        service.gates["call"].set()
        await call
        await asyncio.sleep(0)
        assert repr(api) == "<stub of Api over <LocalTransport open, 0 calls running>>"
    assert repr(api) == "<stub of Api over <LocalTransport closed, 0 calls running>>"


def test_a_contract_or_an_implementation_that_cannot_work_is_refused_at_once() -> None:
    class Half:
        async def wait(self, name: str) -> str:
            return name

    with pytest.raises(shmrpc.ContractError, match=r"Half does not implement Api\.collect"):
        shmrpc.local(Api, Half())
    with pytest.raises(shmrpc.ContractError, match="a service is an instance"):
        shmrpc.local(Api, Service)


async def test_an_implementation_need_not_inherit_from_the_contract() -> None:
    class Wait(Protocol):
        async def wait(self, name: str) -> str: ...

    class Structural:
        async def wait(self, name: str) -> str:
            return name

    async with shmrpc.local(Wait, Structural()) as wait:
        assert await wait.wait("x") == "x"


async def test_handlers_see_the_context_in_which_the_connection_was_made_and_not_the_callers() -> None:
    marked.set("when it was made")
    connection = shmrpc.local(Api, Service())
    marked.set("when it was entered")
    async with connection as api:
        marked.set("when it was called")
        assert await api.marked() == "when it was made"


async def test_closing_waits_for_one_way_calls_and_then_leaves_the_service() -> None:
    service = Service()
    connection = shmrpc.local(Api, service)
    api = await connection.__aenter__()
    await api.tell("one-way")
    call = asyncio.create_task(api.wait("call"))
    while len(service.gates) < 2:  # noqa: ASYNC110 - both handlers run when their gates are there
        await asyncio.sleep(0)
    closing = asyncio.create_task(connection.__aexit__())
    with pytest.raises(shmrpc.Closed):
        await call
    assert not closing.done()
    service.gates["one-way"].set()
    await closing
    assert service.diary == ["entered", "call cancelled", "one-way ended", "left"]


async def test_one_way_calls_that_do_not_end_are_cancelled_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["shmrpc.local"], "GRACE_SECONDS", 0.01)
    service = Service()
    async with shmrpc.local(Api, service) as api:
        await api.tell("one-way")
        await service.waiting.wait()
    assert service.diary == ["entered", "one-way cancelled", "left"]


async def test_a_one_way_call_that_fails_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Refusing(Service):
        async def tell(self, name: str) -> None:
            if name == "nobody":
                raise ValueError(name)
            raise shmrpc.PermissionDenied(f"not to {name}")

    async with shmrpc.local(Api, Refusing()) as api:
        await api.tell("anybody")
        await api.tell("nobody")
        await api.tell(3)  # type: ignore[arg-type]
    assert [record.getMessage().partition(", correlation id")[0] for record in caplog.records] == [
        "Api.tell: failed",
        "Api.tell failed, and is one-way, so that nobody is told: not to anybody",
        "Api.tell failed, and is one-way, so that nobody is told: Api.tell: parameter 'name': Expected `str`, got `int`; "
        "it is oneway tell(name: str) -> None",
    ]


async def test_closing_twice_is_closing_once() -> None:
    service = Service()
    connection = shmrpc.local(Api, service)
    await connection.__aenter__()
    await connection.__aexit__()
    await connection.__aexit__()
    assert service.diary == ["entered", "left"]


async def test_a_service_that_cannot_be_entered_is_not_connected_to() -> None:
    class Failing(Service):
        async def __aenter__(self) -> None:
            raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        async with shmrpc.local(Api, Failing()):
            pass


async def test_it_belongs_to_the_event_loop_that_entered_it() -> None:
    async with shmrpc.local(Api, Service()) as api:

        async def call() -> list[int]:
            return await api.collect([1])

        with pytest.raises(shmrpc.WrongLoop, match=r"Api\.collect was called from another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(call()))


def test_the_loops_own_exceptions_are_not_kept_from_it() -> None:
    class Leaving:
        async def leave(self) -> None:
            raise SystemExit(3)

    async def main() -> None:
        async with shmrpc.local(Leaving, Leaving()) as leaving:
            await leaving.leave()

    with pytest.raises(SystemExit, match="3"):
        asyncio.run(main())


async def test_a_thousand_calls_leave_nothing_behind() -> None:
    service = Service()
    async with shmrpc.local(Api, service, timeout=1000.0) as api:
        await asyncio.gather(*(api.collect([number]) for number in range(1000)))
        await asyncio.sleep(0)
        assert "0 calls running" in repr(api)
        scheduled = getattr(asyncio.get_running_loop(), "_scheduled", [])
        assert all(timer.cancelled() for timer in scheduled if "give_up" in repr(timer))
