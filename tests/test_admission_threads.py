"""Limits of handlers that run in threads, which nobody can cancel, and of streams."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Protocol

import pytest
from admitting import Api, Gate, limit_of, served_by, settle, start

import shmrpc
from shmrpc.admission import Limit
from shmrpc.dispatch import Dispatcher, ServedMethod

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Waits for the threads of plain handlers, which are told to end with the test's task."""
    yield
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(PATIENCE)


# Limits of plain functions, which run in threads


class InThread:
    def __init__(self) -> None:
        self.began: list[int] = []
        self.gates = [threading.Event() for _ in range(4)]

    @shmrpc.method(max_concurrency=1)
    def work(self, number: int) -> int:
        self.began.append(number)
        self.gates[number].wait(PATIENCE)
        return number


async def begun(service: InThread, *numbers: int) -> None:
    while service.began != list(numbers):  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)


async def test_a_thread_that_its_call_has_left_behind_still_counts() -> None:
    service = InThread()
    served = served_by(service)
    first, second = start(served, 0), start(served, 1)
    await begun(service, 0)
    first.cancel()
    await asyncio.wait((first,))
    await settle()
    assert (limit_of(served).running, len(limit_of(served).waiting)) == (1, 1)
    assert service.began == [0]
    service.gates[0].set()
    await begun(service, 0, 1)
    service.gates[1].set()
    assert await second == 1
    assert limit_of(served).running == 0


async def test_a_call_that_ends_before_there_is_a_thread_gives_its_slot_back() -> None:
    service = InThread()
    served = Dispatcher((shmrpc.service(service, Api),), max_threads=1).methods[0]
    call = start(served, 0)
    await asyncio.sleep(0)
    call.cancel()  # in the checkpoint before the thread, or in its first moment
    await asyncio.wait((call,))
    service.gates[0].set()
    next_one = start(served, 1)
    service.gates[1].set()
    assert await next_one == 1


async def test_a_thread_that_begins_after_its_call_has_ended_does_not_call_the_handler() -> None:
    limit = Limit(1, 0)
    slot = await limit.take("Api.work", 0)
    slot.end()
    called: list[int] = []
    with pytest.raises(shmrpc.Cancelled):
        slot.run(called.append, 1)
    assert (called, limit.running) == ([], 0)


async def test_a_thread_that_gives_a_coroutine_has_its_slot_until_that_has_ended() -> None:
    gate = Gate()

    class Wrapped:
        @shmrpc.method(max_concurrency=1)
        def work(self, number: int) -> Coroutine[Any, Any, int]:
            return gate.work(number)

    served = served_by(Wrapped())
    first, second = start(served, 0), start(served, 1)
    while gate.began != [0]:  # noqa: ASYNC110 - a thread makes the coroutine
        await asyncio.sleep(0)
    await settle()
    assert (limit_of(served).running, len(limit_of(served).waiting)) == (1, 1)
    gate.ends[0].set_result(7)
    assert await first == 7
    second.cancel()
    await asyncio.wait((second,))


# Limits of streams


class Flow(Protocol):
    def count(self, most: int) -> AsyncIterator[int]: ...


class OneFlow:
    """Counts, and remembers when it began and ended."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    @shmrpc.method(max_concurrency=1)
    async def count(self, most: int) -> AsyncIterator[int]:
        self.diary.append(f"began {most}")
        try:
            for number in range(most):
                yield number
            if most == 7:
                raise ValueError(most)
        finally:
            self.diary.append(f"ended {most}")


def flow_of(implementation: object) -> ServedMethod:
    return Dispatcher((shmrpc.service(implementation, Flow),)).methods[0]


async def test_a_stream_has_its_slot_until_its_last_item_was_taken() -> None:
    flow = OneFlow()
    served = flow_of(flow)
    running = served.invoke(2)
    assert await anext(running) == 0
    waiting = served.invoke(3)
    begins = asyncio.ensure_future(anext(waiting))
    await settle()
    assert flow.diary == ["began 2"]
    assert [item async for item in running] == [1]
    assert await begins == 0
    assert flow.diary == ["began 2", "ended 2", "began 3"]
    await waiting.aclose()
    assert limit_of(served).running == 0


@pytest.mark.parametrize("how", ["closed", "failed", "cancelled", "never begun"])
async def test_the_slot_of_a_stream_comes_back_however_it_ends(how: str) -> None:
    flow = OneFlow()
    served = flow_of(flow)
    stream = served.invoke(7)
    if how == "closed":
        await anext(stream)
        await stream.aclose()
    elif how == "failed":
        with pytest.raises(ValueError):
            [item async for item in stream]
    elif how == "cancelled":
        await anext(stream)
        with pytest.raises(asyncio.CancelledError):
            await stream.athrow(asyncio.CancelledError())
    else:
        await stream.aclose()
    assert flow.diary == ([] if how == "never begun" else ["began 7", "ended 7"])
    assert repr(limit_of(served)) == "<Limit, 0 of 1 running, 0 of 1024 waiting>"


async def test_a_stream_may_be_anything_that_can_be_iterated() -> None:
    class Iterable:
        def __aiter__(self) -> AsyncIterator[int]:
            return OneFlow().count(2)

    class Gives:
        @shmrpc.method(max_concurrency=1)
        def count(self, most: int) -> Any:
            return Iterable() if most else [5, 6]

    served = flow_of(Gives())
    assert [item async for item in served.invoke(1)] == [0, 1]
    assert [item async for item in served.invoke(0)] == [5, 6]
    assert limit_of(served).running == 0


async def test_a_plain_generator_has_its_slot_until_the_step_that_it_was_cancelled_in_has_ended() -> None:
    began, gate = threading.Event(), threading.Event()

    class InThreads:
        @shmrpc.method(max_concurrency=1)
        def count(self, most: int) -> Iterator[int]:
            began.set()
            gate.wait(PATIENCE)
            yield most

    served = flow_of(InThreads())
    step = asyncio.ensure_future(anext(served.invoke(1)))
    while not began.is_set():  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait((step,))
    assert limit_of(served).running == 1
    gate.set()
    while limit_of(served).running:  # noqa: ASYNC110 - the thread gives it back
        await asyncio.sleep(0)
    again = served.invoke(2)
    assert [item async for item in again] == [2]


async def test_an_item_is_kept_by_nobody_while_the_next_one_is_not_asked_for() -> None:
    class Item:
        pass

    class Gives:
        @shmrpc.method(max_concurrency=1)
        async def count(self, most: int) -> AsyncIterator[Any]:
            yield Item()
            await asyncio.Event().wait()

    stream = flow_of(Gives()).invoke(1)
    item = weakref.ref(await anext(stream))
    assert item() is None
    await stream.aclose()
