"""Fds of strange kinds, which a peer may send in place of a segment or a doorbell."""

import ctypes
import errno
import os
import select
import socket
from typing import Final

import pytest
from hostile_halves import MakeFd, eventfd, file, memfd, named_fifo, opened, pipe_end, unix_socket
from raw_channel import SEALS, sealed
from raw_peer import Half

_libc: Final = ctypes.CDLL(None, use_errno=True)
# asm-generic/unistd.h and asm/unistd_64.h; alike on x86-64 and arm64 but for the first two.
_X86: Final = os.uname().machine == "x86_64"
_USERFAULTFD: Final = 323 if _X86 else 282
_TIMERFD_CREATE: Final = 283 if _X86 else 85
_MEMFD_SECRET: Final = 447


def _syscall(number: int, *arguments: object) -> int:
    fd: int = _libc.syscall(number, *arguments)
    if fd < 0:
        pytest.skip(f"this system refuses the syscall {number}: {errno.errorcode[ctypes.get_errno()]}")
    return fd


def _userfaultfd(half: Half) -> int:
    return _syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | 1)  # UFFD_USER_MODE_ONLY


def _secret(half: Half) -> int:
    fd = _syscall(_MEMFD_SECRET, os.O_CLOEXEC)
    os.ftruncate(fd, half.geometry.nbytes)
    return fd


def _timer(half: Half) -> int:
    return _syscall(_TIMERFD_CREATE, 1, os.O_CLOEXEC)


def _epoll(half: Half) -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


def _pidfd(half: Half) -> int:
    return os.pidfd_open(os.getpid())


def _tcp(half: Half) -> int:
    return socket.socket(socket.AF_INET).detach()


def _netlink(half: Half) -> int:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).detach()


def _terminal(half: Half) -> int:
    master, slave = os.openpty()
    half.spare.append(slave)
    return master


def _tmpfs(half: Half) -> int:
    """Shared memory that has a name, or had one: its file system lets nobody seal it."""
    fd = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(fd, 0, half.geometry.nbytes)
    return fd


def _huge(half: Half) -> int:
    """Of huge pages, which this machine may not have."""
    size = -(-half.geometry.nbytes // (2 << 20)) * (2 << 20)
    fd = os.memfd_create("raw-peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(fd, size)
    return sealed(fd, SEALS)


def _read_only(half: Half) -> int:
    own = memfd()(half)
    half.spare.append(own)
    return os.open(f"/proc/self/fd/{own}", os.O_RDONLY | os.O_CLOEXEC)


def _path_only(half: Half) -> int:
    return os.open("/tmp", os.O_PATH | os.O_CLOEXEC)


STRANGE: Final[dict[str, MakeFd]] = {
    "a folder": opened("/tmp"),
    "a folder's path alone": _path_only,
    "a file": file,
    "a file of /proc": opened("/proc/self/mem"),
    "a file of /sys": opened("/sys/kernel/mm/transparent_hugepage/enabled"),
    "a device of zeros": opened("/dev/zero", os.O_RDWR),
    "a device of nothing": opened("/dev/null", os.O_RDWR),
    "a terminal": _terminal,
    "a pipe's reading end": pipe_end(0),
    "a pipe with a name": named_fifo,
    "a socket": unix_socket,
    "a socket of TCP": _tcp,
    "a socket of the kernel": _netlink,
    "a pidfd": _pidfd,
    "a timer": _timer,
    "an epoll": _epoll,
    "a userfaultfd": _userfaultfd,
    "secret memory": _secret,
    "memory with a name": _tmpfs,
}
"""What is neither a segment nor a doorbell of any kind."""

NO_SEGMENT: Final[dict[str, MakeFd]] = {
    **STRANGE,
    "an eventfd": eventfd,
    "a pipe's writing end": pipe_end(1),
    "a memfd that was opened to be read": _read_only,
    "huge pages": _huge,
}
_STRANGEST: Final = ("a folder's path alone", "a file of /proc", "a pipe with a name", "a socket of TCP", "a pidfd")
_SOME: Final = {name: STRANGE[name] for name in (*_STRANGEST, "a timer", "a userfaultfd", "a terminal")}
NO_EVENTFD: Final[dict[str, MakeFd]] = {**_SOME, "a memfd": memfd(), "a pipe's writing end": pipe_end(1)}
NO_PIPE: Final[dict[str, MakeFd]] = {
    **_SOME,
    "a pipe's reading end": pipe_end(0),
    "a memfd": memfd(),
    "an eventfd": eventfd,
}
