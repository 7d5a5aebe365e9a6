"""Death by SIGKILL of either side at every moment of a call: each call ends once, and says rightly whether it was executed.

What a killed server did is in its record, which it wrote before it died.
"""

import asyncio
import select
import signal
from typing import Any

import pytest
from life_api import Keeper, Life, recorded
from life_processes import client_process, kill, serving, stop
from life_waiting import until, wait_until

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.layout import Geometry

TINY = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=256)
"""So small that many requests wait for room."""


@pytest.fixture
def record(path: str) -> str:
    return f"{path}.record"


# The server dies


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_request_that_was_not_taken_was_not_executed(path: str, record: str, loop: str) -> None:
    with serving(path, record, "--loop", loop) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=0) as life:
            assert await life.note(1) == 1
            stop(server)
            call = asyncio.ensure_future(life.note(2))
            await asyncio.sleep(0)
            kill(server)
            with pytest.raises(
                shmrpc.ConnectionLost, match=rf"pid {server.pid} .*; Life\.note was not taken yet"
            ) as caught:
                await call
            assert not caught.value.maybe_executed
    assert recorded(record) == [1]


async def test_a_control_socket_that_fails_says_nothing_of_what_the_server_takes(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=0) as life:
            assert await life.note(1) == 1
            stop(server)
            call = asyncio.ensure_future(life.note(2))
            await asyncio.sleep(0)
            control = open_stub(life)[1].calls.memory.control  # type: ignore[attr-defined]
            control._report_lost(OSError(12, "Cannot allocate memory"))
            with pytest.raises(shmrpc.ConnectionLost, match="the control socket failed") as caught:
                await call
            server.send_signal(signal.SIGCONT)
            await until(lambda: recorded(record) == [1, 2], "the server to take it")
            assert caught.value.maybe_executed


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_call_whose_handler_ran_may_have_been_executed(path: str, record: str, loop: str) -> None:
    with serving(path, record, "--loop", loop) as server:
        async with shmrpc.connect(Life, path) as life:
            calls = [asyncio.ensure_future(life.hold(number)) for number in range(3)]
            await until(lambda: len(recorded(record)) == 3, "the handlers to run")
            kill(server)
            for call in calls:
                with pytest.raises(
                    shmrpc.ConnectionLost, match=rf"pid {server.pid} .*; Life\.hold was under way there"
                ) as caught:
                    await call
                assert caught.value.maybe_executed


async def test_a_reply_that_was_published_and_not_taken_is_a_reply(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path) as life:
            await life.note(0)
            stop(server)
            first, second = (asyncio.ensure_future(life.note(number)) for number in (1, 2))
            await asyncio.sleep(0)
            server.send_signal(signal.SIGCONT)
            wait_until(
                lambda: recorded(record) == [0, 1, 2], "the second to begin"
            )  # the first was answered before that
            kill(server)
            assert await first == 1
            (outcome,) = await asyncio.gather(second, return_exceptions=True)
            assert outcome == 2 or getattr(outcome, "maybe_executed", False)


async def test_a_reply_in_a_block_that_was_not_taken_is_a_reply(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path) as life:
            await life.note(0)
            stop(server)
            large, after = (asyncio.ensure_future(call) for call in (life.sized(300 * 1024), life.note(1)))
            await asyncio.sleep(0)
            server.send_signal(signal.SIGCONT)
            wait_until(lambda: recorded(record) == [0, 1], "the second to begin")
            kill(server)
            assert await large == bytes(300 * 1024)
            await asyncio.wait((after,))
            after.exception()


@pytest.mark.parametrize("seen", [0, 1, 100, 250])
@pytest.mark.parametrize("geometry", [Geometry(), TINY], ids=["much room", "no room"])
async def test_each_of_many_calls_ends_once_and_says_rightly_whether_it_was_executed(
    path: str, record: str, seen: int, geometry: Geometry
) -> None:
    with serving(path, record) as server:
        settings: dict[str, Any] = {"reconnect_timeout": 0, "geometry": geometry}
        async with shmrpc.connect(Life, path, **settings) as life:
            assert shmrpc.peer(life) is not None
            calls = [
                asyncio.ensure_future(life.hold(number) if number % 3 else life.note(number)) for number in range(500)
            ]
            await until(lambda: len(recorded(record)) >= seen, "some to begin")
            stop(server)
            calls += [asyncio.ensure_future(life.note(number)) for number in range(500, 550)]
            await asyncio.sleep(0)
            kill(server)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            executed = recorded(record)
            assert len(set(executed)) == len(executed)  # nothing was done twice
            assert all(isinstance(outcome, shmrpc.ConnectionLost) for outcome in outcomes[500:])
            for number, outcome in enumerate(outcomes):
                if isinstance(outcome, shmrpc.ConnectionLost):
                    assert f"pid {server.pid} " in str(outcome)
                    assert "Life.hold" in str(outcome) if number % 3 and number < 500 else "Life.note" in str(outcome)
                    assert outcome.maybe_executed or number not in executed
                else:
                    assert outcome == number
                    assert number in executed
            assert not any(getattr(outcome, "maybe_executed", False) for outcome in outcomes[500:])


async def test_those_who_waited_for_credit_were_not_executed(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=0, max_in_flight=2) as life:
            calls = [asyncio.ensure_future(life.hold(number)) for number in range(6)]
            await until(lambda: len(recorded(record)) == 2, "two to begin")
            kill(server)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, shmrpc.Unavailable) for outcome in outcomes)
            assert [getattr(outcome, "maybe_executed", None) for outcome in outcomes] == [True] * 2 + [False] * 4


async def test_a_server_that_dies_in_the_handshake_is_not_there(path: str) -> None:
    with serving(path) as server:
        stop(server)
        entering = asyncio.ensure_future(shmrpc.connect(Life, path).__aenter__())
        await until(lambda: len(asyncio.all_tasks()) == 2, "the attempt to begin")
        for _ in range(10):
            await asyncio.sleep(0)
        kill(server)
        with pytest.raises(shmrpc.ConnectFailed, match=f"{path} went away in the handshake"):
            await entering


async def test_one_way_calls_to_a_dead_server_raise_nothing_and_hold_nothing_up(path: str, record: str) -> None:
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path) as life:
            stop(server)
            for number in range(10):
                await life.drop(number)
            kill(server)
            await until(lambda: shmrpc.peer(life) is None, "the end")
    assert recorded(record) == []


async def test_a_client_of_two_servers_loses_only_the_one_that_died(path: str) -> None:
    with serving(path) as doomed, serving(f"{path}.2"):
        async with shmrpc.connect(Life, path) as one, shmrpc.connect(Life, f"{path}.2") as two:
            held = asyncio.ensure_future(two.hold(1))
            lost = asyncio.ensure_future(one.hold(1))
            await asyncio.sleep(0)
            assert await one.add(1) == await two.add(1) == 2  # so that both servers have taken the others too
            kill(doomed)
            with pytest.raises(shmrpc.ConnectionLost):
                await lost
            assert await two.let_go() == 1
            assert await held == 1


# The client dies


async def test_the_handlers_of_a_dead_client_are_cancelled_and_nobody_elses(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path) as life:
        held = asyncio.ensure_future(life.hold(1000))
        with client_process(path) as client:
            assert await client.hear() == "connected"
            for number in range(100):
                client.say(f"hold {number}")
            await until(lambda: len(keeper.began) == 101, "the calls to begin")
            assert server.connections == 2
            kill(client.process)
            await until(lambda: server.connections == 1, "the server to notice")
            await until(lambda: len(keeper.cancelled) == 100, "the handlers to be told")
        assert not held.done()
        await life.let_go()
        assert await held == 1000


async def test_replies_that_a_dead_client_never_took_are_nobodys(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path) as life:
        with client_process(path) as client:
            assert await client.hear() == "connected"
            for number in range(20):
                client.say(f"hold {number}")
            await until(lambda: len(keeper.began) == 20, "the calls to begin")
            stop(client.process)
            await keeper.let_go()
            for _ in range(20):
                assert await life.sized(300 * 1024) == bytes(300 * 1024)
            kill(client.process)
            await until(lambda: server.connections == 1, "the server to notice")
        assert keeper.cancelled == []
        assert await life.add(1) == 2


async def test_what_a_client_asked_for_before_it_died_is_done_if_nobody_waits_for_it(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server:
        with client_process(path) as client:
            assert await client.hear() == "connected"
            client.say("drop 5")
            assert client.process.stdout is not None
            assert client.process.stdout.readline() == b"None\n"  # sent, while this process's event loop stands still
            kill(client.process)
            assert keeper.began == []
            await until(lambda: server.connections == 0, "the server to notice")
            assert keeper.began == [5]


async def test_a_client_that_dies_before_it_is_accepted_leaves_nothing(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, shmrpc.connect(Life, path) as life:
        for _ in range(3):
            with client_process(path) as client:
                wait_until(lambda: select.select([server._listener._sock], [], [], 0)[0], "the client to connect")
                kill(client.process)
        await until(lambda: server.connections == 1, "the others to be gone")
        assert await life.add(1) == 2
