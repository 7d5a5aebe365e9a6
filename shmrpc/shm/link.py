"""The client's end: one stub's connection to a server, made again whenever it is lost.

Owns connecting and reconnecting with back-off. How a call is made over it, and made again, is `calling`'s.
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import random
import warnings
from time import monotonic_ns
from typing import Any, Final

from shmrpc import contract as contracts
from shmrpc.buffers import Buffer
from shmrpc.context import CallOptions, Lease, Peer, remaining_seconds
from shmrpc.contract import Contract
from shmrpc.dispatch import Dispatcher
from shmrpc.errors import (
    Closed,
    ConnectFailed,
    DeadlineExceeded,
    HandshakeError,
    RpcError,
    Unavailable,
)
from shmrpc.introspection import Introspection
from shmrpc.methods import Method
from shmrpc.shm import address, handshake
from shmrpc.shm.calling import Calling
from shmrpc.shm.incoming import IncomingCalls
from shmrpc.shm.matching import add_built_in, match
from shmrpc.shm.outgoing import OutgoingCalls, forked_error, wrong_loop_error
from shmrpc.shm.session import Session
from shmrpc.shm.settings import Settings
from shmrpc.transport import StubMethod

log: Final = logging.getLogger("shmrpc")

BACKOFF_FIRST: Final = 0.05
BACKOFF_FACTOR: Final = 1.6
BACKOFF_MOST: Final = 5.0
STABLE_NS: Final = 1_000_000_000
"""A connection that lived this long ends the back-off."""
BACKOFF_WAITED_FOR: Final = 0.05
"""Seconds between attempts while a call waits for the connection: a failed attempt costs some 30 us."""


class Link:
    """A `Transport` over shared memory."""

    def __init__(
        self,
        contract: Contract | None,
        path: str,
        settings: Settings,
        *,
        wait: float,
        reconnect_timeout: float,
        exposed: Dispatcher | None = None,
    ) -> None:
        self.path: Final = path
        self.contract: Final = contract
        self.offered: list[handshake.Offered] = []
        """What the server said that it serves, at the last handshake."""
        self._settings = settings
        self._wait = wait
        self._reconnect_timeout = reconnect_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._session: Session | None = None
        self.calls: OutgoingCalls | None = None
        """Of the session that takes new calls; None while there is none."""
        self._retiring: set[Session] = set()
        """Sessions whose server drains: they finish what runs."""
        self._delay = BACKOFF_FIRST
        self._established_ns = 0
        self.narrow: dict[str, tuple[int, int]] = {}
        """Methods of which the server knows fewer parameters: its number and how many."""
        self._reconnecting: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[None] | None = None
        self._hurry = asyncio.Event()
        self.closed = False
        self._exposed = exposed
        self._entered = False
        """Whether the exposed services were."""
        self._context = contextvars.copy_context()
        self._calling = Calling(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "connected" if self.calls is not None else "not connected"
        return f"<Link to {self.path}, {state}>"

    def __del__(self) -> None:
        if not self.closed and self.calls is not None and not self.calls.forked:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=1)

    @property
    def address(self) -> str:
        """The server's path."""
        return self.path

    @property
    def peer(self) -> Peer | None:
        """The server's process."""
        return self._session.peer if self._session is not None else None

    # ---- calls ----

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The coroutine function of one stub method: see `Transport.bind`."""
        return self._calling.bind(method, options)

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that can be sent to the server without a copy; while there is no connection, ordinary memory."""
        if self.closed or self._loop is None:
            raise Closed(f"the stub for {self.path} is {'closed' if self.closed else 'not connected yet'}")
        session = self._session
        return session.memory.allocate(nbytes) if session is not None else bytearray(nbytes)

    def leases(self) -> list[Lease]:
        """What the server and this process hold of the client's memory on the present connection."""
        return self._session.memory.leases() if self._session is not None else []

    async def ready(self, method: Method, deadline_ns: int) -> OutgoingCalls:
        """The live session's calls, waiting for a connection if there is none.

        Raises:
            Unavailable, HandshakeError, DeadlineExceeded, WrongLoop.
        """
        while True:
            if self.closed:
                raise Closed(f"{method.full_name} was called on a stub that is closed")
            if self._loop is None:
                raise Closed(
                    f"{method.full_name} was called before its stub was connected; use 'async with connect(…)'"
                )
            if self._pid != os.getpid():
                raise forked_error()
            if not _runs_here(self._loop):
                raise wrong_loop_error(method)
            if self.calls is not None:
                return self.calls
            await self._wait_connected(method, deadline_ns)

    async def _wait_connected(self, method: Method, deadline_ns: int) -> None:
        assert self._loop is not None
        if self._connected is None:
            self._connected = self._loop.create_future()
        connected = self._connected
        self._hurry.set()
        seconds = self._reconnect_timeout
        if deadline_ns:
            seconds = min(seconds, remaining_seconds(deadline_ns))
        done, _ = await asyncio.wait((connected,), timeout=max(0.0, seconds))
        if done:
            connected.result()
        elif deadline_ns and deadline_ns <= monotonic_ns():
            raise DeadlineExceeded(f"{method.full_name} was not sent: no connection to {self.path} before the deadline")
        else:
            raise Unavailable(
                f"{method.full_name} was not sent: no connection to {self.path} within {self._reconnect_timeout} s "
                "(reconnect_timeout)"
            )

    # ---- the connection ----

    async def open(self) -> None:
        """Connects, trying for `wait` seconds while nobody listens."""
        if self.closed or self._loop is not None:
            raise Closed("a stub can be entered once; connect again")
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        if self._exposed is not None:
            await self._exposed.__aenter__()
            self._entered = True
        try:
            await self._open()
        except BaseException:
            await self._leave()
            raise

    async def _leave(self) -> None:
        if self._exposed is not None and self._entered:
            self._entered = False
            await self._exposed.__aexit__(None, None, None)

    async def _open(self) -> None:
        until_ns = monotonic_ns() + int(self._wait * 1e9)
        while True:
            try:
                await self._establish()
                return
            except ConnectFailed:
                if monotonic_ns() >= until_ns:
                    self.closed = True
                    raise
                await asyncio.sleep(min(0.01, self._wait))
            except BaseException:
                self.closed = True
                raise

    async def _establish(self) -> None:
        loop = asyncio.get_running_loop()
        built_in = contracts.read(Introspection)
        asked = {contract.name: contract for contract in (self.contract, built_in) if contract is not None}
        wanted = [handshake.Wanted(name, handshake.digest_of(one.signatures)) for name, one in asked.items()]
        if self.contract is None:  # everything
            wanted = []
        sock = await self._connect()
        try:
            accepted = await handshake.as_client(sock, wanted, self._settings, self._offers())
        except TimeoutError:
            sock.close()
            text = f"the server at {self.path} did not finish the handshake within {self._settings.handshake_timeout} s"
            raise HandshakeError(f"{text} (handshake_timeout)") from None
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"the server at {self.path} went away in the handshake: {error}") from None
        except BaseException:
            sock.close()
            raise
        session = Session(
            loop,
            accepted.channel,
            sock,
            accepted.peer,
            self._settings,
            accepted.max_extent_bytes,
            self._on_end,
            self._on_drain,
            windows=(self._settings.stream_window, accepted.peer_window),
        )
        in_flight = min(accepted.max_in_flight, self._settings.max_in_flight)
        try:
            matched = match(self.contract, accepted.offered, self.path)
        except BaseException:
            session.start(pidfd=accepted.pidfd)
            session.close("the contracts do not match")
            raise
        add_built_in(matched, built_in, accepted.offered)
        self.offered, self.narrow = accepted.offered, matched.narrow
        calls = OutgoingCalls(
            loop, accepted.channel, session.memory, matched.numbers, in_flight, session.cut, session.windows
        )
        session.start(pidfd=accepted.pidfd, outgoing=calls, incoming=self._serve(loop, session))
        self._session, self.calls = session, calls
        self._established_ns = monotonic_ns()

    def _offers(self) -> list[handshake.Offered]:
        """What the hello says of the services that this side exposes."""
        if self._exposed is None:
            return []
        first = self._exposed.first_method
        return [
            handshake.Offered(contract.name, b"", first[contract.name], contract.signatures)
            for contract in self._exposed.contracts.values()
        ]

    def _serve(self, loop: asyncio.AbstractEventLoop, session: Session) -> IncomingCalls | None:
        """What serves the calls that the server makes."""
        if self._exposed is None:
            return None
        return IncomingCalls(
            loop,
            session.channel,
            session.memory,
            self._exposed.methods,
            session.peer,
            self._context,
            self._settings.max_in_flight,
            windows=session.windows,
            debug=self._settings.debug,
            on_broken=session.cut,
        )

    async def _connect(self) -> Any:
        until_ns = monotonic_ns() + int(self._settings.handshake_timeout * 1e9)
        while (sock := address.connect(self.path)) is None:
            if monotonic_ns() > until_ns:
                raise ConnectFailed(f"the server at {self.path} accepts no connections: its backlog is full")
            await asyncio.sleep(0.005)
        return sock

    def _on_drain(self, session: Session) -> None:
        self._retiring.add(session)
        self._on_end(session)

    def _on_end(self, session: Session) -> None:
        if session.ended:
            self._retiring.discard(session)
        if session is not self._session:
            return
        self._session = self.calls = None
        if not self.closed and self._loop is not None and not self._loop.is_closed():
            self._reconnecting = self._loop.create_task(self._reconnect(), name=f"shmrpc reconnect {self.path}")

    async def _reconnect(self) -> None:
        if monotonic_ns() - self._established_ns > STABLE_NS:
            self._delay = BACKOFF_FIRST
        else:  # a server that loses its connections as soon as it has them is not asked at once again
            await self._back_off()
        while not self.closed:
            self._hurry.clear()
            try:
                await self._establish()
            except (Unavailable, HandshakeError, OSError) as error:
                if isinstance(error, HandshakeError):
                    self._settle_connected(error)
                log.debug("no connection to %s: %s", self.path, error)
            except Exception as error:
                log.exception("reconnecting to %s failed", self.path)
                self._settle_connected(Unavailable(f"reconnecting to {self.path} failed: {error}"))
            else:
                self._settle_connected(None)
                return
            await self._back_off()

    async def _back_off(self) -> None:
        await self._pause(self._delay * random.uniform(0.8, 1.2))
        self._delay = min(self._delay * BACKOFF_FACTOR, BACKOFF_MOST)

    async def _pause(self, seconds: float) -> None:
        """Waits, but not long while a call waits for the connection."""
        if self._connected is not None:
            seconds = min(seconds, BACKOFF_WAITED_FOR)
        await asyncio.sleep(min(seconds, BACKOFF_WAITED_FOR))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds - BACKOFF_WAITED_FOR)):
                await self._hurry.wait()

    def _settle_connected(self, error: RpcError | None) -> None:
        connected, self._connected = self._connected, None
        if connected is None or connected.done():
            return
        if error is None:
            connected.set_result(None)
        else:
            connected.set_exception(error)
            connected.exception()  # fetched: those who wait may be gone

    async def close(self) -> None:
        """Ends the connection and every call on it. Idempotent."""
        self.closed = True
        sessions = [session for session in (self._session, *self._retiring) if session is not None]
        self._close_sessions()
        for session in sessions:
            await session.memory.wait_closed()
            if session.incoming is not None:
                await session.incoming.wait_closed()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait((self._reconnecting,))
            self._reconnecting = None
        self._close_sessions()  # one that the reconnecting task had just finished
        await self._leave()

    def _close_sessions(self) -> None:
        for session in (self._session, *self._retiring):
            if session is not None:
                session.close(f"the stub for {self.path} was closed")
        self._session = self.calls = None
        self._settle_connected(Closed(f"the stub for {self.path} was closed"))


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:  # no event loop at all
        return False
