"""The in-process transport: the same codecs, deadlines, cancellation and errors, without a second process.

For tests, and for services that sometimes live together. Arguments and results go through the codecs as everywhere, so
what works here works over shared memory, and nothing is shared by accident.
"""

import asyncio
import contextvars
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic_ns
from typing import Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

import anyio
import msgspec

from shmrpc import contract as contracts
from shmrpc import dispatch
from shmrpc.buffers import Buffer, Packed, Piece
from shmrpc.client import Connection
from shmrpc.context import CallOptions, Endpoint, Lease, Metadata, Peer, remaining_seconds, running, small
from shmrpc.contract import Contract
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import Cancelled, Closed, DeadlineExceeded, Internal, RpcError, Unimplemented, WrongLoop
from shmrpc.failure import error_of, failure_of
from shmrpc.interceptors.call import Interceptor, checked
from shmrpc.legible import one_line
from shmrpc.local_call import LocalCall, Received
from shmrpc.local_flows import LocalFlow
from shmrpc.methods import Method
from shmrpc.retry import Retry
from shmrpc.streams import ResultStream
from shmrpc.transport import StubMethod, Transport

T = TypeVar("T")

log: Final = logging.getLogger("shmrpc.server")

GRACE_SECONDS: Final = 10.0
"""How long one-way calls, and handlers that ignore their cancellation, may run on when the stub is closed."""

_NIL: Final = msgspec.msgpack.encode(None)


_CASTS: Final = frozenset("bBhHiIlLqQnNefd?c")
"""Formats that a memoryview casts to bytes."""


class Memory(bytearray):
    """What stands for shared memory: arrays that were born in it are passed without a copy, and others are copied to it."""

    method = ""
    since_ns = 0


def _surely(answer: Received | RpcError) -> Received:
    """An answer that is no error; called where no variable has it, lest the error and its traceback keep each other."""
    try:
        if isinstance(answer, RpcError):
            raise answer
        return answer
    finally:
        del answer


class LocalTransport:
    """A `Transport` whose server is an object of this process."""

    def __init__(self, dispatcher: Dispatcher, *, debug: bool, exposed: "LocalTransport | None" = None) -> None:
        self._exposed = exposed
        """What the implementation reaches of its caller."""
        self._dispatcher = dispatcher
        self._dispatcher.carried_by(self)
        self._debug = debug
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._running: dict[asyncio.Task[None], LocalCall] = {}
        self._closed = False
        self._memory: WeakValueDictionary[int, Memory] = WeakValueDictionary()
        """What is still seen by somebody, in the order of its making."""
        self._made = 0

    def __repr__(self) -> str:
        return f"<LocalTransport {'closed' if self._closed else 'open'}, {len(self._running)} calls running>"

    @property
    def address(self) -> None:
        """None: the server is in this process."""
        return None

    @property
    def peer(self) -> Peer | None:
        """This process."""
        return Peer(os.getpid(), os.geteuid(), os.getegid())

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The coroutine function of one stub method: see `Transport.bind`."""
        served = self._dispatcher.find(method.full_name)
        if method.streams_result or method.stream_index is not None:
            return self._bind_streaming(served, method, options)

        async def call(*args: Any, **kwargs: Any) -> Any:
            packed = method.pack_arguments(method.bind(args, kwargs))
            deadline_ns = options.deadline_ns()
            self._check(method)
            received = self._receive(packed, method.full_name)
            del packed
            answer = _surely(await self._run(served, deadline_ns, options, received))
            return method.unpack_result(answer.payload, answer.views)

        call.__name__ = method.name
        call.__qualname__ = method.full_name
        return call

    def _bind_streaming(self, served: ServedMethod, method: Method, options: CallOptions) -> StubMethod:
        def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Packed, Any]:
            row, source = method.split(method.bind(args, kwargs))
            return method.pack_arguments(row), source

        def start(packed: Packed, source: Any, ready: deque[Any] | None) -> tuple[LocalFlow, LocalCall]:
            deadline_ns = options.deadline_ns()
            self._check(method)
            assert self._loop is not None
            flow = LocalFlow(self._loop, method, lambda packed: self._receive(packed, method.full_name), ready)
            received = self._receive(packed, method.full_name)
            call = self._begin(served, deadline_ns, options, received, flow)
            if source is not None and not call.answer.done():
                flow.pump(source)
            return flow, call

        async def unary(*args: Any, **kwargs: Any) -> Any:
            answer = _surely(await self._finish_stream(*start(*begin(args, kwargs), None)))
            return method.unpack_result(answer.payload, answer.views)

        def stream(*args: Any, **kwargs: Any) -> ResultStream:
            packed, source = begin(args, kwargs)

            async def begin_it(ready: deque[Any]) -> LocalFlow:
                return start(packed, source, ready)[0]

            return ResultStream(method.full_name, begin_it, lambda _: False, options.idle_timeout)

        call = stream if method.streams_result else unary
        call.__name__ = method.name
        call.__qualname__ = method.full_name
        return call

    @property
    def connections(self) -> int:
        """The stub is one."""
        return 1

    def in_flight(self) -> list[ServedMethod]:
        """The method of each call whose handler has not ended."""
        return [call.served for call in self._running.values()]

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that is passed without a copy."""
        if self._closed:
            raise Closed("the stub is closed")
        return self._make(nbytes, "")

    def leases(self) -> list[Lease]:
        """What is still seen of what was passed, by method."""
        now_ns = monotonic_ns()
        by_method: dict[str, list[Memory]] = {}
        for memory in self._memory.values():
            by_method.setdefault(memory.method, []).append(memory)
        found = [
            Lease(
                method,
                self.peer if method else None,
                len(held),
                sum(map(len, held)),
                (now_ns - min(memory.since_ns for memory in held)) / 1e9,
            )
            for method, held in by_method.items()
        ]
        return sorted(found, key=lambda lease: -lease.nbytes)

    def endpoints(self) -> list[Endpoint]:
        """This process."""
        return [Endpoint("local", "closed" if self._closed else "connected", self.peer, len(self._running))]

    def _make(self, nbytes: int, method: str) -> Memory:
        memory = Memory(nbytes)
        memory.method = method
        memory.since_ns = monotonic_ns()
        self._made += 1
        self._memory[self._made] = memory
        return memory

    def _receive(self, packed: Packed, method: str) -> Received:
        """What the other side gets: views of the same memory where it was born to be shared, else of a copy."""
        views: list[Buffer] = []
        for piece in packed.pieces:
            if (born := _born_in(piece)) is None:
                memory = self._make(piece.nbytes, method)
                piece.copy_into(memoryview(memory))
                born = memoryview(memory)
            views.append(born.toreadonly())
        return Received(packed.payload, views)

    def _check(self, method: Method) -> None:
        if self._closed or self._loop is None:
            raise Closed(
                f"{method.full_name} was called on a stub that is {'closed' if self._closed else 'not entered'}"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop(f"{method.full_name} was called from another event loop than the one that connected")

    async def _run(
        self, served: ServedMethod, deadline_ns: int, options: CallOptions, received: Received
    ) -> Received | RpcError:
        return await self._finish(self._begin(served, deadline_ns, options, received))

    def _begin(
        self,
        served: ServedMethod,
        deadline_ns: int,
        options: CallOptions,
        received: Received,
        flow: LocalFlow | None = None,
    ) -> LocalCall:
        assert self._loop is not None
        if options.metadata:
            small(options.metadata)
        if options.reply is not None and not served.method.oneway:
            options.reply.initial_metadata = options.reply.trailing_metadata = {}
        call = LocalCall(self.allocate, self._loop, served, deadline_ns, options, self._back_to)
        call.flow = flow
        if flow is not None:
            flow.give_up = lambda: call.give_up(Cancelled(f"{served.full_name} was cancelled"))
        served.started += 1
        if deadline_ns:
            late = DeadlineExceeded(f"{served.full_name} did not end before its deadline")
            if (seconds := remaining_seconds(deadline_ns)) > 0:
                call.timer = self._loop.call_later(seconds, call.give_up, late)
            else:
                call.settle(late)
                served.count_failure(late.code)
        if not call.answer.done():
            call.task = self._loop.create_task(self._serve(call, received), context=self._context.copy())
            call.task.add_done_callback(self._on_end)
            self._running[call.task] = call
        return call

    def _back_to(self, contract: Contract) -> Transport:
        exposed = self._exposed
        names = [] if exposed is None else list(exposed._dispatcher.contracts)
        if exposed is None or contract.name not in names:
            raise Unimplemented(
                f"the client {self.peer} exposes {', '.join(names) or 'nothing'}, not {contract.name} "
                "(local(…, exposes=…))"
            )
        return exposed

    async def _finish(self, call: LocalCall) -> Received | RpcError:
        served = call.served
        if served.method.oneway:
            return Received(_NIL, ())
        try:
            return await call.answer
        except asyncio.CancelledError:
            call.give_up(Cancelled(f"{served.full_name} was cancelled"))
            raise

    async def _finish_stream(self, flow: LocalFlow, call: LocalCall) -> Received | RpcError:
        try:
            answer = await self._finish(call)
        finally:
            flow.stop_pump()
            await flow.wait_closed()
        if flow.error is not None:
            raise flow.take_error()
        return answer

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        call = self._running.pop(task)
        call.task = None  # whose context has the call
        call.ended = True
        if call.timer is not None:
            call.timer.cancel()
        error: Received | RpcError | None = None
        if call.answer.cancelled():  # by the end of the task that awaited it
            error = Cancelled(f"{call.method_name} was cancelled")
        elif call.answer.done():
            error = call.answer.result()
        call.served.waited_ns += monotonic_ns() - call.began_ns
        if isinstance(error, RpcError):
            call.served.count_failure(error.code)
        if call.served.method.oneway and isinstance(error, RpcError) and not isinstance(error, Internal):
            log.warning("%s failed, and is one-way, so that nobody is told: %s", call.method_name, one_line(error))

    async def _serve(self, call: LocalCall, received: Received) -> None:
        running.set(call)
        served = call.served
        what = "failed"
        try:
            arguments = served.decode_arguments(received.payload, received.views)
            del received
            result = await self._handle(call, arguments)
            del arguments
            what = "its result cannot be encoded"
            call.settle(self._receive(served.method.pack_result(result), served.full_name))
        except asyncio.CancelledError:
            call.settle(Cancelled(f"{served.full_name} was cancelled"))
        except BaseException as error:  # a handler may raise anything; the caller gets what would have travelled
            failure = failure_of(error, served.contract, served.full_name, what=what, debug=self._debug)
            call.settle(error_of(failure, served.contract))
            if not isinstance(error, Exception):
                raise  # KeyboardInterrupt and SystemExit are the loop's

    def _handle(self, call: LocalCall, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        served, flow = call.served, call.flow
        if flow is None:
            handling: Awaitable[Any] = served.invoke(*arguments)
            return handling
        inlet = flow.arguments.inlet if flow.arguments is not None else None
        made = served.invoke(*served.method.join(arguments, inlet))
        return flow.results.outlet.pump(made) if flow.results is not None else made

    async def open(self) -> None:
        """Enters the service."""
        if self._closed or self._loop is not None:
            raise Closed("a stub can be entered once")
        self._loop = asyncio.get_running_loop()
        if self._exposed is not None:
            await self._exposed.open()
        try:
            await self._dispatcher.__aenter__()
        except BaseException:
            if self._exposed is not None:
                await self._exposed.close()
            raise

    async def close(self) -> None:
        """Cancels what runs, except one-way calls, which get some time to end, and leaves the service. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for call in self._running.values():
            if not call.served.method.oneway:
                call.give_up(Closed(f"the stub was closed while {call.method_name} was under way", maybe_executed=True))
        with anyio.CancelScope(shield=True):  # one around it that was cancelled would not let it wait
            try:
                await self._end_handlers()
            finally:
                try:
                    await self._dispatcher.__aexit__(None, None, None)
                finally:
                    if self._exposed is not None:
                        await self._exposed.close()

    async def _end_handlers(self) -> None:
        if not self._running:
            return
        _, late = await asyncio.wait(list(self._running), timeout=GRACE_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)


def _born_in(piece: Piece) -> memoryview | None:
    """The piece's bytes where they lie, if that is memory of `allocate` or of a call before; None for all else."""
    if piece.exporter is None:
        return None
    seen = memoryview(piece.exporter)  # type: ignore[arg-type]
    owner: object = seen.obj
    while owner is not None and not isinstance(owner, Memory):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    if owner is None or not seen.c_contiguous or not isinstance(seen.format, str) or seen.format[-1] not in _CASTS:
        return None
    return seen.cast("B")


def local(
    contract: Callable[..., T],
    implementation: object,
    *,
    timeout: float | None = None,
    metadata: Metadata | None = None,
    retry: Retry | None = None,
    interceptors: Iterable[Interceptor] = (),
    server_interceptors: Iterable[Interceptor] = (),
    debug: bool = False,
    exposes: object = None,
) -> Connection[T]:
    """A stub of a contract over an implementation in this process, with the semantics of `connect`.

    ::

        async with shmrpc.local(Vision, Worker()) as vision:
            labels = await vision.classify(image)

    Args:
        contract: The class that the stub looks like.
        implementation: What answers; entered and left with the connection if it is an async context manager.
        timeout: Seconds for each call; None: no limit.
        metadata: Attached to each call.
        retry: When calls are made again; None: never, as there is no connection to be lost.
        interceptors: Around each call of the stub, as for `connect`.
        server_interceptors: Around each handler, as for `Server`.
        debug: Whether the text of unexpected errors goes to the caller.
        exposes: A service that the implementation's handlers may call, or a list of them: see `Call.client`.

    Raises:
        ContractError: the contract cannot work, or the implementation lacks a method of it.
    """
    from shmrpc.dispatch import service

    read = contracts.read(cast(type, contract))
    exposed = dispatch.exposed(exposes)
    back = None if exposed is None else LocalTransport(exposed, debug=debug)
    transport = LocalTransport(
        Dispatcher((service(implementation, read.cls),), interceptors=server_interceptors), debug=debug, exposed=back
    )
    return Connection(read, transport, CallOptions().merged(timeout, metadata, checked(interceptors), retry=retry))
