"""One stub over many connections: what is made again when the server dies and comes back, and what is not."""

import asyncio
import logging
import signal
from functools import partial
from typing import Any

import pytest
import uvloop
from life_api import Keeper, Life, recorded
from life_processes import kill, serving, stop
from life_waiting import until
from raw_channel import TAIL
from raw_peer import RawServer, hung_up, raw_listener

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm import address, link

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@pytest.fixture
def record(path: str) -> str:
    return f"{path}.record"


async def lost(life: Life) -> None:
    await until(lambda: shmrpc.peer(life) is None, "the client to notice")


def begun(record: str, times: int) -> bool:
    return recorded(record) == [1] * times


# Which calls are made again


async def test_the_same_stub_goes_on_with_the_next_server_at_the_path(path: str) -> None:
    with serving(path) as first:
        async with shmrpc.connect(Life, path) as life:
            assert await life.where() == first.pid
            for _ in range(3):
                kill(first)
                with serving(path) as successor:
                    assert await life.where() == successor.pid
                    assert shmrpc.peer(life) is not None
                    kill(successor)


async def test_a_call_that_was_not_taken_is_executed_once_by_the_successor(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path) as life:
            await life.note(0)
            stop(first)
            calls = [asyncio.ensure_future(life.note(number)) for number in range(1, 200)]
            await asyncio.sleep(0)
            kill(first)
            with serving(path, record):
                assert await asyncio.gather(*calls) == list(range(1, 200))
    assert sorted(recorded(record)) == list(range(200))


async def test_a_call_that_may_have_been_executed_fails_unless_it_is_idempotent(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path) as life:
            once, again = asyncio.ensure_future(life.hold(1)), asyncio.ensure_future(life.hold_again(2))
            await until(lambda: recorded(record) == [1, 2], "both to begin")
            kill(first)
            with serving(path, record):
                with pytest.raises(shmrpc.ConnectionLost, match=r"Life\.hold was under way there") as caught:
                    await once
                assert caught.value.maybe_executed
                await until(lambda: recorded(record) == [1, 2, 2], "the other to begin again")
                assert not again.done()
                assert await life.let_go() == 1
                assert await again == 2
    assert recorded(record, "ended") == [2]


async def test_an_idempotent_call_is_made_again_twice_and_not_more(path: str, record: str) -> None:
    """It may be what kills the server."""
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            kill(first)
            for times in (2, 3):
                with serving(path, record) as server:
                    await until(partial(begun, record, times), "the call to begin again")
                    kill(server)
            with pytest.raises(shmrpc.ConnectionLost) as caught:
                await call
            assert caught.value.maybe_executed
            assert recorded(record) == [1, 1, 1]


async def test_an_idempotent_call_ends_well_at_the_second_attempt(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            kill(first)
            with serving(path, record):
                await until(partial(begun, record, 2), "the call to begin again")
                await life.let_go()
                assert await call == 1


async def test_an_idempotent_call_that_finds_no_successor_may_have_been_executed(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=0.02) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            kill(server)
            with pytest.raises(
                shmrpc.ConnectionLost, match=rf"pid {server.pid} .*; Life\.hold_again was under"
            ) as caught:
                await call
            assert caught.value.maybe_executed
            assert "within 0.02 s (reconnect_timeout)" in str(caught.value.__cause__)


async def test_what_the_first_attempt_may_have_done_is_not_forgotten_after_the_second(path: str) -> None:
    async def take_the_call(server: RawServer) -> None:
        await (await server.shake_hands()).receive()

    async def leave_the_call(server: RawServer) -> None:
        channel = await server.shake_hands()
        await until(lambda: channel.far_word(TAIL), "the call to be made")

    taken = raw_listener(path, take_the_call)
    await taken.__aenter__()
    async with shmrpc.connect(Life, path, reconnect_timeout=0.5) as life:
        call = asyncio.ensure_future(life.hold_again(1))
        await taken.__aexit__(None, None, None)
        async with raw_listener(path, leave_the_call):
            pass
        with pytest.raises(shmrpc.ConnectionLost, match="not taken yet") as caught:
            await call
        assert caught.value.maybe_executed


# While there is no server


async def test_a_call_waits_for_a_server_to_come_back(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path) as life:
        await first.drain()
        await lost(life)
        calls = [asyncio.ensure_future(life.add(number)) for number in range(10)]
        await asyncio.sleep(0)
        async with shmrpc.Server(Keeper(), at=path):
            assert await asyncio.gather(*calls) == list(range(1, 11))


async def test_a_call_does_not_wait_longer_than_it_may(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path, reconnect_timeout=0.02) as life:
        await first.drain()
        await lost(life)
        with pytest.raises(shmrpc.Unavailable) as caught:
            await life.add(1)
        text = f"Life.add was not sent: no connection to {path} within 0.02 s (reconnect_timeout)"
        assert (type(caught.value), str(caught.value)) == (shmrpc.Unavailable, text)
        assert not caught.value.maybe_executed
        with pytest.raises(shmrpc.DeadlineExceeded) as expired:
            await shmrpc.options(life, timeout=0.01).add(1)
        assert str(expired.value) == f"Life.add was not sent: no connection to {path} before the deadline"


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_deadline_is_what_ended_a_call_also_where_the_timer_fires_a_little_early(
    path: str, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait_less(futures: Any, *, timeout: float | None = None, **options: Any) -> Any:
        return await wait(futures, timeout=timeout and timeout / 2, **options)

    wait = asyncio.wait
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path, connections=connections) as life:
        await first.drain()
        await lost(life)
        with monkeypatch.context() as patched:
            patched.setattr("asyncio.wait", wait_less)
            with pytest.raises(shmrpc.DeadlineExceeded, match="before the deadline"):
                await shmrpc.options(life, timeout=0.04).add(1)


async def test_a_caller_that_is_cancelled_while_it_waits_is_gone(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path) as life:
        await first.drain()
        await lost(life)
        call = asyncio.ensure_future(life.note(1))
        await asyncio.sleep(0)
        call.cancel()
        async with shmrpc.Server(keeper, at=path):
            assert await life.note(2) == 2
        assert call.cancelled()
        assert keeper.began == [2]


async def test_a_successor_that_does_not_fit_is_said_to_callers_and_not_believed_for_ever(path: str) -> None:
    class Life:
        async def add(self, left: str) -> str:
            return left

    from life_api import Life as Wanted

    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Wanted, path) as life:
        await first.drain()
        await lost(life)
        async with shmrpc.Server(Life(), at=path):
            with pytest.raises(shmrpc.ContractMismatch, match="add: parameter 'left'"):
                await life.add(1)
        async with shmrpc.Server(Keeper(), at=path):
            while True:
                try:
                    assert await life.add(1) == 2
                    break
                except shmrpc.ContractMismatch:  # of an attempt that was under way
                    continue


async def test_a_server_that_hangs_up_in_the_handshake_is_tried_again(path: str) -> None:
    """It may have been killed in the middle of it: no reason to fail a call that can wait for the next."""
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path) as life:
        await first.drain()
        await lost(life)

        async def hang_up(server: RawServer) -> None:
            await server.receive_hello()

        async with raw_listener(path, hang_up):
            call = asyncio.ensure_future(life.add(1))
        async with shmrpc.Server(Keeper(), at=path):
            assert await call == 2


async def test_a_call_waits_on_while_a_successor_stands_still(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """It says nothing in the handshake, which may be because it is slow."""
    caplog.set_level(logging.DEBUG, "shmrpc")
    with serving(path) as first:
        async with shmrpc.connect(Life, path, handshake_timeout=0.5) as life:
            kill(first)
            await lost(life)
            with serving(path) as successor:
                stop(successor)
                call = asyncio.ensure_future(life.where())
                await until(lambda: caplog.text.count("did not finish the handshake within 0.5 s") >= 2, "two attempts")
                assert not call.done()
                successor.send_signal(signal.SIGCONT)
                assert await call == successor.pid


# Back-off


async def test_the_pauses_between_attempts_grow_up_to_a_limit(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def pause(self: Any, seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            enough.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(link.Link, "_pause", pause)
    async with shmrpc.Server(Keeper(), at=path) as server, shmrpc.connect(Life, path) as life:
        await server.drain()
        await lost(life)
        await enough.wait()
    expected = 0.05
    for seconds in pauses:
        assert 0.8 * expected <= seconds <= 1.2 * expected
        expected = min(expected * 1.6, 5.0)
    assert expected == 5.0
    assert len({seconds / 5.0 for seconds in pauses[-5:]}) == 5  # no two clients come back in step


async def test_a_call_does_not_wait_for_a_long_pause_to_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BACKOFF_FIRST", 1000.0)
    monkeypatch.setattr(link, "BACKOFF_MOST", 1000.0)
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path, reconnect_timeout=20) as life:
        await first.drain()
        await lost(life)
        for _ in range(20):
            await asyncio.sleep(0.005)  # into the pause; before it, this tests less and is as true
        call = asyncio.ensure_future(life.add(1))
        async with shmrpc.Server(Keeper(), at=path):
            assert await call == 2


async def test_a_call_that_waits_finds_a_new_server_at_once(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a pause that nothing else cuts short: this is not the server that lost the connection."""
    for name in ("BACKOFF_FIRST", "BACKOFF_MOST", "BACKOFF_WAITED_FOR"):
        monkeypatch.setattr(link, name, 1000.0)
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path, reconnect_timeout=20) as life:
        await first.drain()
        await lost(life)
        for number in range(3):
            call = asyncio.ensure_future(life.add(number))
            await asyncio.sleep(0)
            async with shmrpc.Server(Keeper(), at=path) as server:
                assert await call == number + 1
                await server.drain()
                await lost(life)


async def test_a_server_that_loses_its_connections_is_not_asked_again_at_once_though_a_call_waits(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is the same."""
    for name in ("BACKOFF_FIRST", "BACKOFF_MOST", "BACKOFF_WAITED_FOR"):
        monkeypatch.setattr(link, name, 1000.0)
    monkeypatch.setattr(link, "STABLE_NS", 1 << 62)
    looks: list[str] = []
    mark = address.mark

    def look(path: str) -> address.Mark | None:
        looks.append(path)
        return mark(path)

    monkeypatch.setattr(address, "mark", look)
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path, reconnect_timeout=20) as life:
        (session,) = first._listener.sessions
        session.close("it loses its connections")
        await lost(life)
        call = asyncio.ensure_future(life.add(1))
        await until(lambda: len(looks) > 20, "many looks")
        assert first.connections == 0
        assert not call.done()
        await first.drain()
        async with shmrpc.Server(Keeper(), at=path):
            assert await call == 2


async def test_who_has_given_up_waiting_does_not_hurry_the_attempts(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path) as life:
        await first.drain()
        await lost(life)
        transport = open_stub(life)[1]
        assert isinstance(transport, link.Link)
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shmrpc.options(life, timeout=0.01).add(1)
        call = asyncio.ensure_future(life.add(1))
        await until(transport._hurry.is_set, "the call to wait")
        call.cancel()
        await until(lambda: not transport._hurry.is_set(), "nobody to wait any more")


async def test_a_stub_may_be_closed_while_it_reconnects(path: str) -> None:
    waiting = asyncio.Event()

    async def stall(server: RawServer) -> None:
        await server.receive_hello()
        waiting.set()
        await hung_up(server.sock)

    async with shmrpc.Server(Keeper(), at=path) as first, shmrpc.connect(Life, path) as life:
        await first.drain()
        await lost(life)
        listener = raw_listener(path, stall)
        await listener.__aenter__()
        await waiting.wait()
    await listener.__aexit__(None, None, None)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_many_servers_come_and_go(path: str, loop: str) -> None:
    """In either loop: an fd's number is used again by the next connection, while the loop may still forget the last."""

    async def main() -> None:
        server = shmrpc.Server(Keeper(), at=path)
        await server.__aenter__()
        async with shmrpc.connect(Life, path) as life:
            for number in range(8):
                assert await life.add(number) == number + 1
                successor = shmrpc.Server(Keeper(), at=path)
                await server.__aexit__(None, None, None)
                server = successor
                await server.__aenter__()
        await server.__aexit__(None, None, None)

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
