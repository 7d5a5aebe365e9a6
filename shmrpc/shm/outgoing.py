"""The calls that this side makes over one session: from the request until the peer has ended them.

Owns the correlation of replies with waiting callers and the credit for calls in flight. A call that its caller gave up
stays here, abandoned, until the peer has ended it, so that both sides count the same calls in flight.

What a caller awaits gives the reply's payload, as bytes or with buffers as a `Parcel`, or the RpcError that ended the
call: it does not raise it, since an error that nobody comes to fetch, because the caller was cancelled in the same tick,
is no mistake worth a warning.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Protocol

from shmrpc.buffers import Packed
from shmrpc.context import NO_DEADLINE, Reply, remaining_seconds
from shmrpc.errors import (
    Closed,
    ConnectionLost,
    DeadlineExceeded,
    ForkedError,
    ProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
    WrongLoop,
    anew,
)
from shmrpc.failure import error_of
from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.shm import envelope
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.channel import Channel
from shmrpc.shm.deadlines import NEVER, DeadlineTimer
from shmrpc.shm.envelope import ARGUMENTS, CANCEL, END_OF_ARGUMENTS, HAS_BUFFERS, HAS_METADATA, REQUEST
from shmrpc.shm.flows import Flows, OutgoingFlows
from shmrpc.shm.memory import Memory
from shmrpc.shm.placed import Placed
from shmrpc.shm.protocol import Outgoing
from shmrpc.shm.ring import PendingCall

Answer = bytes | Parcel | RpcError


class Named(Protocol):
    """What a call needs to know of its method: a `contract.Method`, or what stands for one."""

    @property
    def full_name(self) -> str:
        """Like ``"Vision.classify"``, for error texts."""
        ...

    @property
    def contract(self) -> type:
        """The class in whose module errors are looked up."""
        ...


def state_of(call: PendingCall) -> Outgoing:
    """The state of a call that is under way, in the protocol's table: one that nobody awaits any more is abandoned."""
    return Outgoing.ABANDONED if call.done() else Outgoing.OPEN


class OutgoingCalls:
    """All calls that one session makes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        memory: Memory,
        numbers: dict[str, int],
        max_in_flight: int,
        on_broken: Callable[[ProtocolError], None],
        windows: tuple[Window, Window] = (DEFAULT_WINDOW, DEFAULT_WINDOW),
        *,
        narrow: dict[str, tuple[int, int]] | None = None,
        where: str = "",
    ) -> None:
        self.numbers: Final = numbers
        """The server's number for each method, by full name."""
        self.narrow: Final = narrow or {}
        """Methods of which the server knows fewer parameters: its number and how many."""
        self.where: Final = where
        """To whom the calls go, for error texts."""
        self.retired = False
        """Whether new calls are to be made elsewhere: the session has ended, or its server drains."""
        self.pending: Final[dict[int, PendingCall]] = {}
        self.waiters: Final[deque[asyncio.Future[None]]] = deque()
        self.max_in_flight: Final = max_in_flight
        self.memory: Final = memory
        self.inline_limit: Final = channel.inline_limit
        """Payloads over this go through `begin`."""
        self.timer: Final = DeadlineTimer(loop, self._expire)
        self._loop = loop
        self._on_broken = on_broken
        self._channel = channel
        self._try_place: Final = memory.lender.try_place
        requester = channel.requester(loop, self.pending)
        self._start = requester.start
        self._lend = requester.lend
        self._ledger = channel.arena.ledger
        self.replies: Final[dict[int, Reply]] = {}
        """Of the calls whose callers want the metadata of the answer."""
        self.flows: Final = OutgoingFlows(
            Flows(loop, channel, memory, windows, on_broken), self.pending, self.replies, self.abandon
        )
        self.forked = False
        self.ended: Unavailable | None = None
        """Why no more calls can be made here; None while they can."""

    def __repr__(self) -> str:
        return f"<OutgoingCalls {len(self.pending)} of {self.max_in_flight} in flight, {len(self.waiters)} waiting>"

    @property
    def congested(self) -> bool:
        """Whether a call would have to wait for credit."""
        return len(self.pending) >= self.max_in_flight or bool(self.waiters)

    def start(self, method: Named, number: int, flags: int, deadline_ns: int, payload: bytes) -> PendingCall:
        """Sends a request; await what it gives, and `abandon` it if that is cancelled. Does not ask for credit.

        Raises:
            WrongLoop: the running event loop is not the session's.
            ForkedError: this process is a forked child.
            ResourceExhausted: the request is larger than a message may be.
            ProtocolError: the peer's cursor is impossible.
        """
        try:
            call = self._start(method, number, flags, deadline_ns, payload)
        except (
            ProtocolError,
            ValueError,
        ) as error:  # ValueError is the native core's word for a broken or closed channel
            raise self._broken(error) from None
        if call is None:
            raise forked_error() if self.forked else wrong_loop_error(method)
        if deadline_ns and deadline_ns < self.timer.next_ns:
            self.timer.advance(deadline_ns)
        return call

    def try_lend(
        self, method: Named, number: int, deadline_ns: int, body: bytes, exporter: object
    ) -> PendingCall | None:
        """`start` for a body with one buffer that begins a block of this side. None: it is not that simple, `try_begin` it.

        Raises what `start` raises.
        """
        try:
            call = self._lend(self._ledger, method, number, deadline_ns, body, exporter, method.full_name)
        except (ProtocolError, ValueError) as error:
            raise self._broken(error) from None
        if deadline_ns and deadline_ns < self.timer.next_ns and call is not None:
            self.timer.advance(deadline_ns)
        return call

    def try_begin(self, method: Named, number: int, flags: int, deadline_ns: int, packed: Packed) -> PendingCall | None:
        """`start` for a request with buffers, or one that is too large for a record. None: it needs `begin`.

        Raises what `start` raises.
        """
        if not packed.pieces and len(packed.payload) <= self.inline_limit:
            return self.start(method, number, flags, deadline_ns, packed.payload)
        if self.forked or asyncio.get_running_loop() is not self._loop:  # before memory of that side is touched
            raise forked_error() if self.forked else wrong_loop_error(method)
        try:
            placed = self._try_place(packed, method.full_name)
        except ProtocolError as error:
            raise self._broken(error) from None
        if not isinstance(placed, Placed):
            return None
        return self._start_placed(method, number, flags, deadline_ns, placed)

    async def begin(
        self, method: Named, number: int, flags: int, deadline_ns: int, packed: Packed
    ) -> PendingCall | None:
        """The same, waiting for memory where that helps. None: there is no credit any more, ask for it again.

        Raises:
            ResourceExhausted: no memory came home before the deadline.
            DeadlineExceeded: memory was still being made then.
            Unavailable: the connection ended meanwhile.
        """
        try:
            placed = await self.memory.lender.place(packed, method.full_name, deadline_ns)
        except ProtocolError as error:
            raise self._broken(error) from None
        if self.ended is not None:
            raise anew(self.ended)
        if len(self.pending) >= self.max_in_flight:
            self.memory.lender.undo(placed)
            return None
        return self._start_placed(method, number, flags, deadline_ns, placed)

    def _start_placed(self, method: Named, number: int, flags: int, deadline_ns: int, placed: Placed) -> PendingCall:
        try:
            call = self.start(method, number, flags | placed.flags, deadline_ns, placed.payload)
        except BaseException:
            self.memory.lender.undo(placed)
            raise
        if self._channel.outbox:
            self._channel.keep(REQUEST, call.call_id, placed)
        return call

    def _broken(self, error: Exception) -> RpcError:
        if self.forked:
            return forked_error()
        broken = ProtocolError(str(error))
        self._on_broken(broken)
        return broken

    async def finish(self, call: PendingCall) -> Answer:
        """Waits for the end of a call; a cancellation of the caller is passed on to the peer."""
        try:
            answer: Answer = await call
        except asyncio.CancelledError:
            self.abandon(call)
            raise
        finally:
            self.replies.pop(call.call_id, None)
        return answer

    async def wait_for_credit(self, method: Named, deadline_ns: int) -> None:
        """Returns when one more call may be made; first come, first served.

        Raises:
            ResourceExhausted: the deadline passed before that.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout(remaining_seconds(deadline_ns) if deadline_ns else None):
                await waiter
        except TimeoutError:
            raise ResourceExhausted(
                f"{method.full_name} was not sent: {len(self.pending)} calls are in flight on this connection, the "
                f"limit is {self.max_in_flight} (max_in_flight), and none ended before the deadline"
            ) from None
        finally:
            self.waiters.remove(waiter)
            self._loop.call_soon(self.admit)  # by then the credit that this one was given is used, or is the next one's

    def admit(self) -> None:
        """Lets those go on that wait longest, as far as there is credit. They keep their places until they do."""
        for waiter in islice(self.waiters, max(0, self.max_in_flight - len(self.pending))):
            if not waiter.done():
                waiter.set_result(None)

    # ---- what the peer says ----

    def on_reply(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """A result came that the native core did not deliver itself."""
        if flags & HAS_BUFFERS:
            payload, views = self.memory.borrowed.open_buffers(payload)
            if flags & HAS_METADATA:
                payload = self._open_metadata(call_id, payload)
            self._take(call_id).answer(Parcel(payload, views))
        else:
            if flags & HAS_METADATA:
                payload = self._open_metadata(call_id, payload)
            self._take(call_id).answer(payload)

    def on_failure(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """An error came."""
        if flags & HAS_METADATA:
            payload = self._open_metadata(call_id, payload)
        try:
            failure = envelope.decode_failure(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"the failure of call {call_id} cannot be decoded: {error}") from None
        call = self._take(call_id)
        if not call.done():
            call.set_result(error_of(failure, call.method.contract))

    def on_initial_metadata(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """Metadata came ahead of a result."""
        if call_id not in self.pending:
            raise ProtocolError(f"the peer sent metadata of call {call_id}, which is not under way")
        try:
            metadata = envelope.decode_metadata(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"the metadata of call {call_id} cannot be decoded: {error}") from None
        if (reply := self.replies.get(call_id)) is not None:
            reply.initial_metadata = metadata

    def _open_metadata(self, call_id: int, payload: bytes) -> bytes:
        try:
            metadata, payload = envelope.open_metadata(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"the metadata of the end of call {call_id} cannot be decoded: {error}") from None
        if (reply := self.replies.get(call_id)) is not None:
            reply.trailing_metadata = metadata
        return payload

    def listen(self, call: PendingCall, reply: Reply | None) -> None:
        """Puts the metadata of a call's answer into a `Reply`; to be called before the next turn of the event loop."""
        if reply is not None:
            reply.initial_metadata = reply.trailing_metadata = {}
            self.replies[call.call_id] = reply

    def _take(self, call_id: int) -> PendingCall:
        call = self.pending.pop(call_id, None)
        if call is None:
            raise ProtocolError(f"the peer ended call {call_id}, which is not under way")
        return call

    # ---- what ends a call from this side ----

    def abandon(self, call: PendingCall) -> None:
        """The caller was cancelled: tells the peer, which still owes the end."""
        if self.forked or self.pending.get(call.call_id) is not call:
            return  # it ended in this very tick
        withdrawn = self._withdraw(call)
        call.set_result(b"")
        if withdrawn:
            self.admit()
            return
        try:
            self._channel.send(CANCEL, 0, 0, call.call_id, NO_DEADLINE, b"")
        except ProtocolError as error:
            self._on_broken(error)

    def _withdraw(self, call: PendingCall) -> bool:
        """Takes back a request that was not published yet."""
        waited, placed = self._channel.withdraw(REQUEST, call.call_id)
        if waited:
            del self.pending[call.call_id]
            if placed is not None:
                self.memory.lender.undo(placed)
            self._withdraw_items(call.call_id)
        return waited

    def _withdraw_items(self, call_id: int) -> None:
        """The peer must not hear of the items of a call that it never hears of."""
        for kind in (ARGUMENTS, END_OF_ARGUMENTS):
            waited, placed = True, None
            while waited:
                waited, placed = self._channel.withdraw(kind, call_id)
                if placed is not None:
                    self.memory.lender.undo(placed)

    def _expire(self, now_ns: int) -> int:
        earliest_ns = NEVER
        for call in list(self.pending.values()):
            if not call.deadline_ns or call.done():
                continue
            if call.deadline_ns > now_ns:
                earliest_ns = min(earliest_ns, call.deadline_ns)
                continue
            text = f"{call.method.full_name} did not end before its deadline"
            if self._withdraw(call):
                text += "; it was never sent, since the peer took no records"
            call.set_result(DeadlineExceeded(text))  # the peer has the same clock and deadline: it needs no cancel
        self.admit()
        return earliest_ns

    def refuse_after(self, last_call_id: int, reason: str) -> None:
        """Ends the calls that the peer will not take any more; they were not executed."""
        self.retired = True
        for call_id in [call_id for call_id in self.pending if call_id > last_call_id]:
            self.pending.pop(call_id).set_result(ConnectionLost(reason, maybe_executed=False))
        self._send_waiters_on()

    def lose(self, reason: str, *, peer_reads_on: bool = False) -> None:
        """Ends all calls: the connection is gone. Says of each whether it may have been executed.

        With `peer_reads_on`, what the peer has not taken yet may still be taken, and only what was never published is safe.
        """
        self.ended = ConnectionLost(reason)
        records = self._channel.unsent() if peer_reads_on else self._channel.unread()
        unread = {call_id for kind, call_id in records if kind == REQUEST}
        for call_id, call in self.pending.items():
            taken = call_id not in unread
            text = f"{reason}; {call.method.full_name} was " + ("under way there" if taken else "not taken yet")
            call.set_result(ConnectionLost(text, maybe_executed=taken))
        self._close()

    def close(self, reason: str) -> None:
        """Ends all calls: this side closes the connection."""
        self.ended = Closed(reason)
        for call in self.pending.values():
            text = f"{reason} while {call.method.full_name} was under way"
            call.set_result(Closed(text, maybe_executed=True))
        self._close()

    def fork_off(self) -> None:
        """In a forked child: no call can be made here, and none ends. Touches neither the loop nor the shared memory."""
        self.forked = True
        self.flows.fork_off(forked_error())

    def _close(self) -> None:
        self.retired = True
        self.pending.clear()
        self.timer.close()
        self._send_waiters_on()

    def _send_waiters_on(self) -> None:
        """Those who wait for credit here will get it elsewhere."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


def forked_error() -> ForkedError:
    """What a forked child gets."""
    return ForkedError("this connection belongs to the parent process; connect again in the child")


def wrong_loop_error(method: Named) -> WrongLoop:
    """What a caller in another event loop gets."""
    return WrongLoop(
        f"{method.full_name} was called from another event loop, or another thread, than the one that connected"
    )
