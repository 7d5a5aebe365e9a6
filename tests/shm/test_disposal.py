"""Closing what a peer sent: at once where it cannot take long, and in a thread where it can."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from closings import closings_over

from shmrpc.shm import disposal


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def writing_end() -> int:
    ends = os.pipe()
    os.close(ends[0])
    return ends[1]


@pytest.mark.parametrize(
    "make",
    [lambda: os.memfd_create("test"), lambda: os.eventfd(0), writing_end],
    ids=["a memfd", "an eventfd", "a pipe"],
)
def test_what_a_peer_should_send_is_closed_at_once(make: Callable[[], int]) -> None:
    fd = make()
    disposal.put_away(fd)
    assert not is_open(fd)
    assert disposal.closing() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: os.open(folder, os.O_RDONLY),
        lambda folder: os.open(folder, os.O_PATH),
        lambda folder: os.open(folder / "memfd:x (deleted)", os.O_RDWR | os.O_CREAT),
        lambda folder: socket.socket(socket.AF_INET).detach(),
        lambda folder: socket.socket(socket.AF_UNIX).detach(),
        lambda folder: os.pidfd_open(os.getpid()),
    ],
    ids=["a folder", "a path", "a file", "a socket of TCP", "a Unix socket", "a pidfd"],
)
def test_everything_else_is_closed_in_a_thread(
    make: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closes: list[Callable[[], None]] = []
    monkeypatch.setattr(disposal, "_in_a_thread", closes.append)
    fd = make(tmp_path)
    disposal.put_away(fd)
    assert is_open(fd)
    closes[0]()
    assert not is_open(fd)


def test_threads_are_counted_until_they_have_ended() -> None:
    near, far = os.pipe()
    disposal._in_a_thread(lambda: os.close(near) if os.read(near, 1) else None)
    assert disposal.closing() == 1
    os.write(far, b"x")
    closings_over()
    assert disposal.closing() == 0
    os.close(far)


def test_where_no_thread_can_be_had_it_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    fd = os.pidfd_open(os.getpid())
    disposal.put_away(fd)
    assert not is_open(fd)
    assert disposal.closing() == 0


def test_without_proc_an_eventfd_and_a_pipe_are_known_by_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    def readlink(path: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "readlink", readlink)
    kinds = {"eventfd": os.eventfd(0), "pipe": writing_end(), "memfd": os.memfd_create("x"), "pidfd": os.pidfd_open(1)}
    assert [kind for kind, fd in kinds.items() if disposal.is_eventfd(fd)] == ["eventfd"]
    assert [kind for kind, fd in kinds.items() if disposal.is_pipe(fd)] == ["pipe"]
    for fd in kinds.values():
        disposal.put_away(fd)  # in threads, but for the memfd
    closings_over()
    monkeypatch.undo()
    assert not any(map(is_open, kinds.values()))


def test_an_fd_that_is_not_open_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        disposal.put_away(1 << 20)


def test_a_socket_is_hung_up_and_closed() -> None:
    near, far = socket.socketpair()
    disposal.put_away_socket(near)
    assert near.fileno() == -1
    assert far.recv(1) == b""
    assert disposal.closing() == 0
    far.close()


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["in band", "out of band"])
def test_a_socket_that_nobody_has_read_is_closed_in_a_thread(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    closes: list[Callable[[], None]] = []
    monkeypatch.setattr(disposal, "_in_a_thread", closes.append)
    near, far = socket.socketpair()
    fd = near.fileno()
    far.send(b"x", flags)
    disposal.put_away_socket(near)
    assert far.recv(1) == b""  # hung up already
    with pytest.raises(BrokenPipeError):
        far.send(b"y")
    assert is_open(fd)
    closes[0]()
    assert not is_open(fd)
    far.close()


def test_a_socket_that_is_connected_to_nobody_is_closed() -> None:
    sock = socket.socket(socket.AF_UNIX)
    disposal.put_away_socket(sock)
    assert sock.fileno() == -1
    disposal.put_away_socket(sock)
    closings_over()


def test_bytes_out_of_band_arrive_in_their_place() -> None:
    near, far = socket.socketpair()
    with near, far:
        disposal.receive_all(near)
        far.send(b"ab")
        far.send(b"c", socket.MSG_OOB)
        far.send(b"de")
        got = b""
        while len(got) < 5:
            got += near.recv(5, socket.MSG_DONTWAIT)
        assert got == b"abcde"
