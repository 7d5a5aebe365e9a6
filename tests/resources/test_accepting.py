"""A server whose system refuses it everything for a moment, its own listening socket included: it tries again."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest
from faulted_api import Faulted, service

import shmrpc


async def test_a_server_that_may_not_watch_its_socket_tries_again(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fd that could not be had, and then no memory to watch the socket that it is to come from."""
    loop = asyncio.get_running_loop()
    accept, add_reader = socket.socket.accept, loop.add_reader
    refused: list[str] = []

    def accept_later(sock: socket.socket) -> Any:
        if "accept" not in refused:
            refused.append("accept")
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(sock)

    def watch_later(fd: int, callback: Callable[..., Any], *arguments: Any) -> None:
        if callback == listener._accept and "watch" not in refused:
            refused.append("watch")
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        add_reader(fd, callback, *arguments)

    async with shmrpc.Server(service(), at=path) as server:
        listener: Any = server._listener
        monkeypatch.setattr(socket.socket, "accept", accept_later)
        monkeypatch.setattr(loop, "add_reader", watch_later)
        with caplog.at_level(logging.ERROR, "shmrpc.server"):
            async with shmrpc.connect(Faulted, path, handshake_timeout=60) as stub:
                assert await stub.add(1, 2) == 3
        assert refused == ["accept", "watch"]
        assert f"cannot watch {path}: [Errno 12] Cannot allocate memory; trying again in 0.1 s" in caplog.text
