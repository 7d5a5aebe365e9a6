"""The client's end: one stub's connection to a server, made again whenever it is lost.

Owns connecting and reconnecting with back-off. How a call is made over it, and made again, is `calling`'s.
"""

import asyncio
import contextlib
import logging
import os
import random
import warnings
from collections.abc import Callable
from time import monotonic_ns
from typing import Final, Literal

import anyio

from shmrpc.buffers import Buffer, Packed
from shmrpc.context import CallOptions, Endpoint, Lease, Peer, remaining_seconds
from shmrpc.contract import Contract
from shmrpc.dispatch import Dispatcher
from shmrpc.errors import (
    Closed,
    ConnectFailed,
    DeadlineExceeded,
    HandshakeError,
    RpcError,
    Unavailable,
    anew,
)
from shmrpc.methods import Method
from shmrpc.shm import address
from shmrpc.shm.calling import Calling
from shmrpc.shm.handshake import Offered
from shmrpc.shm.meeting import Meeting
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
LOOK: Final = 0.005
"""Seconds between looks at the path meanwhile, for a new server there: a look costs 2 us, and the wake-up for it."""

LONGEST_WAIT: Final = 1e9
"""Seconds that stand for no end."""
SPREAD_TRIES: Final = 8
"""How often a link of several tries for a process of its own, before it shares one."""
SPREAD_PAUSE: Final = 0.0005
"""Seconds before the first of these tries; each waits longer."""


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
        self._meeting: Final = Meeting(contract, path, settings, exposed, self._on_end, self._on_drain)
        self._wait = wait
        self.reconnect_timeout: Final = reconnect_timeout
        """Seconds that a call without a deadline waits for a connection."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._session: Session | None = None
        self.calls: OutgoingCalls | None = None
        """Of the session that takes new calls; None while there is none."""
        self._retiring: set[Session] = set()
        """Sessions whose server drains: they finish what runs."""
        self._hung_up: Final[set[Session]] = set()
        """Sessions that were ended from this side."""
        self._delay = BACKOFF_FIRST
        self._established_ns = 0
        self._reconnecting: asyncio.Task[None] | None = None
        self._tried: address.Mark | None = None
        """What was at the path at the last attempt."""
        self._waiting: dict[asyncio.Future[None], None] = {}
        """Of those who wait for a connection, in the order in which they came."""
        self._hurry = asyncio.Event()
        """Set while somebody does."""
        self.closed = False
        self._exposed = exposed
        self._entered = False
        """Whether the exposed services were."""
        self.near: Final = None
        """All calls go the same way."""
        self.is_taken: Callable[[int], bool] | None = None
        """Whether another connection has a process; then another one is tried for. For one link of several."""
        self.on_change: Callable[[Link, str], None] | None = None
        """Called when it was connected, or was lost, and then with the reason."""
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
    def forked(self) -> bool:
        """Whether this process is a forked child of the one that opened it."""
        return self._loop is not None and self._pid != os.getpid()

    @property
    def offered(self) -> list[Offered]:
        """What the server said that it serves, at the last handshake."""
        return self._meeting.offered

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

    def endpoints(self) -> list[Endpoint]:
        """Its only one."""
        sessions = [session for session in (self._session, *self._retiring) if session is not None]
        in_flight = sum(len(session.outgoing.pending) for session in sessions if session.outgoing is not None)
        state: Literal["connected", "reconnecting", "closed"] = "closed" if self.closed else "reconnecting"
        return [Endpoint(self.path, "connected" if self.calls is not None else state, self.peer, in_flight)]

    async def ready(self, method: Method, deadline_ns: int, packed: Packed) -> OutgoingCalls:
        """The live session's calls, waiting for a connection if there is none.

        Raises:
            Unavailable, HandshakeError, DeadlineExceeded, WrongLoop.
        """
        while True:
            self.check(method)
            if self.calls is not None:
                return self.calls
            connected = self.connected_soon()
            seconds = seconds_to_wait(self.reconnect_timeout, deadline_ns)
            try:
                done, _ = await asyncio.wait((connected,), timeout=seconds)
            finally:
                connected.cancel()
            if not done:
                raise not_connected_error(method, self.path, self.reconnect_timeout, deadline_ns, seconds)
            if (error := connected.exception()) is not None:  # of all that wait
                raise anew(error)

    def check(self, method: Method) -> None:
        """Refuses a call that this is not the place for.

        Raises:
            Closed: it is closed, or not open yet.
            ForkedError, WrongLoop: it is another process's, or another event loop's.
        """
        if self.closed:
            raise Closed(f"{method.full_name} was called on a stub that is closed")
        if self._loop is None:
            raise Closed(f"{method.full_name} was called before its stub was connected; use 'async with connect(…)'")
        if self.forked:
            raise forked_error()
        if not _runs_here(self._loop):
            raise wrong_loop_error(method)

    def connected_soon(self) -> "asyncio.Future[None]":
        """The end of the next attempts to connect, made more often until it is done; who waits no longer cancels it."""
        assert self._loop is not None
        connected: asyncio.Future[None] = self._loop.create_future()
        self._waiting[connected] = None
        connected.add_done_callback(self._wait_is_over)
        self._hurry.set()
        return connected

    def _wait_is_over(self, connected: "asyncio.Future[None]") -> None:
        self._waiting.pop(connected, None)
        if not self._waiting:
            self._hurry.clear()

    # ---- the connection ----

    async def open(self) -> None:
        """Connects, trying for `wait` seconds while nobody listens."""
        self._enter()
        if self._exposed is not None:
            await self._exposed.__aenter__()
            self._entered = True
        try:
            await self._open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._leave()
            raise

    async def _leave(self) -> None:
        if self._exposed is not None and self._entered:
            self._entered = False
            await self._exposed.__aexit__(None, None, None)

    async def _open(self) -> None:
        until_ns = monotonic_ns() + int(min(self._wait, LONGEST_WAIT) * 1e9)
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

    async def open_or_retry(self) -> RpcError | None:
        """`open` for one link of several: says why it failed, and goes on trying then."""
        loop = self._enter()
        try:
            await self._establish()
        except (Unavailable, HandshakeError, OSError) as error:
            self._reconnecting = loop.create_task(self._reconnect(), name=f"shmrpc reconnect {self.path}")
            return error if isinstance(error, RpcError) else Unavailable(f"no connection to {self.path}: {error}")
        return None

    def _enter(self) -> asyncio.AbstractEventLoop:
        if self.closed or self._loop is not None:
            raise Closed("a stub can be entered once; connect again")
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        return self._loop

    async def _establish(self) -> None:
        self._tried = address.mark(self.path)
        session, calls = await self._meeting.meet()
        for tries in range(1, SPREAD_TRIES + 1):
            if self.is_taken is None or not self.is_taken(session.peer.pid):
                break
            session.close("another process of the server was wanted")
            await asyncio.sleep(tries * SPREAD_PAUSE)  # so that it is not accepted by the one that is awake
            session, calls = await self._meeting.meet()
        self._session, self.calls = session, calls
        self._established_ns = monotonic_ns()
        if self.on_change is not None:
            self.on_change(self, "")

    def _on_drain(self, session: Session) -> None:
        self._retiring.add(session)
        self._on_end(session)

    def _on_end(self, session: Session) -> None:
        if session.ended:
            self._retiring = {retiring for retiring in (*self._retiring, session) if not retiring.settled}
        if session is not self._session:
            return
        calls, self._session, self.calls = self.calls, None, None
        if not self.closed and self._loop is not None and not self._loop.is_closed():
            if self.on_change is not None:
                self.on_change(self, str(calls.ended or "it drains") if calls is not None else "")
            self._reconnecting = self._loop.create_task(self._reconnect(), name=f"shmrpc reconnect {self.path}")

    async def _reconnect(self) -> None:
        if monotonic_ns() - self._established_ns > STABLE_NS:
            self._delay = BACKOFF_FIRST
        else:  # a server that loses its connections as soon as it has them is not asked at once again
            await self._back_off()
        while not self.closed:
            try:
                await self._establish()
            except (Unavailable, HandshakeError, OSError) as error:
                if isinstance(error, HandshakeError) and not error.unanswered:  # else it may only be slow
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
        """Waits, but not long while a call waits for the connection, and then no longer than until a new server is there."""
        assert self._loop is not None
        soonest = self._loop.time() + min(seconds, BACKOFF_WAITED_FOR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        while (left := soonest - self._loop.time()) > 0:
            if address.mark(self.path) not in (None, self._tried):
                return
            await asyncio.sleep(min(left, LOOK))

    def _settle_connected(self, error: RpcError | None) -> None:
        waiting, self._waiting = self._waiting, {}
        self._hurry.clear()
        for connected in waiting:
            if connected.done():
                continue
            if error is None:
                connected.set_result(None)
            else:
                connected.set_exception(error)
                connected.exception()  # fetched: who waits may be gone

    async def close(self) -> None:
        """Ends the connection and every call on it. Idempotent. In a forked child there is nothing to be ended."""
        self.hang_up()
        if self.forked:
            return
        with anyio.CancelScope(shield=True):  # one around it that was cancelled would not let it wait
            try:
                await self._wait_hung_up()
            finally:
                await self._leave()

    def hang_up(self) -> None:
        """Ends every session, and does not wait for what that ends. Idempotent."""
        self.closed = True
        if not self.forked:
            self._hung_up.update(session for session in (self._session, *self._retiring) if session is not None)
            self._close_sessions()
            if self._reconnecting is not None:
                self._reconnecting.cancel()

    async def _wait_hung_up(self) -> None:
        for session in tuple(self._hung_up):
            await session.memory.wait_closed()
            if session.incoming is not None:
                await session.incoming.wait_closed()
        if self._reconnecting is not None:
            await asyncio.wait((self._reconnecting,))
            self._reconnecting = None
        self._close_sessions()  # one that the reconnecting task had just finished

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


def seconds_to_wait(reconnect_timeout: float, deadline_ns: int) -> float:
    """How long a call waits for a connection."""
    seconds = min(reconnect_timeout, remaining_seconds(deadline_ns)) if deadline_ns else reconnect_timeout
    return max(0.0, seconds)


def not_connected_error(
    method: Method, where: str, reconnect_timeout: float, deadline_ns: int, waited: float
) -> RpcError:
    """What a call gets that has waited in vain, so many seconds: no longer than its deadline, or than is waited at the most.

    Which of the two it was, the clock would not say: event loops' timers fire a little early.
    """
    if deadline_ns and waited < reconnect_timeout:
        return DeadlineExceeded(f"{method.full_name} was not sent: no connection to {where} before the deadline")
    return Unavailable(
        f"{method.full_name} was not sent: no connection to {where} within {reconnect_timeout} s (reconnect_timeout)"
    )
