"""The order of interceptors, and what each may do to a call: change, refuse, repeat."""

import asyncio
from typing import Any

import pytest
from intercepted_api import Api, Diary, Service

import shmrpc


async def test_the_first_interceptor_is_the_outermost() -> None:
    lines: list[str] = []
    around = [Diary("a ", lines), Diary("b ", lines)]
    inside = [Diary("c ", lines), Diary("d ", lines)]
    async with shmrpc.local(Api, Service(), interceptors=around, server_interceptors=inside) as api:
        assert await api.add(1) == 2
    assert lines == ["a before", "b before", "c before", "d before", "d 2", "c 2", "b 2", "a 2"]


async def test_an_interceptor_may_change_the_result() -> None:
    async def ten_times(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return 10 * await proceed()

    async def one_more(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return 1 + await proceed()

    async with shmrpc.local(Api, Service(), interceptors=[ten_times, one_more]) as api:
        assert await api.add(1) == 30


async def test_an_interceptor_that_does_not_proceed_answers_itself() -> None:
    service = Service()

    async def answer(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return 7

    async with shmrpc.local(Api, service, interceptors=[answer]) as api:
        assert await api.add(1) == 7
    assert service.diary == []


async def test_an_interceptor_that_raises_refuses_the_call() -> None:
    service, outer = Service(), Diary()

    async def refuse(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        raise shmrpc.PermissionDenied("not today")

    async with shmrpc.local(Api, service, interceptors=[outer, refuse]) as api:
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await api.add(1)
    assert service.diary == []
    assert outer.lines == ["before", "PermissionDenied"]


async def test_proceeding_again_repeats_the_call_and_what_is_inside() -> None:
    inner, service = Diary(), Service()

    async def twice(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        first = await proceed()
        call.arguments[0] = 5
        return first * 100 + await proceed()

    async with shmrpc.local(Api, service, interceptors=[twice, inner]) as api:
        assert await api.add(1) == 206
    assert inner.lines == ["before", "2", "before", "6"]
    assert service.diary == ["add 1 1 1", "add 5 1 1"]


async def test_a_call_may_be_made_twice_at_once() -> None:
    service = Service()

    async def race(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return sum(await asyncio.gather(proceed(), proceed()))

    async with shmrpc.local(Api, service, interceptors=[race]) as api:
        assert await api.add(1) == 4


async def test_what_is_said_of_items_is_no_use_for_a_call_without_a_stream() -> None:
    async def each(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        return await proceed(each=lambda item: 10 * item)

    async with shmrpc.local(Api, Service(), interceptors=[each], server_interceptors=[each]) as api:
        assert await api.add(1) == 2


async def test_an_interceptor_may_be_an_object() -> None:
    class Counting:
        calls = 0

        async def __call__(self, call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
            self.calls += 1
            return await proceed()

    counting = Counting()
    async with shmrpc.local(Api, Service(), interceptors=[counting], server_interceptors=[counting]) as api:
        await api.add(1)
    assert counting.calls == 2
