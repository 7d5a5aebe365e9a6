"""The streams of one session: items in records, and whose they are. Both ends of both directions.

Owns which call's inlet or outlet a record belongs to. What the ends do is `inlet`'s and `outlet`'s; how a call begins and
ends is `outgoing`'s and `incoming`'s.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic_ns
from typing import Any, Final, Protocol

from shmrpc.buffers import Buffer, Packed
from shmrpc.context import Reply
from shmrpc.dispatch import ServedMethod
from shmrpc.errors import DeadlineExceeded, ProtocolError, RpcError
from shmrpc.inlet import BrokenCredit, Inlet, Window, cut_off
from shmrpc.outlet import Items, Outlet, Pump
from shmrpc.shm import envelope
from shmrpc.shm.channel import Channel
from shmrpc.shm.envelope import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    END_OF_ARGUMENTS,
    HAS_BUFFERS,
    MANY,
    RESULT_CREDIT,
    RESULTS,
)
from shmrpc.shm.memory import Memory
from shmrpc.shm.placed import Placed
from shmrpc.shm.protocol import Arguments, Event, step_arguments
from shmrpc.shm.ring import PendingCall


class Streaming(Protocol):
    """What the caller's side of a stream needs of its method: a `Method`, or what stands for one."""

    @property
    def full_name(self) -> str:
        """Like ``"Vision.classify"``."""
        ...

    @property
    def streams_result(self) -> bool:
        """Whether the result is a stream."""
        ...

    @property
    def argument_items(self) -> Items | None:
        """How the items of a parameter travel; None: none is a stream."""
        ...

    def read_result_items(self, payload: bytes, views: Sequence[Buffer], *, many: bool) -> list[Any]:
        """Decodes and checks items of the result."""
        ...

    def item_misfit(self, error: Exception) -> RpcError:
        """What is wrong with an item of the parameter, by its encoder's error."""
        ...


class RecordSink:
    """Sends the items of one stream as records of one kind."""

    def __init__(self, flows: "Flows", kind: int, call_id: int, name: str, is_live: Callable[[], bool]) -> None:
        self.largest: Final = flows.channel.inline_limit
        self._flows = flows
        self._kind = kind
        self._call_id = call_id
        self._name = name
        self._is_live = is_live
        self._outbox = flows.channel.outbox

    @property
    def full(self) -> bool:
        """Whether records wait for room in the ring."""
        return bool(self._outbox)

    def send(self, payload: bytes, *, many: bool) -> None:
        """Sends a message without buffers, unless the call has ended."""
        if self._is_live():
            self._flows.send(self._kind, MANY if many else 0, self._call_id, payload)

    async def send_apart(self, packed: Packed, *, many: bool) -> None:
        """Sends a message that needs memory, when there is some, unless the call has ended."""
        lender = self._flows.memory.lender
        try:
            placed = lender.try_place(packed, self._name)
            if not isinstance(placed, Placed):
                placed = await lender.place(packed, self._name, 0)
        except ProtocolError as error:
            self._flows.on_broken(error)
            raise
        if not self._is_live():
            lender.undo(placed)
            return
        flags = placed.flags | (MANY if many else 0)
        self._flows.send(self._kind, flags, self._call_id, placed.payload)
        self._flows.channel.keep(self._kind, self._call_id, placed)

    async def room(self) -> None:
        """Returns when nothing waits for room in the ring."""
        await self._flows.channel.room()


class Flows:
    """What the streams of both directions need of their session."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        memory: Memory,
        windows: tuple[Window, Window],
        on_broken: Callable[[ProtocolError], None],
    ) -> None:
        self.loop: Final = loop
        self.channel: Final = channel
        self.memory: Final = memory
        self.own_window, self.peer_window = windows
        self.on_broken: Final = on_broken

    def send(self, kind: int, flags: int, call_id: int, payload: bytes) -> None:
        """Sends a record that fits inline. Never raises: a broken session ends by itself."""
        try:
            self.channel.send(kind, flags, 0, call_id, 0, payload)
        except (ProtocolError, ValueError) as error:  # ValueError is the native core's word for a closed channel
            self.on_broken(ProtocolError(str(error)))

    def send_credit(self, kind: int, call_id: int, items: int, nbytes: int) -> None:
        """Tells the writer of a stream what was read of it, in total."""
        if self.channel.outbox:  # what waits there says less; and a peer that takes nothing must not fill the memory
            self.channel.withdraw(kind, call_id)
        self.send(kind, 0, call_id, envelope.encode_credit(envelope.Credit(items, nbytes)))

    def open(self, flags: int, payload: bytes) -> tuple[bytes, Sequence[Buffer]]:
        """An item's payload and buffers. Raises ProtocolError."""
        if flags & HAS_BUFFERS:
            return self.memory.borrowed.open_buffers(payload)
        return payload, ()


def put(inlet: Inlet, flags: int, payload: bytes, views: Sequence[Buffer], call_id: int) -> None:
    """Takes items in.

    Raises:
        ProtocolError: they exceed their credit, or are no items.
    """
    try:
        inlet.put(payload, views, many=bool(flags & MANY))
    except BrokenCredit as error:
        raise ProtocolError(f"the stream of call {call_id} breaks the rules: {error}") from None


def grant(outlet: Outlet, payload: bytes, call_id: int) -> None:
    """Takes credit in.

    Raises:
        ProtocolError: it is none, or for what was never sent.
    """
    try:
        credit = envelope.decode_credit(payload)
        outlet.grant(credit.items, credit.nbytes)
    except (BrokenCredit, *envelope.DecodeError) as error:
        raise ProtocolError(f"the credit for call {call_id} is impossible: {error}") from None


class OutgoingFlow:
    """The streams of one call that this side makes."""

    def __init__(self, flows: "OutgoingFlows", method: Streaming, call: PendingCall, ready: deque[Any]) -> None:
        self._flows = flows
        self._call = call
        call_id = call.call_id
        self.inlet: Final = Inlet(
            flows.common.loop,
            lambda payload, views, many: method.read_result_items(payload, views, many=many),
            flows.common.own_window,
            lambda items, nbytes: flows.common.send_credit(RESULT_CREDIT, call_id, items, nbytes),
            ready,
        )
        self.outlet: Outlet | None = None
        self.takes_results: Final = method.streams_result
        self._pump: Pump | None = None
        self.error: BaseException | None = None
        """What the caller's own stream raised, for a call whose result is none."""

    @property
    def untouched(self) -> bool:
        """Whether nothing came, and nothing was taken of the caller's stream."""
        return not self.inlet.touched and (self.outlet is None or not self.outlet.touched)

    def pump(self, method: Streaming, source: AsyncIterable[Any] | Iterable[Any]) -> None:
        """Begins to send the caller's stream."""
        common, call = self._flows.common, self._call
        assert method.argument_items is not None
        is_open = partial(self._flows.is_open, call)
        sink = RecordSink(common, ARGUMENTS, call.call_id, method.full_name, is_open)
        self.outlet = Outlet(common.loop, method.argument_items, sink, common.peer_window, misfit=method.item_misfit)
        self._pump = Pump(
            common.loop,
            method.full_name,
            self.outlet,
            source,
            is_open=is_open,
            on_end=partial(common.send, END_OF_ARGUMENTS, 0, call.call_id, b""),
            on_error=self._fail,
        )

    def _fail(self, error: BaseException) -> None:
        """The caller's own stream failed: so does the call."""
        if self._flows.is_open(self._call):
            if self.takes_results:
                self.inlet.finish(error)
            else:
                self.error = error
            self._flows.end(self._call)

    def on_end(self, call: PendingCall) -> None:
        """The call has ended, for whatever reason."""
        self._flows.forget(call.call_id)
        answer = call.result()
        if isinstance(answer, RpcError):
            expired = isinstance(answer, DeadlineExceeded) and 0 < call.deadline_ns <= monotonic_ns()
            self.inlet.finish(answer, at_once=expired)  # a handler may send the error of another call's deadline
        else:
            self.inlet.finish()
        self.stop_pump()

    def take_error(self) -> BaseException:
        """What the caller's own stream raised, once."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def stop_pump(self) -> None:
        """Stops to send the caller's stream."""
        if self._pump is not None and not self._flows.forked:
            self._pump.stop()

    def abandon(self) -> None:
        """Nobody reads the result any more. Idempotent."""
        self.inlet.finish(at_once=True)
        self._flows.end(self._call)
        self.stop_pump()

    async def wait_closed(self) -> None:
        """Returns when the caller's stream is closed."""
        if self._pump is not None and not self._flows.forked:
            await self._pump.wait_closed()


class OutgoingFlows:
    """The streams of the calls that this side makes."""

    def __init__(
        self,
        common: Flows,
        pending: dict[int, PendingCall],
        replies: dict[int, Reply],
        abandon: Callable[[PendingCall], None],
    ) -> None:
        self.common: Final = common
        self._abandon = abandon
        self._pending = pending
        self._replies = replies
        self.forked = False
        self._flows: dict[int, OutgoingFlow] = {}

    def is_open(self, call: PendingCall) -> bool:
        """Whether a call is under way, and somebody waits for it."""
        return not call.done() and self._pending.get(call.call_id) is call

    def begin(
        self, method: Streaming, call: PendingCall, source: AsyncIterable[Any] | Iterable[Any] | None, ready: deque[Any]
    ) -> OutgoingFlow:
        """The streams of a call whose request was sent just now."""
        flow = self._flows[call.call_id] = OutgoingFlow(self, method, call, ready)
        if source is not None:
            flow.pump(method, source)
        return flow

    def end(self, call: PendingCall) -> None:
        """Ends a call from this side, if it has not ended: nobody waits for it any more."""
        if self.is_open(call):
            self._abandon(call)
            call.set_result(b"")  # also when its request was never sent
        self.forget(call.call_id)

    def fork_off(self, error: RpcError) -> None:
        """In a forked child: whoever reads on hears so. Touches no event loop."""
        self.forked = True
        for flow in self._flows.values():
            flow.inlet.disown(error)

    def forget(self, call_id: int) -> None:
        """A call has ended."""
        self._flows.pop(call_id, None)
        self._replies.pop(call_id, None)

    def on_results(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """Items of a result came."""
        payload, views = self.common.open(flags, payload)
        call = self._pending.get(call_id)
        if call is None:
            raise ProtocolError(f"the peer sent items of call {call_id}, which is not under way")
        if call.done():
            return  # they crossed its cancel
        flow = self._flows.get(call_id)
        if flow is None or not flow.takes_results:
            raise ProtocolError(f"the peer sent items of call {call_id}, whose result is no stream")
        put(flow.inlet, flags, payload, views, call_id)

    def on_credit(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """The peer has read items of a parameter."""
        call = self._pending.get(call_id)
        if call is None:
            raise ProtocolError(f"the peer gave credit for call {call_id}, which is not under way")
        if call.done():
            return
        flow = self._flows.get(call_id)
        if flow is None or flow.outlet is None:
            raise ProtocolError(f"the peer gave credit for call {call_id}, which sends no stream")
        grant(flow.outlet, payload, call_id)


class RunningCall(Protocol):
    """What is to be known of a call that is being served."""

    @property
    def served(self) -> ServedMethod:
        """Its method."""
        ...


async def _send_results(outlet: Outlet, invoke: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Calls a handler, in the context of its call, and sends what it gives."""
    made = invoke(*arguments)
    del arguments
    await outlet.pump(made)


class IncomingFlows:
    """The streams of the calls that this side serves."""

    def __init__(self, common: Flows, running: Mapping[int, RunningCall], may_know: Callable[[int], bool]) -> None:
        self.common: Final = common
        self._running = running
        self._may_know = may_know
        """Whether a call of that number was begun, once."""
        self._inlets: dict[int, Inlet] = {}
        self._outlets: dict[int, Outlet] = {}
        self._states: dict[int, Arguments] = {}
        """Of the items that come, of the calls that run; those of the others have ended."""

    def begin(self, call_id: int, served: ServedMethod, row: tuple[Any, ...], *, as_json: bool) -> Any:
        """Calls a handler that takes or gives a stream; its awaitable gives the result, None for a stream that was sent."""
        common, method = self.common, served.method
        inlet = None
        if method.argument_items is not None:
            self._states[call_id] = Arguments.OPEN
            inlet = self._inlets[call_id] = Inlet(
                common.loop,
                lambda payload, views, many: method.read_argument_items(payload, views, many=many, json=as_json),
                common.own_window,
                lambda items, nbytes: common.send_credit(ARGUMENT_CREDIT, call_id, items, nbytes),
            )
        arguments = method.join(row, inlet)
        if method.result_items is None:
            return served.invoke(*arguments)
        sink = RecordSink(common, RESULTS, call_id, method.full_name, lambda: call_id in self._running)
        encode = method.encode_json if as_json else None
        outlet = self._outlets[call_id] = Outlet(common.loop, method.result_items, sink, common.peer_window, encode)
        return _send_results(outlet, served.invoke, arguments)

    def end(self, call_id: int, name: str) -> None:
        """A call has ended."""
        self._outlets.pop(call_id, None)
        self._states.pop(call_id, None)
        if (inlet := self._inlets.pop(call_id, None)) is not None:
            cut_off(inlet, name)

    def _step(self, call_id: int, event: Event, what: str) -> Inlet | None:
        """Moves on in the protocol's table. Where items go; None: their call has ended, which they crossed."""
        state = self._states.get(call_id)
        if state is None:
            call = self._running.get(call_id)  # also of a handler that has ended, and whose answer waits for memory
            if call is not None and call.served.method.argument_items is None:
                raise ProtocolError(f"the peer sent {what} of call {call_id}, which takes no stream")
            if not self._may_know(call_id):
                raise ProtocolError(f"the peer sent {what} of call {call_id}, which it never began")
            return None
        after = step_arguments(state, event)
        if after is None:
            raise ProtocolError(f"the peer sent {what} of call {call_id} after their end")
        self._states[call_id] = after
        return self._inlets[call_id]

    def on_arguments(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """Items of a parameter came."""
        payload, views = self.common.open(flags, payload)
        if (inlet := self._step(call_id, Event.ITEMS, "items")) is not None:
            put(inlet, flags, payload, views, call_id)

    def on_end_of_arguments(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """There are no more of them."""
        if (inlet := self._step(call_id, Event.LAST_ITEM, "the end of the items")) is not None:
            inlet.finish()

    def on_credit(self, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """The peer has read items of a result."""
        if (outlet := self._outlets.get(call_id)) is not None:
            grant(outlet, payload, call_id)
        elif (call := self._running.get(call_id)) is not None and call.served.method.result_items is None:
            raise ProtocolError(f"the peer gave credit for call {call_id}, which gives no stream")
        elif not self._may_know(call_id):
            raise ProtocolError(f"the peer gave credit for call {call_id}, which it never began")
