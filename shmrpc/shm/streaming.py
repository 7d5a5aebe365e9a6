"""How a stub's method makes a call that takes or gives a stream, over a link.

A call is made again only when the server certainly did not take it, nothing came of it, and the caller's own stream was
not begun, which cannot be had twice.
"""

from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Protocol

from shmrpc.buffers import Packed
from shmrpc.context import CallOptions
from shmrpc.errors import ConnectionLost, RpcError, anew
from shmrpc.methods import Method
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.flows import OutgoingFlow
from shmrpc.shm.outgoing import Answer, OutgoingCalls
from shmrpc.shm.ring import PendingCall
from shmrpc.streams import ResultStream
from shmrpc.transport import StubMethod

Source = AsyncIterable[Any] | Iterable[Any] | None
"""What a caller passes as a stream."""

Begin = Callable[[Method, CallOptions, int, int, Packed], Awaitable[tuple[OutgoingCalls, PendingCall] | ConnectionLost]]
"""Sends a request, when there is a connection, credit and memory: method, options, how many arguments, deadline, them."""


class Link(Protocol):
    """What streams need of a link."""

    @property
    def closed(self) -> bool:
        """Whether no call is to be made again."""
        ...


class Streaming:
    """Makes the streaming calls of one link."""

    def __init__(self, link: Link, begin: Begin) -> None:
        self._link = link
        self._begin = begin

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The function of one stub method: see `Transport.bind`."""
        call: StubMethod = (
            self._bind_results(method, options) if method.streams_result else self._bind_unary(method, options)
        )
        return call

    def _bind_results(self, method: Method, options: CallOptions) -> Any:
        def call(*args: Any, **kwargs: Any) -> ResultStream:
            args = method.bind(args, kwargs)
            row, source = method.split(args)
            packed = method.pack_arguments(row)
            deadline_ns: int | None = None  # of all attempts: it counts from the first

            async def begin(ready: deque[Any]) -> OutgoingFlow:
                nonlocal deadline_ns
                if deadline_ns is None:
                    deadline_ns = options.deadline_ns()
                calls, pending = await self._begin_surely(method, options, len(args), deadline_ns, packed)
                flow = calls.flows.begin(method, pending, source, ready)
                pending.add_done_callback(flow.on_end)
                return flow

            return ResultStream(method.full_name, begin, self._should_repeat, options.idle_timeout)

        return call

    def _bind_unary(self, method: Method, options: CallOptions) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            args = method.bind(args, kwargs)
            row, source = method.split(args)
            packed = method.pack_arguments(row)
            answer = await self._answer(method, options, len(args), options.deadline_ns(), packed, source)
            if isinstance(answer, Parcel):
                return method.unpack_result(answer.payload, answer.views)
            return method.unpack_result(answer, ())

        return call

    async def _answer(
        self, method: Method, options: CallOptions, given: int, deadline_ns: int, packed: Packed, source: Source
    ) -> bytes | Parcel:
        answer: Answer | None
        pending: PendingCall | None
        flow: OutgoingFlow | None
        try:
            while True:
                calls, pending = await self._begin_surely(method, options, given, deadline_ns, packed)
                flow = calls.flows.begin(method, pending, source, deque())
                try:
                    answer = await calls.finish(pending)
                finally:
                    calls.flows.forget(pending.call_id)
                    flow.stop_pump()
                    await flow.wait_closed()
                if flow.error is not None:
                    raise flow.take_error()
                if not isinstance(answer, RpcError):
                    return answer
                if not flow.untouched or not self._should_repeat(answer):
                    raise answer
        finally:  # else the error, its traceback and this frame keep each other, and the arguments
            answer = pending = flow = None

    async def _begin_surely(
        self, method: Method, options: CallOptions, given: int, deadline_ns: int, packed: Packed
    ) -> tuple[OutgoingCalls, PendingCall]:
        while True:
            begun = await self._begin(method, options, given, deadline_ns, packed)
            if not isinstance(begun, ConnectionLost):
                return begun
            if self._link.closed:
                raise anew(begun)

    def _should_repeat(self, error: BaseException) -> bool:
        return isinstance(error, ConnectionLost) and not error.maybe_executed and not self._link.closed
