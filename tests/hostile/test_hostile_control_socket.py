"""Nonsense, half frames, out-of-band bytes and fds over the control socket after the handshake."""

import asyncio
import os
import socket

import pytest
from buffer_api import MIB
from hostile_halves import head
from hostile_stage import Act, Open, Scene, against_client, against_server, case, sides
from life_waiting import until
from raw_peer import frame_of, hung_up, send_with_fds

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


def _says(said: bytes, fds: int = 0) -> Act:
    def act(scene: Scene) -> None:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            send_with_fds(scene.sock, said, [fd] * fds)
        finally:
            os.close(fd)

    return act


_DETACH = frame_of({"type": "detach", "extent": 1})
_SKIPPED = b"\x83\xa4type\xa6detach\xa6extent\1\xa1x" + b"\x91" * 4000 + b"\1"
_ATTACH = frame_of({"type": "attach", "extent": 1, "nbytes": MIB, "kind": "memfd"})


@sides
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("http", _says(b"GET / HTTP/1.1"), "the peer does not speak shmrpc: it began with b'GET / HT'"),
        case("zeros", _says(bytes(8)), "the peer does not speak shmrpc: it began with b'"),
        case("another hello", _says(frame_of({"type": "hello"})), "control message cannot be understood"),
        case("a hello with fds", _says(frame_of({"type": "hello"}), 2), "sent 2 fds with its control message"),
        case("a detach with an fd", _says(_DETACH, 1), "sent 1 fds with its control message, expected are exactly 0"),
        case("an attach without", _says(_ATTACH), "sent 0 fds with its control message, expected are exactly 1"),
        case(
            "an attach with 253", _says(_ATTACH, 253), "sent 253 fds with its control message, expected are exactly 1"
        ),
        case("a length over the limit", _says(head(4097)), "control message has 4097 bytes, the limit is 4096"),
        case("a length without end", _says(head((1 << 32) - 1)), "has 4294967295 bytes, the limit is 4096"),
        case("no body", _says(head(0)), "control message cannot be understood"),
        case("noise", _says(head(4) + b"\xc1\xc1\xc1\xc1"), "control message cannot be understood"),
        case("a tower", _says(head(4000) + b"\x91" * 4000), "control message cannot be understood"),
        case("a tower that is skipped", _says(head(len(_SKIPPED)) + _SKIPPED), "control message cannot be understood"),
        case("a number", _says(frame_of(7)), "control message cannot be understood"),  # type: ignore[arg-type]
        case("an extent of words", _says(frame_of({"type": "detach", "extent": "one"})), "cannot be understood"),
        case("a good frame, and nonsense", _says(_DETACH + b"GET / HTTP"), "detached extent 1, which is not attached"),
    ],
)
async def test_the_connection_is_cut_after(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


@sides
async def test_a_byte_out_of_band_is_a_byte_in_its_place(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.sock.send(b"SH")
        scene.sock.send(b"x", socket.MSG_OOB)
        await scene.must_go_on()
        scene.sock.send(b"MR\0\0\0")
        await scene.must_be_cut("the peer does not speak shmrpc: it began with b'SHxMR")


@sides
@pytest.mark.parametrize("said", [b"S", b"SHMR\0\1", head(100) + b"half"], ids=["a byte", "half a head", "half a body"])
async def test_half_a_frame_holds_nothing_up(
    path: str, stage: Open, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        _says(said, 1)(scene)
        await scene.must_go_on()


@sides
async def test_a_frame_byte_for_byte_is_a_frame(path: str, stage: Open, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(path, caplog) as scene:
        for byte in _DETACH:
            scene.sock.send(bytes((byte,)))
            await asyncio.sleep(0)
        await scene.must_be_cut("detached extent 1, which is not attached")


async def test_fds_with_each_byte_of_a_frame_do_not_pile_up_at_a_server(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        for byte in b"SHMR":
            _says(bytes((byte,)), 1)(scene)
        await scene.must_be_cut("sent 2 fds with its control message, expected are exactly 1")


@sides
async def test_a_control_socket_that_is_never_read_holds_nothing_up(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.sock.shutdown(socket.SHUT_RD)
        await scene.must_go_on()


async def test_who_shuts_its_writing_end_has_hung_up_on_a_server(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.sock.shutdown(socket.SHUT_WR)
        await hung_up(scene.sock)
        await until(lambda: scene.server.connections == 2, "the connection to end")


async def test_who_shuts_its_writing_end_has_hung_up_on_a_client(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        scene.sock.shutdown(socket.SHUT_WR)
        await hung_up(scene.sock)
        with pytest.raises(shmrpc.ConnectionLost, match="closed the connection"):
            await scene.held
