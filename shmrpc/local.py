"""The in-process transport: the same codecs, deadlines, cancellation and errors, without a second process.

For tests, and for services that sometimes live together. Arguments and results go through the codecs as everywhere, so
what works here works over shared memory, and nothing is shared by accident.
"""

import asyncio
import contextvars
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from shmrpc import contract as contracts
from shmrpc.client import Connection
from shmrpc.context import CallOptions, Metadata, Peer, remaining_seconds, running
from shmrpc.contract import Contract, Method
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import Cancelled, Closed, DeadlineExceeded, RpcError, WrongLoop
from shmrpc.failure import error_of, failure_of
from shmrpc.transport import StubMethod

T = TypeVar("T")


class LocalCall:
    """One call that is being served in this process."""

    def __init__(self, served: ServedMethod, deadline_ns: int, metadata: Metadata) -> None:
        self.method_name: Final = served.full_name
        self.deadline_ns: Final = deadline_ns
        self.metadata: Final = metadata
        self.peer: Final = Peer(os.getpid(), os.getuid(), os.getgid())
        self.cancelled = False


class LocalTransport:
    """A `Transport` whose server is an object of this process."""

    def __init__(self, contract: Contract, implementation: object, *, debug: bool) -> None:
        self._dispatcher = Dispatcher((implementation,))
        self._served = {served.full_name: served for served in self._dispatcher.methods}
        self._contract = contract
        self._debug = debug
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._running: set[asyncio.Task[bytes | RpcError]] = set()
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
            return method.decode_result(answer)

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
        call = LocalCall(served, deadline_ns, metadata)
        assert self._loop is not None
        task = self._loop.create_task(self._serve(served, call, payload), context=self._context.copy())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        if served.method.oneway:
            return served.encode(None)
        try:
            seconds = max(0.0, remaining_seconds(deadline_ns)) if deadline_ns else None
            done, _ = await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            call.cancelled = True
            task.cancel()
            raise
        if done:
            return task.result() if not task.cancelled() else self._cut_off(served)
        call.cancelled = True
        task.cancel()
        return DeadlineExceeded(f"{served.full_name} did not end before its deadline")

    def _cut_off(self, served: ServedMethod) -> RpcError:
        if self._closed:
            return Closed(f"the stub was closed while {served.full_name} was under way", maybe_executed=True)
        return Cancelled(f"{served.full_name} was cancelled")

    async def _serve(self, served: ServedMethod, call: LocalCall, payload: bytes) -> bytes | RpcError:
        running.set(call)
        what = "failed"
        try:
            result = await served.invoke(*served.decode_arguments(payload))
            what = "its result cannot be encoded"
            return served.encode(result)
        except Exception as error:  # a handler may raise anything; the caller gets what would have travelled
            failure = failure_of(error, served.contract, served.full_name, what=what, debug=self._debug)
            return error_of(failure, served.contract)

    async def open(self) -> None:
        """Enters the service."""
        if self._closed or self._loop is not None:
            raise Closed("a stub can be entered once")
        self._loop = asyncio.get_running_loop()
        await self._dispatcher.__aenter__()

    async def close(self) -> None:
        """Cancels what runs, except one-way calls, and leaves the service. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._dispatcher.__aexit__(None, None, None)


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
