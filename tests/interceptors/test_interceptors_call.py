"""What an interceptor sees of a call, and which interceptors are refused."""

import asyncio
from typing import Any, cast

import pytest
from intercepted_api import Api, Diary, Service, numbers

import shmrpc
from shmrpc import contract
from shmrpc.interceptors.call import checked, kind_of

METHODS = contract.read(Api).methods

KINDS = {"add": "unary", "count": "server_stream", "total": "client_stream", "negate": "both", "tell": "oneway"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_method_is_for_one_kind_of_call(name: str, kind: str) -> None:
    assert kind_of(METHODS[name]) == kind


async def test_a_call_describes_itself_at_both_sides() -> None:
    client, server = Diary(), Diary()
    async with shmrpc.local(Api, Service(), interceptors=[client], server_interceptors=[server]) as api:
        await api.add(1, factor=2)
    (asked,), (served,) = client.calls, server.calls
    assert repr(asked) == "<Intercepted Api.add, unary, at the client>"
    assert repr(served) == "<Intercepted Api.add, unary, at the server>"
    assert (asked.method, asked.kind, asked.side) == ("Api.add", "unary", "client")
    assert (served.method, served.kind, served.side) == ("Api.add", "unary", "server")
    assert asked.arguments == [1, 1, 2] == served.arguments
    assert asked.peer == served.peer == shmrpc.peer(api)
    assert asked.address is None
    assert asked.deadline is asked.time_left is asked.timeout is None


async def test_the_kind_is_seen_at_both_sides() -> None:
    client, server, service = Diary(), Diary(), Service()
    async with shmrpc.local(Api, service, interceptors=[client], server_interceptors=[server]) as api:
        await api.add(1)
        assert [item async for item in api.count(2)] == [0, 1]
        assert await api.total(numbers(3)) == 3
        assert [item async for item in api.negate(numbers(3))] == [0, -1, -2]
        await api.tell("a word")
        await service.told.wait()
    assert [call.kind for call in client.calls] == [call.kind for call in server.calls] == list(KINDS.values())


async def test_the_client_knows_where_it_connects_to(path: str) -> None:
    client, server = Diary(), Diary()
    async with shmrpc.Server(Service(), at=path, interceptors=[server]):
        async with shmrpc.connect(Api, path, interceptors=[client]) as api:
            await api.add(1)
            assert (client.calls[0].address, server.calls[0].address) == (path, None)
            assert client.calls[0].peer == server.calls[0].peer == shmrpc.peer(api)


@pytest.mark.parametrize(
    ("error", "at_client", "at_server"),
    [
        (None, "OK", "OK"),
        (shmrpc.PermissionDenied("no"), "PERMISSION_DENIED", "PERMISSION_DENIED"),
        (shmrpc.RpcError("no", code=shmrpc.Code.ABORTED), "ABORTED", "ABORTED"),
        (asyncio.CancelledError(), "CANCELLED", "CANCELLED"),
        (ValueError("no"), "UNKNOWN", "INTERNAL"),
        (KeyboardInterrupt(), "UNKNOWN", "INTERNAL"),
    ],
)
async def test_every_end_of_a_call_has_a_status(error: BaseException | None, at_client: str, at_server: str) -> None:
    client, server = Diary(), Diary()
    async with shmrpc.local(Api, Service(), interceptors=[client], server_interceptors=[server]) as api:
        await api.add(1)
    assert client.calls[0].code_of(error).name == at_client
    assert server.calls[0].code_of(error).name == at_server


async def test_an_error_whose_code_is_hidden_by_a_field_is_unknown() -> None:
    class Odd(shmrpc.RpcError):
        code: Any = "a field"

    diary = Diary()
    async with shmrpc.local(Api, Service(), interceptors=[diary]) as api:
        await api.add(1)
    assert diary.calls[0].code_of(Odd()) is shmrpc.Code.UNKNOWN


async def test_a_handler_that_is_cancelled_at_its_deadline_ended_with_that_status() -> None:
    codes: list[shmrpc.Code] = []

    async def see(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except asyncio.CancelledError as error:
            codes.append(call.code_of(error))
            raise

    async with shmrpc.local(Api, Service(), timeout=0.05, server_interceptors=[see]) as api:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await api.hang()
    assert [code.name for code in codes] == ["DEADLINE_EXCEEDED"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (Diary(), r"interceptors are a list, also when there is one: \[<.*Diary"),
        (checked, r"also when there is one: \[checked\]"),
        ([Diary(), 3], r"an interceptor is an async callable that takes \(call, proceed\), not 3"),
        ([Diary], r"an interceptor is an object of a class, not the class: Diary\(…\)"),
    ],
)
def test_what_is_no_list_of_interceptors_is_refused_at_once(path: str, given: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        shmrpc.connect(Api, path, interceptors=given)
    with pytest.raises(TypeError, match=text):
        shmrpc.Server(Service(), at=path, interceptors=given)
    with pytest.raises(TypeError, match=text):
        shmrpc.local(Api, Service(), interceptors=given)
    with pytest.raises(TypeError, match=text):
        shmrpc.local(Api, Service(), server_interceptors=given)


async def test_options_refuse_it_too() -> None:
    async with shmrpc.local(Api, Service()) as api:
        with pytest.raises(TypeError, match="interceptors are a list"):
            shmrpc.options(api, interceptors=cast(Any, Diary()))
