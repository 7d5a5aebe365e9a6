"""How a stream of results passes its interceptors: items, errors, repeating, contexts."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from intercepted_api import Api, Diary, Service, marked, numbers
from intercepted_streams import Below, Source, collect

import shmrpc

# Items


async def test_items_pass_and_what_comes_after_proceeding_runs_at_the_end() -> None:
    diary, below = Diary(), Below(3)
    stream = Source(below).read(diary)
    assert diary.lines == []
    assert await anext(stream) == 2
    assert diary.lines == ["before"]
    assert await collect(stream) == [1, 0]
    assert diary.lines == ["before", "None"]
    assert below.closed == 1


async def test_nothing_begins_before_the_first_step() -> None:
    source, diary = Source(Below(3)), Diary()
    stream = source.read(diary)
    await asyncio.sleep(0)
    await stream.aclose()
    assert (source.begun, diary.lines) == (0, [])


async def test_interceptors_change_items_the_innermost_first() -> None:
    async def tens(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return await proceed(each=lambda item: 10 * item)

    async def ones(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return await proceed(each=lambda item: item + 1)

    assert await collect(Source(Below(3)).read(tens, Diary(), ones)) == [30, 20, 10]


async def test_no_item_is_taken_before_it_is_asked_for() -> None:
    below = Below(3)
    stream = Source(below).read(Diary())
    await anext(stream)
    for _ in range(5):
        await asyncio.sleep(0)
    assert below.left == 2
    await stream.aclose()


async def test_an_empty_stream_passes() -> None:
    diary = Diary()
    assert await collect(Source(Below(0)).read(diary)) == []
    assert diary.lines == ["before", "None"]


async def test_many_streams_pass_at_once() -> None:
    diary = Diary()
    async with shmrpc.local(Api, Service(), interceptors=[diary], server_interceptors=[diary]) as api:
        read = await asyncio.gather(*(collect(api.count(number)) for number in range(20)))
    assert read == [list(range(number)) for number in range(20)]
    assert diary.lines.count("None") == 40


# Errors


async def test_an_error_arrives_after_the_items_before_it_through_the_interceptors() -> None:
    diary, items = Diary(), list[Any]()
    with pytest.raises(ValueError, match="below"):
        await collect(Source(Below(2, error=ValueError("below"))).read(diary), items)
    assert items == [1, 0]
    assert diary.lines == ["before", "ValueError"]


async def test_an_interceptor_may_raise_another_error() -> None:
    async def translate(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except ValueError as error:
            raise shmrpc.RpcError("translated") from error

    with pytest.raises(shmrpc.RpcError, match="translated"):
        await collect(Source(Below(2, error=ValueError("below"))).read(translate))


async def test_an_interceptor_may_take_an_error_for_the_end() -> None:
    async def suppress(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except ValueError:
            return None

    assert await collect(Source(Below(2, error=ValueError("below"))).read(suppress)) == [1, 0]


async def test_an_interceptor_may_refuse_or_answer_with_nothing() -> None:
    async def refuse(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        raise shmrpc.PermissionDenied("no")

    async def empty(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return None

    source = Source(Below(3))
    with pytest.raises(shmrpc.PermissionDenied):
        await anext(source.read(refuse))
    assert await collect(source.read(empty)) == []
    assert source.begun == 0


async def test_an_interceptor_cannot_replace_a_stream_by_a_value() -> None:
    async def answer(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        await proceed()
        return [1, 2]

    items: list[Any] = []
    with pytest.raises(
        TypeError, match=r"Api\.count: an interceptor of a stream of results returned list, expected None"
    ):
        await collect(Source(Below(1)).read(answer), items)
    assert items == [0]


async def test_an_error_in_changing_an_item_ends_the_call() -> None:
    diary, below = Diary(), Below(3)

    async def divide(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return await proceed(each=lambda item: 10 // (item - 1))

    items: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        await collect(Source(below).read(diary, divide), items)
    assert items == [10]
    assert diary.lines == ["before", "ZeroDivisionError"]
    assert below.closed == 1


async def test_an_error_after_the_last_item_arrives() -> None:
    async def late(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        await proceed()
        raise shmrpc.RpcError("late")

    items: list[Any] = []
    with pytest.raises(shmrpc.RpcError, match="late"):
        await collect(Source(Below(2)).read(late), items)
    assert items == [1, 0]


async def test_a_stream_that_cannot_begin_fails_inside_of_the_interceptors() -> None:
    diary, source = Diary(), Source()
    with pytest.raises(IndexError):
        await anext(source.read(diary))
    assert diary.lines == ["before", "IndexError"]


# Repeating


async def test_a_stream_may_be_begun_again_while_nothing_was_delivered() -> None:
    async def repeat(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed(each=lambda item: -1)
        except ValueError:
            return await proceed()

    inner, first, second = Diary(), Below(0, error=ValueError()), Below(2)
    assert await collect(Source(first, second).read(repeat, inner)) == [1, 0]
    assert inner.lines == ["before", "ValueError", "before", "None"]
    assert (first.closed, second.closed) == (1, 1)


async def test_a_stream_cannot_be_begun_again_after_an_item() -> None:
    async def repeat(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except ValueError:
            return await proceed()

    source, items = Source(Below(1, error=ValueError()), Below(1)), list[Any]()
    with pytest.raises(RuntimeError, match=r"proceed\(\) was called again after items of its stream were delivered"):
        await collect(source.read(repeat), items)
    assert (items, source.begun) == ([0], 1)


async def test_a_stream_cannot_be_begun_twice_at_once() -> None:
    async def race(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        await asyncio.gather(proceed(), proceed())

    source = Source(Below(1), Below(1))
    with pytest.raises(RuntimeError, match=r"proceed\(\) was called while its stream is still under way"):
        await collect(source.read(race))
    assert source.begun == 1


# Contexts and tasks


async def test_what_is_below_sees_the_context_variables_that_interceptors_set() -> None:
    async def mark(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        marked.set("marked")
        try:
            return await proceed()
        finally:
            marked.set("unmarked")

    below = Below(2)
    stream = Source(below).read(mark)
    assert await anext(stream) == 1
    assert marked.get() == "nothing"
    assert await collect(stream) == [0]
    assert below.contexts == ["marked"] * 3


async def test_each_step_may_be_taken_by_another_task() -> None:
    stream = Source(Below(3)).read(Diary())

    async def step() -> Any:
        return await anext(stream)

    assert [await asyncio.create_task(step(), context=copy_context()) for _ in range(3)] == [2, 1, 0]
    with pytest.raises(StopAsyncIteration):
        await step()


async def test_the_handler_of_a_stream_may_use_timeouts() -> None:
    class Impatient(Service):
        async def hang_after(self, count: int) -> AsyncIterator[int]:
            for number in range(count):
                try:
                    async with asyncio.timeout(0.01):
                        await asyncio.Event().wait()
                except TimeoutError:
                    yield number

    async with shmrpc.local(Api, Impatient(), interceptors=[Diary()], server_interceptors=[Diary()]) as api:
        assert await collect(api.hang_after(3)) == [0, 1, 2]


async def test_a_stream_that_has_ended_leaves_nothing_for_the_garbage_collector() -> None:
    class Thing:
        pass

    kept: ContextVar[Any] = ContextVar("kept")

    async def keep(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        thing = Thing()
        kept.set(thing)
        call.arguments.append(thing)
        things.append(weakref.ref(thing))
        return await proceed()

    class Stuck(Below):
        async def aclose(self) -> None:
            raise ZeroDivisionError

    things: list[weakref.ref[Thing]] = []
    gc.collect()
    gc.disable()
    try:
        await collect(Source(Below(2)).read(keep))
        with contextlib.suppress(ValueError):  # pytest.raises would keep it
            await collect(Source(Below(2, error=ValueError())).read(keep))
        with contextlib.suppress(ZeroDivisionError):
            await collect(Source(Stuck(2)).read(keep))
        stream = Source(Below(2)).read(keep)
        await anext(stream)
        await stream.aclose()
        del stream
        await asyncio.sleep(0)
        assert [thing() for thing in things] == [None] * 4
    finally:
        gc.enable()


async def test_an_item_is_the_readers_alone() -> None:
    class Thing:
        pass

    class Things(Below):
        async def __anext__(self) -> Any:
            return Thing()

    stream = Source(Things(0)).read(Diary())
    gc.collect()
    gc.disable()
    try:
        thing = weakref.ref(await anext(stream))
        assert thing() is None
    finally:
        gc.enable()
    await stream.aclose()


async def test_both_directions_pass_at_once() -> None:
    diary = Diary()
    async with shmrpc.local(Api, Service(), interceptors=[diary], server_interceptors=[diary]) as api:
        assert await collect(api.negate(numbers(50))) == [-number for number in range(50)]
    assert diary.lines == ["before", "before", "None", "None"]
