"""Streams: items of all kinds in both directions, in order, as many as are wanted, and no more than the reader reads."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np
import pytest
from conformance_streams import Bytes, Numbered, Streams
from conformance_transports import Transport, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

MIB = 1 << 20


async def each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


async def nothing_yet() -> AsyncIterator[int]:
    """Gives no item, and does not end."""
    await asyncio.Event().wait()
    yield 0


def picture(nbytes: int, number: int) -> Bytes:
    return np.full(nbytes, number, np.uint8)


# The kinds


@pytest.mark.parametrize("most", [0, 1, 2, 63, 64, 65, 1000])
@on_every_transport
async def test_a_result_may_be_a_stream(streams: Streams, most: int) -> None:
    assert [number async for number in streams.count(most)] == list(range(most))


@pytest.mark.parametrize("most", [0, 1, 1000])
@on_every_transport
async def test_a_parameter_may_be_a_stream(streams: Streams, most: int) -> None:
    assert await streams.total(each(range(most)), times=2) == most * (most - 1)


@on_every_transport
async def test_both_may_be_streams(streams: Streams) -> None:
    sent = [Numbered(number, "x" * number) for number in range(300)]
    assert [item async for item in streams.echo(each(sent))] == sent


@on_every_transport
async def test_a_stream_of_arguments_may_be_any_iterable(streams: Streams) -> None:
    assert await streams.total([1, 2, 3]) == 6  # type: ignore[arg-type]
    assert await streams.total(iter((1, 2))) == 3  # type: ignore[arg-type]
    assert await streams.total(parts=each([5])) == 5


@pytest.mark.parametrize("wrong", [5, "text", b"bytes", None])
@on_every_transport
async def test_what_cannot_be_iterated_is_refused_at_once(streams: Streams, wrong: Any) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"a stream; got .*, expected an async iterator"):
        await streams.total(wrong)
    with pytest.raises(shmrpc.InvalidArgument, match="parameter 'parts' is a stream"):
        streams.echo(wrong)


@on_every_transport
async def test_the_other_arguments_of_a_stream_are_checked_at_once(streams: Streams) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match="missing a required argument"):
        streams.count()  # type: ignore[call-arg]
    with pytest.raises(shmrpc.InvalidArgument, match="parameter 'most'"):
        streams.count(object())  # type: ignore[arg-type]


@on_every_transport
async def test_a_handler_of_a_stream_may_be_any_callable_that_gives_items(streams: Streams, key: str) -> None:
    assert [number async for number in streams.plain(5, key)] == [0, 1, 2, 3, 4]
    await streams.until(key, "closed")
    assert [number async for number in streams.given(3)] == [0, 1, 2]
    assert [number async for number in streams.by_name(most=3)] == [0, 1, 2]


@on_every_transport
async def test_a_handler_of_a_stream_sees_its_call_also_where_it_is_no_generator(streams: Streams) -> None:
    assert [name async for name in streams.name_of_call()] == ["Streams.name_of_call"] * 2


@on_every_transport
async def test_a_plain_generator_is_closed_when_its_stream_is_left(streams: Streams, key: str) -> None:
    async for number in streams.plain(10**9, key):
        if number == 500:
            break
    await streams.until(key, "closed")


@on_every_transport
async def test_a_stream_is_not_begun_before_it_is_read(streams: Streams, key: str) -> None:
    stream = streams.count(5, key)
    assert await streams.words(key) == []
    assert await anext(stream) == 0
    assert await streams.words(key) != []
    assert [number async for number in stream] == [1, 2, 3, 4]


@on_every_transport
async def test_a_stream_can_be_read_once(streams: Streams) -> None:
    stream = streams.count(3)
    assert [number async for number in stream] == [0, 1, 2]
    assert [number async for number in stream] == []


@on_every_transport
async def test_a_stream_is_read_by_one_task_at_a_time(streams: Streams, key: str) -> None:
    stream = streams.sleep_after(0, key)
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="read by one task at a time"):
        await anext(stream)
    with pytest.raises(RuntimeError, match="is being read; cancel the task"):
        await stream.aclose()  # type: ignore[attr-defined]
    reader.cancel()
    await asyncio.wait((reader,))
    assert "read by one task at a time" in await streams.read_twice(nothing_yet())


@on_every_transport
async def test_a_handler_that_does_not_read_its_stream_ends_the_call_all_the_same(streams: Streams) -> None:
    forever = iter(int, 1)
    assert await streams.ignore(forever) == "ignored"  # type: ignore[arg-type]
    assert await streams.ignore(each([])) == "ignored"


@on_every_transport
async def test_a_thousand_streams_at_once(streams: Streams) -> None:
    async def read(most: int) -> int:
        return sum([number async for number in streams.count(most)])

    sums = await asyncio.gather(*(read(most) for most in range(1000)))
    assert sums == [most * (most - 1) // 2 for most in range(1000)]


# What the items may be


@pytest.mark.parametrize(
    "sizes", [[0], [8100], [8192], [9000], [1, 9000, 1], [3000] * 9, [400_000, 2, 400_000], [0] * 200]
)
@on_every_transport
async def test_items_may_be_of_any_size(streams: Streams, sizes: list[int]) -> None:
    items = [item async for item in streams.records(sizes)]
    assert [(item.number, len(item.text)) for item in items] == list(enumerate(sizes))
    assert [item async for item in streams.echo(each(items))] == items


@pytest.mark.parametrize("nbytes", [1, 8000, 8001, MIB])
@pytest.mark.parametrize("born", [True, False])
@on_every_transport
async def test_items_may_be_arrays(streams: Streams, nbytes: int, born: bool) -> None:
    number = 0
    async for array in streams.arrays(20, nbytes, born):
        assert array.shape == (nbytes,)
        assert (array == number).all()
        assert not array.flags.writeable
        number += 1
    assert number == 20
    assert await streams.lengths(2, each(picture(nbytes, 1) for _ in range(9))) == [2 * nbytes] * 9


@on_every_transport
async def test_arrays_go_both_ways(streams: Streams) -> None:
    sent = [picture(size, number) for number, size in enumerate((1, 9000, MIB, 5 * MIB, 0, 3))]
    negated = [array async for array in streams.negate(each(sent))]
    assert all((array == 255 - original).all() for array, original in zip(negated, sent, strict=True))


@on_every_transport
async def test_items_may_be_kept_after_the_stream(streams: Streams) -> None:
    kept = [array async for array in streams.arrays(30, 100_000)]
    assert [int(array[-1]) for array in kept] == list(range(30))


@on_every_transport
async def test_items_may_be_of_any_type(streams: Streams) -> None:
    values = [None, 1, "two", [3.0], {"four": 5}, b"six"]
    assert [value async for value in streams.anything(values)] == values


@on_every_transport
async def test_each_item_is_sent_as_it_was_when_it_was_given(streams: Streams) -> None:
    async def changing() -> AsyncIterator[int]:
        numbers = [0]
        for number in range(100):
            numbers[0] = number
            yield numbers[0]

    assert await streams.total(changing()) == 4950


# Flow control


@on_every_transport
async def test_a_slow_reader_stops_the_writer(streams: Streams, key: str) -> None:
    stream = streams.count(10**9, key)
    assert await anext(stream) == 0
    sent = await settled(streams, key)
    assert sent < 1000
    for number in range(1, 200):
        assert await anext(stream) == number
    assert sent < await settled(streams, key) < 1200
    await stream.aclose()  # type: ignore[attr-defined]


async def settled(streams: Streams, key: str) -> int:
    """How many items were sent, once that does not change any more."""
    words: list[str] = []
    while (now := await streams.words(key)) != words or not now:
        words = now
        await asyncio.sleep(0.05)
    return int(words[0].removeprefix("sent "))


@on_every_transport
async def test_a_slow_handler_stops_the_caller(streams: Streams, key: str) -> None:
    taken = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal taken
        while taken < 2000:
            taken += 1
            yield taken

    call = asyncio.ensure_future(streams.read_slowly(endless(), key))
    await streams.until(key, "read 1")
    before = -1
    while before != taken:
        before = taken
        await asyncio.sleep(0.05)
    assert taken < 1000
    await streams.step(key)
    assert await call == 2000


@on_every_transport
async def test_arrays_that_nobody_reads_are_bounded_in_bytes(streams: Streams) -> None:
    stream = streams.arrays(1000, MIB)
    first = await anext(stream)
    assert int(first[0]) == 0
    assert await streams.total(each([1, 2])) == 3  # a stream that stands still holds up no other call
    rest = [int(array[0]) async for array in stream]
    assert rest == [number % 256 for number in range(1, 1000)]


@on_every_transport
async def test_a_stream_that_stands_still_holds_up_no_other(transport: Transport) -> None:
    async with transport.connect(Streams) as streams:
        standing = [streams.count(10**9) for _ in range(20)]
        for stream in standing:
            assert await anext(stream) == 0
        assert [number async for number in streams.count(5000)] == list(range(5000))
        for stream in standing:
            await stream.aclose()  # type: ignore[attr-defined]


@on_every_transport
async def test_a_reader_that_is_a_hundred_times_slower_gets_everything(streams: Streams) -> None:
    got = []
    async for number in streams.count(700):
        got.append(number)
        for _ in range(20):
            await asyncio.sleep(0)
    assert got == list(range(700))
