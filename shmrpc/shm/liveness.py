"""Who the peer is, and whether it still runs.

Hang-up is not death: a forked child can hold the peer's socket open, so the evidence of death is the peer's pidfd, which
becomes readable when the process exits. Credentials come from the kernel, never from the peer's own words.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from shmrpc.context import Peer

UNMAPPED: Final = 65534
"""The uid and gid that the kernel shows for one without a mapping into this user namespace (overflowuid)."""

# asm-generic/socket.h and linux/socket.h, Linux 6.5.
_SO_PASSPIDFD: Final = 76
_SO_PEERPIDFD: Final = 77
SCM_PIDFD: Final = 4
_UCRED: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
UCRED_BYTES: Final = _UCRED.size
SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""This process, or the system, has no room for one more fd, which says nothing of the peer."""


def peer_of(sock: socket.socket) -> Peer:
    """The process that connected, or that listens, as it was then (SO_PEERCRED)."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def unpack_credentials(packed: bytes) -> Peer:
    """An SCM_CREDENTIALS message: the process that sent it."""
    return Peer(*_UCRED.unpack(packed[: _UCRED.size]))


def ask_for_senders(sock: socket.socket, *, pidfd: bool) -> None:
    """Has the kernel say with what comes from now on who sent it (SCM_CREDENTIALS), and also by a pidfd (SCM_PIDFD).

    The second is for where pids say nothing: of another pid namespace they are all 0. An older kernel does not have it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    if pidfd:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 1)


def ask_for_senders_no_more(sock: socket.socket) -> None:
    """Ends that: each message that is received would bring a pidfd."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSPIDFD, 0)


def open_pidfd(peer: Peer, sock: socket.socket | None) -> int | None:
    """An fd that becomes readable when the peer exits; None where the system gives none.

    With the socket, the fd is the kernel's own for the process at its other end (SO_PEERPIDFD). Without it, or on older
    kernels, it is looked up by pid: call this while the peer is known to run.

    Raises:
        OSError: there is no room for one more fd. A connection without this would never see the peer die.
    """
    if sock is not None:
        try:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno in SHORTAGES:
                raise
            if error.errno != errno.ENOPROTOOPT:  # gone already: its pid may be somebody else's by now
                return None
            # A kernel before 6.5.
    if peer.pid <= 0:  # in a pid namespace that this process cannot see
        return None
    try:
        return os.pidfd_open(peer.pid)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return None


def identity_of(sock: socket.socket) -> tuple[int, int] | None:
    """Tells the process at the other end of a socket from all others, also where it has no pid here.

    None where the system gives pidfds no inodes of their own, which it does from Linux 6.9 on, or the process is gone.
    """
    try:
        theirs = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    try:
        mine = os.pidfd_open(os.getpid())
        try:
            of_theirs, of_mine = os.fstat(theirs), os.fstat(mine)
        finally:
            os.close(mine)
    finally:
        os.close(theirs)
    identity = of_theirs.st_dev, of_theirs.st_ino
    return identity if identity != (of_mine.st_dev, of_mine.st_ino) else None


class ProcessWatch:
    """Calls back once when a process exits. Owns the pidfd."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pidfd: int, on_exit: Callable[[], None]) -> None:
        self._loop = loop
        self._on_exit = on_exit
        self._pidfd: int | None = pidfd
        try:
            loop.add_reader(pidfd, self._exited)
        except BaseException:
            os.close(pidfd)
            raise

    def __repr__(self) -> str:
        return f"<ProcessWatch {'over' if self._pidfd is None else f'pidfd={self._pidfd}'}>"

    def _exited(self) -> None:
        self.close()
        self._on_exit()

    def close(self) -> None:
        """Stops watching. Idempotent."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def forget(self) -> None:
        """In a forked child: closes the copy of the fd without touching the loop, which is the parent's."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
