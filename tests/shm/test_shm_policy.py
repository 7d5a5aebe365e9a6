"""Policy between processes: guards that see another uid, slots of clients that die, calls made again after kill -9."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from life_api import Keeper, Life, recorded
from life_processes import STRANGER, as_root, client_process, kill, serving, stop
from life_waiting import until

import shmrpc
from shmrpc import Code, Retry

ALLOWED = {0, STRANGER}


@pytest.fixture
def record(path: str) -> str:
    return f"{path}.record"


def begun(record: str, times: int) -> bool:
    return recorded(record) == [1] * times


@pytest.fixture
def open_path(folder: Path) -> str:
    """A path that a process under any uid can reach, and serve at."""
    folder.chmod(0o1777)
    return str(folder / "test.sock")


# Guards


@as_root
async def test_a_guard_refuses_a_process_of_another_user_and_names_it(open_path: str) -> None:
    record = f"{open_path}.record"
    async with shmrpc.Server(Keeper(record), at=open_path, mode=0o666, allow_uids=ALLOWED):
        with client_process(open_path, user=STRANGER) as stranger, client_process(open_path) as root:
            assert (await stranger.hear(), await root.hear()) == ("connected", "connected")
            assert await stranger.ask("add 20 22") == "42"
            assert await stranger.ask("secret") == (
                f"PermissionDenied: Life.secret: pid {stranger.pid} (uid {STRANGER}, gid {STRANGER}) may not call it"
            )
            assert await root.ask("secret") == "42"
            assert recorded(record, "secret") == [0]
            assert await stranger.ask("add 1") == "2"  # its connection goes on


@as_root
async def test_a_guard_sees_the_client_and_not_the_user_that_serves(open_path: str) -> None:
    options = ("--mode", "666")
    with serving(open_path, "", *options, user=STRANGER):
        async with shmrpc.connect(Life, open_path, allow_uids=ALLOWED) as life:
            assert await life.secret() == 42


# Limits


async def test_a_limit_counts_the_calls_of_all_connections(path: str) -> None:
    keeper = Keeper()
    async with (
        shmrpc.Server(keeper, at=path),
        shmrpc.connect(Life, path) as first,
        shmrpc.connect(Life, path) as second,
        shmrpc.connect(Life, path) as third,
    ):
        runs = asyncio.ensure_future(first.in_turn(1))
        await until(lambda: keeper.began == [1], "the first to begin")
        waits = asyncio.ensure_future(second.in_turn(2))
        await second.add(1)  # sent after it, and answered
        with pytest.raises(shmrpc.ResourceExhausted) as caught:
            await third.in_turn(3)
        assert str(caught.value) == (
            "Life.in_turn: 1 calls run, the limit is 1 (max_concurrency), and 1 wait, the limit is 1 (max_waiting)"
        )
        assert await third.let_go() == 1
        assert await runs == 1
        await until(lambda: keeper.began == [1, 2], "the second to begin")
        assert await third.let_go() == 1
        assert await waits == 2


async def test_the_slots_of_a_client_that_is_killed_come_back(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path), shmrpc.connect(Life, path) as life:
        for number in range(1, 4):
            with client_process(path) as client:
                assert await client.hear() == "connected"
                client.say(f"in_turn {number}")
                client.say(f"in_turn {number + 10}")
                await until(lambda number=number: keeper.began[-1:] == [number], "it to begin")  # type: ignore[misc]
                kill(client.process)
            await until(lambda: not keeper.held, "its handler to be cancelled")
        last = asyncio.ensure_future(life.in_turn(9))
        await until(lambda: keeper.began[-1] == 9, "the last to begin")
        await life.let_go()
        assert await last == 9
        assert keeper.cancelled == [1, 2, 3]
        assert not set(keeper.began) & {11, 12, 13}


async def test_a_server_that_drains_waits_for_those_that_wait_for_their_turn(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path) as life:
        calls = [asyncio.ensure_future(life.in_turn(number)) for number in (1, 2)]
        await until(lambda: keeper.began == [1], "the first to begin")
        await life.add(1)
        draining = asyncio.ensure_future(server.drain())
        for number in (1, 2):
            await until(lambda number=number: keeper.began[-1] == number, "it to begin")  # type: ignore[misc]
            keeper._let_go()
        assert await asyncio.gather(*calls) == [1, 2]
        assert await draining


# Calls that are made again


async def test_an_idempotent_call_is_made_again_as_often_as_the_retry_says(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=Retry(attempts=5)) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "it to begin")
            kill(first)
            for times in range(2, 5):
                with serving(path, record):  # which is killed at the end of this block
                    await until(partial(begun, record, times), "it to begin again")
            with serving(path, record):
                await until(partial(begun, record, 5), "it to begin once more")
                assert await life.let_go() == 1
                assert await call == 1


async def test_after_the_last_attempt_it_ends_and_says_how_it_went(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=Retry(attempts=2)) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "it to begin")
            kill(first)
            with serving(path, record) as second:
                await until(lambda: recorded(record) == [1, 1], "it to begin again")
                kill(second)
            with pytest.raises(shmrpc.ConnectionLost, match=f"pid {second.pid} ") as caught:
                await call
            assert caught.value.maybe_executed
            (note,) = caught.value.__notes__
            assert note.startswith(f"It was attempt 2. Before it: ConnectionLost: the peer pid {first.pid} ")


@pytest.mark.parametrize("retry", [Retry(attempts=1), Retry(codes={Code.ABORTED})])
async def test_a_retry_may_say_that_what_may_have_been_executed_is_not_repeated(
    path: str, record: str, retry: Retry
) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=retry) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "it to begin")
            kill(first)
            with serving(path, record):
                with pytest.raises(shmrpc.ConnectionLost) as caught:
                    await call
                assert caught.value.maybe_executed
                assert await life.note(2) == 2
    assert recorded(record) == [1, 2]


async def test_what_was_certainly_not_executed_is_repeated_whatever_the_retry_says(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=Retry(attempts=1)) as life:
            await life.note(0)
            stop(first)
            calls = [asyncio.ensure_future(life.note(number)) for number in range(1, 50)]
            await asyncio.sleep(0)
            kill(first)
            with serving(path, record):
                assert await asyncio.gather(*calls) == list(range(1, 50))
    assert sorted(recorded(record)) == list(range(50))


async def test_no_call_of_many_is_let_down_by_a_small_budget_when_the_server_dies(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=Retry(max_tokens=4)) as life:
            calls = [asyncio.ensure_future(life.hold_again(number)) for number in range(200)]
            once = asyncio.ensure_future(life.hold(1000))
            await until(lambda: len(recorded(record)) == 201, "all to begin")
            kill(first)
            with serving(path, record):
                with pytest.raises(shmrpc.ConnectionLost):
                    await once
                await until(lambda: len(recorded(record)) == 401, "all but one to begin again")
                assert await life.let_go() == 200
                assert await asyncio.gather(*calls) == list(range(200))


async def test_a_call_is_made_again_until_its_deadline_and_not_longer(path: str, record: str) -> None:
    retry = Retry(attempts=1000)
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=retry, timeout=0.5) as life:
            call = asyncio.ensure_future(life.hold_again(1))
            await until(lambda: recorded(record) == [1], "it to begin")
            kill(first)
            with pytest.raises(shmrpc.DeadlineExceeded, match="no connection to") as caught:
                await call
            assert "ConnectionLost" in caught.value.__notes__[0]


async def test_a_stream_is_begun_again_if_nothing_had_come_of_it(path: str, record: str) -> None:
    with serving(path, record) as first:
        async with shmrpc.connect(Life, path, retry=Retry()) as life:
            stream = life.give_again(1)
            item = asyncio.ensure_future(anext(stream))
            await until(lambda: recorded(record) == [1], "it to begin")
            kill(first)
            with serving(path, record) as second:
                await until(lambda: recorded(record) == [1, 1], "it to begin again")
                assert await life.let_go() == 1
                assert await item == 1
                item = asyncio.ensure_future(anext(stream))
                await until(lambda: recorded(record) == [1, 1, 1], "it to go on")
                kill(second)
                with serving(path, record):
                    with pytest.raises(shmrpc.ConnectionLost) as caught:
                        await item
                    assert caught.value.maybe_executed
                    assert await life.note(2) == 2
    assert recorded(record) == [1, 1, 1, 2]
