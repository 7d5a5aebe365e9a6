"""A stream of results and its interceptors: who ends what, in which order, and that nothing is left behind."""

import asyncio
import contextlib
from typing import Any

import pytest
from intercepted_api import Diary
from intercepted_streams import Below, Source, collect

import shmrpc

# The reader ends it


async def test_closing_cancels_the_interceptors_and_waits_for_them() -> None:
    diary, below = Diary(), Below(5)
    stream = Source(below).read(diary)
    await anext(stream)
    await stream.aclose()
    assert diary.lines == ["before", "CancelledError"]
    assert below.closed == 1
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_dropping_a_stream_ends_it() -> None:
    diary, below = Diary(), Below(5)
    async for _ in Source(below).read(diary):
        break
    await diary.ended.wait()
    assert diary.lines == ["before", "CancelledError"]
    assert below.closed == 1
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})  # the one that closes it


async def test_cancelling_the_reader_in_a_step_cancels_first_what_is_below() -> None:
    below, lines = Below(1, hang=True), list[str]()

    async def see(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        finally:
            lines.append(f"below was cancelled {below.cancelled} times, closed {below.closed} times")

    task = asyncio.create_task(collect(Source(below).read(see)))
    await below.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lines == ["below was cancelled 1 times, closed 1 times"]
    assert task.cancelled()


async def test_cancelling_the_reader_while_an_interceptor_waits_cancels_the_interceptor() -> None:
    waiting, lines = asyncio.Event(), list[str]()

    async def dawdle(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lines.append("cancelled")
            raise

    source = Source(Below(1))
    task = asyncio.create_task(collect(source.read(dawdle)))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (lines, source.begun) == (["cancelled"], 0)


async def test_a_reader_that_is_cancelled_twice_still_waits_for_the_interceptors() -> None:
    below, leaving, lines = Below(0, hang=True), asyncio.Event(), list[str]()

    async def slow_to_leave(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        finally:
            leaving.set()
            try:
                await asyncio.Event().wait()
            finally:
                lines.append("left")

    task = asyncio.create_task(collect(Source(below).read(slow_to_leave)))
    await below.waiting.wait()
    task.cancel()
    await leaving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lines == ["left"]


async def test_an_interceptor_that_answers_its_cancellation_with_an_error_is_heard() -> None:
    async def translate(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except asyncio.CancelledError:
            raise shmrpc.RpcError("translated") from None

    stream = Source(Below(3)).read(translate)
    await anext(stream)
    with pytest.raises(shmrpc.RpcError, match="translated"):
        await stream.aclose()


async def test_an_interceptor_that_proceeds_after_the_reader_has_gone_is_cancelled_again() -> None:
    async def stubborn(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except asyncio.CancelledError:
            return await proceed()

    source = Source(Below(0, hang=True), Below(1))
    task = asyncio.create_task(collect(source.read(stubborn)))
    await source.streams[0].waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.begun == 1


async def test_an_error_in_closing_what_is_below_goes_through_the_interceptors() -> None:
    class Stuck(Below):
        async def aclose(self) -> None:
            raise ValueError("stuck")

    diary = Diary()
    stream = Source(Stuck(3)).read(diary)
    await anext(stream)
    with pytest.raises(ValueError, match="stuck"):
        await stream.aclose()
    assert diary.lines == ["before", "ValueError"]


async def test_a_reader_that_is_cancelled_while_it_closes_what_is_below_ends_the_interceptors_too() -> None:
    closing = asyncio.Event()

    class Slow(Below):
        async def aclose(self) -> None:
            closing.set()
            await asyncio.Event().wait()

    diary = Diary()
    stream = Source(Slow(3)).read(diary)
    await anext(stream)
    task = asyncio.create_task(stream.aclose())
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["before", "CancelledError"]


# An interceptor ends it


@pytest.mark.parametrize("before", [0, 2])
async def test_an_interceptor_that_gives_up_ends_the_step_that_the_reader_waits_in(before: int) -> None:
    below, items = Below(before, hang=True), list[Any]()

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(0.01):
            return await proceed()

    with pytest.raises(TimeoutError):
        await collect(Source(below).read(limited), items)
    assert items == list(reversed(range(before)))
    assert (below.cancelled, below.closed) == (1, 1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_interceptor_that_gives_up_while_nobody_reads_closes_what_is_below_at_once() -> None:
    below, closed = Below(3), asyncio.Event()

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            async with asyncio.timeout(0.01):
                return await proceed()
        finally:
            closed.set()

    stream = Source(below).read(limited)
    assert await anext(stream) == 2
    await closed.wait()
    assert below.closed == 1
    with pytest.raises(TimeoutError):
        await anext(stream)


async def test_an_interceptor_may_give_up_and_begin_again() -> None:
    first, second = Below(0, hang=True), Below(2)

    async def impatient(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            async with asyncio.timeout(0.01):
                return await proceed()
        except TimeoutError:
            return await proceed()

    assert await collect(Source(first, second).read(impatient)) == [1, 0]
    assert (first.cancelled, first.closed, second.closed) == (1, 1, 1)


async def test_what_is_below_may_wait_while_it_is_told_to_end() -> None:
    class Slow(Below):
        async def __anext__(self) -> int:
            try:
                return await super().__anext__()
            finally:
                await asyncio.sleep(0)
                self.left_in_order = True

    below = Slow(0, hang=True)

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(0.01):
            return await proceed()

    with pytest.raises(TimeoutError):
        await collect(Source(below).read(limited))
    assert below.left_in_order


async def test_what_waits_for_nothing_in_particular_is_ended_too() -> None:
    class Busy(Below):
        async def __anext__(self) -> int:
            try:
                for _ in iter(int, 1):  # for ever
                    await asyncio.sleep(0)
                return 0
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                self.cancelled += 1
                raise

    below = Busy(0)

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(0.01):
            return await proceed()

    with pytest.raises(TimeoutError):
        await collect(Source(below).read(limited))
    assert (below.cancelled, below.closed) == (1, 1)


async def test_an_item_that_comes_instead_of_a_cancellation_is_not_delivered() -> None:
    class Deaf(Below):
        async def __anext__(self) -> int:
            with contextlib.suppress(asyncio.CancelledError):
                return await super().__anext__()
            return 99

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(0.01):
            return await proceed()

    below, items = Deaf(1, hang=True), list[Any]()
    with pytest.raises(TimeoutError):
        await collect(Source(below).read(limited), items)
    assert (items, below.closed) == ([0], 1)


async def test_what_waits_in_a_task_of_the_interceptors_own_ends_with_the_reader() -> None:
    tasks: list[asyncio.Future[Any]] = []

    async def shielded(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        tasks.append(asyncio.ensure_future(proceed()))
        return await asyncio.shield(tasks[0])

    stream = Source(Below(3)).read(shielded)
    await anext(stream)
    await stream.aclose()
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()


async def test_leaving_after_an_interceptor_gave_up_says_nothing_of_it() -> None:
    gave_up = asyncio.Event()

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            async with asyncio.timeout(0.01):
                return await proceed()
        finally:
            gave_up.set()

    stream = Source(Below(3)).read(limited)
    await anext(stream)
    await gave_up.wait()
    await asyncio.sleep(0)
    await stream.aclose()


@pytest.mark.parametrize("turns", range(8))
async def test_no_cancellation_is_lost_while_an_interceptor_gives_up(turns: int) -> None:
    below, limits, loop = Below(0, hang=True), list[asyncio.Timeout](), asyncio.get_running_loop()

    async def limited(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(None) as limit:
            limits.append(limit)
            return await proceed()

    reader = asyncio.create_task(collect(Source(below).read(limited)))
    await below.waiting.wait()
    limits[0].reschedule(loop.time())
    for _ in range(turns):
        await asyncio.sleep(0)
    told = reader.cancel()
    await asyncio.wait((reader,))
    assert reader.cancelled() == told
    assert below.closed == 1


async def test_a_reader_that_is_cancelled_in_the_turn_in_which_an_interceptor_gives_up_is_cancelled() -> None:
    below, chains = Below(0, hang=True), list[asyncio.Task[Any]]()

    async def see(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        task = asyncio.current_task()
        assert task is not None
        chains.append(task)
        return await proceed()

    reader = asyncio.create_task(collect(Source(below).read(see)))
    await below.waiting.wait()
    chains[0].cancel()
    await asyncio.sleep(0)
    assert not reader.done()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (reader.cancelled(), below.closed) == (True, 1)
