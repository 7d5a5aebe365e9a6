"""How streams end: in good order, by an error, early, at a deadline, and with the connection."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from conformance_streams import Numbered, OutOfItems, Streams
from conformance_transports import Transport, on_every_transport
from test_conformance_streams import each, nothing_yet

import shmrpc

pytest_plugins = ["conformance_plugin"]

SOON = 0.2


class Source:
    """A caller's own stream that says when it was closed."""

    def __init__(self, most: int | None = None, error: BaseException | None = None) -> None:
        self.closed = asyncio.Event()
        self.most = most
        self.error = error

    async def items(self) -> AsyncIterator[int]:
        try:
            number = 0
            while self.most is None or number < self.most:
                yield number
                number += 1
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


# Errors


@pytest.mark.parametrize("items", [0, 1, 63, 64, 500])
@on_every_transport
async def test_an_error_arrives_after_the_items_before_it(streams: Streams, items: int) -> None:
    got = []
    with pytest.raises(OutOfItems) as caught:
        async for number in streams.fail_after(items):
            got.append(number)
    assert got == list(range(items))
    assert caught.value.after == items


@on_every_transport
async def test_after_an_error_a_stream_has_ended(streams: Streams) -> None:
    stream = streams.fail_after(0)
    with pytest.raises(OutOfItems):
        await anext(stream)
    assert [number async for number in stream] == []


@on_every_transport
async def test_an_item_that_does_not_fit_the_contract_ends_the_stream(streams: Streams) -> None:
    stream = streams.misfits()
    with pytest.raises(shmrpc.Internal, match=r"Streams.misfits: an item of the server does not fit the contract"):
        assert [number async for number in stream]
    assert await streams.total(each([1])) == 1


@on_every_transport
async def test_an_argument_that_does_not_fit_is_refused_with_its_name(streams: Streams) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"Streams.total: an item of parameter 'parts' does not fit"):
        await streams.total(each(["one"]))


@on_every_transport
async def test_an_item_that_cannot_be_encoded_fails_the_call(streams: Streams) -> None:
    misfit = "an item of parameter 'parts' does not fit"
    with pytest.raises(shmrpc.InvalidArgument, match=f"Streams.total: {misfit}: .*unsupported"):
        await streams.total(each([1, object()]))
    floats: list[Any] = [np.zeros(3)]
    with pytest.raises(shmrpc.InvalidArgument, match=rf"Streams.lengths: {misfit}: got float64 of shape \(3,\)"):
        await streams.lengths(1, each(floats))
    with pytest.raises(shmrpc.InvalidArgument, match=rf"Streams.negate: {misfit}: got float64 of shape \(3,\)"):
        assert [item async for item in streams.negate(each(floats))]
    assert await streams.total(each([1])) == 1


@on_every_transport
async def test_where_in_an_item_a_mistake_is_does_not_depend_on_the_items_before_it(streams: Streams) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"does not fit: Expected `int`, got `str`$"):
        await streams.total(each([*range(100), "one"]))
    wrong: list[Any] = [*map(Numbered, range(100)), {"number": "one"}]
    with pytest.raises(shmrpc.InvalidArgument, match=r"Expected `int`, got `str` - at `\$.number`$"):
        assert [item async for item in streams.echo(each(wrong))]
    with pytest.raises(shmrpc.Internal, match=r"does not fit the contract: Expected `int`, got `str`$"):
        assert [number async for number in streams.misfits()]


@on_every_transport
async def test_what_the_callers_own_stream_raises_reaches_the_caller(streams: Streams, key: str) -> None:
    source = Source(most=10, error=KeyError("mine"))
    with pytest.raises(KeyError, match="mine"):
        await streams.total(source.items())
    heard = asyncio.Event()

    async def failing() -> AsyncIterator[Numbered]:
        yield Numbered(0)
        await heard.wait()
        raise KeyError("mine too")

    with pytest.raises(KeyError, match="mine too"):
        async for item in streams.echo(failing(), key):
            assert item.number == 0
            heard.set()
    await streams.until(key, "left")


# Left early


async def leave(stream: AsyncIterator[Any], how: str) -> None:
    match how:
        case "break":
            async for _ in stream:
                break
        case "aclose":
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
        case "cancel":
            await anext(stream)

            async def read_on() -> None:
                async for _ in stream:
                    await asyncio.sleep(0)

            reader = asyncio.create_task(read_on())
            await asyncio.sleep(0.01)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        case "timeout":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SOON):
                    async for _ in stream:
                        await asyncio.sleep(0)
        case "exception":
            with contextlib.suppress(ZeroDivisionError):
                async for _ in stream:
                    raise ZeroDivisionError


@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "timeout", "exception"])
@on_every_transport
async def test_leaving_a_stream_early_ends_its_handler(streams: Streams, key: str, how: str) -> None:
    await leave(streams.count(10**9, key), how)
    gc.collect()
    await streams.until(key, "closed")
    assert await streams.total(each([1])) == 1


@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "timeout", "exception"])
@on_every_transport
async def test_leaving_a_stream_early_closes_the_callers_own(streams: Streams, how: str) -> None:
    source = Source()
    await leave(streams.echo(Numbered(number) async for number in source.items()), how)
    gc.collect()
    await source.closed.wait()


@on_every_transport
async def test_a_stream_that_was_never_read_needs_no_end(streams: Streams, key: str) -> None:
    stream = streams.count(5, key)
    await stream.aclose()  # type: ignore[attr-defined]
    assert [number async for number in stream] == []
    assert await streams.words(key) == []


@on_every_transport
async def test_closing_twice_is_closing(streams: Streams, key: str) -> None:
    stream = streams.count(10**9, key)
    await anext(stream)
    for _ in range(2):
        await stream.aclose()  # type: ignore[attr-defined]
    await streams.until(key, "closed")


@on_every_transport
async def test_a_handler_that_has_read_enough_closes_the_callers_stream(streams: Streams, key: str) -> None:
    source = Source()
    assert await streams.take(source.items(), 3, key) == 3
    assert source.closed.is_set()


@on_every_transport
async def test_cancelling_the_caller_of_a_stream_of_arguments_ends_both_sides(streams: Streams, key: str) -> None:
    source = Source()
    call = asyncio.create_task(streams.take(source.items(), 10**9, key))
    await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert source.closed.is_set()
    assert await streams.words(key) == []


@on_every_transport
async def test_whoever_reads_on_after_the_handler_has_ended_hears_so(streams: Streams, key: str) -> None:
    await streams.keep_on_reading(Source().items(), key)
    await streams.until(key, "cut off")


@on_every_transport
async def test_two_cancellations_at_once_are_one(streams: Streams, key: str) -> None:
    stream = streams.sleep_after(1, key)
    assert await anext(stream) == 0
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reader.cancel()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await streams.until(key, "cancelled")


@on_every_transport
async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_caller(streams: Streams, key: str) -> None:
    stream = streams.stubborn(key)
    assert await anext(stream) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    await streams.until(key, "cancelled")
    assert await streams.words(key) == ["cancelled"]
    await streams.step(key)
    await streams.until(key, "ended")


# Deadlines


@on_every_transport
async def test_the_deadline_covers_a_stream_to_its_end(streams: Streams, key: str) -> None:
    stream = shmrpc.options(streams, timeout=3 * SOON).sleep_after(3, key)
    got = []
    with pytest.raises(shmrpc.DeadlineExceeded, match=r"Streams.sleep_after"):
        async for number in stream:
            got.append(number)
    assert got == [0, 1, 2]
    await streams.until(key, "cancelled")


@on_every_transport
async def test_the_deadline_covers_a_stream_of_arguments(streams: Streams) -> None:
    with pytest.raises(shmrpc.DeadlineExceeded, match=r"Streams.total"):
        await shmrpc.options(streams, timeout=SOON).total(nothing_yet())
    assert await shmrpc.options(streams, timeout=100.0).deadline(each([])) is not None


@on_every_transport
async def test_the_next_item_may_have_a_time_limit(streams: Streams, key: str) -> None:
    stream = shmrpc.options(streams, idle_timeout=SOON).sleep_after(2, key)
    got = []
    with pytest.raises(shmrpc.DeadlineExceeded, match=r"sleep_after: nothing came for 0.2 s \(idle_timeout\)"):
        async for number in stream:
            got.append(number)
    assert got == [0, 1]
    await streams.until(key, "cancelled")


@on_every_transport
async def test_a_time_limit_for_items_does_not_end_a_stream_that_flows(streams: Streams) -> None:
    stream = shmrpc.options(streams, idle_timeout=30.0).count(1000)
    assert len([number async for number in stream]) == 1000


# The connection


@on_every_transport
async def test_a_stream_ends_with_its_connection(transport: Transport, key: str) -> None:
    source = Source()
    async with transport.connect(Streams) as streams:
        stream = streams.sleep_after(1, key)
        assert await anext(stream) == 0
        call = asyncio.create_task(streams.take(source.items(), 10**9, key))
        await asyncio.sleep(0.02)
    with pytest.raises(shmrpc.Closed):
        await anext(stream)
    with pytest.raises(shmrpc.Closed):
        await call
    assert source.closed.is_set()


@on_every_transport
async def test_a_stream_of_a_closed_stub_is_refused(transport: Transport) -> None:
    async with transport.connect(Streams) as streams:
        stream = streams.count(3)
    with pytest.raises(shmrpc.Closed):
        await anext(stream)


@on_every_transport
async def test_whoever_reads_on_hears_of_the_end_when_the_caller_was_cancelled(streams: Streams, key: str) -> None:
    call = asyncio.ensure_future(streams.keep_on_reading(nothing_yet(), key))
    await streams.until(key, "reading")
    call.cancel()
    await asyncio.wait((call,))
    await streams.until(key, "cut off")
