"""Handshakes that must be refused: what a peer brings is spoilt, and the other side, server or client, must say so.

Each side is tried beside a bystander that nothing may disturb, and must let go of everything: see `hostile_stage`.
"""

import os
import re
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest
from hostile_stage import bystander, charged, nothing_worse_than_a_warning
from life_api import Life
from raw_channel import DEFAULT, Geometry, make_memfd
from raw_peer import Half, RawClient, RawServer, hung_up, raw_listener

import shmrpc

Spoil = Callable[[Half], None]
"""What a peer brings that it should not."""
MakeFd = Callable[[Half], int]


# ---- the two victims ----


async def by_server(path: str, caplog: pytest.LogCaptureFixture, spoil: Spoil, why: str) -> None:
    """A server refuses a client, tells it why, and logs the same."""
    async with bystander(path) as server:
        before = charged(server)
        async with RawClient(path) as peer:
            spoil(peer.half)
            answer = await peer.ask()
            assert (answer["type"], answer["code"]) == ("rejection", "refused"), answer
            assert re.search(why, answer["message"]), answer["message"]
            await hung_up(peer.sock)
            assert charged(server) == before
        who = f"pid {os.getpid()} (uid {os.getuid()}, gid {os.getgid()}) was refused at {path}: "
        assert who + answer["message"] in [record.getMessage() for record in caplog.records]
        nothing_worse_than_a_warning(caplog)


async def by_client(path: str, caplog: pytest.LogCaptureFixture, spoil: Spoil, why: str) -> None:
    """A client refuses a server, by an error that says why."""

    async def play(server: RawServer) -> None:
        await server.receive_hello()
        spoil(server.half)
        server.answer()
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match=why):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        nothing_worse_than_a_warning(caplog)


victims: Final = pytest.mark.parametrize("must_refuse", [by_server, by_client], ids=["server", "client"])
Refuse = Callable[[str, pytest.LogCaptureFixture, Spoil, str], Any]


def case(name: str, spoil: Spoil, why: str) -> Any:
    """A spoilt half, and what must be said of it."""
    return pytest.param(spoil, why, id=name)


# ---- what is spoilt ----


def says(said: bytes) -> Spoil:
    """Sends other bytes than a frame."""

    def spoil(half: Half) -> None:
        half.said = said

    return spoil


def head(length: int, magic: bytes = b"SHMR") -> bytes:
    """The beginning of a frame."""
    return struct.pack("<4sI", magic, length)


def sends(*fds: MakeFd) -> Spoil:
    """Sends other fds, each made here or taken from the half."""

    def spoil(half: Half) -> None:
        sent = [make(half) for make in fds]
        half.spare += [fd for fd in sent if fd not in half.fds]
        half.fds = sent

    return spoil


def declares(**declared: object) -> Spoil:
    """Says other words."""
    return lambda half: half.declared.update(declared)


def brings(geometry: Geometry) -> Spoil:
    """Declares a geometry, and brings a segment that is truly of that size."""

    def spoil(half: Half) -> None:
        declares(geometry=geometry._asdict())(half)
        half.geometry = geometry
        sends(memfd(), doorbell)(half)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """All of it."""

    def spoil_all(half: Half) -> None:
        for spoil in spoils:
            spoil(half)

    return spoil_all


_NAMES: Final = (
    "magic",
    "version",
    "zero",
    "size",
    "ring",
    "ring_bytes",
    "release",
    "entries",
    "slab",
    "slab_bytes",
    "limit",
)


def header(**changes: Any) -> bytes:
    """The header of a segment of the usual geometry, with changes."""
    fields = dict(zip(_NAMES, struct.unpack("<8sII8Q", DEFAULT.header()), strict=True))
    return struct.pack("<8sII8Q", *(fields | changes).values())


# ---- fds ----


def segment(half: Half) -> int:
    """The right one."""
    return half.segment_fd


def doorbell(half: Half) -> int:
    """The right one."""
    return half.far_end


def memfd(**how: Any) -> MakeFd:
    """A segment of its own."""
    return lambda half: make_memfd(half.geometry, **how)


def file(half: Half) -> int:
    """A file on a disk, of the right size."""
    fd = os.open("/tmp", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(fd, 0, half.geometry.nbytes)
    return fd


def pipe_end(end: int) -> MakeFd:
    """One end of a pipe."""

    def make(half: Half) -> int:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        half.spare.append(ends[1 - end])
        return ends[end]

    return make


def unix_socket(half: Half) -> int:
    """A socket that is connected to nobody."""
    return socket.socket(socket.AF_UNIX).detach()


def opened(path: str, flags: int = os.O_RDONLY) -> MakeFd:
    """What is at a path."""
    return lambda half: os.open(path, flags | os.O_CLOEXEC)


def eventfd(half: Half) -> int:
    """Another eventfd."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def named_fifo(half: Half) -> int:
    """A pipe with a name."""
    path = f"/tmp/shmrpc-fifo-{os.getpid()}"
    os.mkfifo(path)
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.unlink(path)
