"""Doorbells: cross-process wake-ups that carry no data and may ring spuriously. The only file with eventfds and pipes.

The sleeper makes a `Doorbell`, watches its fd and sends the other end to the peer, which opens it as a `Ringer`. Two kinds:

- ``eventfd``: one fd that both processes share. A peer could make it blocking and so freeze the writer, therefore only
  between processes of one uid.
- ``pipe``: the sleeper keeps the read end alone, and the ringer writes with RWF_NOWAIT or, before Linux 6.4, through a
  description that it opened itself; so neither can freeze the other.
"""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from abc import ABC, abstractmethod
from typing import Final, Literal, Protocol

from shmrpc.shm import disposal

Kind = Literal["eventfd", "pipe"]

log: Final = logging.getLogger("shmrpc")

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)
HAS_EVENTFD: Final = hasattr(os, "eventfd")


class BadDoorbell(ValueError):
    """An fd of the peer that is not the doorbell that it declared."""


class Doorbell:
    """The sleeper's end."""

    def __init__(self, kind: Kind) -> None:
        self.kind: Final[Kind] = kind
        self._far_fd: int | None
        if kind == "eventfd":
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._far_fd = None
        else:
            self.fd, self._far_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                os.fchmod(self._far_fd, 0o622)  # a peer of another uid may have to reopen it; nobody else can reach it
            except BaseException:
                self.close()
                raise

    def __repr__(self) -> str:
        return f"<Doorbell {self.kind} fd={self.fd}>"

    @property
    def far_fd(self) -> int:
        """The fd to send to the peer."""
        return self.fd if self._far_fd is None else self._far_fd

    def drop_far_fd(self) -> None:
        """Closes this process's copy of the peer's end, once it is sent."""
        if self._far_fd is not None:
            os.close(self._far_fd)
            self._far_fd = None

    def clear(self) -> bool:
        """Takes all rings so far, so that the fd is not readable any more.

        Returns:
            False when nobody can ring any more: the peer has closed its end of the pipe, and the fd stays readable.
        """
        try:
            return os.read(self.fd, 8 if self.kind == "eventfd" else 65536) != b""
        except BlockingIOError:  # somebody rang and the look before us took it
            return True

    def close(self) -> None:
        """Closes the fds; not to be called twice."""
        self.drop_far_fd()
        os.close(self.fd)


class Ringer(Protocol):
    """The ringer's end. Any thread may ring: a buffer that dies on one sends its block home."""

    def ring(self) -> None:
        """Wakes the peer; never blocks. Nothing when it is closed."""

    def close(self) -> None:
        """Closes the fd. Idempotent."""

    def forget(self) -> None:
        """In a forked child: the same, though a thread of the parent may have been ringing."""


class _Ringer(ABC):
    """What the kinds have in common: an fd that no thread writes to while another one closes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()  # writing lets other threads run, and a garbage collection can ring in a ring
        self._closed = False

    def ring(self) -> None:
        with self._lock:
            if not self._closed:
                self._write()

    @abstractmethod
    def _write(self) -> None: ...

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)

    def forget(self) -> None:
        self._lock = threading.RLock()  # a thread that is not in this process may have held it
        self.close()


class _EventRinger(_Ringer):
    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the counter is at its top: the peer will wake all the same
            os.eventfd_write(self._fd, 1)


class _PipeRinger(_Ringer):
    _FLAGS = _NOWAIT

    def _write(self) -> None:
        try:
            self.write_one()
        except OSError as error:
            # A wake-up must not be lost. The peer sees the end of the pipe instead, and ends the connection.
            log.warning("a doorbell cannot be rung, and its connection ends: %s", error)
            self._closed = True
            os.close(self._fd)

    def write_one(self) -> None:
        """Rings, or raises OSError when the system does not let it."""
        # RWF_NOWAIT, since O_NONBLOCK belongs to the open file description, which the peer may still share.
        # A full pipe means that the peer will wake all the same; a closed one that it is gone, which liveness tells.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.pwritev(self._fd, (b"\1",), -1, self._FLAGS)


class _OwnPipeRinger(_PipeRinger):
    """For a pipe that this process has opened itself, so that its O_NONBLOCK is nobody else's."""

    _FLAGS = 0


def open_ringer(fd: int, kind: Kind) -> Ringer:
    """Checks the peer's fd, which includes ringing it, and takes it over; closes it when the check fails.

    Raises:
        BadDoorbell: the fd is of another kind than declared, or cannot be rung.
    """
    try:
        if kind == "eventfd":
            if not disposal.is_eventfd(fd):
                raise BadDoorbell(f"the peer's doorbell is {disposal.target_of(fd)!r}, it declared an eventfd")
            os.set_blocking(fd, False)
            return _EventRinger(fd)
        if not disposal.is_pipe(fd):
            raise BadDoorbell(f"the peer's doorbell is {disposal.target_of(fd)!r}, it declared a pipe")
        return _open_pipe(fd)
    except BaseException:
        disposal.put_away(fd)
        raise


def _open_pipe(fd: int) -> Ringer:
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
            raise BadDoorbell("the peer's doorbell cannot be rung: it is not the writing end of a pipe")
        ringer = _PipeRinger(fd)
        try:
            if not _NOWAIT:
                raise OSError(errno.EOPNOTSUPP, "RWF_NOWAIT is not known to this Python")
            ringer.write_one()
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # Pipes know RWF_NOWAIT from Linux 6.4 on. Before that, an open file description of one's own.
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.close(fd)
            ringer = _OwnPipeRinger(own)
    except OSError as error:
        raise BadDoorbell(f"the peer's doorbell cannot be rung: {error.strerror}") from None
    return ringer


def choose(setting: Literal["auto", "eventfd", "pipe"], *, same_uid: bool) -> Kind:
    """The kind of doorbell for a peer: an eventfd only where the peer is of one's own uid."""
    if setting != "auto":
        return setting
    return "eventfd" if same_uid and HAS_EVENTFD else "pipe"
