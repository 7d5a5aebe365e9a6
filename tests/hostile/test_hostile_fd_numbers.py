"""Fds of the wrong number, up to all that one message can carry: the handshake is refused, and each of them is closed."""

import asyncio
import os

import pytest
from hostile_halves import Refuse, Spoil, case, doorbell, eventfd, segment, sends, victims
from hostile_stage import bystander
from life_api import Life
from life_waiting import until
from raw_peer import RawClient, RawServer, raw_listener, send_with_fds

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

MOST = 253
"""SCM_MAX_FD of Linux: a message with more cannot be sent."""


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("no fds", sends(), "sent 0 fds with its handshake, expected are exactly 2"),
        case("one fd", sends(segment), "sent 1 fds .* exactly 2"),
        case("three fds", sends(segment, doorbell, eventfd), "sent 3 fds .* exactly 2"),
        case("sixty fds", sends(*[eventfd] * 60), "sent 60 fds .* exactly 2"),
        case("as many as can be", sends(segment, doorbell, *[eventfd] * (MOST - 2)), f"sent {MOST} fds .* exactly 2"),
    ],
)
async def test_a_peer_is_refused_that_sends(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


async def test_fds_that_come_one_by_one_do_not_fill_the_table_of_a_server(path: str) -> None:
    """A hello may have two; a peer could send some with each byte of it."""
    async with bystander(path), RawClient(path) as peer:
        before = most = len(os.listdir("/proc/self/fd"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for byte in b"SHMR\0\0\1\0" + bytes(200):  # so far a hello of 64 KiB
                send_with_fds(peer.sock, bytes([byte]), [peer.half.fds[1]] * 2)
                await asyncio.sleep(0)
                most = max(most, len(os.listdir("/proc/self/fd")))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the fds to be closed")
        assert most - before <= 64


async def test_fds_that_come_one_by_one_do_not_fill_the_table_of_a_client(path: str) -> None:
    most: list[int] = []

    async def play(server: RawServer) -> None:
        await server.receive_hello()
        most.append(len(os.listdir("/proc/self/fd")))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for byte in b"SHMR\0\0\1\0" + bytes(200):
                send_with_fds(server.sock, bytes([byte]), [server.half.fds[1]] * 2)
                await asyncio.sleep(0)
                most.append(len(os.listdir("/proc/self/fd")))

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match=r"sent 4 fds with its handshake, expected are exactly 2"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
    assert max(most) - most[0] <= 64
