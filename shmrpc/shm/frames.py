"""Frames over a Unix stream socket: how bodies and fds travel, in the handshake and after it.

A frame is four bytes magic, a little-endian u32 length and a body; its fds ride on its first byte. What the body says is
for others. A frame has exactly the fds that it should, else all of them are closed. docs/specification.md is normative.
"""

import array
import errno
import os
import socket
import struct
from typing import Final

import anyio

from shmrpc.context import Peer
from shmrpc.shm import disposal, liveness

_HEAD: Final = struct.Struct("<4sI")
_MAGIC: Final = b"SHMR"
_MOST_FDS: Final = 253  # SCM_MAX_FD, all that can come at once: what there is no room for the kernel would close here
_SPACE: Final = socket.CMSG_SPACE(_MOST_FDS * 4) + socket.CMSG_SPACE(liveness.UCRED_BYTES) + socket.CMSG_SPACE(4)


class BadFrame(ValueError):
    """What came is no frame, or not with the fds that it must have."""


def pack(body: bytes) -> bytes:
    """One frame's bytes, without fds."""
    return _HEAD.pack(_MAGIC, len(body)) + body


def send_some(sock: socket.socket, rest: memoryview, fds: list[int]) -> int:
    """Sends the beginning of what is left of a frame, and how many bytes that was; fds go with its first byte.

    Raises:
        BlockingIOError: the socket takes nothing now.
        OSError: it never will, or not these fds.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([rest], ancillary, socket.MSG_NOSIGNAL)


async def send(sock: socket.socket, frame: bytes, fds: list[int]) -> None:
    """Sends one frame with its fds."""
    rest = memoryview(frame)
    while rest:
        try:
            rest = rest[send_some(sock, rest, fds) :]
            fds = []
        except BlockingIOError:
            await anyio.wait_writable(sock)


class Frame:
    """A frame that is being received; owns its fds until they are taken."""

    def __init__(self, what: str, *, longest: int, most_fds: int) -> None:
        """`what` is the word for it in errors; `longest` its body in bytes, `most_fds` what any such frame has."""
        self.sender: Peer | None = None
        """Who sent it, as the kernel says, where the socket asks for that (SO_PASSCRED)."""
        self._sender_pidfd: int | None = None
        self._what = what
        self._longest = longest
        self._most_fds = most_fds
        self._bytes = bytearray()
        self._length: int | None = None
        self._fds: list[int] = []

    def receive_nowait(self, sock: socket.socket) -> bytes:
        """The body of the frame, once all of it is there. Takes not a byte of what follows it.

        Raises:
            BlockingIOError: that is not yet.
            BadFrame: what came is no frame, or has too many fds.
            ConnectionResetError: the peer hung up.
            OSError: the socket fails, or this process has no room for the fds.
        """
        while (need := self._missing()) > 0:
            # socket.recv_fds would drop the flag, and the fds would leak into every child of this process.
            chunk, ancillary, flags, _ = sock.recvmsg(need, _SPACE, socket.MSG_CMSG_CLOEXEC)
            self._collect(ancillary)
            if len(self._fds) > self._most_fds:  # at once: fds that come one by one must not fill the table of fds
                raise BadFrame(self._wrong_number(self._most_fds))
            if flags & socket.MSG_CTRUNC:  # and these were not too many for the room that there is
                raise OSError(
                    errno.EMFILE,
                    f"fds that the peer sent with its {self._what} were lost, this process may not have more (ulimit -n)",
                )
            if not chunk:
                raise ConnectionResetError(f"the peer hung up in the {self._what}")
            self._bytes += chunk
        return bytes(self._bytes[_HEAD.size :])

    async def receive(self, sock: socket.socket) -> bytes:
        """As `receive_nowait`, but waits for the rest."""
        while True:
            try:
                return self.receive_nowait(sock)
            except BlockingIOError:
                await anyio.wait_readable(sock)

    def _missing(self) -> int:
        """Bytes until the end of the head, then until the end of the frame. The head is checked once, when complete."""
        length = self._length
        if length is None:
            if len(self._bytes) < _HEAD.size:
                return _HEAD.size - len(self._bytes)
            magic, length = _HEAD.unpack(self._bytes)
            if magic != _MAGIC:
                raise BadFrame(f"the peer does not speak shmrpc: it began with {bytes(self._bytes)!r}")
            if length > self._longest:
                raise BadFrame(f"the peer's {self._what} has {length} bytes, the limit is {self._longest}")
            self._length = length
        return _HEAD.size + length - len(self._bytes)

    def _collect(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, payload in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._fds.extend(fds)
            elif kind == socket.SCM_CREDENTIALS:
                self.sender = liveness.unpack_credentials(payload)
            elif kind == liveness.SCM_PIDFD:
                self._close_pidfd()
                (pidfd,) = struct.unpack("i", payload[:4])
                self._sender_pidfd = pidfd  # or the number of an error, negative

    def take_fds(self, expected: int) -> list[int]:
        """The fds, which are the caller's from now on.

        Raises:
            BadFrame: their number is not the expected one; they are closed.
        """
        if len(self._fds) != expected:
            text = self._wrong_number(expected)
            self.close()
            raise BadFrame(text)
        fds, self._fds = self._fds, []
        return fds

    def take_sender_pidfd(self) -> int | None:
        """An fd for the process that sent it, where the socket asks for that; the caller's from now on. None: it has ended.

        Raises:
            OSError: this process has no room for it.
        """
        pidfd, self._sender_pidfd = self._sender_pidfd, None
        if pidfd is not None and -pidfd in liveness.SHORTAGES:
            raise OSError(-pidfd, os.strerror(-pidfd))
        return pidfd if pidfd is not None and pidfd >= 0 else None

    def _close_pidfd(self) -> None:
        pidfd, self._sender_pidfd = self._sender_pidfd, None
        if pidfd is not None and pidfd >= 0:
            os.close(pidfd)

    def close(self) -> None:
        """Closes the fds that nobody took."""
        self._close_pidfd()
        fds, self._fds = self._fds, []
        for fd in fds:
            disposal.put_away(fd)

    def _wrong_number(self, expected: int) -> str:
        return f"the peer sent {len(self._fds)} fds with its {self._what}, expected are exactly {expected}"
