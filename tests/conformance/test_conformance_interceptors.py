"""Interceptors at both sides of every transport, around calls of all kinds."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from conformance_interceptors import Kinds
from conformance_transports import Transport, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

ME = os.getpid()


class Seen(list[str]):
    """An interceptor for the client that keeps how each call ended."""

    async def __call__(self, call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            result = await proceed()
        except BaseException as error:
            self.append(f"{call.method} {call.kind}: {type(error).__name__}, {call.code_of(error).name}")
            raise
        self.append(f"{call.method} {call.kind}: {result}")
        return result


@asynccontextmanager
async def intercepted(transport: Transport, key: str, order: str = "") -> AsyncIterator[tuple[Kinds, Kinds, Seen]]:
    """A stub whose calls are intercepted at both sides; one that is not, to ask questions; and what the client saw."""
    async with transport.connect_intercepted() as plain:
        seen = Seen()
        yield shmrpc.options(plain, metadata={"key": key, "order": order}, interceptors=[seen]), plain, seen


async def parts(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


@on_every_transport
async def test_each_kind_of_call_is_seen_at_both_sides_from_beginning_to_end(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):
        assert await kinds.double(4) == 8
        assert [number async for number in kinds.count(3)] == [0, 1, 2]
        assert await kinds.total(parts(100)) == 4950
        arrays = [np.full(count, 7, np.uint8) for count in (10, 100_000)]
        negated = [int(array[-1]) + len(array) async for array in kinds.negate(_each(arrays))]
        assert negated == [248 + 10, 248 + 100_000]
        await kinds.tell("told")
        await plain.until(key, "told")
        assert seen == [
            "Kinds.double unary: 8",
            "Kinds.count server_stream: None",
            "Kinds.total client_stream: 4950",
            "Kinds.negate both: None",
            "Kinds.tell oneway: None",
        ]
        await plain.until(key, "returned None")
        assert await plain.words(key) == [
            *(f"Kinds.double unary from {ME}", "double 4", "returned 8"),
            *(f"Kinds.count server_stream from {ME}", "count 3", "returned None"),
            *(f"Kinds.total client_stream from {ME}", "returned 4950"),
            *(f"Kinds.negate both from {ME}", "returned None"),
            *(f"Kinds.tell oneway from {ME}", "told", "returned None"),
        ]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def _each(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@on_every_transport
async def test_arrays_go_home_after_they_passed(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, _, _):
        arrays = [np.full(100_000, number, np.uint8) for number in range(50)]
        async for negated in kinds.negate(_each(arrays)):
            assert negated[0] == 255 - negated[-1] or negated[0] == negated[-1]
            del negated
        await until(lambda: not gc.collect() and not shmrpc.leases(kinds))


@on_every_transport
async def test_the_server_may_refuse(transport: Transport, key: str) -> None:
    async with intercepted(transport, key, "refuse") as (kinds, plain, seen):
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await kinds.double(4)
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await anext(kinds.count(3))
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await kinds.total(parts(10_000))
        with pytest.raises(shmrpc.PermissionDenied, match="not today"):
            await anext(kinds.negate(_each([np.zeros(3, np.uint8)] * 10_000)))
        assert [line.partition(": ")[2] for line in seen] == ["PermissionDenied, PERMISSION_DENIED"] * 4
        assert await plain.words(key) == [
            *(f"Kinds.double unary from {ME}", "PermissionDenied, PERMISSION_DENIED"),
            *(f"Kinds.count server_stream from {ME}", "PermissionDenied, PERMISSION_DENIED again"),
            *(f"Kinds.total client_stream from {ME}", "PermissionDenied, PERMISSION_DENIED again"),
            *(f"Kinds.negate both from {ME}", "PermissionDenied, PERMISSION_DENIED again"),
        ]


@on_every_transport
async def test_an_accident_of_the_servers_interceptor_is_that_of_a_handler(transport: Transport, key: str) -> None:
    async with intercepted(transport, key, "break down") as (kinds, _, _):
        with pytest.raises(shmrpc.Internal) as caught:
            await kinds.double(4)
        assert caught.value.correlation_id
        assert "a secret" not in str(caught.value)
        with pytest.raises(shmrpc.Internal):
            await anext(kinds.count(4))


@on_every_transport
async def test_the_server_may_change_arguments_results_and_items(transport: Transport, key: str) -> None:
    async with intercepted(transport, key, "more") as (kinds, _, _):
        assert await kinds.double(4) == 10
        assert [number async for number in kinds.count(3)] == [0, 1, 2, 3]
    async with intercepted(transport, key, "tenfold") as (kinds, _, _):
        assert await kinds.double(4) == 80
        assert [number async for number in kinds.count(3)] == [0, 10, 20]


@on_every_transport
async def test_the_client_may_change_arguments_results_items_and_metadata(transport: Transport, key: str) -> None:
    async def change(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        call.metadata["added"] = call.kind
        if call.kind == "client_stream":
            given = call.arguments[0]
            call.arguments[0] = (2 * part async for part in given)
        result = await proceed(each=lambda item: item + 100)
        return result + 1 if isinstance(result, int) else result

    async with intercepted(transport, key) as (kinds, _, _):
        changed = shmrpc.options(kinds, interceptors=[change])
        assert await changed.double(4) == 9
        assert [number async for number in changed.count(3)] == [100, 101, 102]
        assert await changed.total(parts(4)) == 13
        assert await changed.metadata() == {"key": key, "order": "", "added": "unary"}
        assert await kinds.metadata() == {"key": key, "order": ""}


@on_every_transport
async def test_an_error_passes_all_interceptors_after_the_items_before_it(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):
        got = []
        with pytest.raises(shmrpc.RpcError, match="that far"):
            async for number in kinds.count(100, 70):
                got.append(number)
        assert got == list(range(70))
        assert seen == ["Kinds.count server_stream: RpcError, OUT_OF_RANGE"]
        assert (await plain.words(key))[-1] == "RpcError, OUT_OF_RANGE"


@on_every_transport
async def test_a_cancelled_caller_cancels_the_interceptors_of_both_sides(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):
        task = asyncio.create_task(kinds.hang())
        await plain.until(key, "hanging")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["Kinds.hang unary: CancelledError, CANCELLED"]
        await plain.until(key, "CancelledError, CANCELLED")


@on_every_transport
async def test_a_cancelled_reader_cancels_the_interceptors_of_both_sides(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):

        async def read() -> None:
            async for _ in kinds.hang_after(3):
                pass

        task = asyncio.create_task(read())
        await plain.until(key, "hanging")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["Kinds.hang_after server_stream: CancelledError, CANCELLED"]
        await plain.until(key, "CancelledError, CANCELLED")
        assert (await plain.words(key))[-2:] == ["handler left", "CancelledError, CANCELLED"]


@on_every_transport
async def test_a_reader_that_leaves_early_ends_the_interceptors_of_both_sides(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):
        async for _ in kinds.hang_after(3):
            break
        await plain.until(key, "CancelledError, CANCELLED")
        while not seen:  # noqa: ASYNC110  # a loop that was left by `break` ends them some turns later
            await asyncio.sleep(0.001)
        assert seen == ["Kinds.hang_after server_stream: CancelledError, CANCELLED"]
        stream = kinds.hang_after(1)
        assert await anext(stream) == 0
        await stream.aclose()  # type: ignore[attr-defined]
        assert seen == ["Kinds.hang_after server_stream: CancelledError, CANCELLED"] * 2


@on_every_transport
async def test_a_deadline_is_seen_at_both_sides(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, plain, seen):
        quick = shmrpc.options(kinds, timeout=1.0)
        with pytest.raises(shmrpc.DeadlineExceeded):
            await quick.hang()
        await plain.until(key, "CancelledError, DEADLINE_EXCEEDED")
        with pytest.raises(shmrpc.DeadlineExceeded):
            async for _ in quick.hang_after(3):
                pass
        assert [line.partition(": ")[2] for line in seen] == ["DeadlineExceeded, DEADLINE_EXCEEDED"] * 2
        await plain.until(key, "CancelledError, DEADLINE_EXCEEDED again")


@on_every_transport
async def test_an_interceptor_that_gives_up_ends_the_handler(transport: Transport, key: str) -> None:
    async def impatient(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        async with asyncio.timeout(0.1):
            return await proceed()

    async with intercepted(transport, key) as (kinds, plain, seen):
        impatiently = shmrpc.options(kinds, interceptors=[impatient])
        got = []
        with pytest.raises(TimeoutError):
            async for number in impatiently.hang_after(3):
                got.append(number)
        assert got == [0, 1, 2]
        await plain.until(key, "handler left")
        await plain.until(key, "CancelledError, CANCELLED")
        with pytest.raises(TimeoutError):
            await impatiently.hang()
        assert [line.partition(": ")[2] for line in seen] == ["TimeoutError, UNKNOWN"] * 2


@on_every_transport
async def test_a_call_may_be_repeated_while_nothing_was_delivered(transport: Transport, key: str) -> None:
    async def once_more(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        try:
            return await proceed()
        except shmrpc.PermissionDenied:
            call.metadata["order"] = ""
            return await proceed()

    async with intercepted(transport, key, "refuse") as (kinds, plain, _):
        again = shmrpc.options(kinds, interceptors=[once_more])
        assert await again.double(4) == 8
        assert [number async for number in again.count(3)] == [0, 1, 2]
        words = await plain.words(key)
        assert len([word for word in words if word.startswith("PermissionDenied")]) == 2
        assert words.count(f"Kinds.count server_stream from {ME}") == 2


@on_every_transport
async def test_many_intercepted_streams_at_once(transport: Transport, key: str) -> None:
    async with intercepted(transport, key) as (kinds, _, seen):

        async def read(most: int) -> list[int]:
            return [number async for number in kinds.count(most)]

        assert await asyncio.gather(*map(read, range(100))) == [list(range(most)) for most in range(100)]
        assert seen == ["Kinds.count server_stream: None"] * 100
