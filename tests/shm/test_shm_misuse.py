"""Connections after their end, in a forked child, in another event loop or thread, and those that were never closed."""

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from life_api import Keeper, Life
from life_processes import HERE, ROOT, serving
from life_waiting import until

import shmrpc


async def outcome_of(call: Awaitable[object]) -> object:
    try:
        return await call
    except Exception as error:
        return error


# After the end


async def test_a_call_after_close_says_so(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
        with pytest.raises(shmrpc.Closed) as caught:
            await life.add(1)
        assert str(caught.value) == "Life.add was called on a stub that is closed"
        assert not caught.value.maybe_executed
        with pytest.raises(shmrpc.Closed):
            await shmrpc.options(life, timeout=5, metadata={"a": "b"}).add(1)
        with pytest.raises(shmrpc.Closed):
            await life.drop(1)
        assert shmrpc.peer(life) is None


async def test_calls_under_way_end_when_their_stub_closes(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path):
        async with shmrpc.connect(Life, path) as life:
            calls = [asyncio.ensure_future(life.hold(number)) for number in range(5)]
            await until(lambda: len(keeper.began) == 5, "the calls to begin")
        for call in calls:
            with pytest.raises(shmrpc.Closed) as caught:
                await call
            assert str(caught.value) == f"the stub for {path} was closed while Life.hold was under way"
            assert caught.value.maybe_executed
        await until(lambda: sorted(keeper.cancelled) == list(range(5)), "the handlers to be told")


async def test_a_caller_that_waits_for_credit_is_told_of_the_close(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path):
        async with shmrpc.connect(Life, path, max_in_flight=1) as life:
            calls = [asyncio.ensure_future(life.hold(number)) for number in range(3)]
            await until(lambda: keeper.began == [0], "the first to begin")
        outcomes = [await outcome_of(call) for call in calls]
        assert [type(outcome) for outcome in outcomes] == [shmrpc.Closed] * 3
        assert [getattr(outcome, "maybe_executed", None) for outcome in outcomes] == [True, False, False]


async def test_a_caller_that_waits_for_a_connection_is_told_of_the_close(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=20) as life:
            await server.drain()
            await until(lambda: shmrpc.peer(life) is None, "the connection to end")
            call = asyncio.ensure_future(life.add(1))
            await asyncio.sleep(0)
        assert isinstance(await outcome_of(call), shmrpc.Closed)


async def test_a_connection_is_entered_once(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        connection = shmrpc.connect(Life, path)
        async with connection:
            with pytest.raises(shmrpc.Closed, match="can be entered once"):
                await connection.__aenter__()
        with pytest.raises(shmrpc.Closed, match="can be entered once"):
            await connection.__aenter__()


async def test_closing_twice_is_closing_once(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server:
        connection = shmrpc.connect(Life, path)
        async with connection:
            await connection.__aexit__(None, None, None)
        await server.drain()


# In a forked child


def in_a_child(act: Callable[[], object]) -> Any:
    """What `act` gave in a forked child, or the exception that it raised."""
    there, back = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            try:
                outcome: object = act()
            except BaseException as error:
                outcome = error
            os.write(back, pickle.dumps(outcome))
        finally:
            os._exit(0)
    os.close(back)
    with os.fdopen(there, "rb") as answer:
        outcome = pickle.loads(answer.read())
    os.waitpid(pid, 0)
    return outcome


def run(call: Callable[[], Awaitable[object]]) -> Callable[[], object]:
    """A call in an event loop of its own."""

    async def main() -> object:
        return await asyncio.wait_for(call(), 10)

    return lambda: asyncio.run(main())


def step(call: Callable[[], Any]) -> Callable[[], object]:
    """A call's first step without an event loop, as when a coroutine goes on in the child."""
    return lambda: call().send(None)


FORKED = "this connection belongs to the parent process; connect again in the child"


@pytest.mark.parametrize("how", [run, step])
async def test_a_forked_child_is_refused_and_its_parent_goes_on(
    path: str, how: Callable[[Callable[[], Any]], Callable[[], object]]
) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        tagged = shmrpc.options(life, metadata={"a": "b"})
        for call in (lambda: life.add(1), lambda: tagged.add(1), lambda: life.drop(1)):
            error = in_a_child(how(call))
            assert type(error) is shmrpc.ForkedError, error
            assert str(error) == FORKED
            assert not error.maybe_executed
        assert server.connections == 1
        assert await life.add(20, 22) == 42
        await life.let_go()
        assert await held == 1
        assert keeper.began == [1]


async def test_a_forked_child_is_refused_also_when_it_would_have_to_wait(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path, max_in_flight=1) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        assert str(in_a_child(run(lambda: life.add(1)))) == FORKED  # no credit
        await keeper.let_go()
        assert await held == 1
        await server.drain()
        await until(lambda: shmrpc.peer(life) is None, "the connection to end")
        assert str(in_a_child(run(lambda: life.add(1)))) == FORKED  # no connection


async def test_a_forked_child_may_connect_anew(path: str) -> None:
    async def connect_and_add() -> int:
        async with shmrpc.connect(Life, path) as life:
            return await life.add(20, 22)

    with serving(path):
        async with shmrpc.connect(Life, path) as life:
            assert in_a_child(run(connect_and_add)) == 42
            assert await life.add(1) == 2


class Entered(Keeper):
    """Says how often it was left."""

    left = 0

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *exc_info: object) -> None:
        self.left += 1


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("state", ["connected", "reconnecting"])
async def test_closing_a_stub_in_a_forked_child_ends_nothing_and_waits_for_nothing(
    path: str, state: str, connections: int
) -> None:
    exposed = Entered()

    def close() -> int:
        run(lambda: connection.__aexit__(None, None, None))()
        return exposed.left

    async with shmrpc.Server(Keeper(), at=path) as server:
        connection = shmrpc.connect(Life, path, exposes=exposed, connections=connections)
        async with connection as life:
            if state == "reconnecting":
                await server.drain()
                await until(lambda: shmrpc.peer(life) is None, "the connection to end")
            assert in_a_child(close) == 0
            if state == "connected":
                assert await life.add(1) == 2
        assert exposed.left == 1


async def test_a_forked_child_of_a_server_lets_go_of_all_connections(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, shmrpc.connect(Life, path) as life:

        def held_in_child() -> int:
            with open("/proc/self/maps") as maps:
                return sum("shmrpc" in line and ".so" not in line for line in maps)

        assert in_a_child(held_in_child) == 0
        assert held_in_child() == 4
        assert in_a_child(lambda: (server.connections, os.path.exists(path)))[1]
        assert await life.add(1) == 2


# In another event loop, in another thread


WRONG_LOOP = r"^Life\.\w+ was called from another event loop, or another thread, than the one that connected$"


async def test_another_thread_is_refused(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path), shmrpc.connect(Life, path, max_in_flight=1) as life:
        tagged = shmrpc.options(life, metadata={"a": "b"}, timeout=5)
        for call in (lambda: life.add(1), lambda: tagged.add(1), lambda: life.drop(1)):
            with pytest.raises(shmrpc.WrongLoop, match=WRONG_LOOP):
                await asyncio.to_thread(run(call))
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        with pytest.raises(shmrpc.WrongLoop, match=WRONG_LOOP):
            await asyncio.to_thread(run(lambda: life.add(1)))  # also where it would have to wait
        await keeper.let_go()
        assert await held == 1
        assert await life.add(1) == 2


def test_another_event_loop_is_refused(path: str) -> None:
    with serving(path), asyncio.Runner() as first, asyncio.Runner() as second:
        connection = shmrpc.connect(Life, path)
        life = first.run(connection.__aenter__())
        assert first.run(life.add(1)) == 2
        with pytest.raises(shmrpc.WrongLoop, match=WRONG_LOOP):
            second.run(life.add(1))
        assert first.run(life.add(1)) == 2
        first.run(connection.__aexit__(None, None, None))


def test_no_event_loop_at_all_is_refused(path: str) -> None:
    with serving(path), asyncio.Runner() as runner:
        connection = shmrpc.connect(Life, path)
        life = runner.run(connection.__aenter__())
        with pytest.raises(shmrpc.WrongLoop, match=WRONG_LOOP):
            life.add(1).send(None)
        runner.run(connection.__aexit__(None, None, None))


# Never closed


def complaints(script: str, path: str) -> str:
    """What a script writes to its standard error, with every warning shown."""
    command = [sys.executable, "-W", "always", "-c", script, path]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


CLIENT = """
import asyncio, sys, shmrpc
from life_api import Life
async def main():
    connection = shmrpc.connect(Life, sys.argv[1])
    life = await connection.__aenter__()
    assert await life.add(1) == 2
    CLOSE
asyncio.run(main())
"""
SERVER = """
import asyncio, sys, shmrpc
from life_api import Keeper
async def main():
    server = shmrpc.Server(Keeper(), at=sys.argv[1])
    await server.__aenter__()
    CLOSE
asyncio.run(main())
"""


def test_a_stub_that_was_never_closed_is_a_resource_warning(path: str) -> None:
    with serving(path):
        assert f"ResourceWarning: <Link to {path}, connected> was never closed" in complaints(
            CLIENT.replace("CLOSE", ""), path
        )
        assert complaints(CLIENT.replace("CLOSE", "await connection.__aexit__(None, None, None)"), path) == ""


def test_a_server_that_was_never_closed_is_a_resource_warning(path: str) -> None:
    assert f"ResourceWarning: <Server of Life at {path}> was never closed" in complaints(
        SERVER.replace("CLOSE", ""), path
    )
    assert complaints(SERVER.replace("CLOSE", "await server.__aexit__(None, None, None)"), path) == ""


def test_what_was_never_opened_needs_no_closing(path: str) -> None:
    script = "import shmrpc; from life_api import *; shmrpc.connect(Life, 'x'), shmrpc.Server(Keeper(), at='x')"
    assert complaints(script, path) == ""
