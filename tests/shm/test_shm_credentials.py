"""Who may talk to whom: processes under another uid, on either side."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from life_api import Keeper, Life
from life_processes import STRANGER, as_root, client_process, serving
from raw_peer import Half, RawServer

import shmrpc
from shmrpc.shm.liveness import UNMAPPED
from shmrpc.shm.settings import Settings

pytestmark = as_root

ALLOWED = {0, STRANGER}


@pytest.fixture
def open_path(folder: Path) -> str:
    """A path that a process under any uid can reach, and serve at."""
    folder.chmod(0o1777)
    return str(folder / "test.sock")


def answer_as_stranger(peer: RawServer) -> None:
    pid = os.fork()
    if not pid:
        try:
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            peer.answer()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


# The server judges the client


async def test_a_server_refuses_a_uid_that_is_not_allowed_and_says_so(
    open_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666) as server:
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == (
                f"HandshakeError: the server refused the connection: uid {STRANGER} (gid {STRANGER}) is not allowed; "
                "allowed are uids 0 (allow_uids, allow_gids)"
            )
        assert f"pid {stranger.pid} (uid {STRANGER}, gid {STRANGER}) was refused" in caplog.text
        assert server.connections == 0


async def test_a_uid_that_is_allowed_is_served_through_pipes(open_path: str) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, allow_uids=ALLOWED) as server:
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"
            assert await stranger.ask("add 20 22") == "42"
            (session,) = server._listener.sessions
            assert session.peer == (stranger.pid, STRANGER, STRANGER)
            assert session.channel.doorbell.kind == "pipe"


async def test_a_gid_can_be_allowed_instead(open_path: str) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, allow_gids={STRANGER}):
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"


async def test_an_allow_list_without_oneself_locks_oneself_out(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, allow_uids={STRANGER}):
        with pytest.raises(shmrpc.HandshakeError, match=f"uid 0 .* is not allowed; allowed are uids {STRANGER}"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


async def test_the_mode_of_the_socket_keeps_strangers_out(open_path: str) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, allow_uids=ALLOWED):
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == f"ConnectFailed: no server at {open_path}: Permission denied"


async def test_a_stranger_cannot_freeze_the_server_with_an_eventfd(open_path: str) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, allow_uids=ALLOWED):
        with client_process(open_path, "doorbell='eventfd'", user=STRANGER) as stranger:
            assert await stranger.hear() == (
                "HandshakeError: the server refused the connection: the peer offers an eventfd, with which it could freeze "
                "this process, and it is of another uid; set doorbell='pipe' there"
            )


async def test_who_asks_for_eventfds_across_uids_gets_them(open_path: str) -> None:
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, allow_uids=ALLOWED, doorbell="eventfd"):
        with client_process(open_path, "doorbell='eventfd'", user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"
            assert await stranger.ask("add 1") == "2"


# The client judges the server


async def test_a_client_refuses_a_server_whose_uid_is_not_allowed(open_path: str) -> None:
    with serving(open_path, "", "--mode", "666", user=STRANGER):
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, open_path):
                raise AssertionError("connected")
        assert str(caught.value) == (
            f"the server's uid {STRANGER} (gid {STRANGER}) is not allowed; allowed are uids 0 (allow_uids, allow_gids)"
        )


async def test_a_client_can_allow_it(open_path: str) -> None:
    with serving(open_path, "", "--mode", "666", user=STRANGER) as server:
        async with shmrpc.connect(Life, open_path, allow_uids=ALLOWED) as life:
            assert await life.where() == server.pid
            assert shmrpc.peer(life) == (server.pid, STRANGER, STRANGER)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, f"the server's uid {STRANGER} .* is not allowed"),
        ({"allow_uids": ALLOWED}, "the peer offers an eventfd, with which it could freeze this process"),
    ],
)
async def test_who_answers_counts_beside_who_listened(open_path: str, settings: dict[str, Any], why: str) -> None:
    """A socket can be made by one process, root's here, and served by another one under another uid."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(open_path)
        listener.listen()
        listener.setblocking(False)
        entering = asyncio.ensure_future(shmrpc.connect(Life, open_path, **settings).__aenter__())
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer = RawServer(sock, Half())
        await peer.receive_hello()
        answer_as_stranger(peer)
        with pytest.raises(shmrpc.HandshakeError, match=why):
            await entering
        peer.close()


# Uids that nobody knows


def test_an_unmapped_uid_is_refused_even_if_it_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: UNMAPPED)
    assert "is not mapped into this user namespace" in str(Settings().why_refused(UNMAPPED, UNMAPPED))
    assert Settings().why_refused(0, 0) is None
    assert Settings(allow_uids=frozenset({UNMAPPED})).why_refused(UNMAPPED, UNMAPPED) is None


def test_an_unmapped_gid_lets_nobody_in_and_keeps_nobody_out() -> None:
    assert Settings(allow_gids=frozenset({UNMAPPED})).why_refused(STRANGER, UNMAPPED) is not None
    assert Settings().why_refused(os.getuid(), UNMAPPED) is None
