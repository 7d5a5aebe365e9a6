"""How a stub's method makes its call over a link: the hot path, the slow one, and the rule for repeating.

A call that the server certainly did not take is made again over the next connection; one that it may have executed is not,
unless its method is idempotent. For a stub with a `Retry` the latter is not decided here but by `repeating`.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from shmrpc.buffers import Packed
from shmrpc.context import CallOptions, running
from shmrpc.errors import ConnectionLost, InvalidArgument, RpcError, Unavailable, Unimplemented, anew
from shmrpc.methods import Method
from shmrpc.retry import ATTEMPTS
from shmrpc.shm import envelope
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.outgoing import Answer, OutgoingCalls
from shmrpc.shm.ring import PendingCall
from shmrpc.shm.streaming import Streaming
from shmrpc.transport import StubMethod


class Connected(Protocol):
    """What calls need of a link, or of several."""

    @property
    def closed(self) -> bool:
        """Whether no call is to be made again."""
        ...

    @property
    def calls(self) -> OutgoingCalls | None:
        """Of the session that takes the next call; None while there is none."""
        ...

    @property
    def near(self) -> Callable[[tuple[Any, ...]], OutgoingCalls | None] | None:
        """The same for a call with certain arguments, where that makes a difference; None: it makes none."""
        ...

    def check(self, method: Method) -> None:
        """Refuses a call that this is not the place for: see `Link.check`."""

    async def ready(self, method: Method, deadline_ns: int, packed: Packed) -> OutgoingCalls:
        """The same for encoded arguments, waiting for a connection if there is none."""
        ...


class Calling:
    """Makes the calls of a link, or of several."""

    def __init__(self, link: Connected) -> None:
        self._link = link
        self._streaming: Final = Streaming(link, self._begin)

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The coroutine function of one stub method: see `Transport.bind`."""
        call: StubMethod
        if method.streams_result or method.stream_index is not None:
            call = self._streaming.bind(method, options)
        elif method.buffered_arguments or method.buffered_result:
            call = self._bind_buffered(method, options)
        else:
            call = self._bind_plain(method, options)
        call.__name__ = method.name
        call.__qualname__ = method.full_name
        return call

    def _bind_plain(self, method: Method, options: CallOptions) -> Any:
        link = self._link
        encode = method.encode
        decode = method.decode_result
        full_name, required, arity = method.full_name, method.required, method.arity
        by_position = method.plain
        always_slow = bool(options.metadata) or method.oneway or options.reply is not None
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
            calls = link.calls
            answer: Any
            pending: PendingCall | None
            if (
                calls is None
                or always_slow
                or len(calls.pending) >= calls.max_in_flight
                or calls.waiters
                or full_name not in calls.numbers
                or len(payload) > calls.inline_limit
            ):
                answer = await self._call_slowly(method, options, len(args), deadline_ns, Packed(payload, []), calls)
            else:
                pending = calls.start(method, calls.numbers[full_name], 0, deadline_ns, payload)
                try:
                    answer = await pending
                except asyncio.CancelledError:
                    calls.abandon(pending)
                    raise
            if answer.__class__ is not bytes:  # quicker than isinstance, and this is the hot path
                try:
                    answer = await self._after_error(
                        answer, method, options, len(args), deadline_ns, Packed(payload, [])
                    )
                except BaseException:
                    answer = pending = None  # lest the error, its traceback and this frame keep each other
                    raise
            try:
                return decode(answer)
            except Exception:  # whatever it is: read_result says what does not fit
                return method.read_result(answer)

        return call

    def _bind_buffered(self, method: Method, options: CallOptions) -> Any:
        """The same for a method whose arguments or result can hold buffers."""
        link = self._link
        near = link.near
        pack, unpack, describe = method.pack_arguments, method.unpack_result, method.describe
        decode = None if method.buffered_result else method.decode_result
        full_name, required, arity = method.full_name, method.required, method.arity
        by_position = method.plain
        always_slow = bool(options.metadata) or method.oneway or options.reply is not None
        timeless = not options.timeout_ns
        running_call = running.get

        async def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs or not by_position or not required <= len(args) <= arity:
                args = method.bind(args, kwargs)
            body = describe(args)
            packed = pack(args) if body is None else None
            deadline_ns = 0 if timeless and running_call(None) is None else options.deadline_ns()
            calls = link.calls if near is None else near(args)
            pending = None
            if not (
                calls is None
                or always_slow
                or len(calls.pending) >= calls.max_in_flight
                or calls.waiters
                or full_name not in calls.numbers
            ):
                if body is not None:
                    pending = calls.try_lend(method, calls.numbers[full_name], deadline_ns, body, args[0])
                if pending is None:
                    packed = packed or pack(args)
                    pending = calls.try_begin(method, calls.numbers[full_name], 0, deadline_ns, packed)
            answer: Any
            if pending is None or calls is None:
                packed = packed or pack(args)
                answer = await self._call_slowly(method, options, len(args), deadline_ns, packed, calls)
            else:
                try:
                    answer = await pending
                except asyncio.CancelledError:
                    calls.abandon(pending)
                    raise
            if answer.__class__ is bytes:
                if decode is not None:
                    try:
                        return decode(answer)
                    except Exception:  # whatever it is: unpack says what does not fit
                        return unpack(answer, ())
                return unpack(answer, ())
            if answer.__class__ is not Parcel:
                try:
                    packed = packed or pack(args)
                    answer = await self._after_error(answer, method, options, len(args), deadline_ns, packed)
                except BaseException:
                    answer = pending = None  # as above; and the arguments
                    raise
                if answer.__class__ is bytes:
                    return unpack(answer, ())
            return unpack(answer.payload, answer.views)

        return call

    async def _after_error(
        self,
        error: Answer,
        method: Method,
        options: CallOptions,
        given: int,
        deadline_ns: int,
        packed: Packed,
    ) -> bytes | Parcel:
        """Makes the call again if that is safe; else raises."""
        lost: RpcError | None = None
        try:
            maybe_executed = False  # by this attempt or by one before
            attempts = 1
            while isinstance(error, RpcError):
                if isinstance(error, Unavailable):
                    maybe_executed = error.maybe_executed = error.maybe_executed or maybe_executed
                if not isinstance(error, ConnectionLost) or self._link.closed:
                    raise error
                if maybe_executed:
                    attempts += 1  # not without end: it may be what kills the server
                    if not method.policy.idempotent or options.retry is not None or attempts > ATTEMPTS:
                        raise error
                lost = error
                try:
                    error = await self._call_slowly(method, options, given, deadline_ns, packed)
                except Unavailable as later:
                    raise lost from later  # how it was lost says more than that there is nothing to try again with
            return error
        finally:
            del error, lost  # else they, their tracebacks and this frame keep each other, and the arguments

    async def _call_slowly(
        self,
        method: Method,
        options: CallOptions,
        given: int,
        deadline_ns: int,
        packed: Packed,
        calls: OutgoingCalls | None = None,
    ) -> Answer:
        """One attempt at a call that needs more than a record: a connection, credit, metadata."""
        begun = await self._begin(method, options, given, deadline_ns, packed, calls)
        if isinstance(begun, RpcError):
            return begun
        calls, pending = begun
        if method.oneway:
            pending.set_result(_NIL)  # nobody waits for it, but the peer owes its end, and it counts as in flight
            return _NIL
        return await calls.finish(pending)

    async def _begin(
        self,
        method: Method,
        options: CallOptions,
        given: int,
        deadline_ns: int,
        packed: Packed,
        chosen: OutgoingCalls | None = None,
    ) -> tuple[OutgoingCalls, PendingCall] | ConnectionLost:
        """Sends a request, when there is a connection, credit and memory; or says that the connection was lost meanwhile."""
        self._link.check(method)
        flags = 0
        if options.metadata:
            flags = envelope.HAS_METADATA
            packed = Packed(envelope.with_metadata(options.metadata, packed.payload), packed.pieces)
        while True:
            calls = chosen or await self._link.ready(method, deadline_ns, packed)
            chosen = None
            number = self._number(calls, method, given)
            if calls.congested:
                await calls.wait_for_credit(method, deadline_ns)
                if calls.retired or len(calls.pending) >= calls.max_in_flight:
                    continue
            try:
                pending = calls.try_begin(method, number, flags, deadline_ns, packed)
                if pending is None:
                    pending = await calls.begin(method, number, flags, deadline_ns, packed)
            except ConnectionLost as lost:  # while it waited for memory
                return anew(lost)
            if pending is not None:
                if not method.oneway:  # whose end nobody waits for
                    calls.listen(pending, options.reply)
                return calls, pending

    def _number(self, calls: OutgoingCalls, method: Method, given: int) -> int:
        number = calls.numbers.get(method.full_name)
        if number is not None:
            return number
        if (narrow := calls.narrow.get(method.full_name)) is None:
            raise Unimplemented(f"{calls.where} has no method {method.full_name}; it is older than this side")
        number, arity = narrow
        if given > arity:
            raise InvalidArgument(
                f"{method.full_name}: {given} arguments were given, {calls.where} takes {arity}; it is "
                "older than this side, leave the last ones out"
            )
        return number


_NIL: Final = msgspec.msgpack.encode(None)
