"""What is declared of methods, on every transport: default timeouts, guards, limits, and calls that are made again."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conformance_policy import SOON, Policed
from conformance_transports import Transport, on_every_transport, over_one_connection

import shmrpc
from shmrpc import Code, Retry

pytest_plugins = ["conformance_plugin"]

QUICK = Retry(backoff=0.001)


# Timeouts


@on_every_transport
async def test_a_method_has_the_timeout_that_the_contract_declares(transport: Transport) -> None:
    async with transport.connect(Policed) as policed:
        with pytest.raises(shmrpc.DeadlineExceeded, match=r"Policed\.hang"):
            await policed.hang()
        before = time.monotonic()
        deadline = await policed.deadline()
        assert deadline is not None
        assert before + 100.0 <= deadline <= time.monotonic() + 100.0


@on_every_transport
async def test_a_timeout_of_the_stub_counts_instead_of_the_declared_one(transport: Transport) -> None:
    async with transport.connect(Policed, timeout=1000.0) as policed:
        for stub, seconds in ((policed, 1000.0), (shmrpc.options(policed, timeout=10.0), 10.0)):
            before = time.monotonic()
            deadline = await stub.deadline()
            assert deadline is not None
            assert before + seconds <= deadline <= time.monotonic() + seconds


@on_every_transport
async def test_the_sooner_one_of_a_declared_and_an_inherited_deadline_counts(transport: Transport) -> None:
    async with transport.connect(Policed) as policed:
        outer, inner = await policed.calls_deadline()
        assert outer is None
        assert inner is not None
        outer, inner = await shmrpc.options(policed, timeout=10.0).calls_deadline()
        assert outer is not None
        assert inner == outer
        outer, inner = await shmrpc.options(policed, timeout=1000.0).calls_deadline()
        assert outer is not None
        assert inner is not None
        assert inner < outer - 500


# Guards


def with_metadata(policed: Policed, **metadata: str) -> Policed:
    return shmrpc.options(policed, metadata=metadata)


async def first(stream: Any) -> Any:
    """The first item."""
    return await anext(stream)


@on_every_transport
async def test_a_guard_refuses_and_lets_pass_methods_of_all_kinds(transport: Transport) -> None:
    async with transport.connect(Policed) as policed:
        right, wrong = with_metadata(policed, token="right"), with_metadata(policed, token="wrong")
        assert await right.guarded() == "welcome"
        assert await right.guarded_in_thread() == "welcome"
        assert await first(right.guarded_stream()) == "welcome"
        for name, call in (
            ("guarded", wrong.guarded),
            ("guarded_in_thread", wrong.guarded_in_thread),
            ("guarded_stream", lambda: first(wrong.guarded_stream())),
        ):
            with pytest.raises(shmrpc.PermissionDenied) as caught:
                await call()
            me = f"pid {os.getpid()} (uid {os.getuid()}, gid {os.getgid()})"
            assert str(caught.value) == f"Policed.{name}: {me} may not call it"


@on_every_transport
async def test_a_guard_may_refuse_with_an_error_of_its_own(transport: Transport) -> None:
    async with transport.connect(Policed) as policed:
        with pytest.raises(shmrpc.RpcError, match="log in first") as caught:
            await with_metadata(policed, do="refuse").guarded_by("anything")
        assert caught.value.code is Code.UNAUTHENTICATED


@on_every_transport
async def test_a_guard_that_breaks_lets_nobody_pass_and_tells_nothing(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        with pytest.raises(shmrpc.Internal, match="correlation id") as caught:
            await with_metadata(policed, do="break").guarded_by(key)
        assert "secret" not in str(caught.value)
        assert await policed.called(key) == 0
        await with_metadata(policed, do="nothing").guarded_by(key)
        assert await policed.called(key) == 1


@on_every_transport
async def test_a_guard_sees_who_calls_what_until_when(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        before = time.monotonic()
        seen = await shmrpc.options(policed, timeout=100.0, metadata={"key": key}).seen()
        method, peer, seen_key, deadline = seen
        assert (method, peer, seen_key) == ("Policed.seen", (os.getpid(), os.getuid(), os.getgid()), key)
        assert deadline is not None
        assert before + 100.0 <= deadline <= time.monotonic() + 100.0


# Limits


@over_one_connection
async def test_calls_over_a_limit_wait_and_those_over_the_limit_of_waiting_are_refused(
    transport: Transport, key: str
) -> None:
    async with transport.connect(Policed) as policed:
        calls = [asyncio.ensure_future(policed.two(key)) for _ in range(5)]
        await policed.began(key, 2)
        with pytest.raises(shmrpc.ResourceExhausted) as caught:
            await policed.two(key)
        assert str(caught.value) == (
            "Policed.two: 2 calls run, the limit is 2 (max_concurrency), and 3 wait, the limit is 3 (max_waiting)"
        )
        assert await policed.began(key, 0) == 2
        await policed.release(key)
        assert await asyncio.gather(*calls) == [key] * 5


@on_every_transport
async def test_a_call_that_waits_for_its_turn_until_its_deadline_is_never_begun(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        calls = [asyncio.ensure_future(policed.two(key)) for _ in range(2)]
        await policed.began(key, 2)
        # The reason is sent shortly before the deadline; on a machine that is busy the caller's timer may be sooner.
        with pytest.raises((shmrpc.ResourceExhausted, shmrpc.DeadlineExceeded), match=r"Policed\.two"):
            await shmrpc.options(policed, timeout=SOON).two(key)
        await policed.release(key)
        assert await asyncio.gather(*calls) == [key] * 2
        assert await policed.began(key, 0) == 2


@over_one_connection
async def test_a_call_that_is_cancelled_while_it_waits_is_never_begun(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        calls = [asyncio.ensure_future(policed.two(key)) for _ in range(2)]
        await policed.began(key, 2)
        waiting = asyncio.ensure_future(policed.two(key))
        await policed.began(key, 0)  # sent after it, and answered: so it waits
        waiting.cancel()
        await asyncio.wait((waiting,))
        await policed.release(key)
        assert await asyncio.gather(*calls) == [key] * 2
        assert await policed.began(key, 0) == 2


@over_one_connection
async def test_a_cancelled_call_gives_its_slot_to_the_next(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        calls = [asyncio.ensure_future(policed.two(key)) for _ in range(4)]
        for times in (2, 3, 4):
            assert await policed.began(key, times) == times
            calls[times - 2].cancel()
        await policed.release(key)
        await asyncio.wait(calls)
        assert [call.cancelled() for call in calls] == [True] * 3 + [False]


@on_every_transport
async def test_a_handler_in_a_thread_has_its_slot_until_the_thread_ends(transport: Transport, key: str) -> None:
    """A thread cannot be cancelled, so the next one must wait for it even when its caller has gone."""
    async with transport.connect(Policed) as policed:
        first_call = asyncio.ensure_future(policed.one_in_thread(key))
        await policed.began(key, 1)
        first_call.cancel()
        await asyncio.wait((first_call,))
        second_call = asyncio.ensure_future(policed.one_in_thread(key))
        for _ in range(10):
            assert await policed.began(key, 0) == 1
        await policed.release(key)
        assert await second_call == key


@on_every_transport
async def test_a_stream_has_its_slot_until_its_end(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        running = policed.one_stream(key)
        assert await first(running) == 0
        waiting = policed.one_stream(key)
        begins = asyncio.ensure_future(anext(waiting))
        for _ in range(10):
            assert await policed.began(key, 0) == 1
        await running.aclose()  # type: ignore[attr-defined]
        assert await begins == 0
        await waiting.aclose()  # type: ignore[attr-defined]


# Calls that are made again


@on_every_transport
async def test_an_idempotent_call_is_made_again_as_the_stubs_retry_says(transport: Transport, key: str) -> None:
    async with transport.connect(Policed, retry=QUICK) as policed:
        assert await policed.fail_again(key, 2, Code.UNAVAILABLE) == 3
        with pytest.raises(shmrpc.Unavailable, match="failure 3") as caught:
            await policed.fail_again(key + " again", 3, Code.UNAVAILABLE)
        assert caught.value.__notes__ == ["It was attempt 3. Before it: Unavailable: failure 1; Unavailable: failure 2"]
        assert caught.value.maybe_executed


@on_every_transport
async def test_without_a_retry_what_the_server_answered_is_the_end(transport: Transport, key: str) -> None:
    async with transport.connect(Policed) as policed:
        with pytest.raises(shmrpc.Unavailable, match="failure 1"):
            await policed.fail_again(key, 1, Code.UNAVAILABLE)
        assert await shmrpc.options(policed, retry=QUICK).fail_again(key, 1, Code.UNAVAILABLE) == 2


@on_every_transport
async def test_a_call_that_is_not_idempotent_is_not_made_again(transport: Transport, key: str) -> None:
    async with transport.connect(Policed, retry=QUICK) as policed:
        with pytest.raises(shmrpc.Unavailable, match="failure 1"):
            await policed.fail(key, 1, Code.UNAVAILABLE)


@on_every_transport
async def test_only_the_codes_of_the_retry_are_repeated(transport: Transport, key: str) -> None:
    retry = Retry(backoff=0.001, codes={Code.ABORTED, Code.RESOURCE_EXHAUSTED})
    async with transport.connect(Policed, retry=retry) as policed:
        assert await policed.fail_again(key, 1, Code.ABORTED) == 2
        for code in (Code.UNAVAILABLE, Code.INTERNAL):
            with pytest.raises(shmrpc.RpcError, match="failure 1"):
                await policed.fail_again(f"{key} {code}", 1, code)


@on_every_transport
async def test_no_attempt_is_made_after_the_deadline(transport: Transport, key: str) -> None:
    retry = Retry(attempts=1000, backoff=1000.0, max_backoff=1000.0)
    async with transport.connect(Policed, retry=retry, timeout=100.0) as policed:
        with pytest.raises(shmrpc.Unavailable, match="failure 1"):
            await policed.fail_again(key, 1000, Code.UNAVAILABLE)


@on_every_transport
async def test_the_budget_of_a_connection_ends_all_repeating(transport: Transport, key: str) -> None:
    retry = Retry(attempts=100, backoff=0, max_tokens=10)
    async with transport.connect(Policed, retry=retry) as policed:
        with pytest.raises(shmrpc.Unavailable, match="failure 5"):
            await policed.fail_again(key, 100, Code.UNAVAILABLE)
        with pytest.raises(shmrpc.Unavailable, match="failure 6"):
            await shmrpc.options(policed, metadata={"a": "b"}).fail_again(key, 100, Code.UNAVAILABLE)


@on_every_transport
async def test_a_stream_is_begun_again_only_if_nothing_of_it_came(transport: Transport, key: str) -> None:
    async with transport.connect(Policed, retry=QUICK) as policed:
        assert [item async for item in policed.items(key, 2, 0)] == [0, 1, 2]
        assert await policed.called(key) == 3
        later = policed.items(key + " later", 1, 1)
        assert await anext(later) == 0
        with pytest.raises(shmrpc.Unavailable, match="failure 1"):
            await anext(later)


@on_every_transport
async def test_a_call_whose_stream_was_read_is_not_made_again(transport: Transport, key: str) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async with transport.connect(Policed, retry=QUICK) as policed:
        assert await policed.total(key, numbers(), 0) == 3
        with pytest.raises(shmrpc.Unavailable, match="failure 1"):
            await policed.total(key + " again", numbers(), 1)
        assert await policed.called(key + " again") == 1
