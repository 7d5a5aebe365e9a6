"""The client's end: one stub's connection to a server, made again whenever it is lost.

Owns connecting, reconnecting with back-off, and the rule for repeating calls: a call that the server certainly did not
take is made again over the next connection; one that it may have executed is not, unless its method is idempotent.
"""

import asyncio
import contextlib
import logging
import os
import random
import warnings
from time import monotonic_ns
from typing import Any, Final, NamedTuple

import msgspec

from shmrpc.context import CallOptions, Peer, remaining_seconds, running
from shmrpc.contract import Contract, Method
from shmrpc.errors import (
    Closed,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    HandshakeError,
    InvalidArgument,
    RpcError,
    Unavailable,
    Unimplemented,
)
from shmrpc.shm import address, envelope, handshake
from shmrpc.shm.matching import match
from shmrpc.shm.outgoing import Answer, OutgoingCalls, forked_error, wrong_loop_error
from shmrpc.shm.session import Session
from shmrpc.shm.settings import Settings
from shmrpc.transport import StubMethod

log: Final = logging.getLogger("shmrpc")

BACKOFF_FIRST: Final = 0.05
BACKOFF_FACTOR: Final = 1.6
BACKOFF_MOST: Final = 5.0
STABLE_NS: Final = 1_000_000_000
"""A connection that lived this long ends the back-off."""
MAX_REPEATS: Final = 2
"""How often an idempotent call that may have been executed is made again: it may be what kills the server."""
BACKOFF_WAITED_FOR: Final = 0.05
"""Seconds between attempts while a call waits for the connection: a failed attempt costs some 30 us."""


class _Untyped(NamedTuple):
    """Stands for a method whose contract is not at hand."""

    full_name: str
    contract: type = object


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
        self._calls: OutgoingCalls | None = None
        """Of the session that takes new calls; None while there is none."""
        self._retiring: set[Session] = set()
        """Sessions whose server drains: they finish what runs."""
        self._delay = BACKOFF_FIRST
        self._established_ns = 0
        self._narrow: dict[str, tuple[int, int]] = {}
        """Methods of which the server knows fewer parameters: its number and how many."""
        self._reconnecting: asyncio.Task[None] | None = None
        self._connected: asyncio.Future[None] | None = None
        self._hurry = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._calls is not None else "not connected"
        return f"<Link to {self.path}, {state}>"

    def __del__(self) -> None:
        if not self._closed and self._calls is not None and not self._calls.forked:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=1)

    @property
    def peer(self) -> Peer | None:
        """The server's process."""
        return self._session.peer if self._session is not None else None

    # ---- calls ----

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The coroutine function of one stub method: see `Transport.bind`."""
        encode = method.encode
        decode = method.decode_result
        full_name, required, arity = method.full_name, method.required, method.arity
        by_position = method.plain
        always_slow = bool(options.metadata) or method.oneway
        timeless = not options.timeout_ns
        running_call = running.get

        async def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs or not by_position or not required <= len(args) <= arity:
                args = method.bind(args, kwargs)
            try:
                payload = encode(args)
            except Exception:  # whatever it is: encode_arguments says which parameter
                payload = method.encode_arguments(args)
            deadline_ns = 0 if timeless and running_call(None) is None else options.deadline_ns()
            calls = self._calls
            answer: Any
            if (
                calls is None
                or always_slow
                or len(calls.pending) >= calls.max_in_flight
                or calls.waiters
                or full_name not in calls.numbers
            ):
                answer = await self._call_slowly(method, options, len(args), deadline_ns, payload)
            else:
                pending = calls.start(method, calls.numbers[full_name], 0, deadline_ns, payload)
                try:
                    answer = await pending
                except asyncio.CancelledError:
                    calls.abandon(pending)
                    raise
            if answer.__class__ is not bytes:  # quicker than isinstance, and this is the hot path
                answer = await self._after_error(answer, method, options, len(args), deadline_ns, payload)
            try:
                return decode(answer)
            except Exception:  # whatever it is: read_result says what does not fit
                return method.read_result(answer)

        call.__name__ = method.name
        call.__qualname__ = full_name
        return call

    async def call_json(self, full_name: str, number: int, payload: bytes, options: CallOptions) -> bytes:
        """Calls a method by number with JSON arguments, for callers without the contract; gives the result as JSON."""
        calls = self._calls
        if calls is None:
            raise Closed(f"{full_name} was called without a connection")
        flags = envelope.AS_JSON
        if options.metadata:
            flags |= envelope.HAS_METADATA
            payload = envelope.with_metadata(options.metadata, payload)
        answer = await calls.finish(calls.start(_Untyped(full_name), number, flags, options.deadline_ns(), payload))
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def _after_error(
        self,
        error: Answer,
        method: Method,
        options: CallOptions,
        given: int,
        deadline_ns: int,
        payload: bytes,
    ) -> bytes:
        """Makes the call again if that is safe; else raises."""
        maybe_executed = False  # by this attempt or by one before
        repeats = 0
        while isinstance(error, RpcError):
            if isinstance(error, Unavailable):
                maybe_executed = error.maybe_executed = error.maybe_executed or maybe_executed
            if not isinstance(error, ConnectionLost) or self._closed:
                raise error
            if maybe_executed:
                repeats += 1
                if not method.policy.idempotent or repeats > MAX_REPEATS:
                    raise error
            lost = error
            try:
                error = await self._call_slowly(method, options, given, deadline_ns, payload)
            except Unavailable as later:
                raise lost from later  # how it was lost says more than that there is nothing to try again with
        return error

    async def _call_slowly(
        self, method: Method, options: CallOptions, given: int, deadline_ns: int, payload: bytes
    ) -> Answer:
        """One attempt at a call that needs more than a record: a connection, credit, metadata."""
        flags = 0
        if options.metadata:
            flags = envelope.HAS_METADATA
            payload = envelope.with_metadata(options.metadata, payload)
        while True:
            calls = await self._ready(method, deadline_ns)
            number = self._number(calls, method, given)
            if not calls.congested:
                break
            await calls.wait_for_credit(method, deadline_ns)
            if calls is self._calls and len(calls.pending) < calls.max_in_flight:
                break
        pending = calls.start(method, number, flags, deadline_ns, payload)
        if method.oneway:
            pending.set_result(_NIL)  # nobody waits for it, but the peer owes its end, and it counts as in flight
            return _NIL
        return await calls.finish(pending)

    def _number(self, calls: OutgoingCalls, method: Method, given: int) -> int:
        number = calls.numbers.get(method.full_name)
        if number is not None:
            return number
        if (narrow := self._narrow.get(method.full_name)) is None:
            raise Unimplemented(
                f"the server at {self.path} has no method {method.full_name}; it is older than this client"
            )
        number, arity = narrow
        if given > arity:
            raise InvalidArgument(
                f"{method.full_name}: {given} arguments were given, the server at {self.path} takes {arity}; it is older "
                "than this client, leave the last ones out"
            )
        return number

    async def _ready(self, method: Method, deadline_ns: int) -> OutgoingCalls:
        """The live session's calls, waiting for a connection if there is none.

        Raises:
            Unavailable, HandshakeError, DeadlineExceeded, WrongLoop.
        """
        while True:
            if self._closed:
                raise Closed(f"{method.full_name} was called on a stub that is closed")
            if self._loop is None:
                raise Closed(
                    f"{method.full_name} was called before its stub was connected; use 'async with connect(…)'"
                )
            if self._pid != os.getpid():
                raise forked_error()
            if not _runs_here(self._loop):
                raise wrong_loop_error(method)
            if self._calls is not None:
                return self._calls
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
        if self._closed or self._loop is not None:
            raise Closed("a stub can be entered once; connect again")
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        until_ns = monotonic_ns() + int(self._wait * 1e9)
        while True:
            try:
                await self._establish()
                return
            except ConnectFailed:
                if monotonic_ns() >= until_ns:
                    self._closed = True
                    raise
                await asyncio.sleep(min(0.01, self._wait))
            except BaseException:
                self._closed = True
                raise

    async def _establish(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = []
        if self.contract is not None:
            wanted.append(handshake.Wanted(self.contract.name, handshake.digest_of(self.contract.signatures)))
        sock = await self._connect()
        try:
            accepted = await handshake.as_client(sock, wanted, self._settings)
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
        session = Session(loop, accepted.channel, sock, accepted.peer, self._settings, self._on_end, self._on_drain)
        in_flight = min(accepted.max_in_flight, self._settings.max_in_flight)
        try:
            numbers, self._narrow = match(self.contract, accepted.offered, self.path)
        except BaseException:
            session.start(pidfd=accepted.pidfd)
            session.close("the contracts do not match")
            raise
        self.offered = accepted.offered
        calls = OutgoingCalls(loop, accepted.channel, numbers, in_flight, session.cut)
        session.start(pidfd=accepted.pidfd, outgoing=calls)
        self._session, self._calls = session, calls
        self._established_ns = monotonic_ns()

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
        self._session = self._calls = None
        if not self._closed and self._loop is not None and not self._loop.is_closed():
            self._reconnecting = self._loop.create_task(self._reconnect(), name=f"shmrpc reconnect {self.path}")

    async def _reconnect(self) -> None:
        if monotonic_ns() - self._established_ns > STABLE_NS:
            self._delay = BACKOFF_FIRST
        else:  # a server that loses its connections as soon as it has them is not asked at once again
            await self._back_off()
        while not self._closed:
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
        self._closed = True
        self._close_sessions()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait((self._reconnecting,))
            self._reconnecting = None
        self._close_sessions()  # one that the reconnecting task had just finished

    def _close_sessions(self) -> None:
        for session in (self._session, *self._retiring):
            if session is not None:
                session.close(f"the stub for {self.path} was closed")
        self._session = self._calls = None
        self._settle_connected(Closed(f"the stub for {self.path} was closed"))


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:  # no event loop at all
        return False


_NIL: Final = msgspec.msgpack.encode(None)
