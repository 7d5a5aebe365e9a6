"""Segments: what the kernel enforces on the peer, what is refused before it is mapped, and who holds which fd."""

import ctypes
import errno
import fcntl
import gc
import mmap
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from closings import closings_over
from joined import LIMIT, SMALL, reattached, two_sides

from shmrpc.shm import segment
from shmrpc.shm.layout import HEADER_BYTES, PAGE, BadGeometry, Geometry
from shmrpc.shm.segment import BadSegment, Kind, Segment

SIZE = SMALL.segment_bytes
SEALS = {
    "F_SEAL_SHRINK": fcntl.F_SEAL_SHRINK,
    "F_SEAL_GROW": fcntl.F_SEAL_GROW,
    "F_SEAL_FUTURE_WRITE": 0x10,
    "F_SEAL_SEAL": fcntl.F_SEAL_SEAL,
}
kinds = pytest.mark.parametrize("kind", ["memfd", "posix"])
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def owned() -> Any:
    """A sealed segment of this process."""
    made = segment.create(SMALL, "memfd")
    yield made
    made.close()


def is_open(fd: int) -> bool:
    closings_over()
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def mapped() -> int:
    """How many mappings of segments this process has."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:shmrpc" in line or "/dev/shm/shmrpc" in line for line in maps)


# What both sides see


@kinds
def test_the_peer_sees_what_the_owner_writes(kind: Kind) -> None:
    with two_sides(kind=kind) as (left, right):
        left.own.mapping[5000:5003] = b"abc"
        assert right.peer.mapping[5000:5003] == b"abc"
        right.own.mapping[SIZE - 1 :] = b"z"
        assert left.peer.mapping[SIZE - 1 :] == b"z"


@kinds
def test_a_new_segment_has_its_header_and_zeros(kind: Kind) -> None:
    with two_sides(kind=kind) as (_, right):
        assert right.peer.mapping[:HEADER_BYTES] == SMALL.header()
        assert not any(right.peer.mapping[HEADER_BYTES:])


@kinds
def test_every_byte_is_allocated_and_nobody_else_may_open_it(kind: Kind) -> None:
    made = segment.create(SMALL, kind)
    status = os.fstat(made.fd)
    assert status.st_size == SIZE
    assert status.st_blocks * 512 >= SIZE
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert not os.get_inheritable(made.fd)
    made.close()


@kinds
def test_nothing_has_a_name_in_a_file_system(kind: Kind) -> None:
    before = set(os.listdir("/dev/shm"))
    made = segment.create(SMALL, kind)
    assert set(os.listdir("/dev/shm")) == before
    assert os.readlink(f"/proc/self/fd/{made.fd}").endswith("(deleted)")
    made.close()


# What the kernel refuses to whoever has the fd


def map_for_writing(fd: int) -> None:
    mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def reopen_and_map_for_writing(fd: int) -> None:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        map_for_writing(again)
    finally:
        os.close(again)


def punch_a_hole(fd: int) -> None:
    if _libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(PAGE)):  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        raise OSError(ctypes.get_errno(), "fallocate")


def add_a_seal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


ATTACKS: list[Callable[[int], object]] = [
    map_for_writing,
    reopen_and_map_for_writing,
    punch_a_hole,
    add_a_seal,
    lambda fd: os.pwrite(fd, b"x", 0),
    lambda fd: os.ftruncate(fd, PAGE),
    lambda fd: os.ftruncate(fd, SIZE + PAGE),
    lambda fd: os.posix_fallocate(fd, 0, SIZE + PAGE),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_kernel_keeps_the_peer_from_changing_a_sealed_segment(
    owned: Segment, attack: Callable[[int], object]
) -> None:
    with pytest.raises(PermissionError):
        attack(owned.fd)
    owned.mapping[100] = 7  # while its owner still writes
    assert owned.mapping[100] == 7


def test_a_mapping_of_the_peer_cannot_be_made_writable_later(owned: Segment) -> None:
    view = mmap.mmap(owned.fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    address = next(
        int(line.split("-")[0], 16)
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "memfd:shmrpc" in line and " r--s " in line
    )
    assert _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 3) == -1
    assert ctypes.get_errno() == errno.EACCES
    view.close()


def test_a_posix_segment_is_sent_with_an_fd_that_cannot_write() -> None:
    made = segment.create(SMALL, "posix")
    assert fcntl.fcntl(made.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(PermissionError):
        map_for_writing(made.fd)
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(made.fd, PAGE)
    made.close()


@kinds
def test_the_peers_mapping_is_read_only(kind: Kind) -> None:
    with two_sides(kind=kind) as (left, _), pytest.raises(TypeError):
        left.peer.mapping[0] = 1


# Making one where the system refuses


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_posix_memory_is_used_where_memfd_is_refused(monkeypatch: pytest.MonkeyPatch, refusal: int) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(refusal, "refused")

    monkeypatch.setattr(os, "memfd_create", refuse)
    made = segment.create(SMALL)
    assert made.kind == "posix"
    made.close()
    with pytest.raises(OSError, match="refused"):
        segment.create(SMALL, "memfd")


def test_a_lack_of_fds_is_no_reason_to_use_posix_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OSError, match="too many"):
        segment.create(SMALL)


def test_a_kernel_that_does_not_know_noexec_seals_is_asked_again_without(monkeypatch: pytest.MonkeyPatch) -> None:
    flags_asked = []
    memfd_create = os.memfd_create

    def old_kernel(name: str, flags: int) -> int:
        flags_asked.append(flags)
        if flags & 0x8:  # MFD_NOEXEC_SEAL
            raise OSError(errno.EINVAL, "what?")
        return memfd_create(name, flags)

    monkeypatch.setattr(os, "memfd_create", old_kernel)
    made = segment.create(SMALL)
    assert made.kind == "memfd"
    assert flags_asked == [os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | 0x8, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING]
    reattached(made).close()
    made.close()


@kinds
@pytest.mark.parametrize("step", ["ftruncate", "posix_fallocate"])
def test_a_machine_without_memory_costs_no_fd(monkeypatch: pytest.MonkeyPatch, kind: Kind, step: str) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no memory")

    monkeypatch.setattr(os, step, fail)
    fds = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no memory"):
        segment.create(SMALL, kind)
    assert os.listdir("/proc/self/fd") == fds


@kinds
def test_what_could_not_be_sealed_is_unmapped_though_somebody_keeps_the_error(
    monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    def fail(*_: object) -> int:
        raise PermissionError("no")

    monkeypatch.setattr(segment, "_finished", fail)
    with pytest.raises(PermissionError) as kept:
        segment.create(SMALL, kind)
    assert kept.tb is not None
    assert mapped() == 0


def test_a_geometry_that_cannot_work_is_not_made() -> None:
    with pytest.raises(BadGeometry):
        segment.create(Geometry(ring_bytes=5000))


# What attach refuses; each case hands over an fd, which must be closed


def memfd(contents: bytes, seals: int, flags: int = os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("test", flags)
    os.write(fd, contents)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL_SEALS = sum(SEALS.values())
GOOD = SMALL.header().ljust(SIZE, b"\0")


def file_without_seals(folder: Path) -> int:
    (folder / "file").write_bytes(GOOD)
    return os.open(folder / "file", os.O_RDWR)


def pipe() -> int:
    keep, close = os.pipe()
    os.close(close)
    return keep


def sparse() -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, SMALL.header(), 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, ALL_SEALS)
    return fd


REFUSED: dict[str, tuple[Callable[[Path], int], str]] = {
    "directory": (lambda folder: os.open(folder, os.O_RDONLY), "is '/.*', not shared memory"),
    "pipe": (lambda _: pipe(), r"is 'pipe:\[\d+\]', not shared memory"),
    "socket": (lambda _: socket.socket(socket.AF_UNIX).detach(), r"is 'socket:\[\d+\]', not shared memory"),
    "device": (lambda _: os.open("/dev/zero", os.O_RDWR), "is '/dev/zero', not shared memory"),
    "eventfd": (lambda _: os.eventfd(0), r"is 'anon_inode:\[eventfd\]', not shared memory"),
    "file": (file_without_seals, "is '/.*/file', not shared memory"),
    "unsealable memfd": (
        lambda _: memfd(GOOD, 0, 0),
        "lacks the seals F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE",
    ),
    "unsealed": (
        lambda _: memfd(GOOD, 0),
        "lacks the seals F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE, F_SEAL_SEAL",
    ),
    "too short": (lambda _: memfd(GOOD[:-PAGE], ALL_SEALS), f"has {SIZE - PAGE} bytes, it declared {SIZE}"),
    "too long": (lambda _: memfd(GOOD + bytes(PAGE), ALL_SEALS), f"has {SIZE + PAGE} bytes, it declared {SIZE}"),
    "sparse": (lambda _: sparse(), f"is sparse: {PAGE} of {SIZE} bytes are allocated"),
    "no header": (lambda _: memfd(bytes(SIZE), ALL_SEALS), "the segment begins with"),
    "other geometry": (
        lambda _: memfd(Geometry().header().ljust(SIZE, b"\0"), ALL_SEALS),
        "the segment's header says",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_declared_segment_is_refused_and_closed(case: str, tmp_path: Path) -> None:
    make, text = REFUSED[case]
    fd, before = make(tmp_path), mapped()
    with pytest.raises((BadSegment, BadGeometry), match=text):
        segment.attach(fd, SMALL, "memfd", max_segment_bytes=LIMIT)
    assert not is_open(fd)
    assert mapped() == before


@pytest.mark.parametrize("missing", SEALS)
def test_every_seal_is_needed(missing: str) -> None:
    fd = memfd(GOOD, ALL_SEALS & ~SEALS[missing])
    with pytest.raises(BadSegment, match=f"the peer's segment lacks the seals {missing}$"):
        segment.attach(fd, SMALL, "memfd", max_segment_bytes=LIMIT)
    assert not is_open(fd)


def test_more_seals_than_needed_are_welcome() -> None:
    fd = memfd(GOOD, ALL_SEALS | fcntl.F_SEAL_WRITE)
    segment.attach(fd, SMALL, "memfd", max_segment_bytes=LIMIT).close()


@pytest.mark.parametrize(
    ("geometry", "limit", "text"),
    [(SMALL, SIZE - 1, "the limit is"), (Geometry(ring_bytes=5000), LIMIT, "power of two")],
)
def test_sizes_are_checked_before_the_fd_is_looked_at(geometry: Geometry, limit: int, text: str) -> None:
    fd = memfd(GOOD, ALL_SEALS)
    with pytest.raises(BadGeometry, match=text):
        segment.attach(fd, geometry, "memfd", max_segment_bytes=limit)
    assert not is_open(fd)


@pytest.mark.parametrize(("flags", "linked"), [(os.O_RDWR, False), (os.O_RDONLY, True)])
def test_posix_memory_that_others_could_still_write_is_refused(tmp_path: Path, flags: int, linked: bool) -> None:
    file = tmp_path / "segment"
    file.write_bytes(GOOD)
    fd = os.open(file, flags)
    if not linked:
        file.unlink()
    with pytest.raises(BadSegment, match="must be unlinked and its fd opened read-only"):
        segment.attach(fd, SMALL, "posix", max_segment_bytes=LIMIT)
    assert not is_open(fd)


def test_an_fd_that_is_not_open_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        segment.attach(1 << 20, SMALL, "memfd", max_segment_bytes=LIMIT)


# Who holds what


@kinds
def test_the_peers_fd_is_closed_once_it_is_mapped(kind: Kind) -> None:
    made = segment.create(SMALL, kind)
    fd = os.dup(made.fd)
    far = segment.attach(fd, SMALL, kind, max_segment_bytes=LIMIT)
    assert not is_open(fd)
    assert far.mapping[:HEADER_BYTES] == SMALL.header()
    far.close()
    made.close()


@kinds
def test_the_mapping_outlives_the_fd_and_dies_with_the_segment(kind: Kind) -> None:
    before = mapped()
    made = segment.create(SMALL, kind)
    fd = made.fd
    made.drop_fd()
    made.drop_fd()
    assert not is_open(fd)
    made.mapping[100] = 1
    assert mapped() == before + 1
    made.close()
    made.close()
    assert mapped() == before


def test_a_view_keeps_the_memory_until_it_is_gone(owned: Segment) -> None:
    before = mapped()
    far = reattached(owned)
    owned.mapping[200:203] = b"old"
    view = memoryview(far.mapping)[200:203]
    far.close()
    del far
    gc.collect()
    assert mapped() == before + 1
    assert bytes(view) == b"old"
    del view
    gc.collect()
    assert mapped() == before


def test_what_is_seen_of_a_closed_segment_goes_with_its_last_view_whoever_keeps_the_segment(owned: Segment) -> None:
    before = mapped()
    far = reattached(owned)
    view = memoryview(far.mapping)[200:203]
    far.close()
    assert mapped() == before + 1
    del view
    assert mapped() == before
    with pytest.raises(ValueError, match="closed"):
        far.mapping[0]


def test_a_segment_says_what_it_is(owned: Segment) -> None:
    assert repr(owned) == f"<Segment own memfd {SIZE} bytes>"
    far = reattached(owned)
    assert repr(far) == f"<Segment mapped memfd {SIZE} bytes>"
    far.close()
