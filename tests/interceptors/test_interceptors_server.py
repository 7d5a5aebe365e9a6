"""Interceptors around the handlers of a server; what they do reaches the caller as what a handler does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

import pytest
from intercepted_api import Api, Diary, Service, marked

import shmrpc
from shmrpc.dispatch import Dispatcher


class Plain:
    """Whose handlers run in threads."""

    def add(self, left: int) -> int:
        return left + (10 if marked.get() == "marked" else 0)

    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)


class PlainApi(Protocol):
    async def add(self, left: int) -> int: ...
    def count(self, upto: int) -> AsyncIterator[int]: ...


def test_without_interceptors_a_method_is_the_very_handler() -> None:
    service = Service()
    for served in Dispatcher((service,), tells_of_itself=False).methods:
        if served.method.plain:
            assert served.invoke == getattr(service, served.method.name)


async def test_arguments_arrive_with_their_defaults_and_may_be_replaced() -> None:
    async def replace(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        assert call.arguments == [1, 1, 1]
        call.arguments[2] = 5
        return await proceed()

    async with shmrpc.local(Api, Service(), server_interceptors=[replace]) as api:
        assert await api.add(1) == 10


async def test_more_arguments_than_a_handler_takes_are_the_servers_mistake(caplog: pytest.LogCaptureFixture) -> None:
    async def add_three(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.arguments.extend([7, 8, 9])
        return await proceed()

    async with shmrpc.local(Api, Service(), server_interceptors=[add_three]) as api:
        for call in (api.add(1), api.about(), anext(aiter(api.count(1)))):
            with pytest.raises(shmrpc.Internal, match="the server's log has the reason"):
                await call
    for name, made, takes in (("add", 6, 3), ("about", 3, 0), ("count", 5, 2)):
        text = f"TypeError: Api.{name}: interceptors have made its arguments {made}, it takes {takes}; it is {name}("
        assert text in caplog.text


async def test_the_metadata_are_the_callers_and_read_only() -> None:
    async def change(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        assert dict(call.metadata) == {"a": "1"}
        with pytest.raises(TypeError, match="does not support item assignment"):
            call.metadata["a"] = "2"
        return await proceed()

    async with shmrpc.local(Api, Service(), metadata={"a": "1"}, server_interceptors=[change]) as api:
        assert (await api.about())[0] == {"a": "1"}


async def test_the_deadline_is_the_callers_and_there_is_no_timeout() -> None:
    async def look(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        assert call.timeout is None
        assert call.deadline == shmrpc.current_call().deadline
        with pytest.raises(AttributeError, match=r"Api\.about: at the server a call has the deadline of its caller"):
            call.timeout = 1.0
        return await proceed()

    async with shmrpc.local(Api, Service(), timeout=100.0, server_interceptors=[look]) as api:
        assert (await api.about())[1] is not None


async def test_an_interceptor_may_ask_for_the_current_call() -> None:
    methods: list[str] = []

    async def look(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        methods.append(shmrpc.current_call().method)
        return await proceed()

    async with shmrpc.local(Api, Service(), server_interceptors=[look]) as api:
        await api.add(1)
        assert [item async for item in api.count(1)] == [0]
    assert methods == ["Api.add", "Api.count"]


async def mark(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
    marked.set("marked")
    return await proceed()


async def test_the_handler_sees_the_context_variables_that_interceptors_set() -> None:
    async with shmrpc.local(Api, Service(), server_interceptors=[mark]) as api:
        assert await api.mark() == "marked"
        assert [item async for item in api.marks()] == ["marked", "marked"]
        assert marked.get() == "nothing"


async def test_plain_functions_have_interceptors_too() -> None:
    diary = Diary()
    async with shmrpc.local(PlainApi, Plain(), server_interceptors=[mark, diary]) as api:
        assert await api.add(1) == 11
        assert [item async for item in api.count(3)] == [0, 1, 2]
    assert diary.lines == ["before", "11", "before", "None"]


async def test_a_declared_error_of_an_interceptor_arrives_as_itself() -> None:
    async def refuse(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        raise shmrpc.PermissionDenied("not today")

    async with shmrpc.local(Api, Service(), server_interceptors=[refuse]) as api:
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await api.add(1)
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await anext(api.count(1))


async def test_any_other_error_of_an_interceptor_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        raise ValueError("a secret")

    with caplog.at_level(logging.ERROR, "shmrpc.server"):
        async with shmrpc.local(Api, Service(), server_interceptors=[fail]) as api:
            with pytest.raises(shmrpc.Internal) as caught:
                await api.add(1)
    assert "a secret" not in str(caught.value)
    assert caught.value.correlation_id in caplog.text
    assert "a secret" in caplog.text


async def test_a_result_that_an_interceptor_made_of_another_type_is_refused_by_the_caller() -> None:
    async def other(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return str(await proceed())

    async with shmrpc.local(Api, Service(), server_interceptors=[other]) as api:
        with pytest.raises(shmrpc.Internal, match="the server's result does not fit"):
            await api.add(1)


async def test_the_cancellation_of_a_call_passes_through_the_servers_interceptors() -> None:
    diary, service = Diary(), Service()
    async with shmrpc.local(Api, service, server_interceptors=[diary]) as api:
        task = asyncio.create_task(api.hang())
        await service.started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await diary.ended.wait()
    assert diary.lines == ["before", "CancelledError"]


async def test_interceptors_see_what_a_guard_refuses() -> None:
    class Guarded(Service):
        @shmrpc.method(guard=lambda call: False)
        async def add(self, left: int, right: int = 1, *, factor: int = 1) -> int:
            return left

    diary = Diary()
    async with shmrpc.local(Api, Guarded(), server_interceptors=[diary]) as api:
        with pytest.raises(shmrpc.PermissionDenied):
            await api.add(1)
    assert diary.lines == ["before", "PermissionDenied"]


async def test_what_is_built_into_a_server_has_its_interceptors_too(path: str) -> None:
    diary = Diary()
    async with shmrpc.Server(Service(), at=path, interceptors=[diary]):
        async with shmrpc.connect(shmrpc.Introspection, path) as introspection:
            await introspection.health("")
    assert [call.method for call in diary.calls] == ["shmrpc.Introspection.health"]


async def test_every_service_of_a_server_has_the_servers_interceptors(path: str) -> None:
    diary = Diary()
    plain = shmrpc.service(Service(), Api)
    async with shmrpc.Server(plain, at=path, interceptors=[diary]), shmrpc.connect(Api, path) as api:
        assert await api.add(1) == 2
        assert [item async for item in api.count(2)] == [0, 1]
    assert diary.lines == ["before", "2", "before", "None"]
