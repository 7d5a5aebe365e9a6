"""How a call ends before its handler does: deadlines, cancellation, close."""

import asyncio
import time

import pytest
from conformance_api import Api, Inner
from conformance_transports import Transport, between_processes, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

SOON = 0.2
"""Seconds: a deadline that passes soon, but not before a handler has started on a machine that is busy."""


async def assert_alive(api: Api) -> None:
    """The connection carries calls, whatever happened before."""
    assert await api.place(1, 2) == "1 2 none 1.0"


@on_every_transport
async def test_a_call_ends_at_its_deadline_and_its_handler_is_cancelled(api: Api, key: str) -> None:
    with pytest.raises(shmrpc.DeadlineExceeded, match=r"Api.hang") as caught:
        await shmrpc.options(api, timeout=SOON).hang(key)
    assert isinstance(caught.value, TimeoutError)
    await api.until(key, "cancelled")
    await assert_alive(api)


@on_every_transport
async def test_a_connection_may_have_a_deadline_for_all_its_calls(transport: Transport, key: str) -> None:
    async with transport.connect(Api, timeout=SOON) as api:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await api.hang(key)
        deadline = (await shmrpc.options(api, timeout=1000.0).about()).deadline
    assert deadline is not None
    assert deadline > time.monotonic() + 500


@on_every_transport
async def test_the_deadline_is_a_time_on_the_clock_of_the_host(api: Api) -> None:
    before = time.monotonic()
    deadline = (await shmrpc.options(api, timeout=100.0).about()).deadline
    assert deadline is not None
    assert before + 100.0 <= deadline <= time.monotonic() + 100.0


@on_every_transport
async def test_a_call_that_ends_in_time_is_not_bothered_by_its_deadline(api: Api, key: str) -> None:
    quick = shmrpc.options(api, timeout=SOON)
    task = asyncio.create_task(shmrpc.options(api, timeout=1000.0).answer_when_released(key))
    assert await quick.place(1) == "1 10 none 1.0"
    with pytest.raises(shmrpc.DeadlineExceeded):  # so the deadline of the first quick call has passed, too
        await quick.hang(key)
    await api.release(key)
    assert await task == "answer"


@on_every_transport
async def test_what_a_handler_gives_when_its_deadline_has_passed_is_no_result(api: Api) -> None:
    """Whichever side's timer fires first, so there are many deadlines."""
    stubs = [shmrpc.options(api, timeout=SOON + number / 1000) for number in range(50)]
    ends = await asyncio.gather(*(stub.answer_when_cancelled() for stub in stubs), return_exceptions=True)
    assert {type(end) for end in ends} == {shmrpc.DeadlineExceeded}


@on_every_transport
async def test_a_nested_call_inherits_the_deadline(api: Api) -> None:
    outer, nested = await shmrpc.options(api, timeout=100.0).nested_deadlines(None)
    assert outer is not None
    assert nested == outer


@on_every_transport
async def test_a_nested_call_may_have_a_shorter_deadline_but_not_a_longer_one(api: Api) -> None:
    limited = shmrpc.options(api, timeout=100.0)
    outer, nested = await limited.nested_deadlines(10.0)
    assert outer is not None
    assert nested is not None
    assert nested < outer - 50
    outer, nested = await limited.nested_deadlines(1000.0)
    assert nested == outer


@on_every_transport
async def test_without_a_deadline_a_nested_call_has_its_own_or_none(api: Api) -> None:
    assert await api.nested_deadlines(None) == (None, None)
    outer, nested = await api.nested_deadlines(10.0)
    assert outer is None
    assert nested is not None


@on_every_transport
async def test_a_call_whose_deadline_has_passed_already_is_not_carried_out(transport: Transport, key: str) -> None:
    async with transport.connect(Api) as api, transport.connect(Inner) as inner:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shmrpc.options(api, timeout=SOON).call_after_the_deadline(key)
        await api.until(key, "refused")
        assert not await inner.has_run(key)
        assert await api.journal(key) == ["refused"]


@on_every_transport
async def test_cancelling_the_caller_cancels_the_handler(api: Api, key: str) -> None:
    task = asyncio.create_task(api.hang(key))
    await api.until(key, "started")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await api.until(key, "cancelled")
    await assert_alive(api)


@on_every_transport
async def test_a_timeout_of_the_caller_cancels_the_handler(api: Api, key: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON):
            await api.hang(key)
    await api.until(key, "cancelled")


@on_every_transport
async def test_a_call_that_is_cancelled_at_once_ends_at_once(api: Api, key: str) -> None:
    for turns in range(4):
        task = asyncio.create_task(api.hang(key))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await assert_alive(api)
    journal = await api.journal(key)
    assert journal.count("started") <= 4


@on_every_transport
async def test_two_calls_may_be_cancelled_at_once(api: Api, key: str) -> None:
    keys = [f"{key} {number}" for number in range(2)]
    tasks = [asyncio.create_task(api.hang(one)) for one in keys]
    for one in keys:
        await api.until(one, "started")
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
    for one in keys:
        await api.until(one, "cancelled")
    await assert_alive(api)


@on_every_transport
async def test_a_call_may_be_cancelled_twice(api: Api, key: str) -> None:
    task = asyncio.create_task(api.hang(key))
    await api.until(key, "started")
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await api.until(key, "cancelled")
    assert await api.journal(key) == ["started", "cancelled"]


@on_every_transport
async def test_a_call_may_be_cancelled_in_the_tick_of_its_reply(api: Api, key: str) -> None:
    """The reply of the second call is here when the first, which wakes before it, cancels it."""
    second: asyncio.Task[str]

    async def first(key: str) -> None:
        assert await api.answer_when_released(key) == "answer"
        second.cancel()

    ends = set()
    for number in range(50):
        one = f"{key} {number}"
        waiting = asyncio.create_task(first(one))
        await api.until(one, "started")
        second = asyncio.create_task(api.answer_when_released(one))
        await api.until(one, "started twice")
        await api.release(one)
        await waiting
        try:
            ends.add(await second)
        except asyncio.CancelledError:
            ends.add("cancelled")
    assert ends <= {"answer", "cancelled"}
    await assert_alive(api)


@on_every_transport
async def test_a_handler_may_ignore_its_cancellation_but_nobody_waits_for_it(api: Api, key: str) -> None:
    task = asyncio.create_task(api.ignore_cancellation(key))
    await api.until(key, "started")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await api.until(key, "ignored, cancelled is True")
    await assert_alive(api)
    await api.release(key)
    await api.until(key, "finished")
    await assert_alive(api)


@on_every_transport
async def test_a_handler_may_ignore_its_deadline_but_nobody_waits_for_it(api: Api, key: str) -> None:
    with pytest.raises(shmrpc.DeadlineExceeded):
        await shmrpc.options(api, timeout=SOON).ignore_cancellation(key)
    await api.until(key, "ignored, cancelled is True")
    await api.release(key)
    await api.until(key, "finished")
    assert await api.journal(key) == ["started", "ignored, cancelled is True", "finished"]


@on_every_transport
async def test_cancelling_one_call_leaves_the_others_alone(api: Api, key: str) -> None:
    others = [asyncio.create_task(api.answer_when_released(key)) for _ in range(10)]
    task = asyncio.create_task(api.hang(key + " one"))
    await api.until(key + " one", "started")
    task.cancel()
    await api.until(key + " one", "cancelled")
    await api.release(key)
    assert await asyncio.gather(*others) == ["answer"] * 10


@on_every_transport
async def test_a_stub_that_is_closed_says_so(transport: Transport) -> None:
    async with transport.connect(Api) as api:
        quick = shmrpc.options(api, timeout=1.0)
    for stub in (api, quick):
        with pytest.raises(shmrpc.Closed, match=r"Api.place was called on a stub that is closed") as caught:
            await stub.place(1)
        assert isinstance(caught.value, shmrpc.Unavailable)
        assert not caught.value.maybe_executed


@on_every_transport
async def test_closing_ends_the_calls_that_are_under_way(api: Api, transport: Transport, key: str) -> None:
    async with transport.connect(Api) as closing:
        tasks = [
            asyncio.create_task(closing.hang(key)),
            asyncio.create_task(closing.ignore_cancellation(key + " stubborn")),
        ]
        await closing.until(key, "started")
        await closing.until(key + " stubborn", "started")
        releasing = asyncio.create_task(_release_when_ignored(api, key + " stubborn"))
    for task in tasks:
        with pytest.raises(shmrpc.Closed, match=r"while Api.* was under way") as caught:
            await task
        assert caught.value.maybe_executed
    await api.until(key, "cancelled")
    await releasing


async def _release_when_ignored(api: Api, key: str) -> None:
    await api.until(key, "ignored, cancelled is True")
    await api.release(key)


@on_every_transport
async def test_a_connection_can_be_entered_once(transport: Transport) -> None:
    connection = transport.connect(Api)
    async with connection as api:
        await assert_alive(api)
        with pytest.raises(shmrpc.Closed, match="once"):
            await connection.__aenter__()
        await assert_alive(api)
    with pytest.raises(shmrpc.Closed, match="once"):
        await connection.__aenter__()


@between_processes
async def test_the_end_of_one_connection_is_not_the_end_of_another(transport: Transport) -> None:
    async with transport.connect(Api) as one:
        async with transport.connect(Api) as other:
            await assert_alive(other)
        await assert_alive(one)
