"""A pool whose servers come late, are refused, are killed under load, drain and come back."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol, cast

import pytest
import uvloop
from life_api import Keeper, Life, recorded
from life_processes import kill, serving, start_server, stop
from life_waiting import until

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.pool import Pool

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@pytest.fixture
def paths(path: str) -> list[str]:
    return [f"{path}.{name}" for name in "ab"]


@pytest.fixture
def records(paths: list[str]) -> list[str]:
    return [f"{path}.record" for path in paths]


def pool_of(stub: object) -> Pool:
    return cast(Pool, open_stub(stub)[1])


def states(stub: object) -> list[str]:
    return [end.state for end in shmrpc.endpoints(stub)]


# Entering


async def test_a_server_that_is_not_there_is_left_out_until_it_is(
    paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Keeper(), at=paths[0]), shmrpc.connect(Life, paths) as life:
        assert states(life) == ["connected", "reconnecting"]
        assert f"no calls go to {paths[1]} for now: no server at {paths[1]}" in caplog.text
        assert [await life.add(number) for number in range(4)] == [1, 2, 3, 4]
        async with shmrpc.Server(late := Keeper(), at=paths[1]):
            await until(lambda: states(life) == ["connected", "connected"], "the late one to be connected")
            for number in range(4):
                await life.note(number)
            assert len(late.began) == 2


async def test_a_pool_hangs_up_also_when_its_end_is_cancelled(paths: list[str]) -> None:
    async with shmrpc.Server(Keeper(), at=paths[0]) as server:
        connection = shmrpc.connect(Life, paths[0], connections=2)
        await connection.__aenter__()
        assert server.connections == 2
        closing = asyncio.ensure_future(connection.__aexit__(None, None, None))
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing,))
        await until(lambda: not server.connections, "the end of the connections")


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_forked_child_may_leave_a_connection(paths: list[str], connections: int) -> None:
    """There is nothing to be ended, so nothing to wait for: a child in the block may leave it, by an exception or not."""
    async with shmrpc.Server(Keeper(), at=paths[0]):
        connection = shmrpc.connect(Life, paths[0], connections=connections)
        async with connection as life:
            child = os.fork()
            if not child:
                try:
                    connection.__aexit__(None, None, None).send(None)
                except StopIteration:
                    os._exit(0)
                finally:
                    os._exit(1)
            status = await asyncio.to_thread(os.waitpid, child, 0)
            assert status == (child, 0)
            assert await life.add(1) == 2


async def test_where_no_server_is_at_all_connecting_fails_and_names_them(paths: list[str]) -> None:
    with pytest.raises(shmrpc.ConnectFailed) as caught:
        async with shmrpc.connect(Life, paths):
            pass
    for path in paths:
        assert f"no server at {path}: No such file or directory" in str(caught.value)


async def test_connecting_waits_for_the_first_server_that_comes(paths: list[str]) -> None:
    async def come() -> shmrpc.Server:
        server = shmrpc.Server(Keeper(), at=paths[1])
        await server.__aenter__()
        return server

    connection = shmrpc.connect(Life, paths, wait=20)
    entering = asyncio.ensure_future(connection.__aenter__())
    await asyncio.sleep(0)
    server = await come()
    life = await entering
    assert states(life) == ["reconnecting", "connected"]
    assert await life.add(1) == 2
    await connection.__aexit__()
    await server.__aexit__(None, None, None)


async def test_waiting_in_vain_says_who_is_not_there(paths: list[str]) -> None:
    with pytest.raises(shmrpc.ConnectFailed, match="no server at"):
        async with shmrpc.connect(Life, paths, wait=0.05):
            pass


class Other(Protocol):
    async def other(self) -> None: ...


class OtherService(Other):
    async def other(self) -> None:
        """Nothing."""


async def test_a_server_of_another_contract_is_left_out_and_logged(
    paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "shmrpc")
    async with (
        shmrpc.Server(OtherService(), at=paths[0]),
        shmrpc.Server(Keeper(), at=paths[1]),
        shmrpc.connect(Life, paths) as life,
    ):
        assert states(life) == ["reconnecting", "connected"]
        assert f"no calls go to {paths[0]} for now: " in caplog.text
        assert "there is no service Life" in caplog.text
        assert [await life.add(number) for number in range(4)] == [1, 2, 3, 4]


async def test_where_all_servers_are_of_another_contract_connecting_fails(paths: list[str]) -> None:
    async with shmrpc.Server(OtherService(), at=paths[0]):
        with pytest.raises(shmrpc.HandshakeError, match="there is no service Life"):
            async with shmrpc.connect(Life, paths):  # nobody is at the other one
                pass
        async with shmrpc.Server(OtherService(), at=paths[1]):
            with pytest.raises(shmrpc.HandshakeError, match="there is no service Life"):
                async with shmrpc.connect(Life, paths, wait=60):  # which is for servers that are not there yet
                    pass


# kill -9


async def test_killing_one_of_several_under_load_loses_no_call_but_those_it_may_have_executed(
    paths: list[str], records: list[str]
) -> None:
    done: list[int] = []
    lost: list[int] = []
    broken: list[int] = []
    numbers = iter(range(10**9))
    with ExitStack() as stack:
        victim, _ = [stack.enter_context(serving(*both)) for both in zip(paths, records, strict=True)]
        async with shmrpc.connect(Life, paths) as life:
            goes_on = True

            async def call_on() -> None:
                while goes_on:
                    number = next(numbers)
                    try:
                        assert await life.note(number) == number
                        done.append(number)
                    except shmrpc.ConnectionLost as error:
                        (lost if error.maybe_executed else broken).append(number)

            load = [asyncio.create_task(call_on()) for _ in range(64)]
            await until(lambda: len(done) > 500, "calls to go on")
            kill(victim)
            await until(lambda: "reconnecting" in states(life), "the loss to be seen")
            before = len(done)
            await until(lambda: len(done) > before + 500, "calls to go on at the other one")
            stack.enter_context(serving(paths[0], records[0]))
            await until(lambda: states(life) == ["connected", "connected"], "the restarted one to be connected")
            again = len(recorded(records[0]))
            await until(lambda: len(recorded(records[0])) > again + 100, "it to get calls again")
            goes_on = False
            await asyncio.gather(*load)
    executed = sorted(recorded(records[0]) + recorded(records[1]))
    assert len(executed) == len(set(executed)), "a call was executed twice"
    assert set(done) <= set(executed)
    assert set(executed) <= set(done) | set(lost)
    assert sorted(done + lost) == list(range(len(done) + len(lost))), "a call did not end"
    assert not broken, "a call failed that was certainly not executed"
    assert len(lost) <= 64


async def test_calls_that_a_dead_server_did_not_take_are_executed_once_by_another(
    paths: list[str], records: list[str]
) -> None:
    with serving(paths[0], records[0]) as victim, serving(paths[1], records[1]):
        async with shmrpc.connect(Life, paths) as life:
            for number in range(-4, 0):
                await life.note(number)
            stop(victim)
            calls = [asyncio.ensure_future(life.note(number)) for number in range(100)]
            await until(lambda: len(recorded(records[1])) > 10, "the other to execute its share")
            kill(victim)
            assert await asyncio.gather(*calls) == list(range(100))
    assert sorted(recorded(records[0]) + recorded(records[1])) == list(range(-4, 100))


async def test_an_idempotent_call_is_made_again_at_another_server(paths: list[str], records: list[str]) -> None:
    with serving(paths[0], records[0]) as victim, serving(paths[1], records[1]):
        async with shmrpc.connect(Life, paths) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(records[0]) == [1], "it to begin")
            kill(victim)
            await until(lambda: recorded(records[1]) == [1], "it to begin again")
            await life.let_go()
            assert await call == 1


async def test_a_server_that_hangs_holds_up_only_the_calls_it_has(paths: list[str]) -> None:
    with serving(paths[0]) as hanging, serving(paths[1]):
        async with shmrpc.connect(Life, paths) as life:
            await life.add(1)
            await life.add(1)
            stop(hanging)
            stuck = [asyncio.ensure_future(life.add(1)) for _ in range(2)]
            await until(lambda: any(call.done() for call in stuck), "the one at the other server")
            assert [await life.add(number) for number in range(20)] == list(range(1, 21))
            assert [call.done() for call in stuck].count(True) == 1
            kill(hanging)
            await asyncio.wait(stuck)


async def test_when_all_are_down_calls_wait_for_the_first_that_comes_back(paths: list[str]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(path)) for path in paths]
        async with shmrpc.connect(Life, paths) as life:
            for server in servers:
                kill(server)
            await until(lambda: states(life) == ["reconnecting"] * 2, "both losses to be seen")
            assert shmrpc.peer(life) is None
            assert len(shmrpc.buffer(10_000, to=life)) == 10_000  # ordinary memory
            calls = [asyncio.ensure_future(life.where()) for _ in range(10)]
            with pytest.raises(shmrpc.DeadlineExceeded, match=r"no connection to .*a, .*b before the deadline"):
                await shmrpc.options(life, timeout=0.02).where()
            successor = stack.enter_context(serving(paths[1]))
            assert await asyncio.gather(*calls) == [successor.pid] * 10


async def test_when_all_stay_down_a_call_fails_after_the_reconnect_timeout(paths: list[str]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(path)) for path in paths]
        async with shmrpc.connect(Life, paths, reconnect_timeout=0.05) as life:
            for server in servers:
                kill(server)
            await until(lambda: states(life) == ["reconnecting"] * 2, "both losses to be seen")
            with pytest.raises(shmrpc.Unavailable, match=r"within 0\.05 s \(reconnect_timeout\)") as caught:
                await life.add(1)
            assert not caught.value.maybe_executed


async def test_when_all_that_come_back_are_refused_a_call_says_why(paths: list[str]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(path)) for path in paths]
        async with shmrpc.connect(Life, paths) as life:
            for server in servers:
                kill(server)
            async with shmrpc.Server(OtherService(), at=paths[0]), shmrpc.Server(OtherService(), at=paths[1]):
                with pytest.raises(shmrpc.HandshakeError, match="there is no service Life"):
                    await life.add(1)


async def test_a_call_that_waits_for_credit_goes_elsewhere_when_its_server_dies(
    paths: list[str], records: list[str]
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(*both)) for both in zip(paths, records, strict=True)]
        async with shmrpc.connect(Life, paths, max_in_flight=1) as life:
            held = [asyncio.ensure_future(life.hold(number)) for number in range(2)]
            await until(lambda: [recorded(record) for record in records] == [[0], [1]], "both to be full")
            waiting = asyncio.ensure_future(life.note(2))
            links = pool_of(life)._links
            await until(lambda: any(link.calls is not None and link.calls.waiters for link in links), "it to wait")
            at = [bool(link.calls is not None and link.calls.waiters) for link in links].index(True)
            kill(servers[at])
            await until(lambda: states(life)[at] == "reconnecting", "the loss to be seen")
            servers[1 - at].send_signal(signal.SIGUSR1)  # lets go
            assert await waiting == 2
            assert recorded(records[1 - at]) == [1 - at, 2]
            await asyncio.wait(held)


# Draining


async def test_a_server_that_drains_costs_no_call(paths: list[str], records: list[str]) -> None:
    with serving(paths[0], records[0]) as draining, serving(paths[1], records[1]):
        async with shmrpc.connect(Life, paths) as life:
            held = asyncio.ensure_future(life.hold(-1))
            await until(lambda: recorded(records[0]) == [-1], "it to begin")
            draining.terminate()
            calls = [asyncio.ensure_future(life.note(number)) for number in range(200)]
            assert await asyncio.gather(*calls) == list(range(200))
            await until(lambda: states(life) == ["reconnecting", "connected"], "the draining to be seen")
            assert shmrpc.endpoints(life)[0].in_flight == 1
            draining.send_signal(signal.SIGUSR1)  # lets go
            assert await held == -1


# Several connections to one path


@pytest.fixture
def workers(path: str) -> Iterator[None]:
    """Two workers at one path."""
    process = start_server(path, "", "--workers", "2")
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(20) == 0


async def test_two_connections_go_to_two_workers(path: str, workers: None) -> None:
    pids: set[int] = set()
    while len(pids) < 2:  # until the second worker has begun to accept
        async with shmrpc.connect(Life, path, wait=10) as life:
            pids.add(await life.where())
    async with shmrpc.connect(Life, path, connections=2) as life:
        assert len({await life.where() for _ in range(4)}) == 2
        assert len({end.peer for end in shmrpc.endpoints(life)}) == 2


async def test_more_connections_than_workers_share_them(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path, connections=3) as life:
        assert len({end.peer for end in shmrpc.endpoints(life)}) == 1
        assert states(life) == ["connected"] * 3
        assert [await life.add(number) for number in range(6)] == [1, 2, 3, 4, 5, 6]
