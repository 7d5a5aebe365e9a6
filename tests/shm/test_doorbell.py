"""Doorbells: they wake another process, and no peer can make a ring, or its clearing, block."""

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from closings import closings_over

from shmrpc.shm import doorbell
from shmrpc.shm.doorbell import BadDoorbell, Doorbell, Kind, Ringer

KINDS: list[Kind] = ["eventfd", "pipe"]
PATIENCE = 20.0


@pytest.fixture(params=KINDS)
def bell(request: pytest.FixtureRequest) -> Iterator[Doorbell]:
    """A sleeper's doorbell of each kind, silent."""
    made = Doorbell(request.param)
    yield made
    made.close()


@pytest.fixture
def ringer(bell: Doorbell) -> Iterator[Ringer]:
    """Its ringer; the fd that the sleeper sent is still open here, as a hostile sleeper would keep it."""
    made = doorbell.open_ringer(os.dup(bell.far_fd), bell.kind)
    bell.clear()
    yield made
    made.close()


def rung(bell: Doorbell, seconds: float = 0) -> bool:
    """Whether a sleeper would wake."""
    return bool(select.select([bell.fd], [], [], seconds)[0])


def saturate(bell: Doorbell) -> None:
    """Rings until no ring fits any more."""
    os.set_blocking(bell.far_fd, False)
    if bell.kind == "eventfd":
        os.eventfd_write(bell.far_fd, 2**64 - 2)
        return
    try:
        while True:
            os.write(bell.far_fd, bytes(4096))
    except BlockingIOError:
        pass


def assert_returns(action: Callable[[], object], rescue: Callable[[], object]) -> None:
    """Runs an action that must not block; one that does is rescued, so that the test can fail."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    blocked = thread.is_alive()
    if blocked:
        rescue()
        thread.join()
    assert not blocked, f"{action} blocked"


def is_open(fd: int) -> bool:
    closings_over()
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# Ringing


def test_a_ring_wakes_the_sleeper_until_it_is_cleared(bell: Doorbell, ringer: Ringer) -> None:
    assert not rung(bell)
    ringer.ring()
    assert rung(bell)
    bell.clear()
    assert not rung(bell)


def test_many_rings_are_one_waking(bell: Doorbell, ringer: Ringer) -> None:
    for _ in range(1000):
        ringer.ring()
    bell.clear()
    assert not rung(bell)


def test_clearing_a_silent_doorbell_returns_at_once(bell: Doorbell) -> None:
    bell.clear()
    assert not rung(bell)


@pytest.mark.parametrize("kind", KINDS)
def test_clearing_says_when_nobody_can_ring_any_more(kind: Kind) -> None:
    bell = Doorbell(kind)
    ringer = doorbell.open_ringer(os.dup(bell.far_fd), kind)
    bell.clear()
    assert bell.clear()
    ringer.ring()
    bell.drop_far_fd()
    ringer.close()
    assert bell.clear()  # the last ring is still heard
    assert bell.clear() == (kind == "eventfd")  # of which there is but one end
    bell.close()


def test_a_ring_of_a_saturated_doorbell_returns_and_the_sleeper_wakes(bell: Doorbell, ringer: Ringer) -> None:
    saturate(bell)
    assert_returns(ringer.ring, bell.clear)
    assert rung(bell)
    bell.clear()
    assert not rung(bell)
    ringer.ring()
    assert rung(bell)


@pytest.mark.parametrize("bell", ["pipe"], indirect=True)
def test_a_sleeper_that_makes_its_pipe_blocking_cannot_freeze_the_ringer(bell: Doorbell, ringer: Ringer) -> None:
    saturate(bell)
    os.set_blocking(bell.far_fd, True)  # the description that the ringer's fd shares
    assert_returns(ringer.ring, bell.clear)


@pytest.mark.parametrize("bell", ["pipe"], indirect=True)
def test_a_ringer_that_makes_its_pipe_blocking_cannot_freeze_the_sleeper(bell: Doorbell) -> None:
    os.set_blocking(bell.far_fd, True)
    reading = os.open(f"/proc/self/fd/{bell.far_fd}", os.O_RDONLY)  # even through the other end
    assert_returns(bell.clear, lambda: os.write(bell.far_fd, b"x"))
    os.close(reading)


def test_the_kind_that_a_peer_could_block_is_not_for_other_users() -> None:
    assert doorbell.choose("auto", same_uid=True) == "eventfd"
    assert doorbell.choose("auto", same_uid=False) == "pipe"
    assert doorbell.choose("pipe", same_uid=True) == "pipe"


def test_a_machine_without_eventfd_uses_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "HAS_EVENTFD", False)
    assert doorbell.choose("auto", same_uid=True) == "pipe"


def test_a_ring_for_one_who_is_gone_is_nothing() -> None:
    bell = Doorbell("pipe")
    ringer = doorbell.open_ringer(os.dup(bell.far_fd), "pipe")
    bell.close()
    ringer.ring()
    ringer.close()


# What a peer may hand over


def closed_pipe(keep: int) -> int:
    ends = os.pipe()
    os.close(ends[1 - keep])
    return ends[keep]


def writable_socket() -> int:
    left, right = socket.socketpair()
    right.close()
    return left.detach()


def fifo(folder: Path) -> int:
    os.mkfifo(folder / "fifo")
    return os.open(folder / "fifo", os.O_RDWR)


WRONG: dict[str, tuple[Kind, Callable[[Path], int]]] = {
    "a pipe as an eventfd": ("eventfd", lambda _: closed_pipe(1)),
    "a socket as an eventfd": ("eventfd", lambda _: socket.socket(socket.AF_UNIX).detach()),
    "a file as an eventfd": ("eventfd", lambda folder: os.open(folder / "file", os.O_RDWR | os.O_CREAT)),
    "a memfd as an eventfd": ("eventfd", lambda _: os.memfd_create("anon_inode:[eventfd]")),
    "a pidfd as an eventfd": ("eventfd", lambda _: os.pidfd_open(os.getpid())),
    "an eventfd as a pipe": ("pipe", lambda _: os.eventfd(0)),
    "a socket as a pipe": ("pipe", lambda _: writable_socket()),
    "a file as a pipe": ("pipe", lambda folder: os.open(folder / "file", os.O_RDWR | os.O_CREAT)),
    "a memfd as a pipe": ("pipe", lambda _: os.memfd_create("pipe")),
    "a directory as a pipe": ("pipe", lambda folder: os.open(folder, os.O_RDONLY)),
    "the wrong end of a pipe": ("pipe", lambda _: closed_pipe(0)),
    "a pipe with a name": ("pipe", fifo),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_the_declared_doorbell_is_refused_and_closed(case: str, tmp_path: Path) -> None:
    kind, make = WRONG[case]
    fd = make(tmp_path)
    with pytest.raises(BadDoorbell, match="the peer's doorbell"):
        doorbell.open_ringer(fd, kind)
    assert not is_open(fd)


def test_a_pipe_that_cannot_be_rung_is_closed_so_that_the_sleeper_wakes_and_knows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bell = Doorbell("pipe")
    ringer = doorbell.open_ringer(os.dup(bell.far_fd), "pipe")
    bell.drop_far_fd()
    bell.clear()
    assert not rung(bell)

    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(os, "pwritev", fail)
    ringer.ring()
    assert rung(bell)
    assert not bell.clear()
    assert "a doorbell cannot be rung, and its connection ends: [Errno 12]" in caplog.text
    monkeypatch.undo()
    ringer.ring()
    ringer.close()
    bell.close()


def test_a_pipe_whose_mode_cannot_be_set_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check for leaks sees whether it is."""

    def fail(*_: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "fchmod", fail)
    with pytest.raises(PermissionError):
        Doorbell("pipe")


def refuse_nowait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pipes behave as they do before Linux 6.4: RWF_NOWAIT is not known there."""
    pwritev = os.pwritev

    def write(fd: int, buffers: tuple[bytes, ...], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", write)


def test_on_an_old_kernel_a_pipe_is_reopened_so_that_nobody_else_can_make_it_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_nowait(monkeypatch)
    bell = Doorbell("pipe")
    far = os.dup(bell.far_fd)
    ringer = doorbell.open_ringer(far, "pipe")
    os.set_blocking(bell.far_fd, True)  # the sleeper has kept a copy

    def fill() -> None:
        for _ in range(70_000):
            ringer.ring()

    assert_returns(fill, bell.clear)
    assert rung(bell)
    ringer.close()
    bell.close()


def test_on_an_old_kernel_a_peer_of_another_uid_may_reopen_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    bell = Doorbell("pipe")
    assert os.fstat(bell.far_fd).st_mode & 0o022 == 0o022
    bell.close()


def test_a_blocking_eventfd_is_made_non_blocking() -> None:
    fd = os.eventfd(0)
    os.eventfd_write(fd, 2**64 - 2)
    ringer = doorbell.open_ringer(fd, "eventfd")
    assert_returns(ringer.ring, lambda: os.eventfd_read(fd))
    ringer.close()


# Fds


def test_every_fd_is_close_on_exec_and_closed_at_the_end(bell: Doorbell) -> None:
    made = Doorbell(bell.kind)
    fds = {made.fd, made.far_fd}
    assert len(fds) == (1 if bell.kind == "eventfd" else 2)
    assert not any(map(os.get_inheritable, fds))
    assert not any(map(os.get_blocking, fds))
    made.close()
    assert not any(map(is_open, fds))


def test_the_far_end_of_a_pipe_is_dropped_once_it_was_sent(bell: Doorbell) -> None:
    far = bell.far_fd
    bell.drop_far_fd()
    bell.drop_far_fd()
    assert is_open(far) == (bell.kind == "eventfd")
    assert is_open(bell.fd)


def test_it_says_what_it_is(bell: Doorbell) -> None:
    assert repr(bell) == f"<Doorbell {bell.kind} fd={bell.fd}>"


# Across processes

RINGING_CHILD = """
import sys
from shmrpc.shm.doorbell import open_ringer
ringer = open_ringer(int(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
sys.stdin.read(1)
ringer.ring()
"""


def test_a_ring_wakes_another_process(bell: Doorbell) -> None:
    command = [sys.executable, "-c", RINGING_CHILD, str(bell.far_fd), bell.kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[bell.far_fd]) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        bell.clear()  # opening it may have rung it
        assert not rung(bell)
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert rung(bell, PATIENCE)
    assert child.returncode == 0
