"""What the control socket says: in order, with its fds, however little room there is; and how it ends."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from control_scene import PAGE, Scene, attach, detach, open_fds
from life_waiting import until

from shmrpc.errors import ProtocolError
from shmrpc.shm.control import Attach, Detach


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    made.control.start()
    yield made
    made.close()


# What is sent


async def test_a_message_goes_at_once_with_its_fd(scene: Scene) -> None:
    await scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift])
    scene.control.send_soon(Detach(1))
    assert scene.receive(len(attach(1))) == (attach(1), 1)
    assert scene.receive(1 << 12) == (detach(1), 0)


async def test_messages_that_must_wait_keep_their_order_and_their_fds(scene: Scene) -> None:
    before = open_fds()
    filled = scene.fill()
    sending = []
    for extent in (1, 2, 3):
        sending.append(asyncio.ensure_future(scene.control.send(Attach(extent, PAGE, "memfd"), [scene.gift])))
        await asyncio.sleep(0)
        scene.control.send_soon(Detach(extent))
    assert repr(scene.control) == "<Control open, 6 frames unsent>"
    assert [task.done() for task in sending] == [False] * 3
    assert scene.receive(filled)[0] == bytes(filled)
    await asyncio.gather(*sending)
    await until(lambda: repr(scene.control) == "<Control open, 0 frames unsent>", "the rest")
    said = b"".join(attach(extent) + detach(extent) for extent in (1, 2, 3))
    assert scene.receive(1 << 12) == (said, 3)
    assert open_fds() == before
    assert not asyncio.get_running_loop().remove_writer(scene.sock.fileno())  # nobody waits for room any more
    scene.control.send_soon(Detach(4))
    assert scene.receive(1 << 12) == (detach(4), 0)


async def test_a_message_waits_behind_those_that_wait(scene: Scene) -> None:
    filled = scene.fill()
    scene.control.send_soon(Detach(1))
    scene.receive(filled)
    scene.control.send_soon(Detach(2))  # there is room, but it is not its turn
    await until(lambda: repr(scene.control) == "<Control open, 0 frames unsent>", "both")
    assert scene.receive(1 << 12)[0] == detach(1) + detach(2)


async def test_a_message_is_sent_whose_sender_was_cancelled(scene: Scene) -> None:
    """So that a Detach can take it back: whether it was sent must not depend on when the cancellation came."""
    filled = scene.fill()
    own = os.dup(scene.gift)
    sending = asyncio.ensure_future(scene.control.send(Attach(1, PAGE, "memfd"), [own]))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    os.close(own)
    scene.receive(filled)
    await until(lambda: repr(scene.control) == "<Control open, 0 frames unsent>", "it")
    assert scene.receive(1 << 12) == (attach(1), 1)


class Trickle:
    """A socket that takes one byte at a time, and then nothing for a moment. The rest is the real one's."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendmsg(self, parts: list[memoryview], ancillary: list[Any], flags: int) -> int:
        self._full = not self._full
        if self._full:
            raise BlockingIOError
        return self._sock.sendmsg([parts[0][:1]], ancillary, flags)


async def test_a_message_that_goes_in_single_bytes_has_its_fd_with_the_first(scene: Scene) -> None:
    scene.control._sock = Trickle(scene.sock)  # type: ignore[assignment]
    sending = asyncio.ensure_future(scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift]))
    await until(lambda: scene.receive(1) == (b"S", 1), "the first byte")
    await sending
    assert scene.receive(1 << 12) == (attach(1)[1:], 0)


async def test_an_fd_that_the_system_does_not_take_is_its_senders_alone(scene: Scene) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await scene.control.send(Attach(1, PAGE, "memfd"), [1 << 20])
    await scene.control.send(Attach(2, PAGE, "memfd"), [scene.gift])
    assert scene.receive(1 << 12) == (attach(2), 1)
    assert scene.heard == []


class Refusing(Trickle):
    """A socket that is full until it is said to refuse fds, as the kernel does when too many are on their way."""

    refuses = False

    def sendmsg(self, parts: list[memoryview], ancillary: list[Any], flags: int) -> int:
        if not self.refuses:
            raise BlockingIOError
        if ancillary:
            raise OSError(109, "Too many references")
        return self._sock.sendmsg(parts, ancillary, flags)


async def test_an_fd_that_the_system_does_not_take_later_is_its_senders_alone(scene: Scene) -> None:
    before = open_fds()
    sock = Refusing(scene.sock)
    scene.control._sock = sock  # type: ignore[assignment]
    sending = asyncio.ensure_future(scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift]))
    await asyncio.sleep(0)
    scene.control.send_soon(Detach(7))
    sock.refuses = True
    with pytest.raises(OSError, match="Too many references"):
        await sending
    assert scene.receive(1 << 12) == (detach(7), 0)
    assert open_fds() == before
    assert scene.heard == []


async def test_a_detach_that_the_system_does_not_take_ends_the_connection(scene: Scene) -> None:
    """Nobody waits for it, and the two sides must not disagree about what is attached."""

    class Failing(Trickle):
        def sendmsg(self, parts: list[memoryview], ancillary: list[Any], flags: int) -> int:
            raise OSError(105, "No buffer space")

    scene.control._sock = Failing(scene.sock)  # type: ignore[assignment]
    scene.control.send_soon(Detach(7))
    (error,) = await scene.hears(1)
    assert isinstance(error, ProtocolError), "the peer has not hung up: it may take what it was sent"
    assert str(error) == "the control socket failed: [Errno 105] No buffer space"


class Breaking(Trickle):
    """A socket that fails in the middle of a message."""

    def sendmsg(self, parts: list[memoryview], ancillary: list[Any], flags: int) -> int:
        if not ancillary:
            raise OSError(105, "No buffer space")
        return self._sock.sendmsg([parts[0][:1]], ancillary, flags)


async def test_a_failure_in_the_middle_of_a_message_ends_the_connection(scene: Scene) -> None:
    scene.control._sock = Breaking(scene.sock)  # type: ignore[assignment]
    with pytest.raises(ConnectionResetError):
        await scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift])
    assert [str(error) for error in scene.heard] == ["the control socket failed: [Errno 105] No buffer space"]


async def test_who_sends_to_a_peer_that_is_gone_is_told_by_the_event_loop(scene: Scene) -> None:
    """The end of a session must not come in the middle of a task."""
    scene.far.shutdown(socket.SHUT_RD)
    with pytest.raises(ConnectionResetError, match="the connection ended before this was sent"):
        await scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift])
    assert scene.heard == ["closed the connection"]


# The end


async def test_closing_hangs_up_and_ends_what_waits(scene: Scene) -> None:
    before = open_fds()
    scene.fill()
    scene.say(attach(1)[:5], 1)
    scene.control.read()
    sending = asyncio.ensure_future(scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift]))
    await asyncio.sleep(0)
    copy = scene.sock.dup()  # as a forked child would hold it
    scene.control.close()
    scene.control.close()
    with pytest.raises(ConnectionResetError, match="the connection ended before this was sent"):
        await sending
    assert scene.receive(1 << 24)[0].strip(b"\0") == b""
    assert scene.far.recv(1) == b""
    copy.close()
    assert open_fds() == before - 1
    assert scene.heard == []
    assert repr(scene.control) == "<Control closed, 0 frames unsent>"


async def test_after_the_end_nothing_is_sent_or_heard(scene: Scene) -> None:
    scene.say(detach(1))
    scene.control.close()
    scene.control.read()
    scene.control.send_soon(Detach(1))
    with pytest.raises(ConnectionResetError):
        await scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift])
    await asyncio.sleep(0)
    assert scene.heard == []


async def test_a_lost_peer_is_sent_nothing_more(scene: Scene) -> None:
    scene.far.close()
    await scene.hears(1)
    scene.control.send_soon(Detach(1))
    with pytest.raises(ConnectionResetError):
        await scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift])
    assert repr(scene.control) == "<Control lost, 0 frames unsent>"


async def test_a_control_that_never_started_can_be_closed() -> None:
    made = Scene()
    made.close()


async def test_a_forked_child_forgets_and_its_parent_goes_on(scene: Scene) -> None:
    filled = scene.fill()
    scene.say(attach(1)[:5], 1)
    scene.control.read()
    sending = asyncio.ensure_future(scene.control.send(Attach(1, PAGE, "memfd"), [scene.gift]))
    await asyncio.sleep(0)
    before = open_fds()
    if (child := os.fork()) == 0:
        scene.control.forget()
        scene.control.close()
        os._exit(before - open_fds())
    assert exit_code(child) == 3  # the socket, what came and what goes
    scene.receive(filled)
    await sending
    assert scene.receive(1 << 12) == (attach(1), 1)
    scene.say(attach(1)[5:])
    assert await scene.hears(1) == [Attach(1, PAGE, "memfd")]
