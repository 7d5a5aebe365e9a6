"""Calls with JSON in place of a contract's codecs, over a link. Arguments, results and items are JSON text, unseen.

The server reads and writes JSON for a request with the flag AS_JSON; each item of a stream is a message of its own.
"""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from shmrpc.buffers import Buffer, Packed
from shmrpc.context import CallOptions
from shmrpc.errors import Closed, Internal, RpcError
from shmrpc.shm import envelope
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.flows import OutgoingFlow
from shmrpc.shm.link import Link
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.ring import PendingCall
from shmrpc.streams import ResultStream


class JsonItems(NamedTuple):
    """Stands for the codec of a stream's items, which are bytes of JSON already."""

    buffered: bool = True

    @staticmethod
    def pack(item: bytes) -> Packed:
        """One item, as it is."""
        return Packed(item, [])


class JsonMethod(NamedTuple):
    """Stands for a method whose contract is not at hand."""

    full_name: str
    number: int
    streams_result: bool = False
    argument_items: JsonItems | None = None
    contract: type = object
    """Declares no errors, so that all come with their code and text alone."""

    @staticmethod
    def read_result_items(payload: bytes, views: Sequence[Buffer], *, many: bool) -> list[Any]:
        """The item of one message, as it is."""
        return [payload]

    def item_misfit(self, error: Exception) -> RpcError:
        """What is wrong with an item: nothing can be, of bytes."""
        return Internal(f"{self.full_name}: an item cannot be sent: {error}")


class JsonCalls:
    """Makes calls over one link, which is open and does not come back: nothing is repeated."""

    def __init__(self, link: Link) -> None:
        self._link: Final = link

    async def call(
        self, method: JsonMethod, payload: bytes, options: CallOptions, source: AsyncIterator[bytes] | None = None
    ) -> bytes:
        """One call with one result. `source` gives the items of a parameter that is a stream."""
        calls, pending = await self._begin(method, payload, options)
        if source is None:
            return _text_of(await calls.finish(pending))
        flow = calls.flows.begin(method, pending, source, deque())
        try:
            answer = await calls.finish(pending)
        finally:
            calls.flows.forget(pending.call_id)
            flow.stop_pump()
            await flow.wait_closed()
        if flow.error is not None:
            raise flow.error
        return _text_of(answer)

    def stream(
        self, method: JsonMethod, payload: bytes, options: CallOptions, source: AsyncIterator[bytes] | None = None
    ) -> ResultStream:
        """One call whose result is a stream of JSON texts."""

        async def begin(ready: deque[Any]) -> OutgoingFlow:
            calls, pending = await self._begin(method, payload, options)
            flow = calls.flows.begin(method, pending, source, ready)
            pending.add_done_callback(flow.on_end)
            return flow

        return ResultStream(method.full_name, begin, lambda error: False, options.idle_timeout)

    async def _begin(
        self, method: JsonMethod, payload: bytes, options: CallOptions
    ) -> tuple[OutgoingCalls, PendingCall]:
        calls = self._link.calls
        if calls is None:
            raise Closed(f"{method.full_name} was called without a connection")
        flags = envelope.AS_JSON
        if options.metadata:
            flags |= envelope.HAS_METADATA
            payload = envelope.with_metadata(options.metadata, payload)
        packed, deadline_ns = Packed(payload, []), options.deadline_ns()
        pending = calls.try_begin(method, method.number, flags, deadline_ns, packed)
        while pending is None:
            pending = await calls.begin(method, method.number, flags, deadline_ns, packed)
        return calls, pending


def _text_of(answer: bytes | Parcel | RpcError) -> bytes:
    if isinstance(answer, RpcError):
        raise answer
    return answer.payload if isinstance(answer, Parcel) else answer
