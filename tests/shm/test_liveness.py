"""Who the peer is, by the kernel's word, and the watch on its process."""

import asyncio
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from life_waiting import until

from shmrpc.context import Peer
from shmrpc.shm import liveness
from shmrpc.shm.liveness import ProcessWatch

ME = Peer(os.getpid(), os.getuid(), os.getgid())
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that runs until its standard input ends."""
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def open_pidfd(pid: int) -> int:
    pidfd = liveness.open_pidfd(Peer(pid, 0, 0), None)
    assert pidfd is not None
    return pidfd


def test_the_kernel_names_the_process_at_the_other_end() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert liveness.peer_of(left) == ME


def test_the_kernel_names_the_sender_of_a_message() -> None:
    left, right = socket.socketpair()
    with left, right:
        right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        left.send(b"x")
        _, [(level, kind, packed)], _, _ = right.recvmsg(1, socket.CMSG_SPACE(liveness.UCRED_BYTES))
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        assert liveness.unpack_credentials(packed) == ME


def test_an_identity_is_the_same_for_all_sockets_of_a_process_and_for_no_other(path: str) -> None:
    """It tells others apart; of this process there is nothing to tell."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connect = "import socket, sys; kept = [socket.socket(socket.AF_UNIX) for _ in '12']"
        command = [sys.executable, "-c", f"{connect}; [each.connect({path!r}) for each in kept]; sys.stdin.read()"]
        processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2)]
        accepted = [listener.accept()[0] for _ in range(4)]
        seen: dict[int, list[object]] = {process.pid: [] for process in processes}
        for sock in accepted:
            seen[liveness.peer_of(sock).pid].append(liveness.identity_of(sock))
            sock.close()
        for process in processes:
            process.communicate()
        with socket.socket(socket.AF_UNIX) as mine:
            mine.connect(path)
            assert liveness.identity_of(mine) is None
    (first, again), (second, once_more) = seen.values()
    if first is None:
        pytest.skip("this kernel is older than 6.9, all of its pidfds have one inode")
    assert first == again != second == once_more


def test_credentials_with_room_behind_them_are_read() -> None:
    assert liveness.unpack_credentials(struct.pack("iII", 1, 2, 3) + b"padding") == Peer(1, 2, 3)


def test_the_pidfd_of_a_socket_is_that_of_its_other_end() -> None:
    left, right = socket.socketpair()
    with left, right:
        pidfd = liveness.open_pidfd(Peer(-1, 0, 0), left)  # whatever is said of the pid
        if pidfd is None:
            pytest.skip("this kernel has no SO_PEERPIDFD")
        assert not os.get_inheritable(pidfd)
        signal.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)


def test_a_process_that_is_gone_has_no_pidfd(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    assert liveness.open_pidfd(Peer(child.pid, 0, 0), None) is None


@pytest.mark.parametrize("by_pid", [True, False])
def test_that_there_is_no_room_for_a_pidfd_is_not_taken_for_a_peer_without_one(by_pid: bool) -> None:
    left, right = socket.socketpair(socket.AF_UNIX)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with left, right:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                liveness.open_pidfd(Peer(os.getpid(), 0, 0), None if by_pid else left)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("pid", [0, -1])
def test_a_process_that_cannot_be_seen_has_no_pidfd(pid: int) -> None:
    assert liveness.open_pidfd(Peer(pid, 0, 0), None) is None


async def test_an_exit_is_told_once_and_the_pidfd_closed(child: "subprocess.Popen[bytes]") -> None:
    exits: list[None] = []
    pidfd = open_pidfd(child.pid)
    watch = ProcessWatch(asyncio.get_running_loop(), pidfd, lambda: exits.append(None))
    assert repr(watch) == f"<ProcessWatch pidfd={pidfd}>"
    child.kill()
    await until(lambda: exits, "the exit to be told")
    assert repr(watch) == "<ProcessWatch over>"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    watch.close()
    await asyncio.sleep(0)
    assert exits == [None]


async def test_a_process_that_died_before_it_was_watched_is_told_too(child: "subprocess.Popen[bytes]") -> None:
    exits: list[None] = []
    pidfd = open_pidfd(child.pid)
    child.kill()
    child.wait()
    ProcessWatch(asyncio.get_running_loop(), pidfd, lambda: exits.append(None))
    await until(lambda: exits, "the exit to be told")


async def test_a_process_that_stands_still_is_not_dead(child: "subprocess.Popen[bytes]") -> None:
    exits: list[None] = []
    watch = ProcessWatch(asyncio.get_running_loop(), open_pidfd(child.pid), lambda: exits.append(None))
    child.send_signal(signal.SIGSTOP)
    await until(lambda: os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG), "the child to stop")
    for _ in range(10):
        await asyncio.sleep(0)
    assert not exits
    watch.close()


async def test_after_the_watch_is_closed_nothing_is_told(child: "subprocess.Popen[bytes]") -> None:
    exits: list[None] = []
    watch = ProcessWatch(asyncio.get_running_loop(), open_pidfd(child.pid), lambda: exits.append(None))
    watch.close()
    watch.close()
    child.kill()
    child.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not exits


async def test_a_forked_child_closes_its_copy_without_the_parents_loop() -> None:
    loop = asyncio.get_running_loop()
    pidfd = open_pidfd(os.getpid())
    watch = ProcessWatch(loop, pidfd, lambda: None)
    kept = os.dup(pidfd)
    watch.forget()
    watch.forget()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    os.dup2(kept, pidfd)  # the parent's loop still has it: here both are one process
    assert loop.remove_reader(pidfd)
    os.close(pidfd)
    os.close(kept)


async def test_a_pidfd_that_cannot_be_watched_is_closed() -> None:
    class Full:
        """A loop whose system refuses to watch one more fd."""

        def add_reader(self, *_: object) -> None:
            raise OSError("no more")

    pidfd = open_pidfd(os.getpid())
    loop: Any = Full()
    with pytest.raises(OSError, match="no more"):
        ProcessWatch(loop, pidfd, lambda: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
