"""Streams that end in the tick of something else, and a storm of cancellations: each ends once, and nothing is left."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import uvloop
from flow_api import Flow, Streamer, all_left, session_of, sessions_of
from life_waiting import until

import shmrpc
from shmrpc.shm.layout import Geometry

TINY = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=64 * 1024, inline_limit=256)
SMALL_WINDOW = {"stream_items": 8, "stream_bytes": 4096}

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@asynccontextmanager
async def pair(path: str, **settings: Any) -> AsyncIterator[tuple[Streamer, Flow]]:
    """A server and a client in this process; in the end nothing is left of any stream, on either side."""
    streamer = Streamer()
    async with (
        shmrpc.Server(streamer, at=path, **settings) as server,
        shmrpc.connect(Flow, path, **settings) as flow,
    ):
        (session,) = sessions_of(server)
        yield streamer, flow
        left: list[str] = []

        def nothing() -> bool:
            left[:] = all_left(session, session_of(flow))
            return not left

        try:
            await until(nothing, "nothing to be left")
        except AssertionError:
            pytest.fail(f"left are {left}")
        assert await flow.plain(7) == 7
        assert sessions_of(server) == [session]  # nobody was cut off


async def outcome_of(awaitable: Any) -> Any:
    """A result, or the exception."""
    try:
        return await awaitable
    except BaseException as error:
        return error


async def numbers(most: int, gate: asyncio.Event | None = None) -> AsyncIterator[int]:
    for number in range(most):
        yield number
    if gate is not None:
        await gate.wait()


def wakes(inlet: Any) -> list[Callable[[], None]]:
    """What is to be done in the tick in which an inlet wakes its reader next, in order."""
    acts: list[Callable[[], None]] = []
    wake = inlet._wake

    def wake_and_act() -> None:
        wake()
        while acts:
            acts.pop(0)()

    inlet._wake = wake_and_act
    return acts


# In the tick of something else


@pytest.mark.parametrize("what", ["an item", "the end"])
async def test_a_reader_that_is_cancelled_in_the_tick_of(path: str, what: str) -> None:
    async with pair(path) as (streamer, flow):
        stream: Any = flow.hold_after(1, 0) if what == "an item" else flow.echo(1, numbers(0, streamer.go))
        reader = asyncio.ensure_future(anext(stream))
        await until(lambda: stream._flow is not None, "the stream to begin")
        wakes(stream._flow.inlet).append(reader.cancel)
        streamer.go.set()
        assert isinstance(await outcome_of(reader), asyncio.CancelledError)
        assert [item async for item in stream] == []


async def test_a_caller_that_is_cancelled_in_the_tick_of_its_answer(path: str) -> None:
    async with pair(path) as (streamer, flow):
        call = asyncio.ensure_future(flow.total(1, numbers(3, streamer.go)))
        outgoing = session_of(flow).outgoing
        assert outgoing is not None
        await until(lambda: outgoing.pending, "the call to begin")
        (pending,) = outgoing.pending.values()
        streamer.go.set()
        await until(pending.done, "the answer")
        call.cancel()
        assert await outcome_of(call) in (3, asyncio.CancelledError) or call.cancelled()


@pytest.mark.parametrize("what", ["an item", "the end"])
async def test_a_handler_that_is_cancelled_in_the_tick_of(path: str, what: str) -> None:
    """The client sends it and gives up at once: the server sees both in one turn."""
    async with pair(path) as (streamer, flow):
        gate = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 1
            await gate.wait()
            if what == "an item":
                yield 2
            call.cancel()

        call = asyncio.ensure_future(flow.total(1, source()))
        await until(lambda: streamer.events["gave 1"] == 1, "the handler to wait for more")
        gate.set()
        await outcome_of(call)


@pytest.mark.parametrize("how", ["count", "total", "echo"])
async def test_a_deadline_in_the_tick_of_the_end(path: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are there at once, and one of them counts: never both, and never neither."""
    async with pair(path) as (_, flow):
        outgoing = session_of(flow).outgoing
        assert outgoing is not None
        ends = []
        for round_ in range(60):
            hasty = shmrpc.options(flow, timeout=0.0004 * (1 + round_ % 5))
            if how == "total":
                ends.append(await outcome_of(hasty.total(1, numbers(300))))
            else:
                stream = hasty.count(1, 300) if how == "count" else hasty.echo(1, numbers(300))
                got: list[int] = []

                async def read(stream: AsyncIterator[int] = stream, got: list[int] = got) -> int:
                    async for item in stream:
                        got.append(item)
                    return sum(got)

                ends.append(await outcome_of(read()))
                assert got == list(range(len(got)))
        for end in ends:
            assert end == sum(range(300)) or isinstance(end, shmrpc.DeadlineExceeded), end


async def test_a_deadline_that_both_sides_see_at_once_ends_a_stream_once(path: str) -> None:
    async with pair(path) as (streamer, flow):
        streams = [shmrpc.options(flow, timeout=0.05).hold_after(n, 3) for n in range(50)]
        ends = await asyncio.gather(*(outcome_of(_last(stream)) for stream in streams))
        assert {type(end) for end in ends} == {shmrpc.DeadlineExceeded}
        await until(lambda: sum(streamer.events[f"CancelledError {n}"] for n in range(50)) == 50, "all to be told")


async def _last(stream: AsyncIterator[int]) -> int:
    last = -1
    async for item in stream:
        last = item
    return last


async def test_the_error_of_another_calls_deadline_comes_after_the_items_before_it(path: str) -> None:
    class Nested(Streamer):
        def hold_after(self, number: int, items: int) -> AsyncIterator[int]:
            async def numbers_and_fail() -> AsyncIterator[int]:
                for item in range(items):
                    yield item
                raise shmrpc.DeadlineExceeded("another one's")

            return numbers_and_fail()

    async with (
        shmrpc.Server(Nested(), at=path),
        shmrpc.connect(Flow, path, timeout=60) as flow,
        shmrpc.local(Flow, Nested(), timeout=60) as near,
    ):
        for stub in (flow, near):
            stream = stub.hold_after(1, 200)
            got = [await anext(stream)]
            await asyncio.sleep(0.02)  # everything is there, also the error
            with pytest.raises(shmrpc.DeadlineExceeded, match="another one's"):
                async for item in stream:
                    got.append(item)
            assert got == list(range(200))


# The storm


async def _read_some(stream: Any, most: int, kept: list[Any]) -> None:
    read = 0
    async for item in stream:
        read += 1
        if isinstance(item, np.ndarray) and random.random() < 0.05:
            kept.append(item)
        if read >= most:
            await stream.aclose()
            return


async def _arrays(count: int) -> AsyncIterator[Any]:
    for number in range(count):
        yield np.full(random.choice((10, 3000, 20_000)), number % 256, np.uint8)
        if random.random() < 0.3:
            await asyncio.sleep(0)


async def _one_of_many(flow: Flow, number: int, kept: list[Any]) -> Any:
    """A stream of any kind, left in any way; what it takes out of the storm are its results, not its errors."""
    most = random.choice((0, 1, 5, 100))
    match random.randrange(9):
        case 0:
            return await _read_some(flow.count(number, most), most + 1, kept)
        case 1:
            return await _read_some(flow.texts(number, random.choice((1, 100, 5000))), most, kept)
        case 2:
            return await _read_some(flow.arrays(number, most, random.choice((10, 3000, 20_000))), most, kept)
        case 3:
            assert await flow.total(number, numbers(most)) == sum(range(most))
        case 4:
            return await flow.keep_arrays(number, _arrays(most))
        case 5:
            return await _read_some(flow.echo(number, numbers(most)), most, kept)
        case 6:
            return await _read_some(flow.negate(number, _arrays(most)), most, kept)
        case 7:
            async for _ in flow.arrays(number, most, 3000):
                break  # and is left to the collector
        case _:
            assert await flow.plain(number) == number
    return None


async def _storm(flow: Flow) -> None:
    kept: list[Any] = []
    running: set[asyncio.Task[Any]] = set()
    mistakes: list[str] = []

    def ended(task: "asyncio.Task[Any]") -> None:
        running.discard(task)
        late = (shmrpc.DeadlineExceeded, shmrpc.ResourceExhausted)  # the latter: no credit before the deadline
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, late):
            mistakes.append(repr(error))

    for number in range(400):
        while len(running) < 24:
            stub = flow if random.random() < 0.8 else shmrpc.options(flow, timeout=random.choice((0.001, 0.01)))
            task = asyncio.ensure_future(_one_of_many(stub, number, kept))
            running.add(task)
            task.add_done_callback(ended)
        await asyncio.sleep(random.choice((0, 0, 0.001)))
        for victim in random.sample(sorted(running, key=id), min(2, len(running))):
            victim.cancel()
        if len(kept) > 20:
            del kept[: random.randrange(20)]
    for victim in running:
        victim.cancel()
    await until(lambda: not running, "all to end")
    assert mistakes == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"geometry": TINY, "max_extent_bytes": 1 << 20, **SMALL_WINDOW}, {"max_in_flight": 7, **SMALL_WINDOW}],
    ids=["much room", "little room", "little credit"],
)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_storm_of_cancellations_leaves_nothing(path: str, settings: dict[str, Any], loop: str) -> None:
    """A thousand cancellations a second, at any point of any kind of stream, while others run undisturbed."""

    async def storm() -> None:
        random.seed(20261126)
        async with pair(path, **settings) as (streamer, flow):
            streamer.go.set()
            await _storm(flow)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(storm())
