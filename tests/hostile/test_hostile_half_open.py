"""Handshakes that begin and do not go on: by the hundred, byte for byte, of processes that stand still. All are given up."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from hostile_stage import bystander, charged, nothing_worse_than_a_warning
from life_api import Keeper, Life
from life_processes import serving, stop
from life_waiting import until
from raw_peer import RawClient, RawServer, frame_of, hung_up, raw_listener, receive_frame, send_with_fds

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

SOON = 0.05
"""A limit for those who will not keep it."""


def _head(length: int) -> bytes:
    return struct.pack("<4sI", b"SHMR", length)


parts = pytest.mark.parametrize(
    "said", [b"", b"SHMR", _head(50) + b"begun"], ids=["nothing", "half a head", "half a body"]
)


# A client that stalls


@parts
async def test_a_client_that_stalls_is_sent_away(path: str, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with bystander(path, handshake_timeout=SOON) as server:
        before = charged(server)
        async with RawClient(path) as peer:
            if said:
                send_with_fds(peer.sock, said, peer.half.fds)
            answer, _ = await receive_frame(peer.sock)
            assert answer["message"] == f"no handshake within {SOON} s (handshake_timeout)"
            await hung_up(peer.sock)
        assert charged(server) == before
        assert f"no handshake within {SOON} s (handshake_timeout)" in caplog.text
        nothing_worse_than_a_warning(caplog)


@parts
async def test_a_client_that_hangs_up_leaves_nothing(path: str, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with bystander(path):
        async with RawClient(path) as peer:
            if said:
                send_with_fds(peer.sock, said, peer.half.fds)
        await until(lambda: "the peer hung up in the handshake" in caplog.text, "the server to notice")
        nothing_worse_than_a_warning(caplog)


async def test_a_client_that_stalls_holds_nobody_up(path: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        send_with_fds(peer.sock, b"SHMR", peer.half.fds)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(2, 3) == 5


async def test_a_hello_byte_for_byte_is_a_hello_if_it_ends_in_time(path: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        frame = frame_of(peer.hello())
        send_with_fds(peer.sock, frame[:1], peer.half.fds)
        for index in range(1, len(frame)):
            await asyncio.sleep(0)
            peer.sock.send(frame[index : index + 1])
        answer, fds = await receive_frame(peer.sock)
        peer.channel = peer.half.join(answer, fds)
        assert answer["type"] == "welcome"


async def test_each_byte_of_a_hello_does_not_prolong_its_time(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on each byte instead of on all of it would never be reached."""
    async with bystander(path, handshake_timeout=SOON), RawClient(path) as peer:
        peer.sock.send(_head(1 << 20))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1 << 20):
                peer.sock.send(b"x")
                await asyncio.sleep(0.001)
        answer, _ = await receive_frame(peer.sock)
        assert answer["message"] == f"no handshake within {SOON} s (handshake_timeout)"


async def test_each_byte_of_a_welcome_does_not_prolong_its_time_either(path: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.sock.send(_head(1 << 20))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1 << 20):
                server.sock.send(b"x")
                await asyncio.sleep(0.001)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match="did not finish the handshake within"):
            async with shmrpc.connect(Life, path, handshake_timeout=SOON):
                raise AssertionError("connected")


async def test_a_client_that_does_not_read_its_welcome_is_given_up(path: str) -> None:
    """A contract that is longer than what the socket takes."""

    class Wide:
        pass

    for number in range(500):

        async def method(self: object, argument: dict[str, list[tuple[int, ...]]]) -> None: ...

        method.__name__ = method.__qualname__ = f"method_{number}_{'x' * 400}"
        setattr(Wide, method.__name__, method)
    async with bystander(path, Wide(), handshake_timeout=0.5) as server, RawClient(path) as peer:
        send_with_fds(peer.sock, frame_of(peer.hello()), peer.half.fds)
        await until(lambda: charged(server)[0] == 3, "the server to accept it")
        await until(lambda: charged(server)[0] == 2, "the server to give it up")


# Hundreds of them


async def test_half_open_handshakes_by_the_hundred_are_given_up_and_disturb_nobody(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path, handshake_timeout=0.3) as server:
        async with AsyncExitStack() as stack:
            socks = [
                stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                for _ in range(300)
            ]
            fd = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, fd)
            for number, sock in enumerate(socks):
                await until(lambda: _connected(sock, path), "room in the backlog")  # noqa: B023
                if number % 3:
                    send_with_fds(sock, _head(50)[: number % 9 or 1], [fd] * (number % 3))
            async with shmrpc.connect(Life, path) as life:
                assert await life.add(1) == 2
            for sock in socks:
                await hung_up(sock)
            await until(lambda: charged(server)[0] == 2, "their places to be free")
        nothing_worse_than_a_warning(caplog)


def _connected(sock: socket.socket, path: str) -> bool:
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True


async def test_no_more_handshakes_are_under_way_than_connections_are_allowed(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, max_connections=5) as server, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(RawClient(path)) for _ in range(5)]
        await until(lambda: charged(server)[0] == 5, "all to be accepted")
        async with RawClient(path) as late:
            answer, _ = await receive_frame(late.sock)
            assert answer["message"] == "the server has 5 connections, the limit (max_connections)"
        silent.pop().sock.close()
        await until(lambda: charged(server)[0] == 4, "its place to be free")
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
        for peer in silent:
            peer.sock.close()
        await until(lambda: charged(server)[0] == 0, "the places to be free")


async def test_a_server_that_closes_ends_the_handshakes_that_are_under_way(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, grace=0) as server, RawClient(path) as peer:
        name = f"shmrpc handshake at {path}"
        await until(lambda: name in [task.get_name() for task in asyncio.all_tasks()], "the handshake to begin")
        await server.drain()
        await hung_up(peer.sock)


# A server that stalls


async def _refusal(path: str, error: type[shmrpc.RpcError]) -> str:
    with pytest.raises(error) as caught:
        async with shmrpc.connect(Life, path, handshake_timeout=SOON):
            raise AssertionError("connected")
    assert type(caught.value) is error
    return str(caught.value)


@asynccontextmanager
async def _played(path: str, said: bytes, *, waits: bool) -> AsyncIterator[None]:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        if said:
            send_with_fds(server.sock, said, server.half.fds)
        if waits:
            await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        yield


@parts
async def test_a_server_that_stalls_is_given_up(path: str, said: bytes) -> None:
    async with _played(path, said, waits=True):
        text = await _refusal(path, shmrpc.HandshakeError)
        assert text == f"the server at {path} did not finish the handshake within {SOON} s (handshake_timeout)"


@parts
async def test_a_server_that_hangs_up_is_one_that_is_not_there(path: str, said: bytes) -> None:
    """So that a client that waits, or reconnects, tries again: it may be a server that was killed in mid-handshake."""
    async with _played(path, said, waits=False):
        text = await _refusal(path, shmrpc.ConnectFailed)
        assert text.startswith(f"the server at {path} went away in the handshake: ")


async def test_a_server_that_never_accepts_is_given_up(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert "did not finish the handshake within 0.05 s" in await _refusal(path, shmrpc.HandshakeError)


async def test_a_full_backlog_is_waited_for_and_then_given_up(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)  # the backlog has room for one
        text = await _refusal(path, shmrpc.ConnectFailed)
        assert text == f"the server at {path} accepts no connections: its backlog is full"


async def test_a_connection_attempt_that_is_cancelled_leaves_nothing(path: str) -> None:
    waiting = asyncio.Event()

    async def play(server: RawServer) -> None:
        await server.receive_hello()
        waiting.set()
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        entering = asyncio.ensure_future(shmrpc.connect(Life, path).__aenter__())
        await waiting.wait()
        entering.cancel()
        await until(entering.done, "the attempt to end")
        assert entering.cancelled()


# Processes that stand still


async def test_a_server_that_was_stopped_is_given_up_and_served_by_once_it_goes_on(path: str) -> None:
    with serving(path) as process:
        stop(process)
        assert "did not finish the handshake within" in await _refusal(path, shmrpc.HandshakeError)
        process.send_signal(signal.SIGCONT)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2


async def test_a_client_that_was_stopped_in_its_hello_is_sent_away(path: str) -> None:
    async with bystander(path, handshake_timeout=0.3) as server:
        pid = os.fork()
        if not pid:
            try:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(path)
                sock.send(b"SHMR")
                os.kill(os.getpid(), signal.SIGSTOP)
            finally:
                os._exit(0)
        try:
            await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
            await until(lambda: charged(server)[0] == 3, "its connection to be accepted")
            await until(lambda: charged(server)[0] == 2, "it to be sent away")
        finally:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
