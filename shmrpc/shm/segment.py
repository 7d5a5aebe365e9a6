"""Segments: shared mappings with one writer each. The only file that makes, seals, checks and maps shared memory.

The owner creates a segment, maps it read-write, fills it and seals it, so that the kernel lets nobody map it writable
again nor change its size. The peer checks the fd before it maps it read-only. Two kinds: a sealed memfd, and, where the
system refuses memfd, POSIX shared memory that is unlinked at once; the second cannot be sealed, so an endpoint accepts
it from a peer only if it has to use it itself.

An extent is a further segment of a connection, for what the slab of the first one is too small for. It has no header: all
of it is payload. Its pages are made in a step of their own, `Extent.commit`, which takes long and can be left to a thread.
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

from shmrpc.shm import disposal
from shmrpc.shm.layout import HEADER_BYTES, PAGE, Geometry

Kind = Literal["memfd", "posix"]

# Linux numbers that Python 3.11 does not name (linux/fcntl.h, linux/memfd.h).
_F_SEAL_FUTURE_WRITE: Final = 0x10
_MFD_NOEXEC_SEAL: Final = 0x8
_MADV_POPULATE_WRITE: Final = 23  # asm-generic/mman-common.h, Linux 5.14
_SHM_FOLDER: Final = "/dev/shm"
_COMMIT_STEP: Final = 256 * 1024
"""Bytes. An madvise keeps the other threads of Python waiting, some 60 us for so much; a long fallocate, where signals
come often, is interrupted and begins again."""


class BadSegment(ValueError):
    """An fd of the peer that is not the segment that it declared."""


CLOSED: Final = mmap.mmap(-1, PAGE)
"""Stands for a mapping that was let go of."""
CLOSED.close()


class _Mapped:
    """One mapping. Its memory goes when it is closed and no view of it is left."""

    def __init__(self, mapping: mmap.mmap, fd: int | None, kind: Kind, nbytes: int) -> None:
        self.mapping = mapping
        self.kind: Final[Kind] = kind
        self.nbytes: Final = nbytes
        self._fd = fd

    def __repr__(self) -> str:
        role = "own" if self._fd is not None else "mapped"
        return f"<{type(self).__name__} {role} {self.kind} {self.nbytes} bytes>"

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

    @property
    def closed(self) -> bool:
        """Whether it is unmapped: not while somebody holds a view of it."""
        return self.mapping.closed


class Segment(_Mapped):
    """The base segment of one side of a connection, which has a header that says its geometry."""

    def __init__(self, mapping: mmap.mmap, fd: int | None, kind: Kind, geometry: Geometry) -> None:
        super().__init__(mapping, fd, kind, geometry.segment_bytes)
        self.geometry: Final = geometry

    def close(self) -> None:
        """Unmaps. What somebody still sees goes with its last view, however long others keep this object."""
        super().close()
        self.mapping = CLOSED


class PeerExtent(_Mapped):
    """An extent of the peer's, mapped read-only."""


class Extent(_Mapped):
    """An extent of this side's, mapped read-write. Its fd may be sent once it is committed."""

    _committed = False

    def commit(self) -> None:
        """Gives it all its pages and seals it. Leaves alone what was written into it. Idempotent.

        May run in a thread: it holds the interpreter for fractions of a millisecond only. Until it has ended, the extent
        may be written, but not closed.

        Raises:
            OSError: the system has not the memory. The extent can only be closed then.
        """
        if self._committed:
            return
        for offset in range(0, self.nbytes, _COMMIT_STEP):
            step = min(_COMMIT_STEP, self.nbytes - offset)
            os.posix_fallocate(self.fd, offset, step)
            # Pages in the page table too: otherwise the first write to each costs a fault.
            try:
                self.mapping.madvise(_MADV_POPULATE_WRITE, offset, step)
            except OSError as error:
                if error.errno != errno.EINVAL:  # an older kernel: the faults come later
                    raise
        self._fd = _finished(self.fd, self.kind)
        self._committed = True


def _seals() -> int:
    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE


def create(geometry: Geometry, kind: Literal["auto", "memfd", "posix"] = "auto") -> Segment:
    """A new segment, filled, sealed and mapped read-write.

    Raises:
        OSError: the system refuses the memory.
        BadGeometry: the sizes cannot work.
    """
    geometry.check()
    fd, made = _new_fd(kind)
    mapping: mmap.mmap | None = None
    try:
        mapping = _map_own(fd, geometry.segment_bytes, allocate=True)
        mapping[:HEADER_BYTES] = geometry.header()
        fd = _finished(fd, made)
    except BaseException:
        if mapping is not None:  # the error, which somebody may keep, has it among its frames
            mapping.close()
        os.close(fd)
        raise
    return Segment(mapping, fd, made, geometry)


def create_extent(nbytes: int, kind: Literal["auto", "memfd", "posix"] = "auto") -> Extent:
    """A new extent of this side's, of a multiple of 4096 bytes, mapped read-write. Quick, but for POSIX shared memory.

    Raises:
        OSError: the system refuses the memory.
    """
    if nbytes <= 0 or nbytes % PAGE:
        raise ValueError(f"an extent has a positive multiple of {PAGE} bytes, not {nbytes}")
    fd, made = _new_fd(kind)
    try:
        # A hole in a memfd is filled when it is written to. The file system of POSIX memory may have no room then.
        mapping = _map_own(fd, nbytes, allocate=made == "posix")
    except BaseException:
        os.close(fd)
        raise
    return Extent(mapping, fd, made, nbytes)


def _map_own(fd: int, size: int, *, allocate: bool) -> mmap.mmap:
    os.fchmod(fd, 0o600)
    os.ftruncate(fd, size)
    if allocate:
        os.posix_fallocate(fd, 0, size)  # ftruncate alone leaves holes, and a hole is a SIGBUS later
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, **_untracked())


def _finished(fd: int, kind: Kind) -> int:
    """The fd to send, after which nobody else can write: the same one sealed, or one that only reads; closes the other."""
    if kind == "memfd":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _seals())
        return fd
    read_only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(fd)
    return read_only


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
        mapping = _map_peers(fd, geometry.segment_bytes, kind, "segment")
    finally:
        disposal.put_away(fd)
    try:
        geometry.check_header(bytes(mapping[:HEADER_BYTES]))
    except BaseException:
        mapping.close()
        raise
    return Segment(mapping, None, kind, geometry)


def attach_extent(fd: int, nbytes: int, kind: Kind, *, allow_posix: bool, max_bytes: int) -> PeerExtent:
    """Checks the fd of a peer's extent, maps it read-only and closes the fd, also when the check fails.

    Raises:
        BadSegment: the fd is not the sealed, full extent that the peer declared, or that is too large.
        OSError: the system refuses the mapping.
    """
    try:
        if not 0 < nbytes <= max_bytes or nbytes % PAGE:
            raise BadSegment(f"the peer's extent has {nbytes} bytes, allowed are multiples of {PAGE} up to {max_bytes}")
        if kind == "posix" and not allow_posix:
            raise BadSegment("the peer's extent is POSIX shared memory, which cannot be sealed")
        mapping = _map_peers(fd, nbytes, kind, "extent")
    finally:
        disposal.put_away(fd)
    return PeerExtent(mapping, None, kind, nbytes)


def _map_peers(fd: int, size: int, kind: Kind, what: str) -> mmap.mmap:
    if kind == "memfd":
        # First: this asks the kernel alone, while fstat would ask whatever file system the peer has found, and wait for it.
        _check_seals(fd, what)
        _drop_pages_behind_the_end(fd, size, what)
    status = os.fstat(fd)
    if kind == "posix" and (
        not stat.S_ISREG(status.st_mode)
        or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        or status.st_nlink
    ):
        raise BadSegment(f"the peer's POSIX {what} must be unlinked and its fd opened read-only")
    if status.st_size != size:
        raise BadSegment(f"the peer's {what} has {status.st_size} bytes, it declared {size}")
    if status.st_blocks * 512 < size:
        raise BadSegment(f"the peer's {what} is sparse: {status.st_blocks * 512} of {size} bytes are allocated")
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, **_untracked())


def _drop_pages_behind_the_end(fd: int, size: int, what: str) -> None:
    """Else they count as allocated, and make a sparse memfd look full. That it has this size is checked afterwards."""
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EBADF):
            raise BadSegment(f"the peer's {what} must be open for reading and writing: {error.strerror}") from None
        if error.errno != errno.EPERM:  # else it has another size, and is sealed
            raise


def _check_seals(fd: int, what: str) -> None:
    seals = disposal.seals_of(fd)
    if seals is None:
        raise BadSegment(f"the peer's {what} is {disposal.target_of(fd)!r}, not shared memory")
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
        raise BadSegment(f"the peer's {what} lacks the seals {', '.join(names)}")


def _untracked() -> dict[str, Any]:
    """From Python 3.13 on a mapping need not keep a duplicate of its fd."""
    return {"trackfd": False} if sys.version_info >= (3, 13) else {}
