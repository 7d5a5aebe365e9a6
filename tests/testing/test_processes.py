"""Servers in processes of their own: what can happen to one, and that nothing is left of it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_api import Shop, ShopService
from life_waiting import is_there

import shmrpc
from shmrpc.testing import ServerProcess, command, no_leaks, process
from shmrpc.testing.processes import running_processes

PATIENCE_SECONDS = 20.0


async def until_logged(server: ServerProcess, text: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while text not in server.log:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_it_serves_in_a_process_of_its_own() -> None:
    with no_leaks(), process("faulty_api:ShopService") as server:
        assert server.running
        assert server in running_processes()
        assert repr(server) == f"<ServerProcess faulty_api:ShopService at {server.address}, pid {server.pid}, running>"
        async with shmrpc.connect(Shop, server.address) as shop:
            assert await shop.pid() == server.pid != os.getpid()
    assert not is_there(server.pid)
    assert "ended" in repr(server)
    assert not server.running
    assert server not in running_processes()
    assert not Path(server.address).parent.exists()


async def test_it_can_be_started_while_the_event_loop_runs() -> None:
    with no_leaks():
        async with process(ShopService) as server, shmrpc.connect(Shop, server.address) as shop:
            assert await shop.add(1) == 2


async def test_a_start_that_is_given_up_leaves_nothing() -> None:
    with no_leaks(), pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            async with command("python", "-c", "import sys; sys.stdin.read()"):
                pass


async def test_its_log_is_kept() -> None:
    async with process(ShopService) as server, shmrpc.connect(Shop, server.address) as shop:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shmrpc.options(shop, timeout=0.1).wait()
    assert server.log == "waiting\n"


def test_one_that_has_ended_cannot_be_stopped() -> None:
    with process(ShopService) as server:
        server.kill()
        with pytest.raises(RuntimeError, match="cannot be stopped: it has ended"):
            server.stall()


async def test_a_call_under_way_is_lost_when_it_is_killed() -> None:
    with process(ShopService) as server:
        async with shmrpc.connect(Shop, server.address) as shop:
            call = asyncio.ensure_future(shop.wait())
            await until_logged(server, "waiting")
            server.kill()
            with pytest.raises(shmrpc.ConnectionLost, match=r"Shop\.wait was under way there") as caught:
                await call
            assert caught.value.maybe_executed
            assert server.wait() == -signal.SIGKILL
            server.kill()  # nothing more happens


async def test_a_server_that_stands_still_does_not_answer_until_it_goes_on() -> None:
    with process(ShopService) as server:
        async with shmrpc.connect(Shop, server.address) as shop:
            server.stall()
            with pytest.raises(shmrpc.DeadlineExceeded):
                await shmrpc.options(shop, timeout=0.05).add(1)
            call = asyncio.ensure_future(shop.add(2))
            assert server.running
            server.resume()
            assert await call == 3


async def test_one_that_stands_still_is_killed_at_the_end() -> None:
    with no_leaks(), process(ShopService) as server:
        server.stall()


async def test_a_stub_finds_it_again_when_it_was_started_again() -> None:
    with process(ShopService) as server:
        async with shmrpc.connect(Shop, server.address) as shop:
            before = await shop.pid()
            server.stall()
            call = asyncio.ensure_future(shop.pid())  # not taken, so it is made again
            await asyncio.sleep(0)
            server.restart()
            assert await call == server.pid != before


async def test_it_drains_when_it_is_asked_to() -> None:
    async with process(ShopService) as server, shmrpc.connect(Shop, server.address) as shop:
        assert await shop.add(1) == 2
        server.terminate()
        assert await server.wait_async() == 0


def test_it_can_be_stopped_from_when_it_listens() -> None:
    for _ in range(4):
        with process(ShopService) as server:
            server.terminate()
            assert server.wait() == 0


async def test_waiting_for_one_that_runs_on_ends_in_time() -> None:
    with process(ShopService) as server:
        with pytest.raises(TimeoutError, match=r"runs on after 0\.01 s"):
            server.wait(0.01)
        with pytest.raises(TimeoutError, match=r"runs on after 0\.01 s"):
            await server.wait_async(0.01)


def test_all_that_it_started_ends_with_it() -> None:
    with no_leaks(), command("shmrpc", "serve", "faulty_api:ShopService", "--at", "{path}", "--workers", "2") as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
        while len(workers := children.read_text().split()) < 2:
            assert server.running
    until = time.monotonic() + PATIENCE_SECONDS
    while any(is_there(int(pid)) for pid in workers):  # whoever adopted them reaps them
        assert time.monotonic() < until


def test_the_log_goes_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        with process(ShopService, log_level="debug", loop="asyncio") as server:
            while "DEBUG" not in server.log:
                assert server.running
            1 / 0  # noqa: B018
    (note,) = caught.value.__notes__
    assert note.startswith("log of <ServerProcess faulty_api:ShopService at")
    assert "DEBUG asyncio" in note


def test_only_the_end_of_a_long_log_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrpc.testing.processes.LOG_CHARACTERS", 10)
    code = "import sys, socket; print('x' * 1000); sys.stdout.flush(); s = socket.socket(socket.AF_UNIX); s.bind('{path}');"
    with command("python", "-c", code + "s.listen(); sys.stdin.read()") as server:
        assert server.tail() == f"[…]\n{'x' * 9}\n"


async def test_one_that_ends_by_itself_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"ended by itself with status 3; its log:\n(.*\n)*about to end"):
        with process(ShopService) as server:
            async with shmrpc.connect(Shop, server.address) as shop:
                with pytest.raises(shmrpc.ConnectionLost):
                    await shop.end(3)


async def test_one_whose_end_was_waited_for_was_expected_to_end() -> None:
    with process(ShopService) as server:
        async with shmrpc.connect(Shop, server.address) as shop:
            with pytest.raises(shmrpc.ConnectionLost):
                await shop.end(3)
        assert server.wait() == 3


def test_one_that_cannot_start_says_why() -> None:
    text = r"faulty_api:Nobody ended with status 2 before it listened; its log:\nUsageError: module 'faulty_api' has no 'No"
    with no_leaks(), pytest.raises(RuntimeError, match=text):
        with process("faulty_api:Nobody"):
            pass


async def test_one_that_cannot_start_says_why_while_the_event_loop_runs() -> None:
    with no_leaks(), pytest.raises(RuntimeError, match="has no 'Nobody'"):
        async with process("faulty_api:Nobody"):
            pass


def test_one_that_never_listens_is_not_waited_for_for_ever() -> None:
    with (
        no_leaks(),
        pytest.raises(RuntimeError, match=r"does not listen at .* after 0\.2 s \(start_timeout\); its log:"),
    ):
        with command("python", "-c", "import sys; sys.stdin.read()", start_timeout=0.2):
            pass


def test_before_it_is_entered_there_is_nothing_to_do_to_it() -> None:
    server = process(ShopService)
    assert repr(server) == "<ServerProcess faulty_api:ShopService, not started>"
    for use in (server.kill, server.stall, server.terminate, lambda: server.pid, lambda: server.address):
        with pytest.raises(RuntimeError, match="enter"):
            use()
    assert server.log == ""
    with server:
        with pytest.raises(RuntimeError, match="can be entered once"):
            server.__enter__()


def test_it_ends_with_the_process_that_started_it() -> None:
    code = (
        "from shmrpc.testing import process\n"
        "with process('faulty_api:ShopService') as server:\n"
        "    print(server.pid, flush=True)\n"
        "    input()\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    starter = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=here
    )
    assert starter.stdout is not None
    assert starter.stdin is not None
    server = int(starter.stdout.readline())
    assert is_there(server)
    starter.kill()
    starter.wait()
    until = time.monotonic() + PATIENCE_SECONDS
    while is_there(server):
        assert time.monotonic() < until
        time.sleep(0.002)
    starter.stdout.close()
    starter.stdin.close()
