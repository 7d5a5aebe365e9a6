"""Whether the peer still runs: death seen through a socket that a child holds open, and a peer that merely stands still."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen

import pytest
from life_api import METHODS, Keeper, Life, recorded
from life_processes import HERE, client_process, end, kill, serving, stop
from life_waiting import PATIENCE, until

import shmrpc
from shmrpc.context import Peer
from shmrpc.shm import liveness

# A raw peer that leaves a child behind, which holds copies of its socket and of everything else. It prints its child's pid.
PARENT_AS_CLIENT = f"""
import asyncio, os, signal
from raw_peer import RawClient
async def main(path):
    async with RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.request(1, {METHODS.index("hold")}, 7)
        FORK
asyncio.run(main(PATH))
"""
PARENT_AS_SERVER = """
import asyncio, os, signal
from raw_peer import raw_listener
async def main(path):
    async def play(server):
        channel = await server.shake_hands()
        await channel.receive()
        FORK
    async with raw_listener(path, play):
        print("listening", flush=True)
asyncio.run(main(PATH))
"""
FORK = "\n        ".join(
    (
        "child = os.fork()",
        "if not child:",
        "    signal.pause()",
        "print(child, flush=True)",
        "signal.pause()",
    )
)


@contextmanager
def parent(script: str, path: str) -> Iterator[Popen[bytes]]:
    source = script.replace("FORK", FORK).replace("PATH", repr(path))
    process = Popen([sys.executable, "-c", source], cwd=HERE, stdout=PIPE)
    try:
        yield process
    finally:
        end(process)


async def line_of(process: Popen[bytes]) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        return (await asyncio.to_thread(process.stdout.readline)).decode().strip()


@contextmanager
def orphan(pid: int) -> Iterator[None]:
    """A child that outlives its parent, until it is killed here."""
    try:
        os.kill(pid, 0)
        yield
        os.kill(pid, 0)  # it lived all the time
    finally:
        os.kill(pid, signal.SIGKILL)


# Death


async def test_a_child_that_holds_the_socket_does_not_hide_its_parents_death_from_the_server(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server:
        with parent(PARENT_AS_CLIENT, path) as client, orphan(int(await line_of(client))):
            await until(lambda: keeper.began == [7], "the call to begin")
            assert server.connections == 1
            kill(client)
            await until(lambda: server.connections == 0, "the server to notice")
            await until(lambda: keeper.cancelled == [7], "the handler to be told")


async def test_a_child_that_holds_the_socket_does_not_hide_its_parents_death_from_the_client(path: str) -> None:
    with parent(PARENT_AS_SERVER, path) as server:
        assert await line_of(server) == "listening"
        async with shmrpc.connect(Life, path) as life:
            call = asyncio.ensure_future(life.hold(7))
            with orphan(int(await line_of(server))):
                kill(server)
                with pytest.raises(
                    shmrpc.ConnectionLost, match=f"the peer pid {server.pid} .* died; Life.hold"
                ) as caught:
                    await call
                assert caught.value.maybe_executed


async def test_a_forked_child_of_a_server_keeps_neither_its_socket_nor_its_connections_alive(path: str) -> None:
    """Else its clients would connect to nobody, and its successor would find the path taken."""
    with serving(path) as server:
        async with shmrpc.connect(Life, path, reconnect_timeout=20) as life:
            with orphan(await life.beget()):
                call = asyncio.ensure_future(life.hold(7))
                await asyncio.sleep(0)
                assert await life.add(1) == 2  # so that the server has taken the other one too
                kill(server)
                with pytest.raises(shmrpc.ConnectionLost):
                    await call
                with pytest.raises(shmrpc.ConnectFailed, match="stale"):
                    async with shmrpc.connect(Life, path):
                        raise AssertionError("connected")
                with serving(path) as successor:
                    assert await life.where() == successor.pid


# Standing still


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_server_that_is_stopped_answers_when_it_goes_on(path: str, loop: str) -> None:
    with serving(path, "", "--loop", loop) as server:
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
            stop(server)
            calls = [asyncio.ensure_future(life.add(number)) for number in range(100)]
            with pytest.raises(shmrpc.DeadlineExceeded):
                await shmrpc.options(life, timeout=0.02).add(1)
            assert not any(call.done() for call in calls)
            server.send_signal(signal.SIGCONT)
            assert await asyncio.gather(*calls) == list(range(1, 101))
            assert shmrpc.peer(life) == (server.pid, os.getuid(), os.getgid())


async def test_what_expired_while_the_server_stood_still_is_not_executed(path: str) -> None:
    record = f"{path}.record"
    with serving(path, record) as server:
        async with shmrpc.connect(Life, path, max_in_flight=2) as life:
            assert await life.note(1) == 1
            stop(server)
            hasty = shmrpc.options(life, timeout=0.02)
            with pytest.raises(shmrpc.DeadlineExceeded):
                await hasty.note(2)
            server.send_signal(signal.SIGCONT)
            assert [await life.note(number) for number in (3, 4, 5)] == [3, 4, 5]
            assert recorded(record) == [1, 3, 4, 5]


async def test_a_client_that_is_stopped_and_goes_on_gets_its_answers(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server:
        with client_process(path) as client:
            assert await client.hear() == "connected"
            client.say("hold 1")
            await until(lambda: keeper.began == [1], "the call to begin")
            stop(client.process)
            await keeper.let_go()
            async with shmrpc.connect(Life, path) as life:
                assert await life.add(1) == 2
            assert server.connections >= 1
            client.process.send_signal(signal.SIGCONT)
            assert await client.hear() == "1"


# The parts


async def test_the_watch_calls_back_once_when_the_process_ends(path: str) -> None:
    loop = asyncio.get_running_loop()
    ended: list[str] = []
    with client_process(path) as client:
        pidfd = liveness.open_pidfd(Peer(client.pid, 0, 0), None)
        assert pidfd is not None
        watch = liveness.ProcessWatch(loop, pidfd, lambda: ended.append("ended"))
        assert repr(watch) == f"<ProcessWatch pidfd={pidfd}>"
        assert (await client.hear()).startswith("ConnectFailed")
        assert ended == []
        kill(client.process)
        await until(lambda: ended, "the end")
        watch.close()
    assert ended == ["ended"]
    assert repr(watch) == "<ProcessWatch over>"


async def test_a_watch_that_was_closed_stays_silent(path: str) -> None:
    ended: list[str] = []
    with client_process(path) as client:
        pidfd = liveness.open_pidfd(Peer(client.pid, 0, 0), None)
        assert pidfd is not None
        watch = liveness.ProcessWatch(asyncio.get_running_loop(), pidfd, lambda: ended.append("ended"))
        watch.close()
    await asyncio.sleep(0)
    assert ended == []


def test_a_process_that_is_gone_or_out_of_sight_has_no_pidfd() -> None:
    with Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert liveness.open_pidfd(Peer(process.pid, 0, 0), None) is None
    assert liveness.open_pidfd(Peer(0, 0, 0), None) is None
