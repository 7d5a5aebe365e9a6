"""A client in namespaces of its own, of which the host shares one folder: it works, and the server knows who it is."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from isolated import EVERYTHING, STRANGER, USUAL, isolated, until
from isolation_api import Border, Guard, all_kinds

import shmrpc
from shmrpc.client import open_stub
from shmrpc.context import Peer
from shmrpc.shm import handshake, liveness
from shmrpc.shm.liveness import UNMAPPED

ALLOWED = {0, STRANGER}


@pytest.fixture
def open_path(folder: Path) -> str:
    """Where a process under any uid can connect, and nobody else can serve."""
    folder.chmod(0o755)
    return str(folder / "test.sock")


def sessions_of(server: shmrpc.Server) -> list[Any]:
    assert server._listener is not None
    return list(server._listener.sessions)


def charged_to(server: shmrpc.Server, uid: int) -> int:
    assert server._listener is not None
    charged: int = server._listener._quota._bytes[uid]
    return charged


# Works, and is identified


@pytest.mark.parametrize("namespaces", [(), ("pid",), ("mount",), ("net",), ("user",), EVERYTHING], ids="+".join)
async def test_a_client_in_other_namespaces_makes_all_kinds_of_calls_and_is_identified(
    path: str, namespaces: tuple[str, ...], figures: Figures
) -> None:
    if namespaces not in USUAL and not figures.long:
        pytest.skip("one namespace at a time takes --long")
    async with shmrpc.Server(Guard(), at=path) as server:
        with isolated("client", path, namespaces) as client:
            told = await client.started()
            assert told["seen"] == [client.pid, 0, 0, os.getpid()], told
            (session,) = sessions_of(server)
            assert session.peer == (client.pid, 0, 0)
            if "pid" in namespaces:
                assert told["self"] == [1, 0, 0]
                assert told["peer"] == [0, 0, 0]  # what is outside has no number there
            else:
                assert told["self"] == [client.pid, 0, 0]
                assert told["peer"] == [os.getpid(), 0, 0]


async def test_a_client_works_where_there_is_no_proc(path: str) -> None:
    async with shmrpc.Server(Guard(), at=path) as server:
        with isolated("client", path, ("mount", "pid"), proc=False) as client:
            assert (await client.started())["seen"] == [client.pid, 0, 0, os.getpid()]
            (session,) = sessions_of(server)
            assert session.channel.doorbell.kind == "eventfd"


async def test_a_client_of_another_uid_in_namespaces_is_served_if_it_is_allowed(open_path: str) -> None:
    outside = ("mount", "pid", "net", "ipc")
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666, allow_uids=ALLOWED) as server:
        with isolated("client", open_path, outside, uid=STRANGER) as client:
            told = await client.started()
            assert told["seen"] == [client.pid, STRANGER, STRANGER, os.getpid()]
            (session,) = sessions_of(server)
            assert session.channel.doorbell.kind == "pipe"


async def test_a_client_that_is_root_in_its_user_namespace_is_not_root_to_the_server(open_path: str) -> None:
    """It is root only to itself; and it must allow the server, which it knows by no other uid than that of nobody."""
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666, allow_uids=ALLOWED):
        settings = {"allow_uids": [UNMAPPED]}
        with isolated("client", open_path, EVERYTHING, settings, uid=STRANGER, inner=0) as client:
            told = await client.started()
            assert told["self"] == [1, 0, 0]
            assert told["seen"] == [client.pid, STRANGER, STRANGER, os.getpid()]
            assert told["peer"] == [0, UNMAPPED, UNMAPPED]


# Refused


@pytest.mark.parametrize("namespaces", [("mount", "pid", "net", "ipc"), EVERYTHING], ids="+".join)
async def test_a_client_of_another_uid_in_namespaces_is_refused_by_default(
    open_path: str, namespaces: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666) as server:
        settings = {"allow_uids": [0, UNMAPPED]}
        with isolated("client", open_path, namespaces, settings, uid=STRANGER) as client:
            assert await client.started() == (
                f"HandshakeError: the server refused the connection: uid {STRANGER} (gid {STRANGER}) is not allowed; "
                "allowed are uids 0 (allow_uids, allow_gids)"
            )
        assert f"pid {client.pid} (uid {STRANGER}, gid {STRANGER}) was refused" in caplog.text
        assert server.connections == 0


async def test_a_client_refuses_a_server_that_its_user_namespace_does_not_know(open_path: str) -> None:
    where = ("mount", "user")
    async with shmrpc.Server(Guard(), at=open_path, mode=0o666, allow_uids=ALLOWED) as server:
        with isolated("client", open_path, where, uid=STRANGER) as client:
            assert await client.started() == (
                "HandshakeError: /shared/test.sock is no safe place for a socket: the folder /shared belongs to uid "
                f"{UNMAPPED}, so others could put theirs there; change the owner or the mode (chmod go-w), or trust them "
                "(trust_folder)"
            )
        with isolated("client", open_path, where, {"trust_folder": True}, uid=STRANGER) as client:
            assert await client.started() == (
                f"HandshakeError: the server's uid {UNMAPPED} is not mapped into this user namespace, so nobody knows who "
                "it is"
            )
        assert server.connections == 0


async def test_a_client_whose_own_uid_is_not_mapped_is_nobody_to_itself_and_refuses_everybody(path: str) -> None:
    async with shmrpc.Server(Guard(), at=path):
        with isolated("client", path, ("user",), {"trust_folder": True}, inner=None) as client:
            assert "is not mapped into this user namespace" in await client.started()


async def test_posix_memory_that_a_tiny_dev_shm_has_no_room_for_is_said_to_be_so(path: str) -> None:
    async with shmrpc.Server(Guard(), at=path, segment="posix"):
        with isolated("client", path, ("mount",), {"segment": "posix"}) as client:
            assert await client.started() == (
                "ConnectFailed: this process cannot connect to /shared/test.sock: [Errno 28] No space left on device"
            )


# Death across pid namespaces


@pytest.mark.counted("kills survived")
async def test_a_client_that_is_killed_in_its_pid_namespace_is_gone_and_its_memory_with_it(open_path: str) -> None:
    guard = Guard()
    async with shmrpc.Server(guard, at=open_path, mode=0o666, allow_uids=ALLOWED) as server:
        with isolated("client", open_path, ("mount", "pid"), uid=STRANGER) as client:
            await client.started()
            client.say("hold")
            await until(lambda: guard.held == 1, "the call to begin")
            assert charged_to(server, STRANGER) > 0
            client.kill()
            await until(lambda: guard.ended == 1, "its handler to be cancelled")
            await until(lambda: not server.connections, "its connection to end")
            await until(lambda: not charged_to(server, STRANGER), "its charge to end")


@pytest.mark.counted("kills survived")
async def test_a_server_that_has_no_pid_in_the_clients_namespace_is_known_to_be_dead_though_a_child_holds_its_socket(
    path: str,
) -> None:
    with isolated("server", path, ()) as server:
        assert await server.started() == "listening"
        with isolated("client", path, ("pid", "mount"), {"reconnect_timeout": 0.0}) as client:
            assert (await client.started())["peer"] == [0, 0, 0]
            client.say("hold")
            await server.ask_until("held", [1, 0])
            assert await server.ask("beget") == "begot"
            server.kill()
            assert (
                await client.hear()
                == "ConnectionLost: the peer pid 0 (uid 0, gid 0) died; Border.hold was under way there"
            )
        await server.heard_out()


@pytest.fixture
def made_elsewhere(path: str) -> Iterator[tuple[int, int]]:
    """A listening socket that another process has made, and that process, which lives on."""
    ours, theirs = socket.socketpair()
    maker = os.fork()
    if not maker:
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen()
                socket.send_fds(theirs, [b"x"], [listener.fileno()])
            signal.pause()
        finally:
            os._exit(1)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    yield fds[0], maker
    os.unlink(path)


async def test_who_answers_is_watched_and_not_who_made_the_socket_where_both_have_no_pid(
    path: str, made_elsewhere: tuple[int, int]
) -> None:
    fd, maker = made_elsewhere
    async with shmrpc.Server(Guard(), at=path, fd=fd) as server:
        with isolated("client", path, ("pid", "mount")) as client:
            assert (await client.started())["peer"] == [0, 0, 0]
            before = sessions_of(server)
            os.kill(maker, signal.SIGKILL)
            os.waitpid(maker, 0)  # noqa: ASYNC222
            assert (await client.ask("again"))["seen"] == [client.pid, 0, 0, os.getpid()]
            assert sessions_of(server) == before


async def test_pidfds_come_with_the_handshake_and_with_nothing_after_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "peer_of", lambda sock: Peer(0, os.geteuid(), os.getegid()))  # as in a pid namespace
    async with shmrpc.Server(Guard(), at=path), shmrpc.connect(Border, path) as border:
        transport: Any = open_stub(border)[1]
        session = transport._session
        assert session._watch is not None
        assert session.memory.control._sock.getsockopt(socket.SOL_SOCKET, liveness._SO_PASSPIDFD) == 0
        await all_kinds(border)


async def test_links_of_a_pool_do_not_take_all_servers_without_a_pid_for_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hellos = []
    receive = handshake.receive_hello

    async def counted(*arguments: Any) -> handshake.Hello:
        hello = await receive(*arguments)
        hellos.append(hello)
        return hello

    monkeypatch.setattr(handshake, "receive_hello", counted)
    async with shmrpc.Server(Guard(), at=path):
        with isolated("client", path, ("pid", "mount"), {"connections": 2}) as client:
            assert (await client.started())["peer"] == [0, 0, 0]
            assert len(hellos) == 2  # none was given up to look for another process
