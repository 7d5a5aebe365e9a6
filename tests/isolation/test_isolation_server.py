"""A server in namespaces of its own, and a client outside: it works, and both know who the other one is."""

import asyncio
import os
from pathlib import Path

import pytest
from figures import Figures
from isolated import EVERYTHING, STRANGER, USUAL, isolated
from isolation_api import Border, all_kinds

import shmrpc
from shmrpc.shm.layout import Geometry
from shmrpc.shm.liveness import UNMAPPED

SEGMENT = Geometry().segment_bytes


@pytest.fixture
def open_path(folder: Path) -> str:
    """Where a process under any uid can serve, and only it and root can take that away."""
    folder.chmod(0o1777)
    return str(folder / "test.sock")


@pytest.mark.parametrize("namespaces", [("pid",), ("mount",), ("net",), ("user",), EVERYTHING], ids="+".join)
async def test_a_server_in_other_namespaces_serves_all_kinds_of_calls_and_is_identified(
    path: str, namespaces: tuple[str, ...], figures: Figures
) -> None:
    if namespaces not in USUAL and not figures.long:
        pytest.skip("one namespace at a time takes --long")
    with isolated("server", path, namespaces) as server:
        assert await server.started() == "listening"
        async with shmrpc.connect(Border, path) as border:
            told = await all_kinds(border)
            assert told["peer"] == [server.pid, 0, 0]
            pid, own = (0, 1) if "pid" in namespaces else (os.getpid(), server.pid)
            assert told["seen"] == [pid, 0, 0, own]


async def test_a_server_refuses_a_client_that_its_user_namespace_does_not_know(open_path: str) -> None:
    """Root itself: to a namespace that does not map it, it is nobody."""
    with isolated("server", open_path, EVERYTHING, {"mode": 0o666}, uid=STRANGER) as server:
        assert await server.started() == "listening"
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Border, open_path, allow_uids={STRANGER}):
                raise AssertionError("connected")
        assert str(caught.value) == (
            f"the server refused the connection: uid {UNMAPPED} is not mapped into this user namespace, so nobody knows who "
            "it is"
        )


async def test_a_server_serves_those_whom_its_user_namespace_does_not_know_if_it_is_told_to(open_path: str) -> None:
    settings = {"mode": 0o666, "allow_uids": [UNMAPPED]}
    with isolated("server", open_path, EVERYTHING, settings, uid=STRANGER) as server:
        assert await server.started() == "listening"
        async with shmrpc.connect(Border, open_path, allow_uids={STRANGER}) as border:
            told = await all_kinds(border)
            assert told["peer"] == [server.pid, STRANGER, STRANGER]
            assert told["seen"] == [0, UNMAPPED, UNMAPPED, 1]


async def test_a_server_of_another_uid_is_refused_though_it_is_root_in_its_namespace(open_path: str) -> None:
    with isolated("server", open_path, EVERYTHING, {"mode": 0o666}, uid=STRANGER) as server:
        assert await server.started() == "listening"
        with pytest.raises(shmrpc.HandshakeError, match=f"^the server's uid {STRANGER} .* is not allowed"):
            async with shmrpc.connect(Border, open_path):
                raise AssertionError("connected")


@pytest.mark.counted("kills survived")
async def test_a_server_that_is_killed_in_its_pid_namespace_is_known_to_be_dead(path: str) -> None:
    with isolated("server", path, ("pid", "mount")) as server:
        assert await server.started() == "listening"
        async with shmrpc.connect(Border, path, reconnect_timeout=0) as border:
            held = asyncio.ensure_future(border.hold())
            await server.ask_until("held", [1, 0])
            server.kill()
            with pytest.raises(shmrpc.ConnectionLost) as caught:
                await held
            assert str(caught.value).startswith(f"the peer pid {server.pid} (uid 0, gid 0) ")
            assert caught.value.maybe_executed


@pytest.mark.counted("kills survived")
async def test_a_client_that_has_no_pid_at_the_server_is_known_to_be_dead_though_a_child_holds_its_socket(
    path: str,
) -> None:
    with isolated("server", path, ("pid", "mount")) as server:
        assert await server.started() == "listening"
        with isolated("client", path, ()) as client:
            assert (await client.started())["seen"] == [0, 0, 0, 1]
            client.say("hold")
            await server.ask_until("held", [1, 0])
            client.say("beget")
            assert await client.hear() == "begot"
            client.kill()
            await server.ask_until("held", [1, 1])
            await client.heard_out()


@pytest.mark.counted("kills survived")
async def test_what_one_client_without_a_pid_was_given_is_charged_until_its_own_end(open_path: str) -> None:
    """All of them are pid 0 to the server; the end of one must not pay for another one's memory."""
    settings = {"mode": 0o666, "allow_uids": [0, STRANGER]}
    with isolated("server", open_path, ("pid", "mount"), settings) as server:
        assert await server.started() == "listening"
        with isolated("client", open_path, ("mount",), uid=STRANGER) as first:
            assert (await first.started())["seen"] == [0, STRANGER, STRANGER, 1]
            of_one, watched = await server.ask("charged")
            assert watched == 1
            with isolated("client", open_path, ("mount",), uid=STRANGER) as second:
                await second.started()
                assert await server.ask("charged") == [2 * of_one, 2]
                first.kill()
                await server.ask_until("charged", [of_one, 1])
                second.kill()
            await server.ask_until("charged", [0, 0])


async def test_a_client_without_a_pid_that_connects_again_and_again_takes_one_watch(open_path: str) -> None:
    """What each connection was given stays charged, but an fd for each would use up the server's."""
    settings = {"mode": 0o666, "allow_uids": [0, STRANGER]}
    with isolated("server", open_path, ("pid", "mount"), settings) as server:
        assert await server.started() == "listening"
        with isolated("client", open_path, ("mount",), uid=STRANGER) as client:
            await client.started()
            of_one, _ = await server.ask("charged")
            assert await client.ask("reconnect") == "reconnected"
            charged, watched = await server.ask("charged")
            assert charged == of_one + 5 * SEGMENT
            if not has_inodes_for_pidfds():
                pytest.skip("this kernel is older than 6.9, all of its pidfds have one inode")
            assert watched == 1
            client.kill()
            await server.ask_until("charged", [0, 0])


def has_inodes_for_pidfds() -> bool:
    mine, other = os.pidfd_open(os.getpid()), os.eventfd(0)
    try:
        return os.fstat(mine).st_ino != os.fstat(other).st_ino
    finally:
        os.close(mine)
        os.close(other)
