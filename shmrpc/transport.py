"""The seam between calls and how they travel.

A transport carries whole calls, not bytes: shared memory carries a call as records, gRPC as a gRPC call, `local` runs it in
the process. Above this line nobody knows which.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from shmrpc.buffers import Buffer
from shmrpc.context import CallOptions, Endpoint, Lease, Peer
from shmrpc.errors import WrongLoop
from shmrpc.methods import Method

StubMethod = Callable[..., Any]
"""A coroutine function; for a result that is a stream, a function that gives a `shmrpc.streams.ResultStream`."""


class Relation(Protocol):
    """What can be asked of a connection, besides making calls."""

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory from which an argument can be sent without a copy."""
        ...

    def leases(self) -> list[Lease]:
        """What is out of this side's memory."""
        ...

    def endpoints(self) -> list[Endpoint]:
        """Where calls go: one, unless the transport is over several connections."""
        ...

    @property
    def peer(self) -> Peer | None:
        """The process on the other side; None while there is no connection."""
        ...


class Transport(Relation, Protocol):
    """The client's side of a connection: what stubs call."""

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """A function with the method's parameters, which makes one call each time that what it gives is awaited, or iterated
        when it is a stream.

        It ends in exactly one of: the result; a typed `RpcError`; `DeadlineExceeded`; `asyncio.CancelledError`, with the
        handler cancelled too; `Unavailable`.
        """
        ...

    async def open(self) -> None:
        """Makes the connection; returns when calls can be made.

        Raises:
            Unavailable: nobody answers at the address.
            HandshakeError: somebody does, and the two do not agree.
        """

    async def close(self) -> None:
        """Ends the connection and every call on it. Idempotent."""

    @property
    def address(self) -> str | None:
        """Where the side that is called listens; None when it does not, or is in this process."""
        ...


def require_event_loop() -> None:
    """Refuses to connect or to serve where no asyncio event loop runs.

    Raises:
        WrongLoop: none does; trio's is none.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoop(
            "no asyncio event loop runs here, and shmrpc needs one; trio has none (a test under anyio's plugin runs in one "
            "when the fixture anyio_backend gives 'asyncio')"
        ) from None
