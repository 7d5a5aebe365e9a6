"""A control socket with a bare socket at its other end, for the tests of both directions."""

import array
import asyncio
import os
import socket
import struct
from typing import Any

import msgspec
from life_waiting import until

from shmrpc.errors import ProtocolError
from shmrpc.shm.control import Attach, Control, Detach

PAGE = 4096


def frame(message: dict[str, Any]) -> bytes:
    body = msgspec.msgpack.encode(message)
    return struct.pack("<4sI", b"SHMR", len(body)) + body


def attach(extent: int, **changes: Any) -> bytes:
    return frame({"type": "attach", "extent": extent, "nbytes": PAGE, "kind": "memfd"} | changes)


def detach(extent: int) -> bytes:
    return frame({"type": "detach", "extent": extent})


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Scene:
    """A control, the bare socket of its peer, and what the control said."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.far.setblocking(False)
        self.gift = os.memfd_create("gift")
        self.heard: list[Any] = []
        self.fds: list[int] = []
        loop = asyncio.get_running_loop()
        self.control = Control(loop, near, self.on_attach, self.on_detach, self.on_lost, self.on_broken)
        self.sock = near

    def on_attach(self, message: Attach, fd: int) -> None:
        self.heard.append(message)
        self.fds.append(fd)

    def on_detach(self, message: Detach) -> None:
        self.heard.append(message)

    def on_lost(self, why: str) -> None:
        self.heard.append(why)

    def on_broken(self, error: ProtocolError) -> None:
        self.heard.append(error)

    def say(self, said: bytes, fds: int = 0) -> None:
        """The peer sends bytes, with the gift so many times."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.gift] * fds))] if fds else []
        assert self.far.sendmsg([said], rights) == len(said)

    def is_gift(self, fd: int) -> bool:
        """Whether an fd is the peer's gift."""
        return os.path.sameopenfile(fd, self.gift)

    def fill(self) -> int:
        """Fills the way to the peer; gives how many bytes that were."""
        filled = 0
        try:
            while True:
                filled += self.sock.send(bytes(1 << 12))
        except BlockingIOError:
            return filled

    def receive(self, nbytes: int) -> tuple[bytes, int]:
        """What the peer gets, up to so many bytes, and how many fds came with it, which are closed."""
        said, count = b"", 0
        while len(said) < nbytes:
            try:
                chunk, ancillary, _, _ = self.far.recvmsg(nbytes - len(said), 1 << 12)
            except BlockingIOError:
                break
            for _, _, packed in ancillary:
                for fd in array.array("i", packed):
                    os.close(fd)
                    count += 1
            if not chunk:
                break
            said += chunk
        return said, count

    async def hears(self, count: int) -> list[Any]:
        await until(lambda: len(self.heard) >= count, f"{count} messages")
        return self.heard

    def close(self) -> None:
        self.control.close()
        self.far.close()
        for fd in (self.gift, *self.fds):
            os.close(fd)
