"""What the control socket hears: extents that come and go, a peer that breaks the rules, and its hang-up."""

import asyncio
import logging
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import uvloop
from control_scene import PAGE, Scene, attach, detach, frame, open_fds
from life_waiting import until

from shmrpc.errors import ProtocolError
from shmrpc.shm.control import FRAMES_PER_READ, FRAMES_PER_TURN, LAST_EXTENT, Attach, Detach

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    made.control.start()
    yield made
    made.close()


# What comes


async def test_an_extent_is_announced_with_its_fd_and_taken_back(scene: Scene) -> None:
    scene.say(attach(1), 1)
    scene.say(attach(7, nbytes=1 << 40, kind="posix"), 1)
    scene.say(detach(1))
    assert await scene.hears(3) == [Attach(1, PAGE, "memfd"), Attach(7, 1 << 40, "posix"), Detach(1)]
    assert [scene.is_gift(fd) for fd in scene.fds] == [True, True]
    assert [os.get_inheritable(fd) for fd in scene.fds] == [False, False]


async def test_a_message_in_single_bytes_is_heard_with_its_last(scene: Scene) -> None:
    for at, byte in enumerate(attach(1)):
        assert scene.heard == []
        scene.say(bytes((byte,)), int(at == 0))
        scene.control.read()
    assert scene.heard == [Attach(1, PAGE, "memfd")]


async def test_what_is_in_the_socket_can_be_read_without_waiting(scene: Scene) -> None:
    scene.say(attach(1) + attach(2)[:1], 1)
    scene.control.read()
    assert scene.heard == [Attach(1, PAGE, "memfd")]
    scene.say(attach(2)[1:], 1)
    scene.control.read()
    scene.control.read()
    assert scene.heard == [Attach(1, PAGE, "memfd"), Attach(2, PAGE, "memfd")]


async def test_fields_that_nobody_knows_are_ignored(scene: Scene) -> None:
    scene.say(attach(1, colour="red"), 1)
    assert await scene.hears(1) == [Attach(1, PAGE, "memfd")]


async def test_a_socket_that_tells_who_sends_is_read_as_well(scene: Scene) -> None:
    scene.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # as the client's does since the handshake
    scene.say(attach(1), 1)
    scene.say(detach(1))
    assert await scene.hears(2) == [Attach(1, PAGE, "memfd"), Detach(1)]


async def test_a_flood_does_not_hold_up_the_event_loop(scene: Scene) -> None:
    for extent in range(1, 3 * FRAMES_PER_TURN + 1):
        scene.say(detach(extent))
    heard = []
    while len(scene.heard) < 3 * FRAMES_PER_TURN:
        before = len(scene.heard)
        await asyncio.sleep(0)
        heard.append(len(scene.heard) - before)
    assert max(heard) == FRAMES_PER_TURN


async def test_one_read_takes_a_flood_up_to_its_limit(scene: Scene) -> None:
    scene.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    for _ in range(2):
        scene.say(detach(1) * FRAMES_PER_READ)
    scene.control.read()
    assert len(scene.heard) == FRAMES_PER_READ
    scene.control.read()
    assert len(scene.heard) == 2 * FRAMES_PER_READ


def test_uvloop_carries_it_too() -> None:
    async def play() -> None:
        made = Scene()
        made.control.start()
        made.say(attach(1), 1)
        await made.hears(1)
        filled = made.fill()
        sending = asyncio.ensure_future(made.control.send(Attach(1, PAGE, "memfd"), [made.gift]))
        await asyncio.sleep(0)
        made.receive(filled)
        await sending
        assert made.receive(1 << 12) == (attach(1), 1)
        made.far.shutdown(socket.SHUT_RDWR)
        assert await made.hears(2) == [Attach(1, PAGE, "memfd"), "closed the connection"]
        made.close()

    uvloop.run(play())


# A peer that does not keep to the rules

BROKEN: dict[str, tuple[bytes, int, str]] = {
    "http": (b"GET / HTTP/1.1", 0, "the peer does not speak shmrpc: it began with b'GET / HT'"),
    "a long frame": (
        struct.pack("<4sI", b"SHMR", 4097),
        0,
        "the peer's control message has 4097 bytes, the limit is 4096",
    ),
    "no msgpack": (b"SHMR\x01\0\0\0\xc1", 0, "the peer's control message cannot be understood: "),
    "an empty frame": (b"SHMR\0\0\0\0", 0, "cannot be understood: "),
    "text that is no UTF-8": (
        detach(1).replace(b"detach", b"det\xffch"),
        0,
        "cannot be understood: .*utf-8",
    ),
    "a tower": (struct.pack("<4sI", b"SHMR", 4096) + b"\x91" * 4096, 0, "cannot be understood: "),
    "a hello": (frame({"type": "hello"}), 0, "cannot be understood: .*hello"),
    "no extent": (frame({"type": "detach"}), 0, "cannot be understood: .*extent"),
    "the base segment": (detach(0), 0, "cannot be understood: .*extent"),
    "a high number": (attach(LAST_EXTENT + 1), 1, "cannot be understood: .*extent"),
    "a negative size": (attach(1, nbytes=-4096), 1, "cannot be understood: .*nbytes"),
    "no size": (attach(1, nbytes=0), 1, "cannot be understood: .*nbytes"),
    "another kind": (attach(1, kind="disk"), 1, "cannot be understood: .*disk"),
    "no fd": (attach(1), 0, "the peer sent 0 fds with its control message, expected are exactly 1"),
    "two fds": (attach(1), 2, "the peer sent 2 fds with its control message, expected are exactly 1"),
    "sixty fds": (attach(1), 60, r"the peer sent \d+ fds with its control message, expected are exactly 1"),
    "an fd too many": (detach(1), 1, "the peer sent 1 fds with its control message, expected are exactly 0"),
    "fds and no frame": (b"??", 2, "the peer sent 2 fds with its control message, expected are exactly 1"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("by_hand", [False, True], ids=["from the loop", "by hand"])
async def test_a_peer_is_cut_off_that_sends(scene: Scene, case: str, by_hand: bool) -> None:
    said, fds, why = BROKEN[case]
    before = open_fds()
    scene.say(said, fds)
    scene.say(detach(9))
    if by_hand:
        for _ in range(2):  # and again: there is no way back to whole frames
            with pytest.raises(ProtocolError, match=why):
                scene.control.read()
    await until(lambda: any(isinstance(heard, ProtocolError) for heard in scene.heard), "the end")
    with pytest.raises(ProtocolError, match=why):
        raise scene.heard[-1]
    assert Detach(9) not in scene.heard
    assert open_fds() == before + len(scene.fds)
    await asyncio.sleep(0)
    assert sum(isinstance(heard, ProtocolError) for heard in scene.heard) == 1


async def test_an_extent_that_is_not_wanted_ends_the_connection(scene: Scene) -> None:
    def refuse(message: Detach) -> None:
        raise ProtocolError("no such extent")

    scene.control._on_detach = refuse
    scene.say(detach(1) * 2)
    (error,) = await scene.hears(1)
    assert str(error) == str(ProtocolError("no such extent"))
    assert isinstance(error, ProtocolError)


async def test_a_bug_of_ours_ends_this_connection_and_is_logged(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def fail(message: Detach) -> None:
        raise ZeroDivisionError("oops")

    scene.control._on_detach = fail
    with caplog.at_level(logging.ERROR, "shmrpc"):
        scene.say(detach(1))
        (error,) = await scene.hears(1)
    assert isinstance(error, ProtocolError)
    assert "ZeroDivisionError('oops')" in str(error)
    assert "a message on the control socket could not be handled" in caplog.text


async def test_a_message_may_be_the_last_thing_that_a_control_hears(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "shmrpc")

    def close(message: Detach) -> None:
        scene.heard.append(message)
        scene.control.close()

    scene.control._on_detach = close
    scene.say(detach(1) * 3)
    scene.control.read()
    assert scene.heard == [Detach(1)]
    assert caplog.text == ""  # no attempt on a socket that is closed


async def test_who_has_closed_a_control_is_told_nothing_more(scene: Scene) -> None:
    def close_and_refuse(message: Detach) -> None:
        scene.control.close()
        scene.heard.append(message)
        raise ProtocolError("no such extent")

    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    scene.control._on_detach = close_and_refuse
    scene.say(detach(1))
    await scene.hears(1)
    await asyncio.sleep(0)
    assert scene.heard == [Detach(1)]
    assert failures == []


# The peer hangs up


async def test_what_the_peer_said_is_heard_before_its_hang_up(scene: Scene) -> None:
    for extent in range(1, 3 * FRAMES_PER_TURN):
        scene.say(attach(extent), 1)
    scene.far.shutdown(socket.SHUT_RDWR)
    heard = await scene.hears(3 * FRAMES_PER_TURN)
    assert heard[-2:] == [Attach(3 * FRAMES_PER_TURN - 1, PAGE, "memfd"), "closed the connection"]
    await asyncio.sleep(0)
    assert heard.count("closed the connection") == 1


@pytest.mark.parametrize("said", [b"SHM", attach(1)[:-1]])
async def test_a_hang_up_in_the_middle_of_a_message_is_a_hang_up(scene: Scene, said: bytes) -> None:
    before = open_fds()
    scene.say(said, 1)
    scene.far.close()
    assert await scene.hears(1) == ["closed the connection"]
    scene.control.close()
    assert open_fds() == before - 2


async def test_a_peer_that_never_read_what_it_was_sent_has_hung_up_all_the_same(scene: Scene) -> None:
    scene.control.send_soon(Detach(1))
    scene.far.close()  # with unread bytes: the socket fails with ECONNRESET
    assert await scene.hears(1) == ["closed the connection"]


async def test_a_read_by_hand_leaves_the_hang_up_to_the_event_loop(scene: Scene) -> None:
    """It comes in the middle of a record, and the end of a session must not."""
    scene.say(detach(1))
    scene.far.close()
    scene.control.read()
    assert scene.heard == [Detach(1)]
    assert await scene.hears(2) == [Detach(1), "closed the connection"]


@pytest.mark.parametrize("by_hand", [True, False])
async def test_a_process_without_room_for_an_fd_says_that_it_lost_it(scene: Scene, by_hand: bool) -> None:
    """And not that the peer never sent it."""
    scene.say(attach(1), 1)
    scene.say(attach(2), 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        if by_hand:
            with pytest.raises(ProtocolError, match=r"the control socket cannot be read: .* may not have more"):
                scene.control.read()
        (end,) = await scene.hears(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "fds that the peer sent with its control message were lost, this process may not have more" in str(end)


async def test_a_peer_that_listens_no_more_is_heard_out_and_lost(scene: Scene) -> None:
    scene.say(detach(1) * (2 * FRAMES_PER_TURN))
    scene.far.shutdown(socket.SHUT_RD)
    scene.control.send_soon(Detach(5))
    sending = asyncio.ensure_future(scene.control.send(Attach(6, PAGE, "memfd"), [scene.gift]))
    heard = await scene.hears(2 * FRAMES_PER_TURN + 1)
    assert heard == [Detach(1)] * (2 * FRAMES_PER_TURN) + ["closed the connection"]
    with pytest.raises(ConnectionResetError):
        await sending


async def test_a_peer_that_lies_and_listens_no_more_is_cut_off(scene: Scene) -> None:
    scene.control._loop.remove_reader(scene.sock.fileno())  # so that the hang-up is seen first
    scene.say(b"nonsense")
    scene.far.shutdown(socket.SHUT_RD)
    scene.control.send_soon(Detach(5))
    (error,) = await scene.hears(1)
    assert isinstance(error, ProtocolError)


async def test_a_connection_that_is_broken_on_purpose_is_found_to_be_so_by_both_ends(scene: Scene) -> None:
    scene.control.hang_up()
    assert scene.heard == [], "not in the middle of whatever broke it"
    assert await scene.hears(1) == ["closed the connection"]
    assert scene.far.recv(1) == b""
    scene.control.close()
    scene.control.hang_up()  # there is nothing left to break


async def test_the_end_that_breaks_a_connection_takes_nothing_more_when_the_other_one_hears_of_it(scene: Scene) -> None:
    def on_lost(why: str) -> None:
        with pytest.raises(BlockingIOError):
            scene.far.recv(1)
        scene.on_lost(why)

    scene.control._on_lost = on_lost
    scene.control.hang_up()
    assert await scene.hears(1) == ["closed the connection"]
    assert scene.far.recv(1) == b""
