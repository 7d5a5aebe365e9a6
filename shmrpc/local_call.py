"""One call that is served in its caller's process: what its handler can ask of it, and its one end."""

import asyncio
import os
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Final, NamedTuple

from shmrpc.buffers import Buffer
from shmrpc.context import CallOptions, Metadata, Peer
from shmrpc.contract import Contract
from shmrpc.dispatch import ServedMethod
from shmrpc.errors import DeadlineExceeded, RpcError
from shmrpc.inlet import cut_off
from shmrpc.local_flows import LocalFlow
from shmrpc.transport import Transport


class Received(NamedTuple):
    """A payload and its buffers, as the other side gets them."""

    payload: bytes
    views: Sequence[Buffer]


class LocalCall:
    """One call that is being served in this process."""

    def __init__(
        self,
        allocate: Callable[[int], Buffer],
        loop: asyncio.AbstractEventLoop,
        served: ServedMethod,
        deadline_ns: int,
        options: CallOptions,
        back_to: Callable[[Contract], Transport],
    ) -> None:
        self._allocate = allocate
        self.served: Final = served
        self.method_name: Final = served.full_name
        self.deadline_ns: Final = deadline_ns
        self.metadata: Final[Metadata] = options.metadata
        self._reply = options.reply if not served.method.oneway else None
        self._back_to = back_to
        self._initial_sent = False
        self._trailing: Metadata = {}
        self.peer: Final = Peer(os.getpid(), os.geteuid(), os.getegid())
        self.cancelled = False
        self.ended = False
        """Whether its handler has."""
        self._settled = False
        self.answer: Final[asyncio.Future[Received | RpcError]] = loop.create_future()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.flow: LocalFlow | None = None
        self.began_ns: Final = monotonic_ns()

    def settle(self, answer: Received | RpcError, *, at_once: bool = False) -> None:
        """Ends the call, if nothing has yet; with `at_once`, what was not read of its result is not read any more."""
        if self._settled:
            return
        self._settled = True
        if not self.answer.done():  # else its caller was cancelled
            if self._reply is not None:
                self._reply.trailing_metadata = self._trailing
            self.answer.set_result(answer)
        if (flow := self.flow) is not None:
            if flow.results is not None:
                error = answer if isinstance(answer, RpcError) else None
                flow.results.inlet.finish(error, at_once=at_once)
            if flow.arguments is not None:
                cut_off(flow.arguments.inlet, self.method_name)
            flow.on_end()

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that is passed without a copy."""
        return self._allocate(nbytes)

    def back_to(self, contract: Contract) -> Transport:
        """What calls the caller's own services go over. Raises Unimplemented."""
        return self._back_to(contract)

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Passes metadata to the caller ahead of the result."""
        if self._initial_sent or self.ended:
            what = "initial metadata was sent already" if self._initial_sent else "the call has ended"
            raise RuntimeError(f"{self.method_name}: {what}")
        self._initial_sent = True
        if self._reply is not None:
            self._reply.initial_metadata = metadata

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Keeps metadata to go with the end of the call."""
        self._trailing = metadata

    def give_up(self, error: RpcError) -> None:
        """Nobody waits for the handler any more: ends the call, and tells the handler."""
        self.cancelled = True
        self.settle(error, at_once=isinstance(error, DeadlineExceeded))
        if self.task is not None:
            self.task.cancel()
