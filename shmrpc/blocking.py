"""`connect_sync`: stubs whose methods block, for scripts, threads and notebooks.

A blocking stub is a thin face of an async one, which lives in the event loop of a thread of its own (`loop_thread`). So
whatever is true of calls and connections is true here; only the waiting differs.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

from shmrpc import contract as contracts
from shmrpc import facade
from shmrpc.client import Address, Connection, Stub, connect, open_stub, put_behind
from shmrpc.crossing import BlockingStream, Feed
from shmrpc.errors import ConnectFailed
from shmrpc.loop_thread import Errand, LoopThread

if TYPE_CHECKING:
    from shmrpc.buffers import Buffer
    from shmrpc.context import CallOptions, Endpoint, Lease, Metadata, Peer
    from shmrpc.contract import Contract
    from shmrpc.methods import Method
    from shmrpc.transport import Transport

S = TypeVar("S")


class Bridge:
    """What a blocking stub knows of its connection: a transport, and the thread that it lives in."""

    def __init__(self, transport: Transport, thread: LoopThread, connection: BlockingConnection[Any]) -> None:
        self.transport: Final = transport
        self.thread: Final = thread
        self._connection = connection  # which ends with its last stub, if nobody closes it

    def __repr__(self) -> str:
        return f"{self.transport!r} in another thread"

    @property
    def peer(self) -> Peer | None:
        """The process on the other side."""
        return self.transport.peer

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory from which an argument can be sent without a copy."""
        return self.thread.call(self.transport.allocate, nbytes)

    def leases(self) -> list[Lease]:
        """What is out of this side's memory."""
        return self.thread.call(self.transport.leases)

    def endpoints(self) -> list[Endpoint]:
        """Where calls go."""
        return self.thread.call(self.transport.endpoints)


class BlockingStub(Stub):
    """A stub whose methods block. They may be called in any number of threads at once."""

    def __init__(self, contract: Contract, bridge: Bridge, options: CallOptions) -> None:
        inner = Stub(contract, bridge.transport, options)
        for method in contract.methods.values():
            setattr(self, method.name, _blocking(bridge.thread, method, getattr(inner, method.name)))
        put_behind(self, contract, bridge, options)


def _blocking(thread: LoopThread, method: Method, stub_method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, made plain."""
    run = thread.run
    index = method.stream_index
    parameter = "" if index is None else method.signature.parameters[index].name

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            return run(partial(stub_method, **kwargs), *args)
        return run(stub_method, *args)

    def feed_of(args: list[Any], kwargs: dict[str, Any]) -> Feed[Any] | None:
        """Puts an async iterator in the place of the iterable among the arguments."""
        if index is None:
            return None
        method.bind(tuple(args), kwargs)  # first, for what is wrong with them
        where: Any = kwargs if parameter in kwargs else args
        place: Any = parameter if parameter in kwargs else index
        method.check_iterable(where[place])
        feed = where[place] = Feed(thread, where[place])
        return feed

    def call_with_stream(*args: Any, **kwargs: Any) -> Any:
        arguments = list(args)
        feed = feed_of(arguments, kwargs)
        assert feed is not None
        ended = threading.Lock()
        ended.acquire()

        def end() -> None:
            feed.stop()
            ended.release()

        errand = Errand(end, partial(stub_method, *arguments, **kwargs))
        del arguments, kwargs
        try:
            thread.send(errand)
            feed.pour()
            ended.acquire()
        except BaseException:
            thread.give_up(errand)
            raise
        return errand.outcome()

    def stream(*args: Any, **kwargs: Any) -> BlockingStream[Any]:
        arguments = list(args)
        feed = feed_of(arguments, kwargs)
        if feed is None:
            method.bind(args, kwargs)
        return BlockingStream(thread, method.full_name, partial(stub_method, *arguments, **kwargs), feed)

    made = stream if method.streams_result else call if index is None else call_with_stream
    made.__name__ = method.name
    made.__qualname__ = method.full_name
    made.__doc__ = getattr(method.contract, method.name).__doc__
    return made


class BlockingConnection(Generic[S]):
    """Entered with ``with``, gives a blocking stub; left, ends the connection and every call on it.

    Where there is no ``with``, as in a notebook, `open` gives the stub, and `close` ends the connection.
    """

    def __init__(self, connection: Connection[Any], name: str) -> None:
        self._connection = connection
        self._thread = LoopThread(f"shmrpc {name}")

    def __repr__(self) -> str:
        return f"<BlockingConnection, {self._connection!r}>"

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing() and self._thread.running:  # at the end of the interpreter the modules are gone
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=1)
            self._thread.stop_soon()

    def open(self) -> S:
        """Connects, and gives the stub. Raises what entering a `connect` raises.

        Raises:
            Closed: it was opened before.
            ConnectFailed: this process may not have a thread, or an event loop, more.
        """
        try:
            self._thread.start()
        except (OSError, RuntimeError) as error:
            raise ConnectFailed(f"this process cannot connect: it has no thread with an event loop: {error}") from None
        try:
            stub = self._thread.enter(self._connection)
        except BaseException:
            self._thread.stop()
            raise
        contract, transport, options = open_stub(stub)
        return cast(S, BlockingStub(contract, Bridge(cast("Transport", transport), self._thread, self), options))

    def close(self) -> None:
        """Ends the connection; calls of other threads that are under way end as `Closed`. Idempotent."""
        self._thread.stop()

    def __enter__(self) -> S:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@overload
def connect_sync(
    contract: Callable[..., object],
    address: Address,
    *,
    typed_as: Callable[..., S],
    timeout: float | None = ...,
    metadata: Metadata | None = ...,
    wait: float = ...,
    reconnect_timeout: float = ...,
    connections: int = ...,
    **settings: Any,
) -> BlockingConnection[S]: ...
@overload
def connect_sync(
    contract: Callable[..., object],
    address: Address,
    *,
    typed_as: None = ...,
    timeout: float | None = ...,
    metadata: Metadata | None = ...,
    wait: float = ...,
    reconnect_timeout: float = ...,
    connections: int = ...,
    **settings: Any,
) -> BlockingConnection[Any]: ...
def connect_sync(
    contract: Callable[..., Any],
    address: Address,
    *,
    typed_as: Callable[..., Any] | None = None,
    polling: Any = "never",
    **options: Any,
) -> BlockingConnection[Any]:
    """`connect` for code that is not async: a stub whose methods wait for the result, and return or raise it.

    ::

        with shmrpc.connect_sync(Vision, "/run/app/vision.sock") as vision:
            labels = vision.classify(image, top=1)
            for tile in vision.tiles(image, rows=256): ...

    The stub may be used in any thread, and in several at once. A result stream is a generator; a parameter that is a stream
    takes any iterable. KeyboardInterrupt, in the thread that waits, cancels the call at the server. `options`, `peer`,
    `empty`, `buffer`, `leases` and `endpoints` take the stub as any other.

    Args:
        contract: The class that both sides share, with async methods.
        address: As for `connect`.
        typed_as: A class with the same methods, made plain, which the stub has the type of for a checker. Without one its
            type is `Any`: nothing can derive plain methods from async ones.
        polling: As for `connect`, but "never": the thread that waits for the reply must not compete with the one that
            calls.
        **options: Everything else that `connect` takes.

    Raises:
        ContractError: the contract cannot work, or `typed_as` is not the same.
        BadAddress: nobody could ever listen there.

    Entering it raises what entering a `connect` raises.
    """
    read = contracts.read(cast(type, contract))
    if typed_as is not None:
        facade.check(cast(type, typed_as), read)
    return BlockingConnection(connect(contract, address, polling=polling, **options), read.name)
