"""Extents: memory that grows a connection. How its pages come, what is refused of the peer's, and when it goes."""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_segment import ALL_SEALS, SEALS, is_open, mapped, memfd, pipe

from shmrpc.shm import segment
from shmrpc.shm.layout import PAGE
from shmrpc.shm.segment import BadSegment, Extent, Kind, PeerExtent

SIZE = 1 << 20
ODD = SIZE + 3 * PAGE  # a last step of the commit that is shorter
kinds = pytest.mark.parametrize("kind", ["memfd", "posix"])


@pytest.fixture
def extent() -> Iterator[Extent]:
    """One of this process's, not committed."""
    made = segment.create_extent(SIZE, "memfd")
    yield made
    made.close()


def attached(own: Extent, *, allow_posix: bool = True) -> PeerExtent:
    """What the peer makes of an extent."""
    return segment.attach_extent(os.dup(own.fd), own.nbytes, own.kind, allow_posix=allow_posix, max_bytes=own.nbytes)


def allocated(own: Extent) -> int:
    return os.fstat(own.fd).st_blocks * 512


# What both sides see


@kinds
def test_the_peer_sees_what_the_owner_writes_before_and_after_the_commit(kind: Kind) -> None:
    own = segment.create_extent(ODD, kind)
    own.mapping[5:8] = b"abc"
    own.commit()
    far = attached(own)
    own.mapping[ODD - 3 :] = b"xyz"
    assert far.mapping[:9] == b"\0\0\0\0\0abc\0"
    assert far.mapping[ODD - 4 :] == b"\0xyz"
    assert (far.nbytes, far.kind, len(far.mapping)) == (ODD, kind, ODD)
    far.close()
    own.close()


@kinds
def test_a_commit_allocates_every_page(kind: Kind) -> None:
    own = segment.create_extent(ODD, kind)
    own.commit()
    assert allocated(own) >= ODD
    assert os.fstat(own.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(own.fd)
    own.close()


def test_a_memfd_costs_no_memory_before_its_commit(extent: Extent) -> None:
    assert allocated(extent) == 0
    extent.commit()
    assert allocated(extent) >= SIZE


def test_posix_memory_is_allocated_at_once() -> None:
    """A hole in it would be a SIGBUS for who writes to it, where /dev/shm is full."""
    own = segment.create_extent(SIZE, "posix")
    assert allocated(own) >= SIZE
    own.close()


def test_a_commit_in_a_thread_leaves_alone_what_is_written_meanwhile(extent: Extent) -> None:
    committing = threading.Thread(target=extent.commit)
    committing.start()
    for offset in range(0, SIZE, PAGE):
        extent.mapping[offset : offset + 8] = offset.to_bytes(8, "little")
    committing.join()
    far = attached(extent)
    assert [int.from_bytes(far.mapping[offset : offset + 8], "little") for offset in range(0, SIZE, PAGE)] == list(
        range(0, SIZE, PAGE)
    )
    far.close()


def resident_pages(own: Extent) -> int:
    """Pages of the owner's mapping that it can touch without a fault."""
    maps = Path("/proc/self/smaps").read_text().split("memfd:shmrpc")[1]
    return int(maps.split("Rss:")[1].split()[0]) * 1024 // PAGE


def test_the_first_write_after_a_commit_costs_no_fault(extent: Extent) -> None:
    assert resident_pages(extent) == 0
    extent.commit()
    assert resident_pages(extent) == SIZE // PAGE


def test_a_kernel_that_cannot_fill_the_page_table_commits_all_the_same(
    extent: Extent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "_MADV_POPULATE_WRITE", 9999)  # Linux before 5.14 says EINVAL, as to this
    extent.commit()
    assert resident_pages(extent) == 0
    attached(extent).close()


def test_a_second_commit_changes_nothing(extent: Extent) -> None:
    extent.commit()
    fd = extent.fd
    extent.commit()
    assert extent.fd == fd
    attached(extent).close()


# What the kernel refuses to whoever has the fd


def test_what_is_committed_can_be_written_by_its_owner_alone(extent: Extent) -> None:
    extent.commit()
    with pytest.raises(PermissionError):
        mmap.mmap(extent.fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    for size in (PAGE, SIZE + PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(extent.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(extent.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    far = attached(extent)
    with pytest.raises(TypeError):
        far.mapping[0] = 1
    far.close()


def test_committed_posix_memory_is_sent_with_an_fd_that_cannot_write() -> None:
    own = segment.create_extent(SIZE, "posix")
    writable = own.fd
    own.commit()
    assert fcntl.fcntl(own.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert own.fd == writable or not is_open(writable)
    own.close()


# Making one where the system refuses


@pytest.mark.parametrize("nbytes", [0, -PAGE, 1, PAGE + 1])
def test_an_extent_of_crooked_size_is_not_made(nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"a positive multiple of 4096 bytes, not {nbytes}"):
        segment.create_extent(nbytes)


def refuse(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def test_posix_memory_is_used_where_memfd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", refuse(errno.EPERM))
    made = segment.create_extent(SIZE)
    assert made.kind == "posix"
    made.close()


@kinds
@pytest.mark.parametrize("step", ["fchmod", "ftruncate"])
def test_an_extent_that_cannot_be_made_costs_no_fd(monkeypatch: pytest.MonkeyPatch, kind: Kind, step: str) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, step, refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        segment.create_extent(SIZE, kind)
    assert os.listdir("/proc/self/fd") == before


def test_a_full_shm_folder_is_noticed_when_posix_memory_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "posix_fallocate", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        segment.create_extent(SIZE, "posix")
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_commit_without_memory_raises_and_leaves_something_to_close(
    extent: Extent, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fd, maps = extent.fd, mapped()
    monkeypatch.setattr(os, "posix_fallocate", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        extent.commit()
    extent.close()
    assert not is_open(fd)
    assert mapped() == maps - 1


class NoPageTable(mmap.mmap):
    """A mapping for whose page table there is no memory."""

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        raise OSError(errno.ENOMEM, "no page table")


def test_a_page_table_without_memory_fails_the_commit(extent: Extent) -> None:
    poor = Extent(NoPageTable(extent.fd, SIZE), os.dup(extent.fd), "memfd", SIZE)
    with pytest.raises(OSError, match="no page table"):
        poor.commit()
    assert not fcntl.fcntl(poor.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL
    poor.close()


# What attaching refuses; each case hands over an fd, which must be closed


def sparse() -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"x", 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, ALL_SEALS)
    return fd


def unsealed_file(folder: Path) -> int:
    (folder / "file").write_bytes(bytes(SIZE))
    return os.open(folder / "file", os.O_RDWR)


REFUSED: dict[str, tuple[Callable[[Path], int], str]] = {
    "directory": (lambda folder: os.open(folder, os.O_RDONLY), "the peer's extent is '/.*', not shared memory"),
    "pipe": (lambda _: pipe(), r"the peer's extent is 'pipe:\[\d+\]', not shared memory"),
    "file": (unsealed_file, "the peer's extent is '/.*/file', not shared memory"),
    "too short": (
        lambda _: memfd(bytes(SIZE - PAGE), ALL_SEALS),
        f"extent has {SIZE - PAGE} bytes, it declared {SIZE}",
    ),
    "too long": (lambda _: memfd(bytes(SIZE + PAGE), ALL_SEALS), f"extent has {SIZE + PAGE} bytes, it declared {SIZE}"),
    "sparse": (lambda _: sparse(), f"extent is sparse: {PAGE} of {SIZE} bytes are allocated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_declared_extent_is_refused_and_closed(case: str, tmp_path: Path) -> None:
    make, text = REFUSED[case]
    fd, before = make(tmp_path), mapped()
    with pytest.raises(BadSegment, match=text):
        segment.attach_extent(fd, SIZE, "memfd", allow_posix=False, max_bytes=SIZE)
    assert not is_open(fd)
    assert mapped() == before


@pytest.mark.parametrize("missing", SEALS)
def test_every_seal_is_needed(missing: str) -> None:
    fd = memfd(bytes(SIZE), ALL_SEALS & ~SEALS[missing])
    with pytest.raises(BadSegment, match=f"the peer's extent lacks the seals {missing}$"):
        segment.attach_extent(fd, SIZE, "memfd", allow_posix=False, max_bytes=SIZE)
    assert not is_open(fd)


@pytest.mark.parametrize("declared", [0, -PAGE, 5000, SIZE + PAGE, 1 << 62])
def test_a_declared_size_that_cannot_be_is_refused_before_the_fd_is_looked_at(declared: int) -> None:
    fd = pipe()
    with pytest.raises(BadSegment, match=f"has {declared} bytes, allowed are multiples of 4096 up to {SIZE}"):
        segment.attach_extent(fd, declared, "memfd", allow_posix=False, max_bytes=SIZE)
    assert not is_open(fd)


def test_an_extent_that_is_not_committed_is_refused(extent: Extent) -> None:
    with pytest.raises(BadSegment, match="lacks the seals"):
        attached(extent)


def test_posix_memory_is_accepted_only_by_who_has_to_use_it_too() -> None:
    own = segment.create_extent(SIZE, "posix")
    own.commit()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BadSegment, match="the peer's extent is POSIX shared memory, which cannot be sealed"):
        attached(own, allow_posix=False)
    assert os.listdir("/proc/self/fd") == before
    attached(own, allow_posix=True).close()
    own.close()


def test_posix_memory_that_could_still_be_written_is_refused() -> None:
    own = segment.create_extent(SIZE, "posix")
    with pytest.raises(BadSegment, match="the peer's POSIX extent must be unlinked and its fd opened read-only"):
        attached(own)
    own.close()


# Who holds what


@kinds
def test_the_memory_goes_when_both_sides_have_closed_it(kind: Kind) -> None:
    before = mapped()
    own = segment.create_extent(SIZE, kind)
    own.commit()
    far = attached(own)
    fd = own.fd
    own.drop_fd()
    assert not is_open(fd)
    own.mapping[0] = 7
    own.close()
    own.close()
    assert far.mapping[0] == 7
    assert mapped() == before + 1
    far.close()
    far.close()
    assert mapped() == before


@pytest.mark.parametrize("side", ["own", "peer"])
def test_a_view_keeps_the_memory_until_it_is_gone(side: str) -> None:
    before = mapped()
    own = segment.create_extent(SIZE)
    own.commit()
    far = attached(own)
    own.mapping[100:103] = b"old"
    view = memoryview((own if side == "own" else far).mapping)[100:103]
    own.close()
    far.close()
    del own, far
    assert mapped() == before + 1
    assert bytes(view) == b"old"
    view.release()
    assert mapped() == before


def test_an_extent_says_what_it_is(extent: Extent) -> None:
    assert repr(extent) == f"<Extent own memfd {SIZE} bytes>"
    extent.commit()
    far = attached(extent)
    assert repr(far) == f"<PeerExtent mapped memfd {SIZE} bytes>"
    far.close()
