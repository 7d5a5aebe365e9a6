"""A peer made from the specification alone: sockets, mmap, struct and msgpack, nothing of shmrpc's own.

It plays the client against a real server and the server against a real client. It behaves, until a test tells it not to:
every step is a method of its own, every declared value can be changed, every shared word can be written.
"""

import array
import asyncio
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from life_waiting import PATIENCE
from raw_channel import DEFAULT, SEALS, Geometry, RawChannel, make_memfd, sealed


class Half:
    """What one side brings to a handshake, correct until a test changes it."""

    def __init__(self, geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd") -> None:
        self.geometry = geometry
        self.segment_fd = make_memfd(geometry, seals=0)
        self.mapping = mmap.mmap(self.segment_fd, geometry.nbytes)
        sealed(self.segment_fd, SEALS)
        if doorbell == "eventfd":
            self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.far_end = os.dup(self.bell)
        else:
            self.bell, self.far_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.fds = [self.segment_fd, self.far_end]
        """What is sent; a test may send others instead."""
        self.said: bytes | None = None
        """What is sent in place of a frame."""
        self.spare: list[int] = []
        """Others, which are closed with the rest."""
        self.declared: dict[str, Any] = {
            "features": [],
            "segment": "memfd",
            "doorbell": doorbell,
            "geometry": geometry._asdict(),
            "max_message": 1 << 30,
            "max_extent_bytes": 1 << 30,
        }

    def close(self) -> None:
        self.mapping.close()
        for fd in (self.segment_fd, self.bell, self.far_end, *self.spare):
            os.close(fd)

    def join(self, theirs: dict[str, Any], fds: list[int]) -> RawChannel:
        """Takes over the other side's fds."""
        segment_fd, bell = fds
        far_geometry = Geometry(**theirs["geometry"])
        try:
            far = mmap.mmap(segment_fd, far_geometry.nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(segment_fd)
        return RawChannel(self.mapping, far, self.geometry, far_geometry, bell)


# ---- the handshake ----


def frame_of(message: dict[str, Any]) -> bytes:
    """One frame: magic, length, body."""
    body = msgspec.msgpack.encode(message)
    return struct.pack("<4sI", b"SHMR", len(body)) + body


def send_with_fds(sock: socket.socket, frame: bytes, fds: list[int]) -> None:
    """Sends bytes with fds on the first of them; small enough for the socket's buffer."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([frame], ancillary) == len(frame)


async def receive_frame(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next frame and the fds that came with it; ConnectionResetError when the other side hung up."""
    body = bytearray()
    fds = array.array("i")
    need = 8
    async with asyncio.timeout(PATIENCE):
        while len(body) < need:
            await anyio.wait_readable(sock)
            chunk, ancillary, _, _ = sock.recvmsg(need - len(body), 256, socket.MSG_CMSG_CLOEXEC)
            for level, kind, packed in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(packed)
            if not chunk:
                raise ConnectionResetError("the other side hung up")
            body += chunk
            if len(body) == 8:
                need += struct.unpack("<4sI", body)[1]
    message: dict[str, Any] = msgspec.msgpack.decode(body[8:])
    return message, list(fds)


async def hung_up(sock: socket.socket) -> None:
    """Returns when the other side has closed its socket."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await anyio.wait_readable(sock)
            try:
                if not sock.recv(65536):
                    return
            except ConnectionResetError:
                return


class RawClient:
    """A client of a real server. Async context manager: connects, and closes everything."""

    def __init__(self, path: str, geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd") -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.half = Half(geometry, doorbell=doorbell)
        self.channel: RawChannel

    async def __aenter__(self) -> "RawClient":
        self.sock.connect(self.path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.sock.close()
        if hasattr(self, "channel"):
            self.channel.close()
        self.half.close()

    def hello(self, **changes: object) -> dict[str, Any]:
        """A correct hello, with changes."""
        return {"type": "hello", "versions": [1, 1], "wanted": []} | self.half.declared | changes

    async def ask(self, **changes: object) -> dict[str, Any]:
        """Sends the hello and gives the answer, whatever it is; its fds become the channel or are closed."""
        send_with_fds(self.sock, self.half.said or frame_of(self.hello(**changes)), self.half.fds)
        answer, fds = await receive_frame(self.sock)
        if answer["type"] == "welcome":
            self.channel = self.half.join(answer, fds)
        return answer

    async def shake_hands(self, **changes: object) -> RawChannel:
        """The whole handshake, which must succeed."""
        answer = await self.ask(**changes)
        assert answer["type"] == "welcome", answer
        return self.channel


class RawServer:
    """One connection of a real client, accepted by a server that may be a hostile one."""

    def __init__(self, sock: socket.socket, half: Half) -> None:
        self.sock = sock
        self.half = half
        self.hello: dict[str, Any] = {}
        self.client_fds: list[int] = []
        self.channel: RawChannel

    async def receive_hello(self) -> dict[str, Any]:
        """The client's hello; its fds are kept."""
        self.hello, self.client_fds = await receive_frame(self.sock)
        return self.hello

    def welcome(self, **changes: object) -> dict[str, Any]:
        """A correct welcome, which says that every contract is known exactly, with changes."""
        offered = [
            {"name": want["name"], "digest": want["digest"], "first_method": 0, "signatures": []}
            for want in self.hello["wanted"]
        ]
        fixed = {"type": "welcome", "version": 1, "offered": offered, "max_in_flight": 1024}
        return fixed | self.half.declared | changes

    async def shake_hands(self, **changes: object) -> RawChannel:
        """The whole handshake."""
        await self.receive_hello()
        self.channel = self.half.join(self.hello, self.client_fds)
        self.client_fds = []
        self.answer(**changes)
        return self.channel

    def answer(self, **changes: object) -> None:
        """Sends the welcome."""
        send_with_fds(self.sock, self.half.said or frame_of(self.welcome(**changes)), self.half.fds)

    def close(self) -> None:
        self.sock.close()
        for fd in self.client_fds:
            os.close(fd)
        if hasattr(self, "channel"):
            self.channel.close()
        self.half.close()


@asynccontextmanager
async def raw_listener(
    path: str, play: Callable[[RawServer], Any], geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd"
) -> AsyncIterator[asyncio.Task[None]]:
    """Listens, and plays one part with the first client that comes; after that nobody listens any more.

    Leaving waits for the part to be played to its end, and raises what it raised.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen()

    async def serve_one() -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await anyio.wait_readable(listener)
                sock, _ = listener.accept()
        finally:
            os.unlink(path)
            listener.close()
        sock.setblocking(False)
        peer = RawServer(sock, Half(geometry, doorbell=doorbell))
        try:
            await play(peer)
        finally:
            peer.close()

    task = asyncio.create_task(serve_one())
    try:
        yield task
        async with asyncio.timeout(PATIENCE):
            await task
    finally:
        task.cancel()
        await asyncio.wait((task,))
