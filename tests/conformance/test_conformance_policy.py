"""What is declared of methods, on every transport: guards and limits."""

import asyncio
import os
import time
from typing import Any

import pytest
from conformance_policy import SOON, Policed
from conformance_transports import Transport, on_every_transport

import shmrpc
from shmrpc import Code

pytest_plugins = ["conformance_plugin"]


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


@on_every_transport
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


@on_every_transport
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


@on_every_transport
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
