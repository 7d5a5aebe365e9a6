"""Interceptors around the calls of a stub: what they change is sent, and without any a stub is what it was."""

import asyncio
import os
from time import monotonic
from typing import Any, Protocol, cast

import pytest
from intercepted_api import Api, Diary, Service, numbers

import shmrpc
from shmrpc import contract
from shmrpc.client import Stub
from shmrpc.context import CallOptions
from shmrpc.interceptors.client import intercepted
from shmrpc.methods import Method
from shmrpc.transport import StubMethod, Transport

READ = contract.read(Api)


class Binder:
    """Stands for a transport: gives away functions, and keeps what it was asked for."""

    address = "somewhere"
    peer = shmrpc.Peer(os.getpid(), 0, 0)

    def __init__(self) -> None:
        self.bound: list[tuple[Method, CallOptions, StubMethod]] = []
        self.called: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.called.append((args, kwargs))
            return "result"

        self.bound.append((method, options, call))
        return call


def bind(binder: Binder, name: str, options: CallOptions) -> StubMethod:
    return intercepted(cast(Transport, binder), READ.methods[name], options)


async def add_three(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
    """An interceptor with a mistake."""
    call.arguments.extend([7, 8, 9])
    return await proceed()


async def test_more_arguments_than_a_method_takes_are_refused_with_how_many_it_takes() -> None:
    async with shmrpc.local(Api, Service(), interceptors=[add_three]) as api:
        with pytest.raises(shmrpc.InvalidArgument) as caught:
            await api.add(1)
        assert str(caught.value) == (
            "Api.add: interceptors have made its arguments 4, it takes 3; "
            "it is add(left: int, right: int = …, *, factor: int = …) -> int"
        )
        with pytest.raises(
            shmrpc.InvalidArgument, match=r"Api\.about: interceptors have made its arguments 3, it takes 0"
        ):
            await api.about()
        with pytest.raises(
            shmrpc.InvalidArgument, match=r"Api\.count: .* 4, it takes 2; it is count\(upto: int, \*, fail"
        ):
            await anext(aiter(api.count(1)))


# No interceptor, no cost


def test_without_interceptors_a_stub_has_the_very_functions_of_its_transport() -> None:
    binder = Binder()
    stub = Stub(READ, cast(Transport, binder), CallOptions())
    assert [getattr(stub, method.name) for method, _, _ in binder.bound] == [call for _, _, call in binder.bound]
    assert len(binder.bound) == len(READ.methods)


async def test_a_call_that_is_left_as_it_is_needs_nothing_bound_anew() -> None:
    binder = Binder()
    call = bind(binder, "add", CallOptions(metadata={"a": "1"}, interceptors=(Diary(),)))
    assert await call(1) == await call(2) == "result"
    assert len(binder.bound) == 1


async def test_looking_at_the_metadata_does_not_bind_anew() -> None:
    async def look(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        assert dict(call.metadata) == {"a": "1"}
        return await proceed()

    binder = Binder()
    await bind(binder, "add", CallOptions(metadata={"a": "1"}, interceptors=(look,)))(1)
    assert len(binder.bound) == 1


# What stubs are


async def test_a_stub_with_interceptors_has_methods_like_any_other() -> None:
    async with shmrpc.local(Api, Service(), interceptors=[Diary()]) as api:
        assert (api.add.__name__, api.add.__qualname__) == ("add", "Api.add")
        assert (api.count.__name__, api.count.__qualname__) == ("count", "Api.count")
        assert asyncio.iscoroutinefunction(api.add)
        assert [name for name in dir(api) if not name.startswith("_")] == sorted(READ.methods)


async def test_options_add_interceptors_inside_of_those_of_the_stub() -> None:
    lines: list[str] = []
    async with shmrpc.local(Api, Service(), interceptors=[Diary("outer ", lines)]) as api:
        more = shmrpc.options(api, interceptors=[Diary("inner ", lines)])
        await more.add(1)
        assert lines == ["outer before", "inner before", "inner 2", "outer 2"]
        lines.clear()
        await shmrpc.options(more, timeout=10.0).add(1)
        assert lines == ["outer before", "inner before", "inner 2", "outer 2"]
        lines.clear()
        await api.add(1)
        assert lines == ["outer before", "outer 2"]


async def test_other_options_survive_what_an_interceptor_changes() -> None:
    async def touch(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.metadata["b"] = "2"
        return await proceed()

    binder = Binder()
    await bind(binder, "add", CallOptions(metadata={"a": "1"}, idle_timeout=3.0, interceptors=(touch,)))(1)
    assert binder.bound[-1][1].idle_timeout == 3.0


# Arguments


@pytest.mark.parametrize(
    ("args", "kwargs", "seen"),
    [
        ((1,), {}, [1]),
        ((1, 2), {}, [1, 2]),
        ((), {"left": 1}, [1]),
        ((1,), {"factor": 3}, [1, 1, 3]),
        ((), {"factor": 3, "right": 2, "left": 1}, [1, 2, 3]),
    ],
)
async def test_arguments_are_seen_in_order_without_the_last_ones_that_were_not_given(
    args: tuple[Any, ...], kwargs: dict[str, Any], seen: list[Any]
) -> None:
    binder, diary = Binder(), Diary()
    await bind(binder, "add", CallOptions(interceptors=(diary,)))(*args, **kwargs)
    assert diary.calls[0].arguments == seen
    assert binder.called == [(tuple(seen[:2]), {"factor": seen[2]} if len(seen) > 2 else {})]


async def test_arguments_that_are_replaced_are_sent() -> None:
    async def replace(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.arguments = [10, 20]
        return await proceed()

    async with shmrpc.local(Api, Service(), interceptors=[replace]) as api:
        assert await api.add(1) == 30


async def test_arguments_that_do_not_fit_are_refused_before_any_interceptor() -> None:
    diary = Diary()
    async with shmrpc.local(Api, Service(), interceptors=[diary]) as api:
        with pytest.raises(shmrpc.InvalidArgument, match="missing a required argument: 'left'"):
            await api.add()  # type: ignore[call-arg]
        with pytest.raises(shmrpc.InvalidArgument, match="missing a required argument: 'upto'"):
            api.count()  # type: ignore[call-arg]
    assert diary.lines == []


async def test_a_stream_that_is_passed_may_be_wrapped() -> None:
    async def doubled(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        given = call.arguments[0]
        call.arguments[0] = (2 * part async for part in given)
        return await proceed()

    for sides in ({"interceptors": [doubled]}, {"server_interceptors": [doubled]}):
        async with shmrpc.local(Api, Service(), **cast(Any, sides)) as api:
            assert await api.total(numbers(4), start=100) == 112
            assert [item async for item in api.negate(numbers(3))] == [0, -2, -4]


# Metadata


async def test_metadata_that_an_interceptor_adds_are_sent_with_this_call() -> None:
    async def add(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.metadata["trace"] = f"{call.method} {len(call.metadata)}"
        return await proceed()

    async with shmrpc.local(Api, Service(), metadata={"a": "1"}) as api:
        tracing = shmrpc.options(api, interceptors=[add])
        for _ in range(2):
            assert (await tracing.about())[0] == {"a": "1", "trace": "Api.about 1"}
        assert (await api.about())[0] == {"a": "1"}


async def test_metadata_may_be_taken_away() -> None:
    async def drop(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        del call.metadata["a"]
        return await proceed()

    async with shmrpc.local(Api, Service(), metadata={"a": "1", "b": "2"}, interceptors=[drop]) as api:
        assert (await api.about())[0] == {"b": "2"}


async def test_metadata_of_the_wrong_type_are_refused() -> None:
    async def add(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.metadata["a"] = cast(Any, 1)
        return await proceed()

    async with shmrpc.local(Api, Service(), interceptors=[add]) as api:
        with pytest.raises(TypeError, match="metadata maps str to str or bytes"):
            await api.about()


# Time


async def test_the_timeout_and_the_deadline_are_those_that_are_sent() -> None:
    diary = Diary()
    async with shmrpc.local(Api, Service(), timeout=100.0, interceptors=[diary]) as api:
        arrived = (await api.about())[1]
    (call,) = diary.calls
    assert call.timeout == 100.0
    assert call.deadline == pytest.approx(arrived, abs=1.0)
    assert call.time_left is not None
    assert 0 < call.time_left <= 100.0


async def test_the_deadline_is_for_all_of_the_call_however_long_an_interceptor_takes() -> None:
    binder = Binder()

    async def wait(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        before = call.deadline
        await proceed()
        await asyncio.sleep(0.02)
        assert call.deadline == before
        return await proceed()

    await bind(binder, "add", CallOptions(timeout_ns=10**9, interceptors=(wait,)))(1)
    first, second = (options.timeout_ns for _, options, _ in binder.bound[1:])
    assert second <= first - 20_000_000 < first <= 10**9


async def test_time_that_is_just_over_is_not_taken_for_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    binder = Binder()

    async def wait(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        monkeypatch.setattr("shmrpc.interceptors.client.monotonic_ns", lambda: 8_000_000_000)
        return await proceed()

    monkeypatch.setattr("shmrpc.interceptors.client.monotonic_ns", lambda: 7_000_000_000)
    await bind(binder, "add", CallOptions(timeout_ns=10**9, interceptors=(wait,)))(1)
    assert binder.bound[-1][1].timeout_ns == 1


async def test_a_call_whose_time_is_over_is_not_sent() -> None:
    service = Service()

    async def dawdle(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        assert call.time_left is not None
        await asyncio.sleep(call.time_left)
        return await proceed()

    async with shmrpc.local(Api, service, timeout=0.01, interceptors=[dawdle]) as api:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await api.add(1)
    assert service.diary == []


async def test_an_interceptor_may_set_another_timeout_or_none() -> None:
    wanted: list[float | None] = [50.0, None]
    seen: list[float | None] = []

    async def give(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.timeout = wanted.pop(0)
        seen.append(call.timeout)
        return await proceed()

    async with shmrpc.local(Api, Service(), timeout=1000.0, interceptors=[give]) as api:
        deadline = (await api.about())[1]
        assert deadline is not None
        assert 0 < deadline - monotonic() <= 50.0
        assert (await api.about())[1] is None
    assert seen == [50.0, None]


async def test_a_timeout_that_is_none_is_refused() -> None:
    async def give(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.timeout = -1.0
        return await proceed()

    async with shmrpc.local(Api, Service(), interceptors=[give]) as api:
        with pytest.raises(ValueError, match="a timeout is a positive number"):
            await api.add(1)


async def test_the_deadline_of_the_handler_that_the_call_is_made_in_counts_too() -> None:
    async with shmrpc.local(Api, Service(), timeout=100.0) as api:
        seen = await api.nested()
        assert seen is not None
        assert 0 < seen - monotonic() <= 100.0


# What is declared of methods, and repeated by the stub itself


class Declared(Protocol):
    @shmrpc.method(timeout=30.0, idempotent=True)
    async def deadline(self) -> float | None: ...


class DeclaredService(Declared):
    def __init__(self, failures: int = 0) -> None:
        self.failures = failures

    async def deadline(self) -> float | None:
        if self.failures:
            self.failures -= 1
            raise shmrpc.Unavailable("not yet")
        return shmrpc.current_call().deadline


async def test_a_declared_timeout_is_seen_and_may_be_lifted() -> None:
    seen: list[float | None] = []

    async def lift(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        seen.append(call.timeout)
        await proceed()
        call.timeout = None
        return await proceed()

    async with shmrpc.local(Declared, DeclaredService(), interceptors=[lift]) as api:
        assert await api.deadline() is None
        assert seen == [30.0]


async def test_repeats_of_the_stub_are_inside_of_its_interceptors() -> None:
    diary, service = Diary(), DeclaredService(failures=2)
    retry = shmrpc.Retry(attempts=3, backoff=0.001)
    async with shmrpc.local(Declared, service, retry=retry, interceptors=[diary]) as api:
        await api.deadline()
    assert (service.failures, diary.lines[0], len(diary.lines)) == (0, "before", 2)


# Ends


async def test_the_cancellation_of_the_caller_passes_through_its_interceptors() -> None:
    diary, service = Diary(), Service()
    async with shmrpc.local(Api, service, interceptors=[diary]) as api:
        task = asyncio.create_task(api.hang())
        await service.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert diary.lines == ["before", "CancelledError"]
    assert service.diary == ["hang left"]


async def test_an_interceptor_is_done_with_a_one_way_call_when_it_is_sent() -> None:
    diary, service = Diary(), Service()
    async with shmrpc.local(Api, service, interceptors=[diary]) as api:
        await api.tell("a word")
        assert diary.lines == ["before", "None"]
        assert service.diary == []
        await service.told.wait()


async def test_an_interceptor_may_repeat_what_was_not_executed() -> None:
    failures = [shmrpc.Unavailable("not yet"), shmrpc.Unavailable("not yet")]

    async def fail(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        if failures:
            raise failures.pop()
        return await proceed()

    async def repeat(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        while True:
            try:
                return await proceed()
            except shmrpc.Unavailable as error:
                if error.maybe_executed:
                    raise

    async with shmrpc.local(Api, Service(), interceptors=[repeat, fail]) as api:
        assert await api.add(1) == 2
        assert failures == []
        failures.extend([shmrpc.Unavailable("not yet")])
        assert [item async for item in api.count(2)] == [0, 1]
