"""Things that take as long to close, or to be asked about, as their maker likes."""

import array
import contextlib
import ctypes
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from life_waiting import PATIENCE

LINGER: Final = struct.pack("ii", 1, 3600)
"""struct linger: the last close waits an hour for the other end to read."""


class Lingering:
    """A TCP socket whose last close waits until the other end is closed, which is here."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            self._other, _ = listener.accept()
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.send(bytes(1 << 16))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)

        self._goes_on = threading.Event()
        self.rescued = False
        """Whether nobody said in time that the event loop goes on."""
        self._watch = threading.Thread(target=self._rescue)
        self._watch.start()

    def _rescue(self) -> None:
        self.rescued = not self._goes_on.wait(PATIENCE / 2)
        self._other.close()

    def let_go(self) -> None:
        """The event loop goes on: so may whoever closes it."""
        self._goes_on.set()
        self._watch.join()


def hidden_in_a_socket(fd: int) -> tuple[socket.socket, socket.socket]:
    """A Unix socket that holds an fd that nobody has received, and its other end."""
    near, far = socket.socketpair()
    far.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    return near, far


# ---- a file system that answers nothing ----

_INIT, _LOOKUP, _GETATTR, _OPENDIR, _RELEASEDIR = 26, 1, 3, 27, 29  # linux/fuse.h
_IN: Final = struct.Struct("<IIQQIIII")
_OUT: Final = struct.Struct("<IiQ")
_EIO: Final = -5
_MNT_DETACH: Final = 2


class SlowFolder:
    """The root folder of a file system in user space that opens, and whose every other question would wait.

    `asked` has the questions. So that no test hangs, they are answered with an error.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._folder = tempfile.mkdtemp(prefix="shmrpc-slow-")
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0"
        if libc.mount(b"slow", self._folder.encode(), b"fuse", 0, options.encode()):
            os.close(self._device)
            os.rmdir(self._folder)
            pytest.skip(f"no file system can be mounted: {os.strerror(ctypes.get_errno())}")
        self._umount = libc.umount2
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def open(self) -> int:
        """An fd of the folder."""
        return os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError:  # unmounted
                return
            _, opcode, unique, *_ = _IN.unpack_from(request)
            if opcode == _INIT:
                sizes = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 16, 0, 16, 16, 1 << 16, 1, 16, 0, 0)
                self._answer(unique, sizes + bytes(24))
            elif opcode == _OPENDIR:
                self._answer(unique, struct.pack("<QII", 1, 0, 0))
            elif opcode == _RELEASEDIR:
                self._answer(unique, b"")
            else:
                self.asked.append(opcode)
                self._answer(unique, b"", _EIO)

    def _answer(self, unique: int, body: bytes, error: int = 0) -> None:
        with contextlib.suppress(OSError):  # whoever asked does not wait any more
            os.write(self._device, _OUT.pack(_OUT.size + len(body), error, unique) + body)

    def close(self) -> None:
        """Unmounts it."""
        self._umount(self._folder.encode(), _MNT_DETACH)
        self._thread.join(PATIENCE)
        os.close(self._device)
        os.rmdir(self._folder)


@contextmanager
def slow_folder() -> Iterator[SlowFolder]:
    """For processes of root alone, where the system lets them mount."""
    if os.getuid() or not Path("/dev/fuse").exists():
        pytest.skip("only root can mount a file system")
    folder = SlowFolder()
    try:
        yield folder
    finally:
        folder.close()
