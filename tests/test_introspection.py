"""The built-in service, asked over a connection: between processes, and in one."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from introspection_api import BadImage, Vision, Worker

import shmrpc
from shmrpc import Health, contract
from shmrpc.introspection import MethodStatistics, Statistics

HERE = Path(__file__).parent
PATIENCE_SECONDS = 60.0

Connect = Callable[[], AbstractAsyncContextManager[Vision]]


@pytest.fixture(params=["shared memory", "local"])
def connect(request: pytest.FixtureRequest, path: str) -> Connect:
    """A stub of `Vision` over a new server."""

    @asynccontextmanager
    async def over_shared_memory() -> AsyncIterator[Vision]:
        async with shmrpc.Server(Worker(), at=path), shmrpc.connect(Vision, path) as vision:
            yield vision

    return over_shared_memory if request.param == "shared memory" else lambda: shmrpc.local(Vision, Worker())


def of(statistics: Statistics, name: str) -> MethodStatistics:
    """What is counted of one method; its time apart."""
    (found,) = [method for method in statistics.methods if method.name == name]
    return found


async def watched(watch: AsyncIterator[Health]) -> Health:
    return await asyncio.wait_for(anext(watch), PATIENCE_SECONDS)


# Every server answers


async def test_any_stub_can_ask_its_server_about_itself(connect: Connect) -> None:
    async with connect() as vision:
        server = shmrpc.introspect(vision)
        assert [one.name for one in await server.contracts()] == ["Vision", "shmrpc.Introspection"]
        assert await server.health() is await server.health("Vision") is Health.SERVING
        assert await server.health("Taste") is Health.SERVICE_UNKNOWN
        assert (await server.statistics()).connections == 1, "it is the same connection"


async def test_a_stub_asks_with_its_options(connect: Connect) -> None:
    async with connect() as vision:
        server = shmrpc.introspect(shmrpc.options(vision, timeout=1e-9))
        with pytest.raises(shmrpc.DeadlineExceeded):
            await server.health()
        await shmrpc.options(server, timeout=PATIENCE_SECONDS).health()


async def test_without_a_contract_the_built_in_one_is_connected_to_like_any_other(path: str) -> None:
    async with shmrpc.Server(Worker(), at=path), shmrpc.connect(shmrpc.Introspection, path) as server:
        assert await server.health("Vision") is Health.SERVING
        assert [method.name for method in (await server.contracts("Vision"))[0].methods] == list(
            contract.read(Vision).methods
        )


async def test_another_process_answers_for_itself(path: str) -> None:
    command = [sys.executable, "-m", "shmrpc", "serve", "introspection_api:Worker", "--at", path]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen(command, cwd=HERE, env=environment) as process:  # noqa: ASYNC220 - it returns at once
        try:
            async with shmrpc.connect(Vision, path, wait=PATIENCE_SECONDS) as vision:
                statistics = await shmrpc.introspect(vision).statistics()
                assert (statistics.pid, statistics.connections) == (process.pid, 1)
                watch = shmrpc.introspect(vision).watch("Vision")
                assert await watched(watch) is Health.SERVING
                process.terminate()
                assert await watched(watch) is Health.NOT_SERVING
                with pytest.raises(StopAsyncIteration):
                    await watched(watch)
            assert process.wait(PATIENCE_SECONDS) == 0
        finally:
            process.kill()


def test_what_is_no_stub_has_no_server() -> None:
    with pytest.raises(TypeError, match="expected a stub"):
        shmrpc.introspect(Worker())


def test_its_name_cannot_be_taken() -> None:
    class Mine(Protocol):
        async def health(self) -> int: ...

    Mine.__name__ = "shmrpc.Mine"

    class Impostor(Mine):
        async def health(self) -> int:
            return 1

    for service in (Impostor(), shmrpc.service(Impostor(), Mine)):
        with pytest.raises(
            shmrpc.ContractError, match=r"shmrpc\.Mine is built in, and every server serves it by itself"
        ):
            shmrpc.Server(service, at="/tmp/never.sock")


async def test_a_service_of_the_same_short_name_is_another_one(path: str) -> None:
    class Introspection:
        async def health(self) -> int:
            return 7

    async with shmrpc.Server(Introspection(), at=path), shmrpc.connect(Introspection, path) as mine:
        assert await mine.health() == 7
        assert await shmrpc.introspect(mine).health("Introspection") is Health.SERVING


class Progress(Protocol):
    async def at(self, percent: int) -> None: ...


class Reporter(Progress):
    async def at(self, percent: int) -> None:
        return None


class Curious:
    """Asks its caller about itself."""

    async def ask(self) -> Health:
        progress = shmrpc.current_call().client(Progress)
        await progress.at(50)
        return await shmrpc.introspect(progress).health()


@pytest.mark.parametrize("transport", ["shared memory", "local"])
async def test_a_client_that_exposes_a_service_tells_nothing_of_itself(path: str, transport: str) -> None:
    if transport == "local":
        async with shmrpc.local(Curious, Curious(), exposes=Reporter()) as curious:
            with pytest.raises(shmrpc.Unimplemented, match=r"no method shmrpc\.Introspection\.\w+"):
                await curious.ask()
        return
    async with shmrpc.Server(Curious(), at=path):
        async with shmrpc.connect(Curious, path, exposes=Reporter()) as curious:
            with pytest.raises(shmrpc.Unimplemented, match=r"no method shmrpc\.Introspection\.health"):
                await curious.ask()


# Health


async def test_a_service_says_how_it_is(connect: Connect) -> None:
    async with connect() as vision:
        server = shmrpc.introspect(vision)
        watch = server.watch()
        assert await watched(watch) is Health.SERVING
        await vision.warm_up("NOT_SERVING")  # which sets it
        assert await watched(watch) is Health.NOT_SERVING
        assert await server.health("Vision") is Health.NOT_SERVING
        await vision.warm_up("UNKNOWN")
        assert await watched(watch) is Health.UNKNOWN
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_server_says_how_its_services_are(path: str) -> None:
    class Other:
        async def nothing(self) -> None:
            return

    async with shmrpc.Server(Worker(), Other(), at=path) as server, shmrpc.connect(Vision, path) as vision:
        asked = shmrpc.introspect(vision)
        server.set_health("Other", Health.NOT_SERVING)
        assert [await asked.health(name) for name in ("Vision", "Other", "")] == [
            Health.SERVING,
            Health.NOT_SERVING,
            Health.NOT_SERVING,
        ]
        server.set_health("", Health.SERVING)
        assert await asked.health() is Health.SERVING
        with pytest.raises(ValueError, match="there is no service 'Taste'"):
            server.set_health("Taste", Health.SERVING)


async def test_a_service_may_be_entered_without_serving_yet(path: str) -> None:
    class Late(Worker):
        async def __aenter__(self) -> None:
            shmrpc.set_health(self, Health.NOT_SERVING)

        async def __aexit__(self, *exc_info: object) -> None:
            return

    async with shmrpc.Server(Late(), at=path), shmrpc.connect(Vision, path) as vision:
        assert await shmrpc.introspect(vision).health() is Health.NOT_SERVING


async def test_a_watch_does_not_keep_a_server_from_draining(path: str) -> None:
    async with shmrpc.Server(Worker(), at=path, grace=1e6) as server:
        async with shmrpc.connect(Vision, path, reconnect_timeout=0.01) as vision:
            watch = shmrpc.introspect(vision).watch("Vision")
            assert await watched(watch) is Health.SERVING
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await server.drain(), "all calls ended in time"
            assert await watched(watch) is Health.NOT_SERVING
            with pytest.raises(StopAsyncIteration):
                await watched(watch)


# Statistics


async def test_calls_are_counted_by_how_they_end(connect: Connect) -> None:
    async with connect() as vision:
        server = shmrpc.introspect(vision)
        image = np.zeros((2, 2), np.uint8)
        for _ in range(3):
            await vision.classify(image)
        with pytest.raises(BadImage):
            await vision.classify(np.zeros(0, np.uint8))
        assert await asyncio.wait_for(anything(vision.count(3)), PATIENCE_SECONDS) == [0, 1, 2]
        assert await vision.total(parts([1, 2], [3])) == 6
        counted = await server.statistics()
        assert summary(of(counted, "Vision.classify")) == (4, 0, {"OK": 3, "INVALID_ARGUMENT": 1})
        assert summary(of(counted, "Vision.count")) == (1, 0, {"OK": 1})
        assert summary(of(counted, "Vision.total")) == (1, 0, {"OK": 1})
        assert summary(of(counted, "shmrpc.Introspection.statistics")) == (1, 1, {})
        assert [method.name for method in counted.methods if method.name == "Vision.negate"] == []


def summary(method: MethodStatistics) -> tuple[int, int, dict[str, int]]:
    return method.started, method.in_flight, method.ended


async def anything(stream: AsyncIterator[int]) -> list[int]:
    return [item async for item in stream]


async def parts(*given: list[int]) -> AsyncIterator[list[int]]:
    for part in given:
        yield part


class Slow:
    """Its `work` waits until it is told to end."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.gate = asyncio.Event()

    async def work(self, number: int) -> int:
        self.begun.release()
        await self.gate.wait()
        return number


@pytest.mark.parametrize("transport", ["shared memory", "local"])
async def test_what_is_under_way_and_what_was_cut_off_is_counted(path: str, transport: str) -> None:
    slow = Slow()

    @asynccontextmanager
    async def over_shared_memory() -> AsyncIterator[Slow]:
        async with shmrpc.Server(slow, at=path), shmrpc.connect(Slow, path) as stub:
            yield stub

    async with over_shared_memory() if transport == "shared memory" else shmrpc.local(Slow, slow) as stub:
        server = shmrpc.introspect(stub)
        calls = [asyncio.ensure_future(stub.work(number)) for number in range(3)]
        for _ in calls:
            await slow.begun.acquire()
        assert summary(of(await server.statistics(), "Slow.work")) == (3, 3, {})
        calls[0].cancel()
        await asyncio.wait((calls[0],))
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shmrpc.options(stub, timeout=0.01).work(3)
        await until_ended(server, 2)
        assert summary(of(await server.statistics(), "Slow.work")) == (4, 2, {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1})
        slow.gate.set()
        assert await asyncio.gather(*calls[1:]) == [1, 2]
        counted = of(await server.statistics(), "Slow.work")
        assert summary(counted) == (4, 0, {"OK": 2, "CANCELLED": 1, "DEADLINE_EXCEEDED": 1})
        assert counted.seconds > 0.01, "one of them waited as long as that"


async def until_ended(server: shmrpc.Introspection, count: int) -> None:
    """Returns when so many calls have ended at the server, which may be later than at the caller."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while sum(of(await server.statistics(), "Slow.work").ended.values()) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


async def test_calls_that_no_handler_sees_are_counted(path: str) -> None:
    class Strict:
        async def take(self, number: int) -> int:
            return number

    async with shmrpc.Server(Strict(), at=path), shmrpc.connect(Strict, path) as stub:
        wrong: Any = "seven"
        with pytest.raises(shmrpc.InvalidArgument):
            await stub.take(wrong)
        assert summary(of(await shmrpc.introspect(stub).statistics(), "Strict.take")) == (1, 0, {"INVALID_ARGUMENT": 1})


async def test_an_answer_that_cannot_be_sent_is_counted_as_a_failure(path: str) -> None:
    async with shmrpc.Server(Worker(), at=path, max_message=1 << 20), shmrpc.connect(Vision, path) as vision:
        with pytest.raises(shmrpc.ResourceExhausted):
            await vision.classify(np.zeros(500_000, np.uint8), 3)  # which comes back three times
        counted = of(await shmrpc.introspect(vision).statistics(), "Vision.classify")
        assert summary(counted) == (1, 0, {"RESOURCE_EXHAUSTED": 1})


async def test_memory_that_clients_hold_is_told_by_method(path: str) -> None:
    async with shmrpc.Server(Worker(), at=path), shmrpc.connect(Vision, path) as vision:
        image = np.zeros(100_000, np.uint8)
        negated = [item async for item in vision.negate(images(image))]
        lent = of(await shmrpc.introspect(vision).statistics(), "Vision.negate").lent_bytes
        assert lent >= image.nbytes
        del negated
        async with asyncio.timeout(PATIENCE_SECONDS):
            while of(await shmrpc.introspect(vision).statistics(), "Vision.negate").lent_bytes:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)


async def images(*given: Any) -> AsyncIterator[Any]:
    for image in given:
        yield image
