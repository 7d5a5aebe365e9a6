"""The calls that this side serves over one session: from the request until the reply is sent.

Each call runs in a context of its own, and as a task from its first wait on (see `eager`). Exactly one reply or failure is
sent for each request, one-way methods included, so that both sides count the same calls in flight.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from time import monotonic_ns
from typing import Any, Final

from shmrpc.buffers import Packed
from shmrpc.context import Metadata, Peer, running
from shmrpc.dispatch import ServedMethod
from shmrpc.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ProtocolError,
    ResourceExhausted,
    RpcError,
    Unavailable,
    Unimplemented,
)
from shmrpc.failure import Failure, failure_of
from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.legible import one_line
from shmrpc.shm import envelope
from shmrpc.shm.channel import Channel
from shmrpc.shm.deadlines import NEVER, DeadlineTimer
from shmrpc.shm.eager import Starter
from shmrpc.shm.envelope import AS_JSON, FAILURE, HAS_BUFFERS, HAS_METADATA, REPLY
from shmrpc.shm.flows import Flows, IncomingFlows
from shmrpc.shm.incoming_call import NO_METADATA, Callback, IncomingCall
from shmrpc.shm.memory import Memory
from shmrpc.shm.placed import Placed
from shmrpc.shm.protocol import Event, Incoming
from shmrpc.shm.ring import LARGE, View

log: Final = logging.getLogger("shmrpc.server")

_NOT_ENCODED: Final = "its result cannot be encoded"
_REFUSAL_BYTES: Final = 12
"""What an encoded refusal has beside the bytes of its text, at most."""
_RUNNING: Final = Incoming.RUNNING  # a member of an Enum is looked up slowly, and these for every call that waits
_EXPIRED: Final = Incoming.EXPIRED


class IncomingCalls:
    """All calls that one session serves."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        memory: Memory,
        methods: list[ServedMethod],
        peer: Peer,
        context: Context,
        max_in_flight: int,
        *,
        windows: tuple[Window, Window] = (DEFAULT_WINDOW, DEFAULT_WINDOW),
        debug: bool,
        on_broken: Callable[[ProtocolError], None],
    ) -> None:
        self.peer: Final = peer
        self.back: Callback | None = None
        """How handlers reach the services that the caller exposes; None: it exposes none."""
        self.running: Final[dict[int, IncomingCall]] = {}
        self.last_accepted = 0
        """The highest call id so far."""
        self.draining = False
        self.peer_is_gone = False
        """Whether nobody is there any more to be answered, so that only one-way calls are worth starting."""
        self._lost = False
        """Whether the connection has ended. What still runs is not answered."""
        self._loop = loop
        self.memory: Final = memory
        self._channel = channel
        self._push = channel.push
        self._methods = methods
        self._starter: Final = Starter[IncomingCall](loop, context, running, self._on_end)
        self._start = self._starter.start
        self._max_in_flight = max_in_flight
        self._longest_text: Final = channel.inline_limit - _REFUSAL_BYTES
        """Bytes of a refusal's text that fit in a record with the rest of the failure."""
        self._debug = debug
        self._on_broken = on_broken
        self._timer: Final = DeadlineTimer(loop, self._expire)
        self.flows: Final = IncomingFlows(
            Flows(loop, channel, memory, windows, on_broken), self.running, self._may_know
        )
        self._idle: asyncio.Event | None = None
        self._thread = threading.get_ident()

    def __repr__(self) -> str:
        return f"<IncomingCalls {len(self.running)} running>"

    # ---- what the peer says ----

    def on_request(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """A call begins."""
        views: Sequence[View] = ()
        if flags & HAS_BUFFERS:  # whatever becomes of the call, they go home with their last reference
            payload, views = self.memory.borrowed.open_buffers(payload)
        if call_id <= self.last_accepted:
            raise ProtocolError(f"the peer began call {call_id} after call {self.last_accepted}; ids must rise")
        if self.draining:
            return  # the peer was told the last call that counts, and repeats this one elsewhere
        most = self._max_in_flight
        if len(self.running) + len(self._channel.outbox) >= most and self._in_flight() >= most:
            raise ProtocolError(f"the peer began a call beyond the {self._max_in_flight} that may be in flight")
        self.last_accepted = call_id
        try:
            served = self._methods[method]
        except IndexError:
            self._refuse(call_id, Unimplemented(f"there is no method number {method} here"))
            return
        if self.peer_is_gone and not served.method.oneway:
            return
        metadata = NO_METADATA
        as_json = False
        if flags:
            as_json = bool(flags & AS_JSON)
            if flags & HAS_METADATA:
                metadata, payload = self._open(payload, call_id)
        try:
            if as_json:
                arguments = served.decode_arguments(payload, json=True)
            else:
                arguments = served.decode(payload) if not served.buffered else served.unpack(payload, views)
        except Exception as error:  # whatever a decoder or a type's own checks raise
            self._refuse_arguments(call_id, served, payload, views, error)
            return
        if deadline_ns:
            if deadline_ns <= monotonic_ns():
                late = DeadlineExceeded(f"{served.full_name}: the deadline had passed on arrival")
                self._refuse_unstarted(call_id, served, late)
                return
            if deadline_ns < self._timer.next_ns:
                self._timer.advance(deadline_ns)
        call = IncomingCall(self, served, call_id, deadline_ns, metadata, as_json)
        self.running[call_id] = call
        served.started += 1
        what = "failed"
        try:
            if served.streaming:
                handling = self.flows.begin(call_id, served, arguments, as_json=as_json)
            else:
                handling = served.invoke(*arguments)
            ended, result = self._start(handling, call)
            if not ended:
                call.waits_since_ns = monotonic_ns()
                if call.state is not _RUNNING and call.task is not None:
                    call.task.cancel()  # it was told in its first step, when it had no task: say, it closed its own server
                return
            what = _NOT_ENCODED
            packed = self._encode(call, result)
        except BaseException as error:
            self._fail(call, error, what)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise  # KeyboardInterrupt and SystemExit are the loop's
            return
        self._reply(call, packed)

    @property
    def serves_oneway(self) -> bool:
        """Whether a one-way call is running: after the end of the connection these run on."""
        return any(call.served.method.oneway for call in self.running.values())

    def _in_flight(self) -> int:
        """How many calls the peer has not heard the end of: also those whose ends wait for room, among other records."""
        return len(self.running) + sum(record[0] in (REPLY, FAILURE) for record in self._channel.outbox)

    def _may_know(self, call_id: int) -> bool:
        """Whether a call of that number was begun, once; also those that came too late for a drain."""
        return call_id <= self.last_accepted or self.draining

    def _refuse_arguments(
        self, call_id: int, served: ServedMethod, payload: bytes, views: Sequence[View], error: Exception
    ) -> None:
        if not isinstance(error, RpcError):
            try:
                served.decode_arguments(payload, views)  # again, for its error, which names the parameter
            except InvalidArgument as explained:
                error = InvalidArgument(str(explained))  # without the frames that led to it, which keep the views
        if served.method.oneway:
            log.warning("%s was refused, and is one-way, so that nobody is told: %s", served.full_name, one_line(error))
        self._refuse_unstarted(call_id, served, error if isinstance(error, RpcError) else InvalidArgument(str(error)))

    def _refuse_unstarted(self, call_id: int, served: ServedMethod, error: RpcError) -> None:
        """Fails a call before it has a handler."""
        served.started += 1
        served.count_failure(error.code)
        self._refuse(call_id, error)

    def _open(self, payload: bytes, call_id: int) -> tuple[Metadata, bytes]:
        try:
            return envelope.open_metadata(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"the metadata of call {call_id} cannot be decoded: {error}") from None

    def on_cancel(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """The caller has gone. For a call that has ended, the cancel crossed its reply, and means nothing."""
        if call_id > self.last_accepted and not self.draining:
            raise ProtocolError(f"the peer cancelled call {call_id}, which it never began")
        if (call := self.running.get(call_id)) is not None:
            call.tell(Event.CANCEL)

    # ---- how a handler ends ----

    def _on_end(self, call: IncomingCall, result: Any, error: BaseException | None) -> None:
        """The end of a handler that had to wait; `on_request` deals with those that had not."""
        call.task = None  # whose context has the call
        call.served.waited_ns += monotonic_ns() - call.waits_since_ns
        if call.state is _EXPIRED and (error is None or isinstance(error, RpcError)):
            # It answered its cancellation with a result; which side's timer fired first must not matter to the caller.
            error = asyncio.CancelledError()
        if error is not None:
            self._fail(call, error)
            return
        try:
            packed = self._encode(call, result)
        except Exception as unencodable:  # whatever a property of the result raises
            self._fail(call, unencodable, _NOT_ENCODED)
            return
        self._reply(call, packed)

    def _encode(self, call: IncomingCall, result: Any) -> bytes | Packed:
        served = call.served
        if call.as_json:
            return served.method.encode_json(result)
        return served.encode(result) if not served.buffered_result else served.method.pack_result(result)

    def send_ahead(self, call: IncomingCall, metadata: Metadata) -> None:
        """Sends metadata ahead of a call's result, if it has not ended. On any thread.

        Raises:
            ResourceExhausted: it does not fit in a record.
        """
        payload = envelope.encode_metadata(metadata)
        if len(payload) > self._channel.inline_limit:
            raise ResourceExhausted(
                f"{call.method_name}: initial metadata has {len(payload)} bytes, the limit is {self._channel.inline_limit} "
                "(geometry.inline_limit)"
            )

        def send() -> None:
            if self.running.get(call.call_id) is call and not self._lost:
                self.flows.common.send(envelope.INITIAL_METADATA, 0, call.call_id, payload)

        if threading.get_ident() == self._thread:
            send()
        else:
            self._loop.call_soon_threadsafe(send)

    def _reply(self, call: IncomingCall, packed: bytes | Packed) -> None:
        if call.trailing:
            payload, pieces = packed if isinstance(packed, Packed) else (packed, ())
            packed = Packed(envelope.with_metadata(call.trailing, payload), pieces)
        if not isinstance(packed, Packed):
            self._end(call, REPLY, packed)
        elif not packed.pieces:
            self._end(call, REPLY, packed.payload)
        else:
            self._place(call, REPLY, packed)

    def _place(self, call: IncomingCall, kind: int, packed: Packed) -> None:
        """Ends a call with something that needs memory: now, or when there is some."""
        if self._lost:
            self._end(call, kind, b"")
            return
        try:
            placed = self.memory.lender.try_place(packed, call.served.full_name)
        except ResourceExhausted as error:
            self._end_refused(call, error)
            return
        except ProtocolError as error:
            self._on_broken(error)
            return
        except Exception as error:  # whatever an exporter raises: of this call, not of the session
            self._fail(call, error, _NOT_ENCODED)
            return
        if isinstance(placed, Placed):
            self._end(call, kind, placed.payload, placed)
            return
        if call.state is not Incoming.RUNNING:  # nobody waits for it any more: nor does it wait for room
            self._end_refused(call, _status_of_cancellation(call))
            return
        self.running[call.call_id] = call
        call.task = self._loop.create_task(self._place_later(call, kind, packed), name="shmrpc reply")

        def check_started(task: "asyncio.Task[None]") -> None:
            if call.task is task:  # else its failure waits for memory in its turn
                call.task = None  # whose context has the call, and whose cancellation has the answer
            if task.cancelled():  # before its first step: it ran none of its code
                self._end_refused(call, _status_of_cancellation(call))

        call.task.add_done_callback(check_started)

    async def _place_later(self, call: IncomingCall, kind: int, packed: Packed) -> None:
        name = call.served.full_name
        try:
            placed = await self.memory.lender.place(packed, name, 0)
        except asyncio.CancelledError:
            if not self._lost:
                log.warning("%s: there was no room for its answer: %s", name, self.memory.lender.usage_text())
            self._end_refused(call, _status_of_cancellation(call))
        except ProtocolError as error:  # which is an RpcError too
            self._on_broken(error)
        except RpcError as error:
            self._end_refused(call, error)
        except Exception as error:  # of what the handler gave, which may have changed while it waited
            self._fail(call, error, _NOT_ENCODED)
        else:
            self._end(call, kind, placed.payload, placed)

    def _end_refused(self, call: IncomingCall, error: RpcError) -> None:
        """Ends a call whose handler has ended, and whose answer cannot be sent."""
        self.running.pop(call.call_id, None)
        if call.served.streaming:
            self.flows.end(call.call_id, call.served.full_name)
        call.count_failure(error.code)
        if not self._lost:
            self._refuse(call.call_id, error, maybe_executed=True)
        elif not self.running:
            self._timer.close()
        if self._idle is not None and not self.running:
            self.look_idle()

    def _end(self, call: IncomingCall, kind: int, payload: bytes, placed: Placed | None = None) -> None:
        call_id = call.call_id
        self.running.pop(call_id, None)
        if call.served.streaming:
            self.flows.end(call_id, call.served.full_name)
        if not self._lost:
            flags = 0 if placed is None else placed.flags
            if call.trailing:
                flags |= HAS_METADATA
            try:
                if status := self._push(kind, flags, 0, call_id, 0, payload):
                    if status == LARGE:
                        self._place(call, kind, Packed(payload, []))
                        return
                    self._channel.settle(status, (kind, flags, 0, call_id, 0, payload))
                    if placed is not None:
                        self._channel.keep(kind, call_id, placed)
            except (ProtocolError, ValueError) as error:  # ValueError is the native core's word for a broken channel
                self._on_broken(ProtocolError(str(error)))
        elif not self.running:
            self._timer.close()
        if self._idle is not None and not self.running:
            self.look_idle()

    def _fail(self, call: IncomingCall, error: BaseException, what: str = "failed") -> None:
        served = call.served
        if isinstance(error, asyncio.CancelledError):
            error = _status_of_cancellation(call)
        if served.method.oneway and isinstance(error, RpcError):
            log.warning("%s failed, and is one-way, so that nobody is told: %s", served.full_name, one_line(error))
        failure = failure_of(error, served.contract, served.full_name, what=what, debug=self._debug)
        call.count_failure(failure.code)
        payload = envelope.encode_failure(failure)
        self._end(call, FAILURE, envelope.with_metadata(call.trailing, payload) if call.trailing else payload)

    def _refuse(self, call_id: int, error: RpcError, *, maybe_executed: bool = False) -> None:
        """Fails a call that has no handler (yet, or any more)."""
        text = str(error).encode(errors="backslashreplace")[: self._longest_text].decode(errors="ignore")
        failure = Failure(error.code, text, maybe_executed=maybe_executed)
        try:
            self._channel.send(FAILURE, 0, 0, call_id, 0, envelope.encode_failure(failure))
        except ProtocolError as broken:
            self._on_broken(broken)

    # ---- ends that do not come from the handler ----

    def _expire(self, now_ns: int) -> int:
        earliest_ns = NEVER
        for call in list(self.running.values()):
            if not call.deadline_ns or call.state is not Incoming.RUNNING:
                continue
            if call.deadline_ns <= now_ns:
                call.tell(Event.EXPIRE)
            else:
                earliest_ns = min(earliest_ns, call.deadline_ns)
        return earliest_ns

    def stop(self) -> None:
        """The grace time is over: cancels every handler; their callers are told that the server stops."""
        for call in list(self.running.values()):
            call.tell(Event.STOP)

    def orphan(self) -> None:
        """The connection is gone: cancels every handler but those of one-way calls, whose callers wait for nothing.

        These run on, until their deadlines or a `stop`.
        """
        self.draining = True  # also for what the turn of the loop that ended the session still has in hand
        self._lost = True
        self._starter.close()
        for call in list(self.running.values()):
            if not call.served.method.oneway:
                call.tell(Event.LOSE)
        if not self.running:
            self._timer.close()
        self.look_idle()

    async def wait_closed(self) -> None:
        """Returns when every handler has ended. What runs on for a second is cancelled, and has one more."""
        await self._wait_second()
        if self.running:
            self.stop()
            await self._wait_second()

    async def _wait_second(self) -> None:
        tasks = [call.task for call in self.running.values() if call.task is not None]
        if self._starter.ending is not None:
            tasks.append(self._starter.ending)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def wait_idle(self) -> None:
        """Returns when no call is running and every reply is on its way."""
        while self.running or self._channel.outbox:
            if self._idle is None or self._idle.is_set():
                self._idle = asyncio.Event()
            await self._idle.wait()

    def look_idle(self) -> None:
        """Something ended or was sent: whoever waits may look again."""
        if self._idle is not None:
            self._idle.set()


def _status_of_cancellation(call: IncomingCall) -> RpcError:
    name = call.method_name
    match call.state:
        case Incoming.EXPIRED:
            return DeadlineExceeded(f"{name} did not end before its deadline")
        case Incoming.STOPPED:
            return Unavailable(f"{name} was cut off: the server stopped before it ended", maybe_executed=True)
    return Cancelled(f"{name} was cancelled")
