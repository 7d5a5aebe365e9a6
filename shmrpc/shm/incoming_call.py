"""One call that is being served: what its handler can ask of it, and its state in the protocol's table."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from shmrpc.buffers import Buffer
from shmrpc.context import Metadata, Peer
from shmrpc.contract import Contract
from shmrpc.dispatch import ServedMethod
from shmrpc.errors import Unimplemented
from shmrpc.shm.memory import Memory
from shmrpc.shm.protocol import Event, Incoming, step_incoming
from shmrpc.transport import Transport

NO_METADATA: Final[Metadata] = {}


class Callback(Transport, Protocol):
    """The services that a caller exposes: see `backward`."""

    def expect(self, contract: Contract) -> None:
        """Finds a contract among them. Raises Unimplemented or ContractMismatch."""


class Calls(Protocol):
    """What a call needs of those that it is one of."""

    @property
    def peer(self) -> Peer:
        """The calling process."""
        ...

    @property
    def back(self) -> Callback | None:
        """How handlers reach the services that the caller exposes."""
        ...

    @property
    def memory(self) -> Memory:
        """Of the connection."""
        ...

    @property
    def running(self) -> Mapping[int, "IncomingCall"]:
        """Those that have not ended."""
        ...

    def send_ahead(self, call: "IncomingCall", metadata: Metadata) -> None:
        """Sends metadata ahead of a call's result. On any thread."""


class IncomingCall(msgspec.Struct, eq=False):
    """One call that is being served."""

    calls: "Calls"
    served: ServedMethod
    call_id: int
    deadline_ns: int
    metadata: Metadata
    as_json: bool
    state: Incoming = Incoming.RUNNING
    task: "asyncio.Task[None] | None" = None
    initial_sent: bool = False
    trailing: Metadata = NO_METADATA
    waits_since_ns: int = 0
    """When its handler first waited; 0: it has not."""
    failure: int | None = None
    """The status that it is counted under; None: it runs, or ended well."""

    @property
    def method_name(self) -> str:
        """The method's full name."""
        return self.served.full_name

    @property
    def peer(self) -> Peer:
        """The calling process."""
        return self.calls.peer

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.state is not Incoming.RUNNING

    @property
    def ended(self) -> bool:
        """Whether its end was sent."""
        return self.calls.running.get(self.call_id) is not self

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that can be sent to the caller without a copy."""
        return self.calls.memory.allocate(nbytes)

    def back_to(self, contract: Contract) -> Transport:
        """What calls the caller's own services go over.

        Raises:
            Unimplemented: it does not expose this contract.
            ContractMismatch: it does, in a form that cannot work.
        """
        back = self.calls.back
        if back is None:
            raise Unimplemented(f"the client {self.peer} exposes nothing, not {contract.name} (connect(…, exposes=…))")
        back.expect(contract)
        return back

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sends metadata ahead of the result, at once. On any thread."""
        if self.initial_sent or self.ended:
            what = "initial metadata was sent already" if self.initial_sent else "the call has ended"
            raise RuntimeError(f"{self.method_name}: {what}")
        self.initial_sent = True
        self.calls.send_ahead(self, metadata)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Keeps metadata to go with the end of the call. On any thread."""
        self.trailing = metadata

    def count_failure(self, code: int) -> None:
        """It ends otherwise than well. The first such end is the one that counts."""
        if self.failure is None:
            self.failure = code
            self.served.count_failure(code)

    def tell(self, event: Event) -> None:
        """Moves on in the protocol's table, and tells the handler by cancelling it if it was running undisturbed."""
        before, self.state = self.state, step_incoming(self.state, event)
        if before is Incoming.RUNNING and self.state is not Incoming.RUNNING and self.task is not None:
            self.task.cancel()
