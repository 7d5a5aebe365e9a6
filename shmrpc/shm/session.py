"""One connection's life, from the finished handshake to its end, on either side.

Owns the channel, its memory and the watch on the peer's process; routes records to the calls that this side makes
(`outgoing`) and serves (`incoming`). However it ends, every call on it ends, once, and everything it held is given back.
"""

import asyncio
import logging
import os
import socket
import weakref
from collections.abc import Callable
from typing import Final

from shmrpc.context import Peer
from shmrpc.errors import ConnectionLost, ProtocolError
from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.legible import one_line
from shmrpc.shm import envelope, ring
from shmrpc.shm.channel import Channel
from shmrpc.shm.extents import FREE, Charge
from shmrpc.shm.incoming import IncomingCalls
from shmrpc.shm.layout import RECORD_HEADER
from shmrpc.shm.liveness import ProcessWatch
from shmrpc.shm.memory import Memory
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.poller import Member, Polling, poller_of
from shmrpc.shm.ring import PendingCall
from shmrpc.shm.settings import Settings

log: Final = logging.getLogger("shmrpc")

OnRecord = Callable[[int, int, int, int, bytes], None]


class Session:
    """One end of a live connection. Belongs to the event loop that it was made in."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        sock: socket.socket,
        peer: Peer,
        settings: Settings,
        max_extent_bytes: int,
        on_end: Callable[["Session"], None],
        on_drain: Callable[["Session"], None] | None = None,
        charge: Charge = FREE,
        windows: tuple[Window, Window] = (DEFAULT_WINDOW, DEFAULT_WINDOW),
    ) -> None:
        self.peer: Final = peer
        self.channel: Final = channel
        self.memory: Final = Memory(
            loop, channel, sock, peer, settings, max_extent_bytes, self._on_hang_up, self.cut, charge
        )
        self.outgoing: OutgoingCalls | None = None
        self.incoming: IncomingCalls | None = None
        self.windows: Final = windows
        """What this side accepts of a stream, and what the peer does."""
        self.ended = False
        self.draining = False
        """Whether the peer has said that it takes no more calls."""
        self._loop = loop
        self._on_end = on_end
        self._borrowed = self.memory.borrowed
        self._poller = poller_of(loop)
        self._on_drain = on_drain
        self._budget = settings.drain_budget
        self._chunks = -(-self._budget // ring.CHUNK)
        self._peer_is_gone = False
        self._watch: ProcessWatch | None = None
        self._member = Member(self, channel.consumer, channel.doorbell, Polling.of(settings.polling), peer.pid)
        self._handlers: tuple[OnRecord, ...] = ()
        self._pending: dict[int, PendingCall] = {}

    def __repr__(self) -> str:
        state = "ended" if self.ended else "draining" if self.draining else "live"
        return f"<Session {state} with {self.peer}, {self.outgoing or self.incoming!r}>"

    def start(
        self,
        *,
        pidfd: int | None,
        outgoing: OutgoingCalls | None = None,
        incoming: IncomingCalls | None = None,
    ) -> None:
        """Begins to carry calls. Takes over the pidfd."""
        handlers: dict[int, OnRecord] = {}
        if outgoing is not None:
            self.outgoing = outgoing
            self._pending = outgoing.pending
            handlers[envelope.REPLY] = outgoing.on_reply
            handlers[envelope.FAILURE] = outgoing.on_failure
            if self._on_drain is not None:  # it is the server that drains
                handlers[envelope.GOAWAY] = self._on_goaway
            handlers[envelope.INITIAL_METADATA] = outgoing.on_initial_metadata
            handlers[envelope.RESULTS] = outgoing.flows.on_results
            handlers[envelope.ARGUMENT_CREDIT] = outgoing.flows.on_credit
        if incoming is not None:
            self.incoming = incoming
            handlers[envelope.REQUEST] = incoming.on_request
            handlers[envelope.CANCEL] = incoming.on_cancel
            handlers[envelope.ARGUMENTS] = incoming.flows.on_arguments
            handlers[envelope.END_OF_ARGUMENTS] = incoming.flows.on_end_of_arguments
            handlers[envelope.RESULT_CREDIT] = incoming.flows.on_credit
        plain = [handlers.get(kind, self._on_unexpected) for kind in range(128)]
        self._handlers = (*plain, *(self._from_block(handler) for handler in plain))
        _live.add(self)
        try:
            if pidfd is not None:
                self._watch = ProcessWatch(self._loop, pidfd, self._on_exit)
            self.memory.control.start()
            self._poller.add(self._member)
            self.channel.announces = not self._member.one_cpu
        except BaseException:  # the system refuses to watch one more fd
            self.close("it could not be started")
            raise

    # ---- records ----

    def on_records(self) -> None:
        """Takes the records that came, at most the drain budget. Never raises, but for what stops the loop."""
        channel = self.channel
        if not self._peer_is_gone:  # what it left came at once, and its blocks do not come home any more
            self._borrowed.begin_dispatch(self._chunks)
        try:
            channel.dispatch(self._budget, self._handlers, self._pending)
            if channel.releaser.corrupt:  # found when a buffer died, where nothing can be raised
                raise ProtocolError("the peer's position in the release ring is impossible")
            if channel.outbox or channel.on_home is not None:
                channel.flush()
                if self.incoming is not None:
                    self.incoming.look_idle()
        except ProtocolError as error:
            self.cut(error)
        except Exception as error:  # a bug of ours must not stop the poller, which serves other sessions too
            log.exception("the session with %s failed", self.peer)
            self.cut(ProtocolError(f"the session failed: {type(error).__name__}: {error}"))
        except BaseException:  # it stops the loop, which may run again: the ring for this turn was the only one
            self._loop.call_soon(self._finish_turn)
            raise
        outgoing = self.outgoing
        if outgoing is not None:
            if outgoing.waiters:
                outgoing.admit()
            if self.draining:
                self._end_if_drained(outgoing)

    def _finish_turn(self) -> None:
        """Does what is left of a turn that stopped the loop."""
        if not self.ended:
            self.on_records()

    def on_rung(self) -> None:
        """The doorbell rang: there are records, or room for those that waited."""
        self.on_records()

    def on_silenced(self) -> None:
        """The peer has closed the doorbell that it rings: it will never be heard again."""
        self.lose(f"the peer {self.peer} closed its doorbell")

    def _from_block(self, handler: OnRecord) -> OnRecord:
        """The same handler, for records whose payload is in a block."""

        def handle(flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
            payload = self._borrowed.open_block(payload)
            handler(flags & ~envelope.IN_BLOCK, method, call_id, deadline_ns, payload)

        return handle

    def _on_unexpected(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        raise ProtocolError("the peer sent a record of a kind that this side does not take")

    def _on_goaway(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        assert self.outgoing is not None
        if not self.draining and self._on_drain is not None:
            self._on_drain(self)
        self.draining = True
        self.outgoing.refuse_after(call_id, f"the server {self.peer} drains and did not take the call")

    def _end_if_drained(self, outgoing: OutgoingCalls) -> None:
        if not outgoing.pending and not (
            self.incoming and self.incoming.running
        ):  # nothing more can come that anybody waits for
            self._finish(lambda outgoing: outgoing.lose(f"the server {self.peer} drained"))

    def go_away(self) -> None:
        """Tells the peer that no call after the last one so far will be taken."""
        if self.incoming is not None and not self.ended:
            self.incoming.draining = True
            try:
                self.channel.send(envelope.GOAWAY, 0, 0, self.incoming.last_accepted, 0, b"")
            except ProtocolError as error:
                self.cut(error)

    @property
    def settled(self) -> bool:
        """Whether nothing of it works any more: after its end a handler may still run, and a thread that made an extent."""
        return self.ended and self.memory.settled and not (self.incoming and self.incoming.running)

    # ---- signs of the end ----

    def _on_hang_up(self, what: str) -> None:
        self.lose(f"the peer {self.peer} {what}")

    def _on_exit(self) -> None:
        self.lose(f"the peer {self.peer} died")

    # ---- the end ----

    def lose(self, reason: str) -> None:
        """The peer has gone: takes what it still said, then ends every call and gives everything back."""
        if self.ended:
            return
        self._peer_is_gone = True
        self._borrowed.begin_dispatch(1)
        if self.incoming is not None:
            self.incoming.peer_is_gone = True
        try:
            for _ in range(self.channel.peer.geometry.ring_bytes // RECORD_HEADER // self._budget + 1):
                if self.ended or not self.channel.consumer.ready():
                    break
                self.on_records()
        finally:
            self._finish(lambda outgoing: outgoing.lose(reason))

    def cut(self, error: ProtocolError) -> None:
        """The peer broke the rules: ends this connection, and nothing else."""
        if not self.ended:
            why = one_line(error)
            log.warning("the connection with %s was cut: %s", self.peer, why)
            reason = f"the connection to {self.peer} was cut: {why}"
            self._finish(lambda outgoing: outgoing.lose(reason, peer_reads_on=True))

    def close(self, reason: str) -> None:
        """This side ends the connection; calls of its own that are under way end as `Closed`."""
        self._finish(lambda outgoing: outgoing.close(reason))

    def _finish(self, end_outgoing: Callable[[OutgoingCalls], None]) -> None:
        if self.ended:
            return
        self.ended = True
        _live.discard(self)
        self._poller.remove(self._member)
        if self._watch is not None:
            self._watch.close()
        if self.outgoing is not None:
            end_outgoing(self.outgoing)
        if self.incoming is not None:
            self.incoming.orphan()
        ended = self.outgoing.ended if self.outgoing is not None else None
        self.memory.close(ended or ConnectionLost(f"the connection to {self.peer} ended"))
        self.channel.close()
        if self.incoming is not None:
            self.incoming.look_idle()
        self._on_end(self)

    def fork_off(self) -> None:
        """In a forked child: this copy is dead. Touches neither the loop nor the shared memory: both are the parent's."""
        self.ended = True
        if self._watch is not None:
            self._watch.forget()
        self.channel.forget()  # first: a View that dies in this process must not release the parent's lease
        if self.outgoing is not None:
            self.outgoing.fork_off()
        self.memory.forget()


_live: weakref.WeakSet[Session] = weakref.WeakSet()


def _fork_off_all() -> None:
    for session in list(_live):
        session.fork_off()
    _live.clear()


os.register_at_fork(after_in_child=_fork_off_all)
