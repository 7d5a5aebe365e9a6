"""Closing what a peer sent, without waiting for it: a peer chooses what its fds are of, and so how long their end takes.

The last close of a TCP socket that lingers waits for its other end, although the socket is non-blocking; that of a file may
wait for a file system, which can be a process of the peer's. A socket that nobody has read may hold such fds too: they are
closed with it. What cannot wait is closed at once; everything else in a thread of its own, where it holds nobody up.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

THREAD: Final = "shmrpc closing"
"""The name of the threads."""
MOST: Final = 256
"""As many threads at once are signs of an attack: there are no more connections until one has ended."""

_EVENTFD: Final = "anon_inode:[eventfd]"
_NO_LINGERING: Final = struct.pack("ii", 0, 0)  # struct linger
_closing: Final[set[threading.Thread]] = set()


def target_of(fd: int) -> str:
    """What ``/proc`` says that an fd is of. Asks no file system: a path begins with a slash, and nothing else does."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # there is no /proc in this sandbox
        return _target_without_proc(fd)


def _target_without_proc(fd: int) -> str:
    """The same: an eventfd has no kind of file, and takes a zero of eight bytes and nothing shorter."""
    status = os.fstat(fd)
    if stat.S_ISFIFO(status.st_mode):
        return f"pipe:[{status.st_ino}]"
    if stat.S_IFMT(status.st_mode):
        return "a file"
    os.set_blocking(fd, False)
    try:
        os.write(fd, bytes(7))
    except OSError as error:
        with contextlib.suppress(OSError):  # a pidfd takes nothing at all
            if error.errno == errno.EINVAL and os.write(fd, bytes(8)) == 8:
                return _EVENTFD
    return "an object without a name"


def is_eventfd(fd: int) -> bool:
    """Whether an fd is of an eventfd."""
    return target_of(fd) == _EVENTFD


def is_pipe(fd: int) -> bool:
    """Whether an fd is of a pipe without a name."""
    return target_of(fd).startswith("pipe:[")


def seals_of(fd: int) -> int | None:
    """The seals of what an fd is of; None: it is no memory of the kernel's own. Asks no file system."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        fcntl.fcntl(fd, fcntl.F_GETFD)  # which works unless it is not open: with O_PATH hardly anything else does
        return None


def _cannot_wait(fd: int) -> bool:
    if seals_of(fd) is not None:
        return True
    try:
        target = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # without /proc only a question could tell, and that may wait too
        return False
    return target == _EVENTFD or target.startswith("pipe:[")


def put_away(fd: int) -> None:
    """Closes an fd that a peer sent, whatever it is of. Never waits."""
    if _cannot_wait(fd):
        os.close(fd)
    else:
        _in_a_thread(partial(_close_stranger, fd))


def put_away_socket(sock: socket.socket, owner_pid: int | None = None) -> None:
    """Shuts a connected Unix socket down and closes it, with the fds that came over it and were not read. Never waits.

    Args:
        sock: The socket. Closing alone would leave the connection to a forked child that holds a copy.
        owner_pid: The process that it is of; None: this one. In a forked child of it, where a coroutine may be thrown away
            at any time, the copy alone is closed.
    """
    if owner_pid not in (None, os.getpid()):
        sock.close()
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)  # nothing more can come
        unread = int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), "little")
    except OSError:  # it was connected to nobody, who has sent nothing
        unread = 0
    if unread:
        _in_a_thread(partial(os.close, sock.detach()))
    else:
        sock.close()


def receive_all(sock: socket.socket) -> None:
    """Has out-of-band data arrive in its place: the kernel would drop it while others are read, with its fds."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def closing() -> int:
    """How many threads wait for something to be closed."""
    return len(_closing)


def _close_stranger(fd: int) -> None:
    try:
        sock = socket.socket(fileno=fd)
    except OSError:  # it is none
        os.close(fd)
        return
    with sock, contextlib.suppress(OSError):  # not every kind can
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)


def _in_a_thread(close: Callable[[], None]) -> None:
    def run() -> None:
        try:
            close()
        finally:
            _closing.discard(threading.current_thread())

    thread = threading.Thread(target=run, name=THREAD, daemon=True)
    _closing.add(thread)
    try:
        thread.start()
    except RuntimeError:  # there can be no more threads: rather wait than lose an fd
        _closing.discard(thread)
        close()
