"""Policy between processes: guards that see another uid, and slots of clients that die."""

import asyncio
from pathlib import Path

import pytest
from life_api import Keeper, Life, recorded
from life_processes import STRANGER, as_root, client_process, kill, serving
from life_waiting import until

import shmrpc

ALLOWED = {0, STRANGER}


@pytest.fixture
def open_path(folder: Path) -> str:
    """A path that a process under any uid can reach, and serve at."""
    folder.chmod(0o777)
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
