"""`connect` and `options`: stubs, which look like the contract and carry calls over a transport.

A stub is a plain object whose attributes are the contract's methods. Nothing of the framework is on it, so that a contract
may use any name; what can be done with a stub besides calling it is a function of this module.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from shmrpc import contract as contracts
from shmrpc import dispatch
from shmrpc.context import CallOptions, Endpoint, Metadata, Peer, Reply, make_stubs_with
from shmrpc.contract import Contract
from shmrpc.interceptors.call import Interceptor, checked
from shmrpc.interceptors.client import intercepted
from shmrpc.introspection import Introspection
from shmrpc.retry import Retry
from shmrpc.shm_gate import make_transport
from shmrpc.transport import Relation, Transport, require_event_loop

T = TypeVar("T")

Address = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Where servers are."""


class Stub:
    """The client-side object of a contract. Its methods are set on the instance."""

    def __init__(self, contract: Contract, transport: Transport, options: CallOptions) -> None:
        for method in contract.methods.values():
            setattr(self, method.name, intercepted(transport, method, options))
        put_behind(self, contract, transport, options)

    def __repr__(self) -> str:
        contract, transport, _ = _behind[self]
        return f"<stub of {contract.name} over {transport!r}>"


_behind: WeakKeyDictionary[Stub, tuple[Contract, Relation, CallOptions]] = WeakKeyDictionary()


def put_behind(stub: Stub, contract: Contract, relation: Relation, options: CallOptions) -> None:
    """Says what is behind a stub, which has no attributes but its contract's."""
    _behind[stub] = (contract, relation, options)


class Connection(Generic[T]):
    """Entered with ``async with``, gives the stub; left, ends the connection and every call on it."""

    def __init__(self, contract: Contract, transport: Transport, options: CallOptions) -> None:
        self._contract = contract
        self._transport = transport
        self._options = options

    def __repr__(self) -> str:
        return f"<Connection of {self._contract.name} over {self._transport!r}>"

    async def __aenter__(self) -> T:
        """Connects, and gives the stub."""
        require_event_loop()
        await self._transport.open()
        return cast(T, Stub(self._contract, self._transport, self._options))

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes the connection."""
        await self._transport.close()


def _stub_over(contract: Any, transport_of: Callable[[Contract], Transport]) -> Stub:
    read = contracts.read(contract)
    return Stub(read, transport_of(read), CallOptions())


make_stubs_with(_stub_over)


def connect(
    contract: Callable[..., T],
    address: Address,
    *,
    timeout: float | None = None,
    metadata: Metadata | None = None,
    retry: Retry | None = None,
    wait: float = 0.0,
    reconnect_timeout: float = 10.0,
    exposes: object = None,
    interceptors: Iterable[Interceptor] = (),
    connections: int = 1,
    **settings: Any,
) -> Connection[T]:
    """Connects to the server at an address, as a client of a contract.

    ::

        async with shmrpc.connect(Vision, "/run/app/vision.sock") as vision:
            labels = await vision.classify(image, top=1)

    With several addresses, or several connections to one, each call goes over the connection with the fewest calls in
    flight; one that is lost gets no calls until it is there again.

    Args:
        contract: The class that both sides share; the stub has its type.
        address: A path, or ``shm:///path``; or several of them, at which the same is served.
        timeout: Seconds for each call made through the stub; None: what the method declares, or no limit. See `options`.
        metadata: Attached to each call.
        retry: When calls are made again. None: idempotent ones after a lost connection, three attempts in all.
        wait: Seconds to keep trying when nobody listens yet.
        reconnect_timeout: Seconds that a call without a deadline waits for a lost connection to come back.
        exposes: A service that the server's handlers may call over this connection, or a list of them: see `Call.client`.
            One that is an async context manager is entered with the connection.
        interceptors: Async callables around each call, the first one outermost: see `Intercepted`.
        connections: How many to make to each address, where several workers serve it: to different ones if possible.
        **settings: The knobs of the transport: see `shmrpc.shm.settings.Settings`.

    Raises:
        ContractError: the contract cannot work.
        BadAddress: nobody could ever listen there.
        ValueError: there is no address, or no connection to make, or another argument cannot work.
        TypeError: an argument is of another type.

    Entering it raises, if no connection at all can be made:
        ConnectFailed: nobody listens there, or one of the two processes has no memory, fds or threads for it.
        HandshakeError: the server refuses, or is not to be trusted; `ContractMismatch` says in full what differs.
    """
    read = contracts.read(cast(type, contract))
    options = CallOptions().merged(timeout, metadata, checked(interceptors), retry=retry)
    transport = make_transport(
        read,
        address,
        connections,
        wait=wait,
        reconnect_timeout=reconnect_timeout,
        settings=settings,
        exposed=dispatch.exposed(exposes),
    )
    return Connection(read, transport, options)


def options(
    stub: T,
    *,
    timeout: float | None = None,
    metadata: Mapping[str, str | bytes] | None = None,
    idle_timeout: float | None = None,
    reply: Reply | None = None,
    retry: Retry | None = None,
    interceptors: Iterable[Interceptor] = (),
) -> T:
    """The same stub with other options for its calls, over the same connection.

    Args:
        stub: What `connect` or `local` gave.
        timeout: Seconds for each call, instead of the stub's, a stream's to its end; None leaves it as it is.
        metadata: Added to the stub's, key by key.
        idle_timeout: Seconds that the next item of a result that is a stream may take, counted from when it is asked for;
            then the call ends with `DeadlineExceeded`. None leaves it as it is.
        reply: Where to put the metadata that the server attaches to its answer; a one-way call has none.
        retry: When calls are made again, instead of the stub's; None leaves it as it is.
        interceptors: Added to the stub's, inside of them.

    Raises:
        TypeError: this is no stub, or an argument is of another type.
        ValueError: a timeout is not positive.
    """
    contract, relation, current = open_stub(stub)
    made: Any = type(stub)  # a stub of the same kind, over what that kind is made over
    merged = current.merged(timeout, metadata, checked(interceptors), idle_timeout, reply, retry)
    return cast(T, made(contract, relation, merged))


def peer(stub: object) -> Peer | None:
    """The server's process, or None while there is no connection. Of several, the one that the next call would go to.

    Raises:
        TypeError: this is no stub.
    """
    return open_stub(stub)[1].peer


def endpoints(stub: object) -> list[Endpoint]:
    """A snapshot of the connections of a stub: where to, in which state, and with how many calls under way.

    There is one, or as many as `connect` was asked for, in the order of the addresses. To be called in the thread of the
    event loop.

    Raises:
        TypeError: this is no stub.
    """
    return open_stub(stub)[1].endpoints()


def introspect(stub: object) -> Introspection:
    """What the server behind a stub answers about itself, over the same connection: a stub of `Introspection`.

    ::

        print(await shmrpc.introspect(vision).health())

    Its calls have the options of the stub that was given, and end as `Unimplemented` at a server without that service.
    With no other contract at hand, ``connect(shmrpc.Introspection, path)`` gives the same. Of a blocking stub it is a
    blocking one; of one over several connections, each call asks the server that is its turn.

    Raises:
        TypeError: this is no stub.
    """
    _, relation, options = open_stub(stub)
    made: Any = type(stub)
    return cast(Introspection, made(contracts.read(Introspection), relation, options))


def open_stub(stub: object) -> tuple[Contract, Relation, CallOptions]:
    """What is behind a stub.

    Raises:
        TypeError: this is no stub.
    """
    if not isinstance(stub, Stub):
        raise TypeError(f"expected a stub, what connect() or local() gives, not {type(stub).__name__}")
    return _behind[stub]
