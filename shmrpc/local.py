"""The in-process transport: the same codecs, deadlines, cancellation and errors, without a second process.

For tests, and for services that sometimes live together. Arguments and results go through the codecs as everywhere, so
what works here works over shared memory, and nothing is shared by accident.
"""

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import msgspec

from shmrpc import contract as contracts
from shmrpc.client import Connection
from shmrpc.context import CallOptions, Metadata, Peer, remaining_seconds, running
from shmrpc.contract import Contract, Method
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import Cancelled, Closed, DeadlineExceeded, Internal, RpcError, WrongLoop
from shmrpc.failure import error_of, failure_of
from shmrpc.transport import StubMethod

T = TypeVar("T")

log: Final = logging.getLogger("shmrpc.server")

GRACE_SECONDS: Final = 10.0
"""How long one-way calls, and handlers that ignore their cancellation, may run on when the stub is closed."""

_NIL: Final = msgspec.msgpack.encode(None)


class LocalCall:
    """One call that is being served in this process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, served: ServedMethod, deadline_ns: int, metadata: Metadata
    ) -> None:
        self.served: Final = served
        self.method_name: Final = served.full_name
        self.deadline_ns: Final = deadline_ns
        self.metadata: Final = metadata
        self.peer: Final = Peer(os.getpid(), os.getuid(), os.getgid())
        self.cancelled = False
        self.answer: Final[asyncio.Future[bytes | RpcError]] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, answer: bytes | RpcError) -> None:
        """Ends the call, if nothing has yet."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def give_up(self, error: RpcError) -> None:
        """Nobody waits for the handler any more: ends the call, and tells the handler."""
        self.cancelled = True
        self.settle(error)
        if self.task is not None:
            self.task.cancel()


class LocalTransport:
    """A `Transport` whose server is an object of this process."""

    def __init__(self, contract: Contract, implementation: object, *, debug: bool) -> None:
        self._dispatcher = Dispatcher((implementation,))
        self._served = {served.full_name: served for served in self._dispatcher.methods}
        self._contract = contract
        self._debug = debug
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._running: dict[asyncio.Task[None], LocalCall] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<LocalTransport {'closed' if self._closed else 'open'}, {len(self._running)} calls running>"

    @property
    def peer(self) -> Peer | None:
        """This process."""
        return Peer(os.getpid(), os.getuid(), os.getgid())

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The coroutine function of one stub method: see `Transport.bind`."""
        served = self._served[method.full_name]

        async def call(*args: Any, **kwargs: Any) -> Any:
            payload = method.encode_arguments(method.bind(args, kwargs))
            deadline_ns = options.deadline_ns()
            self._check(method)
            answer = await self._run(served, deadline_ns, options.metadata, payload)
            if isinstance(answer, RpcError):
                raise answer
            return method.read_result(answer)

        call.__name__ = method.name
        call.__qualname__ = method.full_name
        return call

    def _check(self, method: Method) -> None:
        if self._closed or self._loop is None:
            raise Closed(
                f"{method.full_name} was called on a stub that is {'closed' if self._closed else 'not entered'}"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop(f"{method.full_name} was called from another event loop than the one that connected")

    async def _run(
        self, served: ServedMethod, deadline_ns: int, metadata: Metadata, payload: bytes
    ) -> bytes | RpcError:
        assert self._loop is not None
        call = LocalCall(self._loop, served, deadline_ns, metadata)
        if deadline_ns:
            late = DeadlineExceeded(f"{served.full_name} did not end before its deadline")
            if (seconds := remaining_seconds(deadline_ns)) > 0:
                call.timer = self._loop.call_later(seconds, call.give_up, late)
            else:
                call.settle(late)
        if not call.answer.done():
            call.task = self._loop.create_task(self._serve(call, payload), context=self._context.copy())
            call.task.add_done_callback(self._on_end)
            self._running[call.task] = call
        if served.method.oneway:
            return _NIL
        try:
            return await call.answer
        except asyncio.CancelledError:
            call.give_up(Cancelled(f"{served.full_name} was cancelled"))
            raise

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        call = self._running.pop(task)
        if call.timer is not None:
            call.timer.cancel()
        error = call.answer.result() if call.answer.done() else None
        if call.served.method.oneway and isinstance(error, RpcError) and not isinstance(error, Internal):
            log.warning("%s failed, and is one-way, so that nobody is told: %s", call.method_name, error)

    async def _serve(self, call: LocalCall, payload: bytes) -> None:
        running.set(call)
        served = call.served
        what = "failed"
        try:
            result = await served.invoke(*served.decode_arguments(payload))
            what = "its result cannot be encoded"
            call.settle(served.encode(result))
        except asyncio.CancelledError:
            call.settle(Cancelled(f"{served.full_name} was cancelled"))
        except BaseException as error:  # a handler may raise anything; the caller gets what would have travelled
            failure = failure_of(error, served.contract, served.full_name, what=what, debug=self._debug)
            call.settle(error_of(failure, served.contract))
            if not isinstance(error, Exception):
                raise  # KeyboardInterrupt and SystemExit are the loop's

    async def open(self) -> None:
        """Enters the service."""
        if self._closed or self._loop is not None:
            raise Closed("a stub can be entered once")
        self._loop = asyncio.get_running_loop()
        await self._dispatcher.__aenter__()

    async def close(self) -> None:
        """Cancels what runs, except one-way calls, which get some time to end, and leaves the service. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for call in self._running.values():
            if not call.served.method.oneway:
                call.give_up(Closed(f"the stub was closed while {call.method_name} was under way", maybe_executed=True))
        try:
            await self._end_handlers()
        finally:
            await self._dispatcher.__aexit__(None, None, None)

    async def _end_handlers(self) -> None:
        if not self._running:
            return
        _, late = await asyncio.wait(list(self._running), timeout=GRACE_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)


def local(
    contract: Callable[..., T],
    implementation: object,
    *,
    timeout: float | None = None,
    metadata: Metadata | None = None,
    debug: bool = False,
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
        debug: Whether the text of unexpected errors goes to the caller.

    Raises:
        ContractError: the contract cannot work, or the implementation lacks a method of it.
    """
    from shmrpc.dispatch import service

    read = contracts.read(cast(type, contract))
    transport = LocalTransport(read, service(implementation, read.cls), debug=debug)
    return Connection(read, transport, CallOptions().merged(timeout, metadata))
