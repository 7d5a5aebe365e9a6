"""Where a server listens: a path in the file system. Its folder and mode are the first access control."""

import contextlib
import errno
import glob
import os
import socket
import stat
import time
from typing import Final

from shmrpc.errors import BadAddress, ConnectFailed
from shmrpc.shm import disposal

MAX_PATH_BYTES = 107
"""sizeof(sockaddr_un.sun_path) on Linux, less the terminating zero."""

LEFT_BEHIND_SECONDS: Final = 60.0
"""Age from which a socket at a temporary name is one that was left behind: it has that name for less than a millisecond."""


def path_of(address: str | os.PathLike[str]) -> str:
    """The path of an address: a path itself, or ``shm:///path``.

    Raises:
        TypeError: it is no path.
        BadAddress: it is of another scheme, empty, or longer than a socket's path may be.
    """
    text: object = os.fspath(address) if isinstance(address, os.PathLike) else address
    if not isinstance(text, str):
        raise TypeError(f"an address is a path, or shm:///path, not {address!r}")
    if "://" in text:
        scheme, _, path = text.partition("://")
        if scheme != "shm" or not path.startswith("/"):
            raise BadAddress(f"{text!r} is not an address; write a path, or shm:///absolute/path")
        text = path
    length = len(os.fsencode(text))
    if not 0 < length <= MAX_PATH_BYTES or "\0" in text:
        raise BadAddress(
            f"{text!r} cannot be the path of a socket: it has {length} bytes, allowed are 1 to {MAX_PATH_BYTES}"
        )
    return text


def connect(path: str) -> socket.socket | None:
    """A connected, non-blocking socket; None while the server's backlog is full.

    Raises:
        ConnectFailed: nobody listens there; the text says what is there instead.
        OSError: this process may not have one more fd.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except BlockingIOError:  # not "in progress", as with TCP: asyncio would take this for a connection
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise ConnectFailed(f"no server at {path}: {_what_is_there(path, error)}") from None
    return sock


def _what_is_there(path: str, error: OSError) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as cause:
        return str(cause.strerror)
    if stat.S_ISDIR(mode):
        return "it is a directory"
    if not stat.S_ISSOCK(mode):
        return "it is a file, not a socket"
    if error.errno == errno.ECONNREFUSED:
        return "the socket is stale, nobody listens"
    return str(error.strerror)


Mark = tuple[int, int, int]
"""What tells a socket at a path from one that is there later."""


def mark(path: str) -> Mark | None:
    """What is at a path now; it is another one when another server has begun to listen there. None: nothing is there.

    The time is in it since the number of a file that was removed is given to the next one.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def listen(path: str, mode: int, backlog: int) -> socket.socket:
    """A listening, non-blocking socket at a path; a stale socket there is replaced, atomically.

    Raises:
        BadAddress: a server listens there already, or what is there is no socket, or the folder does not allow it.
        OSError: this process may not have one more fd.
    """
    there = _mode_of(path)
    if there is not None:
        if not stat.S_ISSOCK(there):
            raise BadAddress(f"cannot serve at {path}: it exists and is not a socket")
        try:
            probe = connect(path)
        except ConnectFailed:
            probe = None
        else:
            if probe is not None:
                disposal.put_away_socket(probe)
            raise BadAddress(f"cannot serve at {path}: a server listens there already")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    temporary = f"{path}.{os.getpid()}.new"
    _remove_left_behind(path)
    if len(os.fsencode(temporary)) > MAX_PATH_BYTES:
        temporary = path
    _unlink_socket(temporary)  # stale: the path itself, or what a killed process left that had this pid
    try:
        sock.bind(temporary)
        _set_mode(temporary, mode)
        sock.listen(backlog)
        if temporary != path:
            os.rename(temporary, path)
    except OSError as error:
        if sock.getsockname():  # it was bound, so the file is its own
            _unlink_socket(temporary)
        sock.close()
        raise BadAddress(f"cannot serve at {path}: {error.strerror}") from None
    return sock


def _mode_of(path: str) -> int | None:
    """The type and mode of what is at a path; None: nothing is, or it cannot be seen, and binding says why."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return None


def _set_mode(path: str, mode: int) -> None:
    """Sets the mode of a socket, and of nothing else: where others may write, one may have put a link in its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(errno.EBUSY, "something else was put in its place")
        itself = f"/proc/self/fd/{fd}"
        os.chmod(itself if os.path.exists(itself) else path, mode)
    finally:
        os.close(fd)


def inherit(fd: int) -> socket.socket:
    """A listening socket that another process made, non-blocking from now on. Owns the fd, except when it raises.

    Raises:
        BadAddress: the fd is something else.
    """
    refusal = BadAddress(f"fd {fd} is not a listening Unix stream socket")
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        raise refusal from None
    kind = sock.family, sock.type, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        sock.detach()
        raise refusal
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def unlink_own(path: str, inode: int) -> None:
    """Removes the socket file, if it is still the one with this inode and not a successor's."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        return


def _remove_left_behind(path: str) -> None:
    """Removes the sockets of servers that were killed after they were bound and before they had the path."""
    for left in glob.glob(f"{glob.escape(path)}.*.new"):
        with contextlib.suppress(OSError):  # another server has removed it
            if time.time() - os.lstat(left).st_mtime > LEFT_BEHIND_SECONDS:
                _unlink_socket(left)


def _unlink_socket(path: str) -> None:
    with contextlib.suppress(OSError):  # it is not there, or cannot be: binding says so in full
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
