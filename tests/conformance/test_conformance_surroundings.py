"""What surrounds a call: current_call(), metadata, contexts and tasks, threads, one-way calls, the service's life."""

import asyncio
import os
from pathlib import Path

import pytest
from conformance_api import Api, BadShape, Point, Threads
from conformance_transports import Transport, on_every_transport, over_one_connection

import shmrpc

pytest_plugins = ["conformance_plugin"]


@on_every_transport
async def test_a_handler_sees_the_call_that_it_answers(api: Api) -> None:
    about = await shmrpc.options(api, metadata={"tenant": "a"}).about()
    assert about.method == "Api.about"
    assert about.deadline is None
    assert about.text_metadata == {"tenant": "a"}
    assert about.peer == (os.getpid(), os.getuid(), os.getgid())
    assert not about.cancelled


@on_every_transport
async def test_the_caller_can_see_the_process_of_the_server(api: Api) -> None:
    assert shmrpc.peer(api) == ((await api.about()).server_pid, os.getuid(), os.getgid())


@on_every_transport
async def test_outside_of_a_handler_there_is_no_call(api: Api) -> None:
    await api.place(1)
    with pytest.raises(RuntimeError, match="no call is being handled here"):
        shmrpc.current_call()


@on_every_transport
async def test_metadata_of_the_connection_and_of_the_options_arrive_together(transport: Transport) -> None:
    async with transport.connect(Api, metadata={"tenant": "a", "user": "u"}) as api:
        more = shmrpc.options(api, metadata={"user": "v", "trace": b"\0\xff"})
        about = await more.about()
        assert about.text_metadata == {"tenant": "a", "user": "v"}
        assert about.binary_metadata == {"trace": b"\0\xff"}
        assert (await api.about()).text_metadata == {"tenant": "a", "user": "u"}


@on_every_transport
async def test_a_call_with_metadata_has_arguments_defaults_and_errors_as_any_other(api: Api) -> None:
    marked = shmrpc.options(api, metadata={"tenant": "a"})
    assert await marked.place(1, label="here") == "1 10 here 1.0"
    assert await marked.repeat("x", 100_000) == "x" * 100_000
    with pytest.raises(BadShape):
        await marked.refuse_shape((), "none")
    with pytest.raises(shmrpc.InvalidArgument, match="parameter 'x'"):
        await marked.place("one")  # type: ignore[arg-type]


@on_every_transport
async def test_each_call_has_a_fresh_context(api: Api) -> None:
    assert await api.remember("first") == ("nothing", "first")
    assert await api.remember("second") == ("nothing", "second")
    many = await asyncio.gather(*(api.remember(str(number)) for number in range(20)))
    assert many == [("nothing", str(number)) for number in range(20)]


@on_every_transport
async def test_a_handler_is_one_task_from_its_first_line_to_its_last(api: Api) -> None:
    assert await api.is_one_task()
    assert all(await asyncio.gather(*(api.is_one_task() for _ in range(20))))


@on_every_transport
async def test_a_handler_may_use_timeouts_and_task_groups(api: Api) -> None:
    assert await api.time_out() == "timed out"
    assert await api.gather(5) == [0, 1, 2, 3, 4]
    assert await asyncio.gather(*(api.time_out() for _ in range(10))) == ["timed out"] * 10


@on_every_transport
async def test_a_plain_function_runs_in_a_thread(transport: Transport) -> None:
    async with transport.connect(Threads) as threads:
        assert await threads.is_off_the_loop()
        assert await threads.add(2) == 3
        assert await threads.add(2, right=3) == 5


@on_every_transport
async def test_a_plain_function_sees_its_call(transport: Transport) -> None:
    async with transport.connect(Threads, metadata={"tenant": "a"}) as threads:
        assert await threads.about() == ("Threads.about", {"tenant": "a"})


@on_every_transport
async def test_an_error_of_a_plain_function_arrives_as_itself(transport: Transport) -> None:
    async with transport.connect(Threads) as threads:
        with pytest.raises(BadShape) as caught:
            await threads.fail((1, 2))
    assert (caught.value.shape, caught.value.centre) == ((1, 2), Point(3))


@on_every_transport
async def test_a_plain_function_learns_that_nobody_waits_any_more(transport: Transport, key: str) -> None:
    async with transport.connect(Threads) as threads:
        task = asyncio.create_task(threads.work_until_cancelled(key))
        await threads.until(key, "started")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await threads.until(key, "stopped")
        assert await threads.add(2) == 3


@on_every_transport
async def test_plain_functions_run_side_by_side(transport: Transport, key: str) -> None:
    keys = [f"{key} {number}" for number in range(5)]
    async with transport.connect(Threads) as threads:
        tasks = [asyncio.create_task(threads.work_until_cancelled(one)) for one in keys]
        for one in keys:
            await threads.until(one, "started")
        for task in tasks:
            task.cancel()
        for one in keys:
            await threads.until(one, "stopped")
        await asyncio.wait(tasks)


@on_every_transport
async def test_a_one_way_call_does_not_wait_for_its_handler(api: Api, key: str) -> None:
    await api.note_when_released(key)
    await api.until(key, "started")
    assert await api.journal(key) == ["started"]
    await api.release(key)
    await api.until(key, "finished")


@over_one_connection
async def test_one_way_calls_arrive_in_order(api: Api, key: str) -> None:
    for number in range(100):
        await api.note(key, str(number))
    await api.until(key, "99")
    assert await api.journal(key) == [str(number) for number in range(100)]


@on_every_transport
async def test_the_error_of_a_one_way_call_reaches_nobody(api: Api, key: str) -> None:
    await api.note_and_fail(key)
    await api.until(key, "failing")
    await api.note(key, 7)  # type: ignore[arg-type]
    assert await api.place(1) == "1 10 none 1.0"
    assert await api.journal(key) == ["failing"]


@on_every_transport
async def test_a_one_way_call_with_arguments_that_cannot_travel_is_refused_here(api: Api, key: str) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match="'word' cannot be encoded"):
        await api.note("key", object())  # type: ignore[arg-type]
    with pytest.raises(shmrpc.InvalidArgument, match="missing a required argument: 'word'"):
        await api.note("key")  # type: ignore[call-arg]


@on_every_transport
async def test_a_one_way_call_outlives_its_connection(api: Api, transport: Transport, key: str) -> None:
    async with transport.connect(Api) as closing:
        await closing.note_when_released(key)
        await closing.until(key, "started")
        releasing = asyncio.create_task(api.release(key))
    await api.until(key, "finished")
    await releasing


@on_every_transport
async def test_a_one_way_call_ends_at_its_deadline(api: Api, key: str) -> None:
    await shmrpc.options(api, timeout=0.2).note_when_released(key)
    await api.until(key, "cancelled")
    await api.release(key)
    assert await api.journal(key) == ["started", "cancelled"]


@on_every_transport
async def test_a_service_is_entered_before_its_first_call_and_left_after_its_last(
    transport: Transport, folder: Path
) -> None:
    diary = folder / "diary"
    async with transport.alone(diary) as life:
        await life.live()
        await life.live()
        assert diary.read_text().split() == ["entered", "called", "called"]
    assert diary.read_text().split() == ["entered", "called", "called", "left"]
