"""Attacks and accidents that a review of the core thought of; each was possible once."""

import asyncio
import errno
import gc
import os
import socket
import weakref
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from life_api import Keeper, Life
from life_waiting import until
from raw_peer import RawClient, hung_up

import shmrpc
from shmrpc.context import Peer
from shmrpc.shm import poller
from shmrpc.shm.quota import Quota
from shmrpc.shm.settings import Settings

IN_BLOCK = 1


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_uid_that_changes_does_not_move_what_the_process_was_charged() -> None:
    loop = asyncio.get_running_loop()
    quota = Quota(own_uid=999, settings=Settings())
    left, right = socket.socketpair()
    with left, right:
        for uid in (1000, 1001):
            assert quota.charge(loop, Peer(os.getpid(), uid, uid), left, 1 << 20) is None
        assert (quota._bytes[1000], quota._bytes[1001]) == (1 << 20, 1 << 20)
        quota.refund(Peer(os.getpid(), 1000, 1000), left, 1 << 20)
        assert (quota._bytes[1000], quota._bytes[1001]) == (0, 1 << 20)
    quota.shut()


async def test_what_a_process_of_another_pid_namespace_is_charged_can_be_refunded() -> None:
    loop = asyncio.get_running_loop()
    quota = Quota(own_uid=999, settings=Settings())
    left, right = socket.socketpair()
    with left, right:
        unseen = Peer(0, 1000, 1000)
        for _ in range(3):
            assert quota.charge(loop, unseen, left, 1 << 20) is None
        assert len(quota._by_process) == 1  # one connection, one fd that watches
        quota.refund(unseen, left, 3 << 20)
        assert quota._bytes[1000] == 0
    quota.shut()


def _no_pidfds(loop: asyncio.AbstractEventLoop) -> Callable[..., None]:
    """The loop's `add_reader`, but for pidfds, as when the system has no room for one more watched fd."""
    add_reader = loop.add_reader

    def add(fd: int, *callback: Any) -> None:
        if "pidfd" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        add_reader(fd, *callback)

    return add


async def test_a_connection_that_cannot_be_watched_is_given_up_whole(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shmrpc.Server(Keeper(), at=path, max_connections=2) as server:
        for _ in range(3):
            with monkeypatch.context() as patched:
                patched.setattr(asyncio.get_running_loop(), "add_reader", _no_pidfds(asyncio.get_running_loop()))
                async with RawClient(path) as peer:
                    await peer.ask()
                    await hung_up(peer.sock)
            await until(lambda: server.connections == 0, "the connection to be given up")
        async with AsyncExitStack() as stack:
            lives = [await stack.enter_async_context(shmrpc.connect(Life, path)) for _ in range(2)]
            assert await asyncio.gather(*(life.add(1) for life in lives)) == [2, 2]


def test_the_poller_of_a_loop_that_is_gone_is_gone(path: str) -> None:
    async def live() -> "weakref.ref[asyncio.AbstractEventLoop]":
        async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
            assert poller.poller_of(asyncio.get_running_loop()) is poller.poller_of(asyncio.get_running_loop())
        return weakref.ref(asyncio.get_running_loop())

    for _ in range(3):
        loop = asyncio.run(live())
        gc.collect()
        assert loop() is None
