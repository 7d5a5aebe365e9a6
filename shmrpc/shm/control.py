"""The control socket after the handshake: which extents come and go, and when the peer has hung up.

Owns the socket, the frames on their way through it and the fds that they carry. What an extent is, and whether one may
come or go, is for those who are called back. Nothing here waits for the peer but `send`, and nothing that the peer sends
raises into the event loop.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from shmrpc.errors import ProtocolError
from shmrpc.shm import disposal, frames
from shmrpc.shm.segment import Kind

log: Final = logging.getLogger("shmrpc")

FRAME_LIMIT: Final = 4096
"""The longest body of a frame on the control socket, in bytes."""
LAST_EXTENT: Final = (1 << 31) - 1
"""The highest number of an extent: it has to fit beside a granule's number in the word that names a block."""
MOST_EXTENTS: Final = 64
"""How many one side may have attached: each costs the other one a mapping and, before Python 3.13, an fd."""
FRAMES_PER_TURN: Final = 16
"""Taken in one turn of the event loop, so that a flood does not hold it up."""
FRAMES_PER_READ: Final = 1024
"""Taken by one `Control.read`."""

_Extent = Annotated[int, msgspec.Meta(ge=1, le=LAST_EXTENT)]


class Attach(msgspec.Struct, tag="attach", frozen=True):
    """A new extent of the sender's, whose fd comes with it."""

    extent: _Extent
    """Its number; no other that is attached has it."""
    nbytes: Annotated[int, msgspec.Meta(gt=0)]
    kind: Kind


class Detach(msgspec.Struct, tag="detach", frozen=True):
    """The sender will not name this extent of its own again, and has unmapped it."""

    extent: _Extent


_FDS: Final = {Attach: 1, Detach: 0}
_encode: Final = msgspec.msgpack.Encoder().encode
_decoder: Final[msgspec.msgpack.Decoder[Attach | Detach]] = msgspec.msgpack.Decoder(Attach | Detach)


class _Unsent:
    """A frame that is not all in the socket yet, and its fds: the caller's own, or duplicates once it has to wait."""

    __slots__ = ("_owns_fds", "begun", "done", "fds", "rest")

    def __init__(self, message: Attach | Detach, fds: list[int], done: asyncio.Future[None] | None) -> None:
        self.rest = memoryview(frames.pack(_encode(message)))
        self.begun = False
        self.fds = fds
        self.done = done
        """For who waits for it to be sent."""
        self._owns_fds = False

    def push(self, sock: socket.socket) -> None:
        """Sends the rest. Raises BlockingIOError when the socket takes no more of it now, or another OSError."""
        while self.rest:
            sent = frames.send_some(sock, self.rest, self.fds)
            self.begun = True
            self.rest = self.rest[sent:]
            self.drop_fds()

    def keep_fds(self) -> None:
        """From now on they may be closed elsewhere. Raises OSError when this process may not have more."""
        lent, self.fds, self._owns_fds = self.fds, [], True
        for fd in lent:
            self.fds.append(os.dup(fd))

    def drop_fds(self) -> None:
        """They have been sent, or never will be."""
        fds, self.fds = self.fds, []
        if self._owns_fds:
            for fd in fds:
                os.close(fd)

    def end(self, error: OSError | None) -> None:
        """Tells who waits, if anybody still does."""
        self.drop_fds()
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


class Control:
    """One end of a control socket, which it owns. Belongs to the event loop that it was made for.

    Of the callbacks only those for attach and detach are called by `read`; the other two come from the event loop alone,
    never while a task runs or a record is being handled, and at most one of them comes, once. They may close the control.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_attach: Callable[[Attach, int], None],
        on_detach: Callable[[Detach], None],
        on_lost: Callable[[str], None],
        on_broken: Callable[[ProtocolError], None],
    ) -> None:
        """`sock` is connected and non-blocking, and nothing but whole frames was read from it.

        `on_attach` gets the fd too, which is its own from then on, whatever it raises. It and `on_detach` may raise
        ProtocolError. `on_lost` gets what to say of the peer, like "closed the connection"; everything that came before
        was handled then. It is told of a hang-up alone, after which the peer takes no records any more; of whatever else
        ends this, `on_broken`.
        """
        self.closed = False
        self._loop = loop
        self._sock = sock
        self._on_attach = on_attach
        self._on_detach = on_detach
        self._on_lost = on_lost
        self._on_broken = on_broken
        self._incoming = _new_frame()
        self._broken: ProtocolError | None = None
        self._ended = False
        self._unsent: deque[_Unsent] = deque()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "broken" if self._broken else "lost" if self._ended else "open"
        return f"<Control {state}, {len(self._unsent)} frames unsent>"

    def start(self) -> None:
        """Begins to listen to the peer.

        Raises:
            OSError: the system refuses to watch one more fd.
        """
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    # ---- reading ----

    def read(self) -> None:
        """Handles what is in the socket now, without waiting, at most `FRAMES_PER_READ` frames.

        For the channel, when it meets an extent that it does not know. Leaves a hang-up to the event loop.

        Raises:
            ProtocolError: the peer broke the rules, or the socket fails; nothing more will be read.
        """
        try:
            self._take(FRAMES_PER_READ)
        except ConnectionError as error:
            log.debug("the peer hung up while its control socket was read: %s", error)
        except OSError as error:  # what came may be lost in part, so what follows cannot be understood
            raise self._break(ProtocolError(f"the control socket cannot be read: {error}")) from None

    def _on_readable(self) -> None:
        try:
            self._take(FRAMES_PER_TURN)
        except ProtocolError as error:
            self._report_broken(error)
        except OSError as error:
            self._report_lost(error)

    def _take(self, budget: int) -> None:
        """Handles the frames that are there, up to so many.

        Raises:
            ProtocolError: as `read`.
            OSError: the peer hung up, or the socket failed; a second try says so again.
        """
        for _ in range(budget):
            if self.closed:
                return
            if self._broken is not None:
                raise self._broken
            try:
                body = self._incoming.receive_nowait(self._sock)
            except BlockingIOError:
                return
            except frames.BadFrame as error:
                raise self._break(ProtocolError(str(error))) from None
            frame, self._incoming = self._incoming, _new_frame()
            try:
                self._handle(frame, body)
            except ProtocolError as error:
                raise self._break(error) from None
            except Exception as error:
                log.exception("a message on the control socket could not be handled")
                raise self._break(ProtocolError(f"the control socket failed: {error!r}")) from None
            finally:
                frame.close()

    def _handle(self, frame: frames.Frame, body: bytes) -> None:
        try:
            message = _decoder.decode(body)
            fds = frame.take_fds(_FDS[type(message)])
        except frames.BadFrame as error:
            raise ProtocolError(str(error)) from None
        except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: text that is no UTF-8
            raise ProtocolError(f"the peer's control message cannot be understood: {error}") from None
        if isinstance(message, Detach):
            self._on_detach(message)
            return
        self._on_attach(message, fds[0])

    def _break(self, error: ProtocolError) -> ProtocolError:
        self._broken = error
        self._incoming.close()
        return error

    # ---- writing ----

    async def send(self, message: Attach | Detach, fds: list[int]) -> None:
        """Sends a message; returns when all of it is in the socket. The caller may close its fds as soon as this ends.

        Messages are sent in the order of the calls, also that of a call which is cancelled: a Detach takes it back.

        Raises:
            ConnectionResetError: the control is closed, or the peer hung up.
            OSError: the system does not take these fds, or not now; nothing was sent.
        """
        if self._ended:
            raise ConnectionResetError("the control socket is closed")
        unsent = _Unsent(message, fds, self._loop.create_future())
        if self._send_or_keep(unsent):
            return
        assert unsent.done is not None
        await unsent.done

    def send_soon(self, message: Detach) -> None:
        """Sends a message now, or when the socket has room. When the control is closed, nobody needs to know any more."""
        if not self._ended:
            self._send_or_keep(_Unsent(message, [], None))

    def _send_or_keep(self, unsent: _Unsent) -> bool:
        """Whether all of it was sent at once. A peer that is gone is left to the event loop to find: see the class."""
        if not self._unsent:
            try:
                unsent.push(self._sock)
            except OSError as error:
                if not isinstance(error, BlockingIOError) and self._concerns_one_frame(unsent, error):
                    raise
            else:
                return True
        unsent.keep_fds()
        self._unsent.append(unsent)
        if len(self._unsent) == 1:
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        return False

    @staticmethod
    def _concerns_one_frame(unsent: _Unsent, error: OSError) -> bool:
        """Whether an error leaves the stream whole, as when the system does not take these fds; somebody is told then."""
        return unsent.done is not None and not unsent.begun and not isinstance(error, ConnectionError)

    def _on_writable(self) -> None:
        while self._unsent:
            unsent = self._unsent[0]
            try:
                unsent.push(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                if not self._concerns_one_frame(unsent, error):
                    self._read_before_the_end(error)
                    return
                unsent.end(error)
            else:
                unsent.end(None)
            self._unsent.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _read_before_the_end(self, error: OSError) -> None:
        """The peer does not listen any more: what it said comes first."""
        try:
            self.read()
        except ProtocolError as broken:
            self._report_broken(broken)
        else:
            self._report_lost(error)

    # ---- the end ----

    def _report_lost(self, error: OSError) -> None:
        if not isinstance(error, ConnectionError):  # the peer is there, knows of nothing and reads on
            self._report_broken(ProtocolError(f"the control socket failed: {error}"))
        elif self._stop():
            self._on_lost("closed the connection")

    def _report_broken(self, error: ProtocolError) -> None:
        if self._stop():
            self._on_broken(error)

    def _stop(self) -> bool:
        """Neither reads nor writes any more; whether somebody is to be told."""
        if self._ended:
            return False
        self._ended = True
        self._unwatch()
        return True

    def _unwatch(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        unsent, self._unsent = self._unsent, deque()
        for frame in unsent:
            frame.end(ConnectionResetError("the connection ended before this was sent"))

    def hang_up(self) -> None:
        """Breaks the connection, as a cable would: both ends find out through their event loops. For tests of that.

        This end first, so that it takes no record any more of which the other end believes that it was never taken.
        """
        self._loop.call_soon(self._break_off)

    def _break_off(self) -> None:
        self._report_lost(ConnectionResetError("this side broke the connection"))
        if not self.closed:
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hangs up. Frames that wait are dropped, who waits for them gets ConnectionResetError. Idempotent."""
        if self.closed:
            return
        self.closed = self._ended = True
        self._unwatch()
        self._incoming.close()
        disposal.put_away_socket(self._sock)

    def forget(self) -> None:
        """In a forked child: closes this copy of the fds, and touches neither the loop nor the connection: the parent's."""
        self.closed = self._ended = True
        self._incoming.close()
        for frame in self._unsent:
            frame.drop_fds()
        self._unsent.clear()
        self._sock.close()


def _new_frame() -> frames.Frame:
    return frames.Frame("control message", longest=FRAME_LIMIT, most_fds=max(_FDS.values()))
