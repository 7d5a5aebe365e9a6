"""Fds whose last close waits, and files whose file system never answers: nobody waits for them.

A TCP socket that lingers is what any process can make of this kind: its last close takes as long as its other end likes. It
is received, or left unread in a socket, or hidden in another socket.
"""

import array
import asyncio
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from buffer_api import MIB
from buffer_stage import Open, attach, stages
from closings import closings_over
from hostile_halves import Refuse, both, declares, doorbell, segment, sends, victims
from hostile_slowness import Lingering, SlowFolder, hidden_in_a_socket, slow_folder
from hostile_stage import Open as OpenStage
from hostile_stage import bystander, sides
from life_api import Keeper, Life
from life_waiting import until
from raw_peer import RawClient, RawServer, frame_of, hung_up, raw_listener, receive_frame, send_with_fds

import shmrpc
from shmrpc.shm import address, disposal

pytestmark = pytest.mark.counted("bad inputs tried")


class Slow:
    """An fd whose last reference is to be the victim's."""

    def __init__(self, *, hidden: bool = False) -> None:
        self._lingering = Lingering()
        self._copies = [self._lingering.sock]
        if hidden:
            self._copies = [*hidden_in_a_socket(self._lingering.sock.fileno()), self._lingering.sock]

    @property
    def fd(self) -> int:
        return self._copies[0].fileno()

    def sent(self) -> None:
        """Lets go of all copies here."""
        for sock in self._copies:
            sock.close()

    def send_over(self, sock: socket.socket, said: bytes = b"x", flags: int = 0) -> None:
        """Sends it, with bytes that nobody has to understand, and lets go of it."""
        sock.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.fd]))], flags)
        self.sent()

    def must_not_be_waited_for(self) -> None:
        """To be called by the event loop."""
        self._lingering.let_go()
        assert not self._lingering.rescued, "the event loop waited for a peer's fd to be closed"

    def end(self) -> None:
        """Lets go of everything."""
        self.sent()
        self._lingering.let_go()


@contextmanager
def slow(*, hidden: bool = False) -> Iterator[Slow]:
    """One of them."""
    made = Slow(hidden=hidden)
    try:
        yield made
    finally:
        made.end()


Fds = Callable[[list[int], int], list[int]]
"""Of the two that are right, and the slow one."""

PLACES: dict[str, Fds] = {
    "in place of the segment": lambda right, slow: [slow, right[1]],
    "in place of the doorbell": lambda right, slow: [right[0], slow],
    "alone": lambda right, slow: [slow],
    "beside the others": lambda right, slow: [*right, slow],
    "behind a hundred others": lambda right, slow: [right[1]] * 100 + [slow],
}
places = pytest.mark.parametrize("fds", PLACES.values(), ids=PLACES)


async def _refused_by_server(path: str, made: Slow, fds: Fds) -> None:
    async with bystander(path), RawClient(path) as peer:
        send_with_fds(peer.sock, frame_of(peer.hello()), fds(peer.half.fds, made.fd))
        made.sent()
        assert (await receive_frame(peer.sock))[0]["type"] == "rejection"
        await hung_up(peer.sock)
        made.must_not_be_waited_for()


async def _refused_by_client(path: str, made: Slow, fds: Fds) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        send_with_fds(server.sock, frame_of(server.welcome()), fds(server.half.fds, made.fd))
        made.sent()
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        made.must_not_be_waited_for()


@pytest.mark.parametrize("refused", [_refused_by_server, _refused_by_client], ids=["server", "client"])
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
@places
async def test_nobody_waits_for_an_fd_of_a_handshake(path: str, refused: Any, hidden: bool, fds: Fds) -> None:
    with slow(hidden=hidden) as made:
        await refused(path, made, fds)


@stages
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
async def test_nobody_waits_for_the_fd_of_an_extent(
    path: str, stage: Open, hidden: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with slow(hidden=hidden) as made:
        async with stage(path, caplog) as scene:
            attach(scene, 1, 4 * MIB, os.dup(made.fd))
            made.sent()
            await scene.must_be_cut("the peer's extent is 'socket:[")
            made.must_not_be_waited_for()


async def test_nobody_waits_for_what_a_client_that_was_refused_has_sent_and_nobody_read(path: str) -> None:
    """Not even one of a uid that is not allowed, which may connect all the same."""
    with slow() as made:
        async with shmrpc.Server(Keeper(), at=path, allow_uids={12345}) as server, RawClient(path) as peer:
            made.send_over(peer.sock)
            assert (await receive_frame(peer.sock))[0]["type"] == "rejection"
            await hung_up(peer.sock)
            assert server.connections == 0
            made.must_not_be_waited_for()


@sides
@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["in band", "out of band"])
async def test_nobody_waits_for_what_comes_with_nonsense_after_the_handshake(
    path: str, stage: OpenStage, flags: int, caplog: pytest.LogCaptureFixture
) -> None:
    with slow() as made:
        async with stage(path, caplog) as scene:
            scene.sock.send(b"GET / HTTP/1.1\r\n\r\n")
            made.send_over(scene.sock, flags=flags)
            await scene.must_be_cut("the peer does not speak shmrpc: it began with b'GET / HT'")
            made.must_not_be_waited_for()


@sides
async def test_nobody_waits_for_what_comes_out_of_band_before_anything_else(
    path: str, stage: OpenStage, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel would drop it while it looks for what is in band, and close it."""
    with slow() as made:
        async with stage(path, caplog) as scene:
            made.send_over(scene.sock, flags=socket.MSG_OOB)
            scene.sock.send(b"HMR\0\0\0\0\0")
            await scene.must_be_cut("the peer does not speak shmrpc: it began with b'xHMR")
            made.must_not_be_waited_for()


async def test_nobody_waits_for_what_those_have_sent_who_were_not_accepted_yet(path: str) -> None:
    with slow() as made:
        async with shmrpc.Server(Keeper(), at=path):
            with socket.socket(socket.AF_UNIX) as late:
                late.connect(path)
                made.send_over(late)
        made.must_not_be_waited_for()


async def test_a_server_that_has_too_much_to_close_accepts_nobody_until_it_is_closed(
    path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow() as made:
        async with bystander(path), RawClient(path) as peer:
            monkeypatch.setattr(disposal, "MOST", 1)
            peer.sock.send(b"no handshake")
            made.send_over(peer.sock)
            await until(disposal.closing, "the socket to be closed")
            async with RawClient(path) as late:
                asking = asyncio.ensure_future(late.ask())
                await until(lambda: "what peers sent takes long to close" in caplog.text, "the server to refuse")
                assert not asking.done()
                made.must_not_be_waited_for()
                assert (await asking)["type"] == "welcome"


async def test_a_client_that_has_too_much_to_close_connects_to_nobody(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server:
        monkeypatch.setattr(disposal, "MOST", 0)
        with pytest.raises(shmrpc.ConnectFailed, match="what peers sent takes long to close"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        assert server.connections == 0


def test_nobody_waits_for_what_a_server_has_sent_whose_address_is_wanted(path: str) -> None:
    """Whether somebody listens there is found out by connecting."""
    with slow() as made, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                made.send_over(sock)
                probed.wait(20)

        probed = threading.Event()
        with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(1) as threads:
            connect = address.connect

            def connect_and_wait(path: str) -> Any:
                sock = connect(path)
                assert sock is not None
                until_readable(sock)
                return sock

            patched.setattr(address, "connect", connect_and_wait)
            serving = threads.submit(serve)
            with pytest.raises(shmrpc.BadAddress, match="a server listens there already"):
                address.listen(path, 0o600, 1)
            made.must_not_be_waited_for()
            probed.set()
            serving.result()
        closings_over()


def until_readable(sock: socket.socket) -> None:
    """Waits for what comes, and leaves it there."""
    select.select([sock], [], [], 20)


# Files that are slow to be asked about


@pytest.fixture
def folder_of_a_slow_file_system() -> Iterator[SlowFolder]:
    with slow_folder() as made:
        yield made


@victims
@pytest.mark.parametrize("place", ["segment", "eventfd", "pipe"])
async def test_nobody_asks_a_file_system_that_the_peer_has_chosen(
    path: str,
    must_refuse: Refuse,
    place: str,
    folder_of_a_slow_file_system: SlowFolder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow_fd = lambda half: folder_of_a_slow_file_system.open()  # noqa: E731
    spoil = sends(slow_fd, doorbell) if place == "segment" else sends(segment, slow_fd)
    spoil = both(declares(doorbell="pipe"), spoil) if place == "pipe" else spoil
    await must_refuse(path, caplog, spoil, "is '/tmp/shmrpc-slow-.*'")
    assert folder_of_a_slow_file_system.asked == []


@stages
async def test_nobody_asks_it_about_an_extent_either(
    path: str, stage: Open, folder_of_a_slow_file_system: SlowFolder, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        attach(scene, 1, 4 * MIB, folder_of_a_slow_file_system.open())
        await scene.must_be_cut("the peer's extent is '/tmp/shmrpc-slow-")
    assert folder_of_a_slow_file_system.asked == []
