"""Streams that are begun again: as long as nothing was given, in either direction."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import pytest

import shmrpc
from shmrpc.context import CallOptions
from shmrpc.contract import read
from shmrpc.repeating import bind, budget_of
from shmrpc.retry import Retry

QUICK = Retry(backoff=0)
"""Three attempts without pauses."""


class Api(Protocol):
    @shmrpc.method(idempotent=True)
    async def look(self, value: int = 1) -> int: ...


LOOK = read(Api).methods["look"]


def gone() -> shmrpc.Unavailable:
    return shmrpc.Unavailable("gone", maybe_executed=True)


def lost() -> shmrpc.ConnectionLost:
    return shmrpc.ConnectionLost("lost", maybe_executed=True)


class Streams:
    """A transport with a method that gives, or takes, a stream, and ends each attempt as it was told."""

    peer = None

    def __init__(self, *attempts: list[Any], asks: bool = True, most: int = 100) -> None:
        self.attempts = list(attempts)
        self.begun = 0
        self.closed = 0
        self.asks = asks
        self.most = most
        self.timeouts: list[int] = []

    def bind(self, method: Any, options: CallOptions) -> Any:
        async def give(*args: Any) -> AsyncIterator[Any]:
            self.begun += 1
            self.timeouts.append(options.timeout_ns)
            try:
                for item in self.attempts.pop(0):
                    if isinstance(item, BaseException):
                        raise item
                    yield item
            finally:
                self.closed += 1

        async def take(value: Any) -> Any:
            self.begun += 1
            items = aiter(value)
            taken: list[Any] = []
            while self.asks and len(taken) < self.most and (item := await anext(items, None)) is not None:
                taken.append(item)
            if hasattr(items, "aclose"):
                await items.aclose()
            (outcome,) = self.attempts.pop(0)
            if isinstance(outcome, BaseException):
                raise outcome
            return taken or outcome

        return give if method.streams_result else take


class Method:
    """Stands for a method whose result, or argument, is a stream."""

    def __init__(self, *, gives: bool) -> None:
        self.name, self.full_name = "flow", "Api.flow"
        self.policy = LOOK.policy
        self.streams_result = gives
        self.stream_index = None if gives else 0
        self.signature = LOOK.signature


def bound_stream(transport: Streams, *, gives: bool, retry: Retry = QUICK, **options: Any) -> Callable[..., Any]:
    method: Any = Method(gives=gives)
    return bind(transport, method, CallOptions(retry=retry, **options))  # type: ignore[arg-type]


async def test_a_stream_is_begun_again_when_nothing_of_it_came() -> None:
    transport = Streams([gone()], [lost()], [1, 2])
    assert [item async for item in bound_stream(transport, gives=True)()] == [1, 2]
    assert transport.begun == 3


async def test_a_stream_of_which_something_came_is_not_begun_again() -> None:
    transport = Streams([1, gone()], [1, 2])
    stream = bound_stream(transport, gives=True)()
    assert await anext(stream) == 1
    with pytest.raises(shmrpc.Unavailable):
        await anext(stream)
    assert transport.begun == 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_stream_that_never_begins_ends_with_its_last_error() -> None:
    transport = Streams([gone()], [gone()], [gone()])
    stream = bound_stream(transport, gives=True)()
    with pytest.raises(shmrpc.Unavailable):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert transport.begun == 3


async def test_an_empty_stream_is_a_success() -> None:
    transport: Any = Streams([gone()], [])
    assert [item async for item in bound_stream(transport, gives=True, retry=Retry(backoff=0, budget=1.0))()] == []
    assert budget_of(transport).missing == 0


async def test_a_stream_that_is_left_is_closed_and_not_begun_again() -> None:
    transport = Streams([1, 2])
    stream = bound_stream(transport, gives=True)()
    await anext(stream)
    await stream.aclose()
    assert transport.closed == 1
    unread = bound_stream(Streams([gone()]), gives=True)()
    await unread.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(unread)


async def test_a_streams_time_runs_from_its_first_step() -> None:
    transport = Streams([gone()], [1])
    stream = bound_stream(transport, gives=True, timeout_ns=1_000_000_000_000)()
    assert transport.begun == 0
    await anext(stream)
    first, second = transport.timeouts
    assert first == 1_000_000_000_000 > second > 500_000_000_000
    await stream.aclose()


async def test_a_stream_that_is_closed_in_a_pause_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pausing, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        pausing.set()
        await go_on.wait()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    transport = Streams([gone()], [1])
    stream = bound_stream(transport, gives=True, retry=Retry())()
    item = asyncio.ensure_future(anext(stream))
    await pausing.wait()
    await stream.aclose()
    go_on.set()
    with pytest.raises(shmrpc.Unavailable):
        await item
    assert transport.begun == 1


async def test_a_call_whose_stream_was_not_asked_for_anything_is_made_again() -> None:
    transport = Streams([gone()], [5], asks=False)
    begun = False

    async def items() -> AsyncIterator[int]:
        nonlocal begun
        begun = True
        yield 1

    given = items()
    assert await bound_stream(transport, gives=False)(given) == 5
    assert transport.begun == 2
    assert not begun
    await given.aclose()  # type: ignore[attr-defined]


async def test_a_call_whose_stream_was_asked_for_something_is_not_made_again() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1

    for given in (items(), [1, 2]):
        transport = Streams([gone()], [5])
        with pytest.raises(shmrpc.Unavailable):
            await bound_stream(transport, gives=False)(given)
        assert transport.begun == 1


async def test_a_watched_stream_gives_all_its_items_and_is_closed() -> None:
    closed = False

    async def items() -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
            yield 2
        finally:
            closed = True

    assert await bound_stream(Streams([0]), gives=False)(items()) == [1, 2]
    assert closed
    closed = False
    given = items()
    assert await bound_stream(Streams([0], most=1), gives=False)(given) == [1]
    assert closed
    assert await bound_stream(Streams([0]), gives=False)([3, 4]) == [3, 4]
    assert await bound_stream(Streams([0]), gives=False)(value=[5]) == [5]


async def test_what_is_no_stream_is_left_to_the_transport_to_refuse() -> None:
    with pytest.raises(TypeError, match="int"):
        await bound_stream(Streams([0]), gives=False)(3)
    with pytest.raises(TypeError, match="value"):
        await bound_stream(Streams([0]), gives=False)()
