"""Frames: how a body and its fds come through a socket, whole, in pieces, or not at all."""

import array
import asyncio
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmrpc.shm import frames, liveness
from shmrpc.shm.frames import BadFrame, Frame


class Ends:
    """Two ends of a connection, and an fd to send."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.far.setblocking(False)
        self.gift, self.other = os.pipe()

    def close(self) -> None:
        self.near.close()
        self.far.close()
        os.close(self.gift)
        os.close(self.other)

    def say(self, said: bytes, fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.far.sendmsg([said], rights) == len(said)


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def new(*, longest: int = 100, most_fds: int = 2) -> Frame:
    return Frame("greeting", longest=longest, most_fds=most_fds)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def same(left: int, right: int) -> bool:
    return os.path.sameopenfile(left, right)


def test_a_frame_is_magic_length_and_body() -> None:
    assert frames.pack(b"body") == b"SHMR\x04\0\0\0body"


def test_a_frame_brings_its_body_and_its_fds(ends: Ends) -> None:
    ends.say(frames.pack(b"hello"), [ends.gift, ends.other])
    frame = new()
    assert frame.receive_nowait(ends.near) == b"hello"
    fds = frame.take_fds(2)
    assert [same(fds[0], ends.gift), same(fds[1], ends.other)] == [True, True]
    assert [os.get_inheritable(fd) for fd in fds] == [False, False]
    for fd in fds:
        os.close(fd)


def test_an_empty_body_is_a_body(ends: Ends) -> None:
    ends.say(frames.pack(b""))
    assert new().receive_nowait(ends.near) == b""


def test_a_frame_takes_nothing_of_the_next_one(ends: Ends) -> None:
    ends.say(frames.pack(b"one") + frames.pack(b"two"))
    assert [new().receive_nowait(ends.near), new().receive_nowait(ends.near)] == [b"one", b"two"]


def test_a_frame_in_single_bytes_is_complete_with_the_last_one(ends: Ends) -> None:
    whole, frame = frames.pack(b"hello"), new()
    for at, byte in enumerate(whole):
        with pytest.raises(BlockingIOError):
            frame.receive_nowait(ends.near)
        ends.say(bytes((byte,)), [ends.gift] if at == 0 else None)
    assert frame.receive_nowait(ends.near) == b"hello"
    for fd in frame.take_fds(1):
        os.close(fd)


def test_who_sent_it_is_known_where_the_socket_asks(ends: Ends) -> None:
    ends.near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ends.say(frames.pack(b"me"), [ends.gift])
    frame = new()
    assert frame.receive_nowait(ends.near) == b"me"
    assert frame.sender is not None
    assert (frame.sender.pid, frame.sender.uid) == (os.getpid(), os.getuid())
    frame.close()


def pidfd_of(frame: Frame) -> str | None:
    """What process the frame's pidfd is of, as the kernel says."""
    if (pidfd := frame.take_sender_pidfd()) is None:
        return None
    told = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    os.close(pidfd)
    return next(line.split()[1] for line in told.splitlines() if line.startswith("Pid:"))


def test_who_sent_it_is_known_by_a_pidfd_where_the_socket_asks_and_no_longer(ends: Ends) -> None:
    liveness.ask_for_senders(ends.near, pidfd=True)
    if not ends.near.getsockopt(socket.SOL_SOCKET, 76):
        pytest.skip("this kernel is older than 6.5, it has no SO_PASSPIDFD")
    child = os.fork()
    if not child:
        ends.say(frames.pack(b"child"))
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # dead, and its pid not yet another one's
    from_child, mine, left, later = new(), new(), new(), new()
    assert from_child.receive_nowait(ends.near) == b"child"
    assert pidfd_of(from_child) in (str(child), "-1")
    os.waitpid(child, 0)
    for said in (b"one", b"two"):
        ends.say(frames.pack(said))
    assert mine.receive_nowait(ends.near) == b"one"
    assert pidfd_of(mine) == str(os.getpid())
    assert mine.take_sender_pidfd() is None
    assert left.receive_nowait(ends.near) == b"two"
    left.close()  # and what it brought
    liveness.ask_for_senders_no_more(ends.near)
    ends.say(frames.pack(b"three"))
    assert later.receive_nowait(ends.near) == b"three"
    assert later.take_sender_pidfd() is None


# What is no frame


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1", "the peer does not speak shmrpc: it began with b'GET / HT'"),
        (struct.pack("<4sI", b"SHMR", 101), "the peer's greeting has 101 bytes, the limit is 100"),
        (struct.pack("<4sI", b"SHMR", (1 << 32) - 1), "the peer's greeting has 4294967295 bytes, the limit is 100"),
    ],
)
def test_what_is_no_frame_is_refused_at_its_head(ends: Ends, said: bytes, why: str) -> None:
    before = open_fds()
    ends.say(said, [ends.gift])
    frame = new()
    with pytest.raises(BadFrame) as caught:
        frame.receive_nowait(ends.near)
    assert str(caught.value) == why
    frame.close()
    frame.close()
    assert open_fds() == before


def test_the_longest_body_is_allowed(ends: Ends) -> None:
    ends.say(frames.pack(bytes(100)))
    assert new().receive_nowait(ends.near) == bytes(100)


@pytest.mark.parametrize("sent", [0, 2])
def test_another_number_of_fds_than_expected_is_refused_and_they_are_closed(ends: Ends, sent: int) -> None:
    before = open_fds()
    ends.say(frames.pack(b"x"), [ends.gift] * sent)
    frame = new()
    frame.receive_nowait(ends.near)
    with pytest.raises(BadFrame, match=f"the peer sent {sent} fds with its greeting, expected are exactly 1"):
        frame.take_fds(1)
    assert open_fds() == before


def test_fds_that_come_one_by_one_are_refused_as_soon_as_they_are_too_many(ends: Ends) -> None:
    before, frame = open_fds(), new()
    for byte in b"SH":
        ends.say(bytes((byte,)), [ends.gift])
        with pytest.raises(BlockingIOError):
            frame.receive_nowait(ends.near)
    ends.say(b"M", [ends.gift])
    with pytest.raises(BadFrame, match="the peer sent 3 fds with its greeting, expected are exactly 2"):
        frame.receive_nowait(ends.near)
    frame.close()
    assert open_fds() == before


@pytest.mark.parametrize("sent", [3, 16, 17, 250])
def test_a_heap_of_fds_is_refused_and_closed(ends: Ends, sent: int) -> None:
    before = open_fds()
    ends.say(frames.pack(b"x"), [ends.gift] * sent)
    frame = new()
    with pytest.raises(BadFrame, match=r"sent \d+ fds with its greeting, expected are exactly 2"):
        frame.receive_nowait(ends.near)
    frame.close()
    assert open_fds() == before


def test_fds_that_this_process_has_no_room_for_are_said_to_be_lost(ends: Ends) -> None:
    ends.say(frames.pack(b"x"), [ends.gift])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    frame = new()
    resource.setrlimit(resource.RLIMIT_NOFILE, (ends.other, limits[1]))  # all below it are in use
    try:
        with pytest.raises(OSError, match=r"with its greeting were lost, this process may not have more \(ulimit -n\)"):
            frame.receive_nowait(ends.near)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        frame.close()


def test_no_room_for_a_senders_pidfd_is_not_taken_for_a_sender_that_has_ended(ends: Ends) -> None:
    liveness.ask_for_senders(ends.near, pidfd=True)
    if not ends.near.getsockopt(socket.SOL_SOCKET, liveness._SO_PASSPIDFD):
        pytest.skip("this kernel is older than 6.5, it has no SO_PASSPIDFD")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    frame = new()
    ends.say(frames.pack(b"x"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert frame.receive_nowait(ends.near) == b"x"
    except OSError:
        pytest.skip("this kernel says that ancillary data was lost")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with pytest.raises(OSError, match="Too many open files"):
        frame.take_sender_pidfd()
    frame.close()


@pytest.mark.parametrize("said", [b"", b"SHM", b"SHMR\x05\0\0\0", b"SHMR\x05\0\0\0body"])
def test_a_peer_that_hangs_up_in_the_middle_is_gone(ends: Ends, said: bytes) -> None:
    if said:
        ends.say(said)
    ends.far.close()
    with pytest.raises(ConnectionResetError, match="the peer hung up in the greeting"):
        new().receive_nowait(ends.near)


# Waiting


async def test_receiving_waits_for_the_rest(ends: Ends) -> None:
    whole, frame = frames.pack(b"hello"), new()
    receiving = asyncio.ensure_future(frame.receive(ends.near))
    for part in (whole[:3], whole[3:9], whole[9:]):
        await asyncio.sleep(0)
        assert not receiving.done()
        ends.say(part)
    assert await receiving == b"hello"


async def test_sending_waits_for_room_and_sends_the_fds_once(ends: Ends) -> None:
    body = os.urandom(1 << 20)
    sending = asyncio.ensure_future(frames.send(ends.near, frames.pack(body), [ends.gift]))
    await asyncio.sleep(0)
    assert not sending.done()
    frame = new(longest=1 << 20)
    assert await frame.receive(ends.far) == body
    await sending
    (fd,) = frame.take_fds(1)
    assert same(fd, ends.gift)
    os.close(fd)


def test_sending_to_a_peer_that_is_gone_raises(ends: Ends) -> None:
    ends.far.close()
    with pytest.raises(BrokenPipeError):
        frames.send_some(ends.near, memoryview(b"SHMR"), [ends.gift])
