"""Whose credentials count: those at the moment of connecting, whatever becomes of the process and of the socket."""

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from isolated import STRANGER, isolated, until
from isolation_api import Border, Guard

import shmrpc
from shmrpc.shm import address
from shmrpc.shm.settings import Settings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its uid")

GROUP = 23456
"""A gid that is nobody's."""
WHERE = ("mount",)
"""So that another uid can read the interpreter, wherever it is."""


@pytest.fixture
def open_path(folder: Path) -> str:
    """Where a process under any uid can connect, and nobody else can serve."""
    folder.chmod(0o755)
    return str(folder / "test.sock")


@pytest.fixture
async def server(open_path: str, settings: dict[str, Any]) -> AsyncIterator[shmrpc.Server]:
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666, **settings) as server:
        yield server


def peers_of(server: shmrpc.Server) -> list[tuple[int, int, int]]:
    assert server._listener is not None
    return [session.peer for session in server._listener.sessions]


@contextmanager
def child(act: Callable[[], object]) -> Iterator[int]:
    """A forked process that acts, and waits to be killed."""
    pid = os.fork()
    if not pid:
        try:
            act()
            signal.pause()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# Groups


@pytest.mark.parametrize("settings", [{"allow_gids": {GROUP}}])
async def test_a_client_is_let_in_by_its_primary_group(open_path: str, server: shmrpc.Server) -> None:
    with isolated("client", open_path, WHERE, uid=STRANGER, gid=GROUP) as client:
        assert (await client.started())["seen"] == [client.pid, STRANGER, GROUP, os.getpid()]


@pytest.mark.parametrize("settings", [{"allow_gids": {GROUP}}])
async def test_a_supplementary_group_lets_nobody_in(open_path: str, server: shmrpc.Server) -> None:
    with isolated("client", open_path, WHERE, uid=STRANGER, groups=[GROUP]) as client:
        assert await client.started() == (
            f"HandshakeError: the server refused the connection: uid {STRANGER} (gid {STRANGER}) is not allowed; "
            f"allowed are uids 0 or gids {GROUP} (allow_uids, allow_gids)"
        )


@pytest.mark.parametrize("settings", [{"allow_uids": {0}, "allow_gids": {GROUP}}])
async def test_another_group_keeps_nobody_out_who_is_let_in_by_uid(open_path: str, server: shmrpc.Server) -> None:
    with isolated("client", open_path, WHERE, gid=STRANGER, groups=[STRANGER]) as client:
        assert (await client.started())["seen"][1:3] == [0, STRANGER]


# Changes after connecting


async def test_a_client_that_gives_root_up_after_it_connected_stays_what_it_was(path: str) -> None:
    async with shmrpc.Server(Guard(), at=path):
        with isolated("client", path, WHERE) as client:
            assert (await client.started())["seen"] == [client.pid, 0, 0, os.getpid()]
            assert await client.ask("drop") == [STRANGER, STRANGER]
            assert (await client.ask("again"))["seen"] == [client.pid, 0, 0, os.getpid()]


@contextmanager
def passed_on(path: str, uid: int) -> Iterator[tuple[socket.socket, int]]:
    """A socket that another process, under a uid, has connected and passed on; and that process, which lives on."""
    ours, theirs = socket.socketpair()

    def connect_and_pass_on() -> None:
        os.setegid(uid)
        os.seteuid(uid)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            socket.send_fds(theirs, [b"x"], [sock.fileno()])

    with ours, theirs, child(connect_and_pass_on) as pid:
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=fd) as sock:
            sock.setblocking(False)
            yield sock, pid


async def test_whoever_gets_a_connected_socket_is_to_the_server_who_connected_it(
    open_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666, allow_uids={STRANGER}) as server:
        with passed_on(open_path, STRANGER) as (sock, pid):
            monkeypatch.setattr(address, "connect", lambda path: sock)
            async with shmrpc.connect(Border, open_path, doorbell="pipe") as border:
                assert (await border.seen())[:3] == [pid, STRANGER, STRANGER]
                assert peers_of(server) == [(pid, STRANGER, STRANGER)]


async def test_a_connected_socket_that_is_passed_to_root_opens_no_door(
    open_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666) as server:
        with passed_on(open_path, STRANGER) as (sock, _):
            monkeypatch.setattr(address, "connect", lambda path: sock)
            with pytest.raises(shmrpc.HandshakeError, match=f"uid {STRANGER} .* is not allowed; allowed are uids 0"):
                async with shmrpc.connect(Border, open_path):
                    raise AssertionError("connected")
        assert not peers_of(server)


async def test_a_connection_ends_with_the_process_that_connected_it_whoever_uses_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shmrpc.Server(Guard(), at=path) as server:
        with passed_on(path, 0) as (sock, pid):
            monkeypatch.setattr(address, "connect", lambda path: sock)
            async with shmrpc.connect(Border, path) as border:
                await border.seen()
                monkeypatch.undo()
                os.kill(pid, signal.SIGKILL)
                await until(lambda: pid not in [peer[0] for peer in peers_of(server)], "its connection to end")


def listener_of(uid: int, path: str) -> socket.socket:
    """A listening socket that a process under another uid has made, and passed on before it ended."""
    ours, theirs = socket.socketpair()

    def make() -> None:
        os.seteuid(uid)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
            sock.listen()
            socket.send_fds(theirs, [b"x"], [sock.fileno()])

    with ours, theirs, child(make):
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    return socket.socket(fileno=fd)


async def test_a_socket_that_a_stranger_made_is_refused_whoever_answers_there(folder: Path) -> None:
    os.chmod(folder, 0o1777)
    path = str(folder / "test.sock")
    made = listener_of(STRANGER, path)
    async with shmrpc.Server(Guard(), at=path, fd=made.detach()):
        with pytest.raises(shmrpc.HandshakeError, match=f"^the server's uid {STRANGER} .* is not allowed"):
            async with shmrpc.connect(Border, path):
                raise AssertionError("connected")
        async with shmrpc.connect(Border, path, allow_uids={0, STRANGER}) as border:
            assert (await border.seen())[0] == os.getpid()


# Real and effective


@contextmanager
def uids(real: int, effective: int) -> Iterator[None]:
    """This process under other uids, as a program with the set-user-id bit is."""
    os.setresuid(real, effective, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_program_that_others_run_as_root_does_not_trust_those_who_run_it() -> None:
    with uids(real=STRANGER, effective=0):
        assert not Settings().trusts(STRANGER, STRANGER)
        assert Settings().trusts(0, 0)


def test_a_program_is_its_effective_uid_since_that_is_what_peers_see() -> None:
    with uids(real=0, effective=STRANGER):
        assert Settings().trusts(STRANGER, STRANGER)
        assert not Settings().trusts(GROUP, GROUP)
