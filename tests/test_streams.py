"""What a stub gives for a stream, over a transport that a test plays: when it begins, begins again, and ends."""

import asyncio
import gc
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shmrpc.errors import ConnectionLost, DeadlineExceeded, WrongLoop
from shmrpc.inlet import DEFAULT_WINDOW, Inlet
from shmrpc.streams import ResultStream


class Flow:
    """A call that was begun."""

    def __init__(self, ready: deque[Any]) -> None:
        self.inlet = Inlet(
            asyncio.get_running_loop(),
            lambda payload, views, many: [payload.decode()],
            DEFAULT_WINDOW,
            lambda items, nbytes: None,
            ready,
        )
        self.untouched = True
        self.abandoned = 0
        self.closed = asyncio.Event()
        self.closed.set()

    def give(self, item: str) -> None:
        self.inlet.put(item.encode(), (), many=False)
        self.untouched = False

    def abandon(self) -> None:
        self.abandoned += 1
        self.inlet.finish(at_once=True)

    async def wait_closed(self) -> None:
        await self.closed.wait()


class Play:
    """A stream, and the flows that it began."""

    def __init__(self, idle_timeout: float | None = None, on_begin: Callable[[Flow], None] | None = None) -> None:
        self.flows: list[Flow] = []
        self.stream = ResultStream("Api.count", self._begin, self._should_repeat, idle_timeout)
        self._on_begin = on_begin

    async def _begin(self, ready: deque[Any]) -> Flow:
        self.flows.append(flow := Flow(ready))
        if self._on_begin is not None:
            self._on_begin(flow)
        return flow

    def _should_repeat(self, error: BaseException) -> bool:
        return isinstance(error, ConnectionLost) and not error.maybe_executed

    async def reading(self) -> tuple["asyncio.Future[Any]", Flow]:
        """A task that waits for an item, and the call."""
        reader = asyncio.ensure_future(anext(self.stream))
        await asyncio.sleep(0)
        return reader, self.flows[-1]


async def outcome_of(awaitable: Awaitable[Any]) -> Any:
    """A result, or the exception."""
    try:
        return await awaitable
    except BaseException as error:
        return error


def lost(*, maybe_executed: bool) -> ConnectionLost:
    return ConnectionLost("the peer died", maybe_executed=maybe_executed)


# How it begins


async def test_nothing_begins_before_the_first_item_is_asked_for() -> None:
    play = Play(on_begin=lambda flow: flow.give("a"))
    assert repr(play.stream) == "<stream of Api.count, not begun>"
    assert play.flows == []
    assert await anext(play.stream) == "a"
    assert repr(play.stream) == "<stream of Api.count, running>"
    await play.stream.aclose()
    assert repr(play.stream) == "<stream of Api.count, ended>"


async def test_a_stream_that_could_not_begin_has_ended() -> None:
    def refuse(flow: Flow) -> None:
        raise KeyError("no connection")

    play = Play(on_begin=refuse)
    with pytest.raises(KeyError):
        await anext(play.stream)
    assert [item async for item in play.stream] == []
    assert len(play.flows) == 1


async def test_a_call_of_which_nothing_came_begins_again_if_that_is_safe() -> None:
    play = Play()
    reader, first = await play.reading()
    first.inlet.finish(lost(maybe_executed=False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    _, second = play.flows
    second.give("a")
    assert await reader == "a"
    await play.stream.aclose()
    assert (first.abandoned, second.abandoned) == (0, 1)


@pytest.mark.parametrize("touched", [True, False])
async def test_a_call_that_may_have_done_something_does_not_begin_again(touched: bool) -> None:
    play = Play()
    reader, flow = await play.reading()
    flow.untouched = not touched
    flow.inlet.finish(lost(maybe_executed=not touched))
    assert isinstance(await outcome_of(reader), ConnectionLost)
    assert len(play.flows) == 1


# How it is read


async def test_an_item_that_is_there_is_had_without_asking_the_transport() -> None:
    play = Play(on_begin=lambda flow: flow.give("a"))
    await anext(play.stream)
    play.flows[0].inlet.ready.extend("bc")
    assert [await anext(play.stream) for _ in range(2)] == ["b", "c"]
    await play.stream.aclose()


async def test_a_second_reader_is_refused_and_does_not_end_the_stream() -> None:
    play = Play()
    reader, flow = await play.reading()
    for refused in (anext(play.stream), play.stream.aclose()):
        assert isinstance(await outcome_of(refused), RuntimeError)
    flow.give("a")
    assert await reader == "a"
    await play.stream.aclose()


async def test_the_end_is_said_once_and_then_again() -> None:
    play = Play()
    reader, flow = await play.reading()
    flow.inlet.finish()
    assert isinstance(await outcome_of(reader), StopAsyncIteration)
    assert [item async for item in play.stream] == []


async def test_an_error_is_raised_once_and_then_it_is_over() -> None:
    play = Play()
    reader, flow = await play.reading()
    flow.inlet.finish(KeyError("over"))
    assert isinstance(await outcome_of(reader), KeyError)
    assert [item async for item in play.stream] == []
    assert flow.abandoned == 1


# How it is left


async def test_a_cancelled_reader_ends_the_call_and_waits_until_it_is_closed() -> None:
    play = Play()
    reader, flow = await play.reading()
    flow.closed.clear()
    reader.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert flow.abandoned == 1
    assert not reader.done()
    flow.closed.set()
    assert isinstance(await outcome_of(reader), asyncio.CancelledError)
    assert [item async for item in play.stream] == []


@pytest.mark.parametrize(
    "act",
    [
        lambda flow: flow.give("a"),
        lambda flow: flow.inlet.finish(),
        lambda flow: flow.inlet.finish(KeyError()),
        lambda flow: flow.inlet.finish(lost(maybe_executed=False)),
    ],
    ids=["an item", "the end", "an error", "a loss"],
)
async def test_a_cancellation_in_the_tick_of_something_ends_the_call_all_the_same(act: Callable[[Flow], None]) -> None:
    play = Play()
    reader, flow = await play.reading()
    act(flow)
    reader.cancel()
    assert isinstance(await outcome_of(reader), asyncio.CancelledError)
    assert flow.abandoned == 1
    assert [item async for item in play.stream] == []


async def test_closing_drops_what_was_not_read() -> None:
    play = Play(on_begin=lambda flow: flow.give("abc"))
    await anext(play.stream)
    play.flows[0].give("d")
    play.flows[0].inlet.ready.append("ready")
    await play.stream.aclose()
    await play.stream.aclose()
    assert [item async for item in play.stream] == []
    assert repr(play.flows[0].inlet) == "<Inlet ended, 0 items to be read>"


async def test_closing_what_never_began_is_closing() -> None:
    play = Play()
    await play.stream.aclose()
    assert [item async for item in play.stream] == []
    assert play.flows == []


async def test_the_last_reference_ends_the_call_also_on_another_thread() -> None:
    for thread in (False, True):
        play = Play(on_begin=lambda flow: flow.give("a"))
        await anext(play.stream)
        (flow,) = play.flows
        streams = [play.stream]
        del play
        if thread:
            dropping = threading.Thread(target=streams.clear)
            dropping.start()
            dropping.join()
        else:
            streams.clear()
        gc.collect()
        assert flow.abandoned == 0  # not in the middle of whatever runs
        await asyncio.sleep(0)
        assert flow.abandoned == 1


def test_the_last_reference_after_the_loop_has_ended_is_nothing() -> None:
    async def begin() -> Play:
        play = Play(on_begin=lambda flow: flow.give("a"))
        await anext(play.stream)
        return play

    play = asyncio.run(begin())
    (flow,) = play.flows
    del play
    gc.collect()
    assert flow.abandoned == 0


async def test_a_stream_that_has_ended_needs_no_end_when_it_dies() -> None:
    play = Play()
    reader, flow = await play.reading()
    flow.inlet.finish()
    await outcome_of(reader)
    before = flow.abandoned
    del play
    gc.collect()
    await asyncio.sleep(0)
    assert flow.abandoned == before


async def test_an_error_does_not_keep_what_its_reader_saw() -> None:
    class Seen:
        pass

    seen: list[Callable[[], Seen | None]] = []

    async def read(play: Play) -> None:
        held = Seen()
        seen.append(weakref.ref(held))
        async for _ in play.stream:
            pass

    play = Play(on_begin=lambda flow: flow.inlet.finish(KeyError("over")))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(KeyError) as caught:
            await read(play)
        del caught
        assert seen[0]() is None
    finally:
        gc.enable()


# How long it may take


async def test_an_item_that_does_not_come_in_time_ends_the_stream() -> None:
    play = Play(idle_timeout=0.01)
    with pytest.raises(DeadlineExceeded, match=r"Api\.count: nothing came for 0\.01 s \(idle_timeout\)"):
        await anext(play.stream)
    assert play.flows[0].abandoned == 1
    assert [item async for item in play.stream] == []


@pytest.mark.parametrize("error", [TimeoutError("mine"), DeadlineExceeded("the call's")])
async def test_other_errors_of_time_are_not_taken_for_the_limit_of_an_item(error: Exception) -> None:
    play = Play(idle_timeout=60.0, on_begin=lambda flow: flow.inlet.finish(error))
    assert await outcome_of(anext(play.stream)) is error


# In another event loop


def test_another_event_loop_is_refused_and_does_not_end_the_stream() -> None:
    with asyncio.Runner() as first, asyncio.Runner() as second:

        async def begin() -> Play:
            play = Play(on_begin=lambda flow: flow.give("a"))
            assert await anext(play.stream) == "a"
            return play

        play = first.run(begin())
        for call in (lambda: anext(play.stream), play.stream.aclose):
            with pytest.raises(WrongLoop, match=r"the stream of Api\.count began in another event loop"):
                second.run(run(call))
        assert play.flows[0].abandoned == 0

        async def read_on() -> None:
            play.flows[0].give("b")
            assert await anext(play.stream) == "b"
            await play.stream.aclose()

        first.run(read_on())


async def run(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()
