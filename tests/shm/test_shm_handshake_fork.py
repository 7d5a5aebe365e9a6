"""Handshakes that are given up while a forked child has a copy of their socket: the other side must hear of it."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from life_api import Keeper, Life
from life_waiting import PATIENCE, until

import shmrpc
from shmrpc.shm import disposal


@contextmanager
def forked_child() -> Iterator[None]:
    """A child that has a copy of all that is open now, and lives until the end."""
    child = os.fork()
    if not child:
        signal.pause()
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def read_to_the_end(sock: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    received = b""
    async with asyncio.timeout(PATIENCE):
        while part := await asyncio.get_running_loop().sock_recv(sock, 65536):
            received += part
    return received


async def test_a_client_that_gives_up_hangs_up(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.setblocking(False)
        listening.bind(path)
        listening.listen()
        entering = asyncio.ensure_future(shmrpc.connect(Life, path).__aenter__())
        server, _ = await asyncio.get_running_loop().sock_accept(listening)
        with server, forked_child():
            assert await asyncio.get_running_loop().sock_recv(server, 4) == b"SHMR"
            entering.cancel()
            await asyncio.wait((entering,))
            await read_to_the_end(server)


async def test_a_server_that_gives_up_hangs_up(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, handshake_timeout=0.05):
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(path)
            name = f"shmrpc handshake at {path}"
            await until(lambda: name in {task.get_name() for task in asyncio.all_tasks()}, "the handshake to begin")
            with forked_child():
                assert b"handshake_timeout" in await read_to_the_end(client)


def test_what_is_thrown_away_in_a_forked_child_does_not_hang_up_for_its_parent() -> None:
    one, other = socket.socketpair()
    with one, other:
        child = os.fork()
        if not child:
            disposal.put_away_socket(one, os.getppid())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        one.send(b"x")
        assert other.recv(1) == b"x"
        disposal.put_away_socket(one, os.getpid())
        assert other.recv(1) == b""
