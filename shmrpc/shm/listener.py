"""The server's end: accepts, shakes hands and keeps the sessions of one listening socket.

A connecting process gets nothing of this one before it has passed: its uid against the allow-list, its number against the
quota, its hello against the deadline, its fds against what it declared.
"""

import asyncio
import contextvars
import errno
import logging
import os
import socket
import weakref
from collections import Counter
from functools import partial
from typing import Final, NamedTuple

from shmrpc.context import Lease, Peer
from shmrpc.contract import Contract
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import HandshakeError
from shmrpc.introspection import RESERVED
from shmrpc.legible import one_line
from shmrpc.shm import address, disposal, frames, handshake, liveness
from shmrpc.shm.backward import Backward
from shmrpc.shm.extents import FREE, Charge
from shmrpc.shm.incoming import IncomingCalls
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.quota import Quota
from shmrpc.shm.session import Session
from shmrpc.shm.settings import Settings

log: Final = logging.getLogger("shmrpc.server")

HELLO_SECONDS: Final = 0.5
"""How long a drain waits for who has connected and said nothing yet: a client says hello at once."""

ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when the process is out of fds or memory, instead of spinning on a socket that stays readable."""


class _Met(NamedTuple):
    """A finished handshake."""

    session: Session
    hello: handshake.Hello
    pidfd: int | None


class Listener:
    """One listening socket and everything that came in through it."""

    def __init__(
        self, dispatcher: Dispatcher, sock: socket.socket, path: str, *, owns_path: bool, settings: Settings
    ) -> None:
        self.path: Final = path
        self.sessions: Final[set[Session]] = set()
        self._dispatcher = dispatcher
        self._settings = settings
        self._sock: socket.socket | None = sock
        self._inode = os.lstat(path).st_ino if owns_path else None
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._greeting: set[asyncio.Task[None]] = set()
        self._silent: set[asyncio.Task[None]] = set()
        """Those whose clients have not said hello."""
        self._orphaned: set[Session] = set()
        """Ended ones in which something still works: the handler of a one-way call does to its end."""
        self._quota = Quota(os.geteuid(), settings)
        self._grace: asyncio.Timeout | None = None
        self._digests: dict[str, bytes] = {}
        self._loop.add_reader(sock.fileno(), self._accept)
        _live.add(self)

    def __repr__(self) -> str:
        state = "listening" if self.listening else "closed"
        return f"<Listener {state} at {self.path}, {len(self.sessions)} sessions>"

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        return self._sock is not None

    # ---- accepting ----

    def _accept(self) -> None:
        for _ in range(16):
            if self._sock is None:
                return
            try:
                if disposal.closing() >= disposal.MOST:
                    raise OSError(errno.EBUSY, "what peers sent takes long to close")
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error(
                    "cannot accept connections at %s: %s; trying again in %s s",
                    self.path,
                    error,
                    ACCEPT_PAUSE,
                )
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(ACCEPT_PAUSE, self._resume)
                return
            sock.setblocking(False)
            disposal.receive_all(sock)
            task = self._loop.create_task(self._greet(sock), name=f"shmrpc handshake at {self.path}")
            for tasks in (self._greeting, self._silent):
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            task.add_done_callback(partial(_close_if_never_begun, sock))

    def _resume(self) -> None:
        if self._sock is None:
            return
        try:
            self._loop.add_reader(self._sock.fileno(), self._accept)
        except OSError as error:
            log.error("cannot watch %s: %s; trying again in %s s", self.path, error, ACCEPT_PAUSE)
            self._loop.call_later(ACCEPT_PAUSE, self._resume)

    async def _greet(self, sock: socket.socket) -> None:
        """One handshake, from the accepted socket to a session, or to a rejection."""
        peer, pid = liveness.peer_of(sock), os.getpid()
        met: _Met | None = None
        frame = handshake.new_frame()
        unwelcome = self._settings.why_refused(peer.uid, peer.gid) or self._quota.open(peer, self._orphans())
        try:
            if unwelcome is not None:
                raise HandshakeError(unwelcome)
            async with asyncio.timeout(self._settings.handshake_timeout):
                met = await self._shake_hands(sock, peer, frame)
            if met is not None:  # the session owns the socket and its place in the quota from now on
                self._begin(*met)
        except (HandshakeError, TimeoutError, OSError) as error:
            if isinstance(error, TimeoutError):
                error = HandshakeError(f"no handshake within {self._settings.handshake_timeout} s (handshake_timeout)")
            why = one_line(error)
            log.warning("%s was refused at %s: %s", peer, self.path, why)
            if isinstance(error, HandshakeError):
                self._reject(sock, "refused", why)
            elif met is None and not isinstance(error, ConnectionError):  # this process is short of something
                self._reject(sock, "unavailable", why)
        finally:
            frame.close()
            if met is None:
                disposal.put_away_socket(sock, pid)
                if unwelcome is None:
                    self._quota.close(peer)

    async def _shake_hands(self, sock: socket.socket, peer: Peer, frame: frames.Frame) -> "_Met | None":
        settings = self._settings
        hello = await handshake.receive_hello(sock, frame)
        if (task := asyncio.current_task()) is not None:
            self._silent.discard(task)
        offered = self._offer(hello.wanted)
        if isinstance(offered, str):
            log.warning("%s was refused at %s: %s", peer, self.path, offered)
            self._reject(sock, "contract", offered)
            return None
        pidfd = liveness.open_pidfd(peer, sock)
        try:
            answered = await self._answer(sock, hello, frame, peer, offered)
        except BaseException:
            if pidfd is not None:
                os.close(pidfd)
            raise
        session = Session(
            self._loop,
            answered.channel,
            sock,
            peer,
            settings,
            answered.max_extent_bytes,
            self._on_session_end,
            charge=self._charge_for(peer, sock),
            windows=(settings.stream_window, answered.peer_window),
        )
        return _Met(session, hello, pidfd)

    async def _answer(
        self,
        sock: socket.socket,
        hello: handshake.Hello,
        frame: frames.Frame,
        peer: Peer,
        offered: list[handshake.Offered],
    ) -> handshake.Answered:
        nbytes = self._settings.geometry.segment_bytes
        if (why := self._quota.charge(self._loop, peer, sock, nbytes)) is not None:
            raise HandshakeError(why)
        try:
            joined = handshake.join_client(hello, frame, peer, self._settings)
        except BaseException:  # it has got nothing
            self._quota.refund(peer, sock, nbytes)
            raise
        return await handshake.answer_hello(sock, hello, joined, offered, self._settings)

    def _charge_for(self, peer: Peer, sock: socket.socket) -> Charge:
        if peer.uid == os.geteuid():
            return FREE
        quota = self._quota
        return Charge(lambda nbytes: quota.charge(self._loop, peer, sock, nbytes), partial(quota.refund, peer, sock))

    def _begin(self, session: Session, hello: handshake.Hello, pidfd: int | None) -> None:
        settings = self._settings
        incoming = IncomingCalls(
            self._loop,
            session.channel,
            session.memory,
            self._dispatcher.methods,
            session.peer,
            self._context,
            settings.max_in_flight,
            windows=session.windows,
            debug=settings.debug,
            on_broken=session.cut,
        )
        outgoing = None
        if hello.exposed:
            in_flight = min(hello.max_in_flight, settings.max_in_flight)
            outgoing = OutgoingCalls(
                self._loop,
                session.channel,
                session.memory,
                {},
                in_flight,
                session.cut,
                session.windows,
                where=f"the client {session.peer}",
            )
            incoming.back = Backward(self._loop, session, outgoing, hello.exposed)
        self.sessions.add(session)
        session.start(pidfd=pidfd, incoming=incoming, outgoing=outgoing)
        if self._sock is None:  # draining began in the middle of this handshake
            session.go_away()

    def _offer(self, wanted: list[handshake.Wanted]) -> list[handshake.Offered] | str:
        """What the welcome says of the services that a client wants, or why it cannot have them."""
        contracts = self._dispatcher.contracts
        if not wanted:
            return [self._describe(contract, in_full=True) for contract in contracts.values()]
        offered = []
        for want in {want.name: want for want in wanted}.values():
            if (contract := contracts.get(want.name)) is None:
                if want.name.startswith(RESERVED):  # one that a later version has: nothing to refuse a client for
                    continue
                name = one_line(want.name)
                return f"there is no service {name} at {self.path}; there is {', '.join(self._dispatcher.names)}"
            offered.append(self._describe(contract, in_full=want.digest != self._digest(contract)))
        return offered

    def _describe(self, contract: Contract, *, in_full: bool) -> handshake.Offered:
        first = self._dispatcher.first_method[contract.name]
        return handshake.Offered(contract.name, self._digest(contract), first, contract.signatures if in_full else [])

    def _digest(self, contract: Contract) -> bytes:
        if contract.name not in self._digests:
            self._digests[contract.name] = handshake.digest_of(contract.signatures)
        return self._digests[contract.name]

    def _reject(self, sock: socket.socket, code: str, message: str) -> None:
        """Says why, if the socket takes it at once: a peer that is refused is not waited for."""
        try:
            sock.send(handshake.pack_frame(handshake.Rejection(code, message)), socket.MSG_NOSIGNAL)
        except OSError as error:
            log.debug("the rejection was not delivered: %s", error)

    # ---- sessions ----

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self.sessions)

    def in_flight(self) -> list[ServedMethod]:
        """The method of each call whose handler has not ended."""
        return [
            call.served for incoming in self._serving() for call in incoming.running.values() if call.failure is None
        ]

    def leases(self) -> list[Lease]:
        """What the clients, and this process, hold of the server's memory."""
        return [lease for session in list(self.sessions) for lease in session.memory.leases()]  # which may end one

    def _on_session_end(self, session: Session) -> None:
        self.sessions.discard(session)
        self._quota.close(session.peer)
        self._orphaned = {orphan for orphan in (*self._orphaned, session) if not orphan.settled}

    def _orphans(self) -> Counter[int]:
        """How many connections have ended whose one-way calls still run, by uid."""
        return Counter(
            one.peer.uid for one in self._orphaned if one.incoming is not None and one.incoming.serves_oneway
        )

    def _serving(self) -> list[IncomingCalls]:
        return [session.incoming for session in (*self.sessions, *self._orphaned) if session.incoming is not None]

    # ---- the end ----

    def stop_accepting(self) -> None:
        """Closes the listening socket and removes its path. Idempotent."""
        if self._sock is None:
            return
        self._loop.remove_reader(self._sock.fileno())
        if self._inode is not None:
            address.unlink_own(self.path, self._inode)
            self._put_away_backlog()
        self._sock.close()
        self._sock = None

    def _put_away_backlog(self) -> None:
        """Hangs up on those who were not accepted yet: the kernel would, but wait for what they sent to be closed."""
        assert self._sock is not None
        try:
            while True:
                disposal.put_away_socket(self._sock.accept()[0])
        except OSError as error:  # there is none
            log.debug("the backlog at %s was let go: %s", self.path, error)

    async def drain(self, grace: float) -> bool:
        """Stops accepting, tells every client the last call that counts, and waits for what runs.

        Returns:
            Whether everything ended within `grace` seconds.
        """
        self.stop_accepting()
        for session in list(self.sessions):
            session.go_away()
        try:
            async with asyncio.timeout(grace) as self._grace:
                await self._wait_idle()
        except TimeoutError:
            return False
        finally:
            self._grace = None
        return True

    def hurry(self, grace: float) -> None:
        """Leaves a drain that runs at most `grace` seconds from now."""
        until = self._loop.time() + grace
        if self._grace is not None and (self._grace.when() or until) > until:
            self._grace.reschedule(until)

    async def _wait_idle(self) -> None:
        if self._greeting:
            await asyncio.wait(self._greeting, timeout=HELLO_SECONDS)
            for silent in self._silent:
                silent.cancel()
        if self._greeting:
            await asyncio.wait(self._greeting)
        for incoming in self._serving():
            await incoming.wait_idle()

    async def close(self) -> None:
        """Ends everything: handlers that still run are cancelled, their callers are told."""
        self.stop_accepting()
        for task in list(self._greeting):
            task.cancel()
        try:
            await self._stop_calls()
        finally:
            sessions = [*self.sessions, *self._orphaned]
            for session in sessions:
                session.close(f"the server at {self.path} was closed")
            self._quota.shut()
            for session in sessions:
                await session.memory.wait_closed()

    async def _stop_calls(self) -> None:
        if self._greeting:
            await asyncio.wait(self._greeting)
        remaining = self._serving()
        for incoming in remaining:
            incoming.stop()
        tasks = [call.task for incoming in remaining for call in incoming.running.values() if call.task]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    def fork_off(self) -> None:
        """In a forked child: closes its copy of the socket, at which clients would wait in vain once the parent is gone."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._quota.forget()


def _close_if_never_begun(sock: socket.socket, greeting: "asyncio.Task[None]") -> None:
    if greeting.cancelled() and sock.fileno() >= 0:  # before its first step
        disposal.put_away_socket(sock)


_live: weakref.WeakSet[Listener] = weakref.WeakSet()


def _fork_off_all() -> None:
    for listener in list(_live):
        listener.fork_off()
    _live.clear()


os.register_at_fork(after_in_child=_fork_off_all)
