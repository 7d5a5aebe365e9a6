"""How much the peers of one server may hold: connections in all, and connections and bytes for each other uid."""

import asyncio
import errno
import re
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from life_api import Keeper, Life
from life_processes import STRANGER, as_root, client_process, kill
from life_waiting import until
from raw_channel import DEFAULT
from raw_peer import RawClient, frame_of, hung_up, send_with_fds

import shmrpc
from shmrpc.context import Peer
from shmrpc.shm import liveness, segment
from shmrpc.shm.quota import Quota
from shmrpc.shm.settings import Settings

ALLOWED = {0, STRANGER}


@pytest.fixture
def open_path(folder: Path) -> str:
    """A path that a process under any uid can reach."""
    folder.chmod(0o1777)
    return str(folder / "test.sock")


# Connections in all


async def test_as_many_connections_are_served_as_may_be_and_no_more(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, max_connections=3) as server, AsyncExitStack() as stack:
        lives = [await stack.enter_async_context(shmrpc.connect(Life, path)) for _ in range(3)]
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        assert str(caught.value) == (
            "the server refused the connection: the server has 3 connections, the limit (max_connections)"
        )
        assert server.connections == 3
        assert [await life.add(1) for life in lives] == [2, 2, 2]


async def test_a_connection_that_ends_makes_room_for_another(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, max_connections=1) as server:
        for _ in range(3):
            async with shmrpc.connect(Life, path) as life:
                assert await life.add(1) == 2
            await until(lambda: server.connections == 0, "the connection to end")


async def test_those_who_were_refused_take_no_room(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, max_connections=1) as server:
        for _ in range(3):
            async with RawClient(path) as peer:
                assert (await peer.ask(versions=(2, 2)))["type"] == "rejection"
                await hung_up(peer.sock)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
            assert server.connections == 1


async def test_a_refusal_that_comes_before_the_hello_is_heard_all_the_same(path: str) -> None:
    """The server does not wait for the hello of one whom it does not serve, whose sending then fails."""

    async def refuse(listener: socket.socket) -> None:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        sock.send(frame_of({"type": "rejection", "code": "refused", "message": "go away"}))
        sock.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        refusing = asyncio.create_task(refuse(listener))
        with pytest.raises(shmrpc.HandshakeError, match="the server refused the connection: go away"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        await refusing


# For each uid other than the server's


@as_root
async def test_another_uid_has_fewer_connections_and_the_own_one_does_not(open_path: str) -> None:
    settings: dict[str, Any] = {"allow_uids": ALLOWED, "max_connections_per_uid": 2}
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, **settings) as server, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(shmrpc.connect(Life, open_path))
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"
            assert await stranger.ask("connect") == "connected"
            assert await stranger.ask("connect") == (
                "HandshakeError: the server refused the connection: "
                f"uid {STRANGER} has 2 connections, the limit (max_connections_per_uid)"
            )
            assert server.connections == 5
            await stranger.ask("close")
            await until(lambda: server.connections == 3, "the connections to end")
            assert await stranger.ask("connect") == "connected"


@as_root
async def test_bytes_stay_charged_until_the_process_is_gone(open_path: str) -> None:
    settings: dict[str, Any] = {"allow_uids": ALLOWED, "max_bytes_per_uid": 2 * DEFAULT.nbytes}
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, **settings) as server:
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"
            for answer in ("closed", "connected", "closed"):
                assert await stranger.ask("close" if answer == "closed" else "connect") == answer
            await until(lambda: server.connections == 0, "the connections to end")
            refusal = (
                "HandshakeError: the server refused the connection: "
                f"uid {STRANGER} is charged {2 * DEFAULT.nbytes} bytes of segments, the limit is {2 * DEFAULT.nbytes} "
                "(max_bytes_per_uid), until its processes end"
            )
            assert await stranger.ask("connect") == refusal  # it may have kept this side's segments mapped
            with client_process(open_path, user=STRANGER) as other:
                assert await other.hear() == refusal
            assert str(server._listener._quota) == f"<Quota 0 connections, {2 * DEFAULT.nbytes} bytes charged>"
            kill(stranger.process)
            await until(lambda: "0 bytes charged" in str(server._listener._quota), "the charge to end")
        with client_process(open_path, user=STRANGER) as another:
            assert await another.hear() == "connected"


@as_root
async def test_handshakes_at_once_cannot_get_more_than_one_after_another(open_path: str) -> None:
    settings: dict[str, Any] = {"allow_uids": ALLOWED, "max_bytes_per_uid": DEFAULT.nbytes}
    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, **settings) as server, AsyncExitStack() as stack:
        strangers = [stack.enter_context(client_process(open_path, user=STRANGER)) for _ in range(3)]
        answers = [await stranger.hear() for stranger in strangers]
        assert sum(answer == "connected" for answer in answers) == 1
        assert sum("max_bytes_per_uid" in answer for answer in answers) == 2
        assert server.connections == 1


async def test_handshakes_of_one_process_at_once_are_charged_one_by_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = Quota(own_uid=-1, settings=Settings(max_bytes_per_uid=DEFAULT.nbytes))  # nobody is of the own uid
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as first, RawClient(path) as second:
        monkeypatch.setattr(server._listener, "_quota", quota)
        await until(lambda: "<Quota 2 connections" in repr(quota), "both to be accepted")
        answers = [await first.ask(), await second.ask()]
        assert [answer["type"] for answer in answers] == ["welcome", "rejection"]
        assert re.search("max_bytes_per_uid", answers[1]["message"])


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(24, "Too many open files")])
async def test_a_peer_that_got_nothing_is_charged_nothing(
    path: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server that is short of fds for a while would keep its clients out for as long as they live."""
    quota = Quota(own_uid=-1, settings=Settings())

    def create(*_: object) -> None:
        raise error

    async with shmrpc.Server(Keeper(), at=path) as server:
        monkeypatch.setattr(server._listener, "_quota", quota)
        with monkeypatch.context() as patched:
            patched.setattr(segment, "create", create)
            async with RawClient(path) as peer:
                send_with_fds(peer.sock, frame_of(peer.hello()), peer.half.fds)
                await hung_up(peer.sock)
        await until(lambda: repr(quota) == "<Quota 0 connections, 0 bytes charged>", "everything to be given back")
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2


async def test_a_peer_that_is_gone_gets_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could have left its socket to a process that nobody could charge."""
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        monkeypatch.setattr(server._listener, "_quota", Quota(own_uid=-1, settings=Settings()))
        monkeypatch.setattr(liveness, "open_pidfd", lambda peer, sock: None)
        answer = await peer.ask()
        assert re.search(r"pid \d+ of uid 0 is gone, or cannot be seen from here", answer["message"])


async def test_the_own_uid_is_not_charged() -> None:
    peer = Peer(1, 1000, 1000)
    quota = Quota(1000, Settings(max_bytes_per_uid=1, max_connections_per_uid=1))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(3):
            assert quota.open(peer) is None
            assert quota.charge(asyncio.get_running_loop(), peer, ours, 1 << 30) is None
    assert repr(quota) == "<Quota 3 connections, 0 bytes charged>"


@as_root
async def test_who_got_no_memory_is_charged_for_none(open_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    async with shmrpc.Server(Keeper(), at=open_path, mode=0o666, allow_uids=ALLOWED) as server:
        with client_process(open_path, user=STRANGER) as stranger:
            assert await stranger.hear() == "connected"
            charged = repr(server._listener._quota)
            monkeypatch.setattr(segment, "create", fail)
            for _ in range(3):
                assert await stranger.ask("connect") == (
                    "ConnectFailed: the server refused the connection: [Errno 12] Cannot allocate memory"
                )
            assert repr(server._listener._quota) == charged
            monkeypatch.undo()
            assert await stranger.ask("connect") == "connected"
            assert repr(server._listener._quota) != charged
