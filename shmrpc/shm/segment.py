"""Segments: shared mappings with one writer each. The only file that makes, seals, checks and maps shared memory.

The owner creates a segment, maps it read-write, fills it and seals it, so that the kernel lets nobody map it writable
again nor change its size. The peer checks the fd before it maps it read-only. Two kinds: a sealed memfd, and, where the
system refuses memfd, POSIX shared memory that is unlinked at once; the second cannot be sealed, so an endpoint accepts
it from a peer only if it has to use it itself.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import sys
from typing import Any, Final, Literal

from shmrpc.shm.layout import HEADER_BYTES, Geometry

Kind = Literal["memfd", "posix"]

# Linux numbers that Python 3.11 does not name (linux/fcntl.h, linux/memfd.h).
_F_SEAL_FUTURE_WRITE: Final = 0x10
_MFD_NOEXEC_SEAL: Final = 0x8
_SHM_FOLDER: Final = "/dev/shm"


class BadSegment(ValueError):
    """An fd of the peer that is not the segment that it declared."""


class Segment:
    """One mapping of a segment. Its memory goes when it is closed and no view of it is left."""

    def __init__(self, mapping: mmap.mmap, fd: int | None, kind: Kind, geometry: Geometry) -> None:
        self.mapping: Final = mapping
        self.kind: Final[Kind] = kind
        self.geometry: Final = geometry
        self._fd = fd

    def __repr__(self) -> str:
        role = "own" if self._fd is not None else "mapped"
        return f"<Segment {role} {self.kind} {self.geometry.segment_bytes} bytes>"

    @property
    def fd(self) -> int:
        """The fd to send to the peer; only the owner has one, until `drop_fd`."""
        assert self._fd is not None
        return self._fd

    def drop_fd(self) -> None:
        """Closes the fd; the mapping stays. Once the peer has it, nobody needs it here."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def close(self) -> None:
        """Unmaps, or lets the last view that somebody holds unmap."""
        self.drop_fd()
        with contextlib.suppress(BufferError):  # a view is held: the mapping goes with its last reference
            self.mapping.close()


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE


def create(geometry: Geometry, kind: Literal["auto", "memfd", "posix"] = "auto") -> Segment:
    """A new segment, filled, sealed and mapped read-write.

    Raises:
        OSError: the system refuses the memory.
        BadGeometry: the sizes cannot work.
    """
    geometry.check()
    size = geometry.segment_bytes
    fd, made = _new_fd(kind)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)  # ftruncate alone leaves holes, and a hole is a SIGBUS later
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, **_untracked())
        mapping[:HEADER_BYTES] = geometry.header()
        if made == "memfd":
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
        else:
            read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            os.close(fd)
            fd = read_only
    except BaseException:
        os.close(fd)
        raise
    return Segment(mapping, fd, made, geometry)


def _new_fd(kind: Literal["auto", "memfd", "posix"]) -> tuple[int, Kind]:
    if kind != "posix":
        try:
            return _memfd(), "memfd"
        except OSError as error:
            if kind == "memfd" or error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
                raise
    return _posix_fd(), "posix"


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("shmrpc", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 6.3 does not know the flag
            raise
        return os.memfd_create("shmrpc", flags)


def _posix_fd() -> int:
    path = f"{_SHM_FOLDER}/shmrpc-{secrets.token_hex(16)}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def attach(fd: int, geometry: Geometry, kind: Kind, *, max_segment_bytes: int) -> Segment:
    """Checks the peer's fd, maps it read-only and closes the fd, also when the check fails.

    Raises:
        BadSegment: the fd is not the sealed, full, well-formed segment that the peer declared.
        BadGeometry: the declared sizes cannot work.
    """
    try:
        geometry.check(max_segment_bytes)
        size = geometry.segment_bytes
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadSegment(f"the peer's segment is {_file_kind(status.st_mode)}, not shared memory")
        if kind == "memfd":
            _check_seals(fd)
        elif fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY or status.st_nlink:
            raise BadSegment("the peer's POSIX segment must be unlinked and its fd opened read-only")
        if status.st_size != size:
            raise BadSegment(f"the peer's segment has {status.st_size} bytes, it declared {size}")
        if status.st_blocks * 512 < size:
            raise BadSegment(f"the peer's segment is sparse: {status.st_blocks * 512} of {size} bytes are allocated")
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, **_untracked())
    finally:
        os.close(fd)
    try:
        geometry.check_header(bytes(mapping[:HEADER_BYTES]))
    except BaseException:
        mapping.close()
        raise
    return Segment(mapping, None, kind, geometry)


def _check_seals(fd: int) -> None:
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadSegment("the peer's segment is a file that cannot be sealed, not a memfd") from error
    if missing := _seals() & ~seals:
        names = [
            name
            for name, bit in (
                ("F_SEAL_SHRINK", fcntl.F_SEAL_SHRINK),
                ("F_SEAL_GROW", fcntl.F_SEAL_GROW),
                ("F_SEAL_FUTURE_WRITE", _F_SEAL_FUTURE_WRITE),
                ("F_SEAL_SEAL", fcntl.F_SEAL_SEAL),
            )
            if missing & bit
        ]
        raise BadSegment(f"the peer's segment lacks the seals {', '.join(names)}")


def _file_kind(mode: int) -> str:
    names = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
    }
    return names.get(stat.S_IFMT(mode), "an object without a file type")


def _untracked() -> dict[str, Any]:
    """From Python 3.13 on a mapping need not keep a duplicate of its fd."""
    return {"trackfd": False} if sys.version_info >= (3, 13) else {}
