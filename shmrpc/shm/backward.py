"""Calls in the other direction: what a server's handlers reach of a client that exposes services of its own."""

import asyncio
from typing import Final, Literal

from shmrpc.buffers import Buffer, Packed
from shmrpc.context import CallOptions, Endpoint, Lease, Peer
from shmrpc.contract import Contract
from shmrpc.errors import Unimplemented
from shmrpc.legible import one_line
from shmrpc.methods import Method
from shmrpc.shm.calling import Calling
from shmrpc.shm.handshake import Offered
from shmrpc.shm.matching import match
from shmrpc.shm.outgoing import OutgoingCalls, wrong_loop_error
from shmrpc.shm.session import Session
from shmrpc.transport import StubMethod


class Backward:
    """A `Transport` to the client of one session. Lives as long as that: nobody connects to a client again."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, session: Session, calls: OutgoingCalls, exposed: list[Offered]
    ) -> None:
        self.near: Final = None
        self.closed: Final = True
        """No call is made again over another connection."""
        self._loop = loop
        self._session = session
        self._calls = calls
        self._exposed = exposed
        self._matched: set[type] = set()
        self._calling = Calling(self)

    def __repr__(self) -> str:
        return f"<Backward to {self._session.peer}>"

    @property
    def path(self) -> str:
        """Who is called, for error texts."""
        return f"the client {self._session.peer}"

    @property
    def calls(self) -> OutgoingCalls | None:
        """Of the session; None when that has ended."""
        return self._calls if self._calls.ended is None else None

    @property
    def address(self) -> None:
        """None: a client has no address."""
        return None

    @property
    def peer(self) -> Peer:
        """The client's process."""
        return self._session.peer

    def expect(self, contract: Contract) -> None:
        """Finds a contract in what the client exposes.

        Raises:
            Unimplemented: it does not expose it.
            ContractMismatch: it does, in a form that cannot work.
        """
        if contract.cls in self._matched:
            return
        if all(service.name != contract.name for service in self._exposed):
            names = ", ".join(service.name for service in self._exposed) or "nothing"
            names = one_line(names)
            raise Unimplemented(f"the client {self.peer} exposes {names}, not {contract.name} (connect(…, exposes=…))")
        matched = match(contract, self._exposed, self.path, caller="server", other="client")
        self._calls.numbers.update(matched.numbers)
        self._calls.narrow.update(matched.narrow)
        self._matched.add(contract.cls)

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The function of one stub method: see `Transport.bind`."""
        return self._calling.bind(method, options)

    def check(self, method: Method) -> None:
        """Refuses a call in another event loop.

        Raises:
            WrongLoop: it is one.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise wrong_loop_error(method)

    async def ready(self, method: Method, deadline_ns: int, packed: Packed) -> OutgoingCalls:
        """The session's calls.

        Raises:
            Unavailable: it has ended.
            WrongLoop: called from another event loop.
        """
        self.check(method)
        ended = self._calls.ended
        if ended is not None:
            raise type(ended)(f"{method.full_name} was not sent: {ended}")
        return self._calls

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that can be sent to the client without a copy."""
        return self._session.memory.allocate(nbytes)

    def endpoints(self) -> list[Endpoint]:
        """The client."""
        state: Literal["connected", "closed"] = "connected" if self.calls is not None else "closed"
        return [Endpoint(self.path, state, self.peer, len(self._calls.pending))]

    def leases(self) -> list[Lease]:
        """What the client holds of this side's memory."""
        return self._session.memory.leases()

    async def open(self) -> None:
        """It is open already."""

    async def close(self) -> None:
        """It is the client's to close."""
