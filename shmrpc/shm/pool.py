"""Several links behind one stub: each call goes to the one with the fewest calls under way.

Owns the choice, and waiting when no link is connected. A link looks after its own connection; how a call is made, and made
again elsewhere, is `calling`'s, for which a pool looks like one link whose session changes with every call.
"""

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any, Final

import anyio

from shmrpc.buffers import Buffer, Packed
from shmrpc.context import CallOptions, Endpoint, Lease, Peer
from shmrpc.dispatch import Dispatcher
from shmrpc.errors import Closed, ConnectFailed, RpcError, anew
from shmrpc.methods import Method
from shmrpc.shm.borrowing import view_under
from shmrpc.shm.calling import Calling
from shmrpc.shm.link import Link, not_connected_error, seconds_to_wait
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.ring import address_of
from shmrpc.transport import StubMethod

log: Final = logging.getLogger("shmrpc")


class Pool:
    """A `Transport` over several links."""

    def __init__(self, links: list[Link], *, wait: float, reconnect_timeout: float, exposed: Dispatcher | None) -> None:
        self.closed = False
        self._links: Final = links
        self._order: Final = links.copy()
        """Those that were chosen last at the end, so that of equals each is chosen in its turn."""
        self._wait = wait
        self._reconnect_timeout = reconnect_timeout
        self._opened = False
        self._exposed = AsyncExitStack()
        """What the links expose, which is entered once for all of them."""
        self._services = exposed
        self._calling = Calling(self)
        counted = Counter(link.path for link in links)
        for link in links:
            link.on_change = self._on_change
            if counted[link.path] > 1:
                link.is_taken = self._is_taken

    def __repr__(self) -> str:
        connected = sum(link.calls is not None for link in self._links)
        state = "closed" if self.closed else f"{connected} of {len(self._links)} connected"
        return f"<Pool to {self._where}, {state}>"

    @property
    def _where(self) -> str:
        return ", ".join(dict.fromkeys(link.path for link in self._links))

    # ---- the choice ----

    @property
    def calls(self) -> OutgoingCalls | None:
        """Of the link that takes the next call; each look counts as a call. None: none is connected."""
        order = self._order
        chosen = None
        least = at = 0
        for position, link in enumerate(order):  # the hot path of every call
            calls = link.calls
            if calls is not None:
                in_flight = len(calls.pending)
                if chosen is None or in_flight < least:
                    chosen, least, at = calls, in_flight, position
                    if not in_flight:
                        break
        if chosen is not None:
            order.append(order.pop(at))
        return chosen

    def near(self, args: tuple[Any, ...]) -> OutgoingCalls | None:
        """The same for a call with these arguments: where one of them can be sent from without a copy, if there is room."""
        for argument in args:
            where = address_of(argument)
            if (
                where is not None
                and view_under(argument) is not None
                and (calls := self._home_of(where[0])) is not None
            ):
                return calls
        return self.calls

    def _home_of(self, address: int) -> OutgoingCalls | None:
        for link in self._links:
            calls = link.calls
            if calls is not None and calls.memory.holds(address):
                self._order.remove(link)
                self._order.append(link)
                return None if calls.congested else calls
        return None

    def _next(self) -> Link | None:
        """The link that the next call would go to."""
        loads = [(len(link.calls.pending), link) for link in self._order.copy() if link.calls is not None]
        return min(loads, key=lambda load: load[0], default=(0, None))[1]

    # ---- calls ----

    def bind(self, method: Method, options: CallOptions) -> StubMethod:
        """The function of one stub method: see `Transport.bind`."""
        return self._calling.bind(method, options)

    async def ready(self, method: Method, deadline_ns: int, packed: Packed) -> OutgoingCalls:
        """The calls of the link that is to take a call, waiting while none is connected.

        Raises:
            Unavailable, HandshakeError, DeadlineExceeded, WrongLoop.
        """
        while True:
            self.check(method)
            exporters = tuple(piece.exporter for piece in packed.pieces)
            if (calls := self.near(exporters)) is not None:
                return calls
            seconds = seconds_to_wait(self._reconnect_timeout, deadline_ns)
            if not await self._wait_connected(seconds):
                raise not_connected_error(method, self._where, self._reconnect_timeout, deadline_ns, seconds)

    def check(self, method: Method) -> None:
        """Refuses a call that this is not the place for: see `Link.check`."""
        self._links[0].check(method)

    async def _wait_connected(self, seconds: float) -> bool:
        """Returns when a link is connected, or whether none was in time.

        Raises:
            RpcError: every link was refused.
        """
        until = asyncio.get_running_loop().time() + seconds
        soon = [link.connected_soon() for link in self._links]
        waited_for = set(soon)
        try:
            while True:
                left = max(0.0, until - asyncio.get_running_loop().time())
                done, waited_for = await asyncio.wait(waited_for, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    return False
                errors = [connected.exception() for connected in done]
                if None in errors:
                    return True
                if not waited_for and errors[0] is not None:
                    raise anew(errors[0])
        finally:
            for connected in soon:
                connected.cancel()

    # ---- memory ----

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory of the link that the next call would go to, and so will go to with it; else ordinary memory."""
        if self.closed or not self._opened:
            raise Closed(f"the stub for {self._where} is {'closed' if self.closed else 'not connected yet'}")
        link = self._next()
        return link.allocate(nbytes) if link is not None else bytearray(nbytes)

    def leases(self) -> list[Lease]:
        """What the servers and this process hold of the client's memory, by method and holder; the largest first."""
        held: dict[tuple[str, Peer | None], list[Lease]] = {}
        for link in self._links:
            for lease in link.leases():
                held.setdefault((lease.method, lease.holder), []).append(lease)
        merged = [
            Lease(
                *of,
                sum(lease.blocks for lease in leases),
                sum(lease.nbytes for lease in leases),
                max(lease.age for lease in leases),
            )
            for of, leases in held.items()
        ]
        return sorted(merged, key=lambda lease: -lease.nbytes)

    # ---- the connections ----

    @property
    def address(self) -> str | None:
        """None: there are several. `endpoints` has them."""
        return None

    @property
    def peer(self) -> Peer | None:
        """The process that the next call would go to."""
        link = self._next()
        return link.peer if link is not None else None

    def endpoints(self) -> list[Endpoint]:
        """Each connection, in the order of the addresses."""
        return [endpoint for link in self._links for endpoint in link.endpoints()]

    async def open(self) -> None:
        """Tries every link once, and for `wait` seconds while none can be connected. Those that cannot go on trying.

        Raises:
            HandshakeError, ConnectFailed: none could; of the servers that answered, why the first refused.
        """
        if self.closed or self._opened:
            raise Closed("a stub can be entered once; connect again")
        self._opened = True
        try:
            if self._services is not None:
                await self._exposed.enter_async_context(self._services)
            errors = await asyncio.gather(*(link.open_or_retry() for link in self._links))
            if None not in errors and not await self._wait_connected_at_first(errors):
                raise _why_none(errors)
        except BaseException:
            await self.close()
            raise
        for link, error in zip(self._links, errors, strict=True):
            if error is not None and link.calls is None:
                log.warning("no calls go to %s for now: %s", link.path, error)

    async def _wait_connected_at_first(self, errors: list[RpcError | None]) -> bool:
        """Waits as long as somebody may still begin to listen."""
        if not any(isinstance(error, ConnectFailed) for error in errors) or not self._wait:
            return False
        return await self._wait_connected(self._wait)

    def _is_taken(self, pid: int) -> bool:
        """Whether a link is connected to a process, where that can be told: those of other pid namespaces are all 0."""
        return pid > 0 and any(link.peer is not None and link.peer.pid == pid for link in self._links)

    def _on_change(self, link: Link, lost: str) -> None:
        if self.closed:
            return
        if lost:
            log.warning("no calls go to %s for now: %s", link.path, lost)
        else:
            log.debug("calls go to %s, %s", link.path, link.peer)

    async def close(self) -> None:
        """Ends all connections and every call on them. Idempotent. In a forked child there is nothing to be ended."""
        self.closed = True
        for link in self._links:
            link.hang_up()  # now, whatever becomes of the tasks that wait for what ends
        if self._links[0].forked:
            return
        with anyio.CancelScope(shield=True):  # one around it that was cancelled would not let it wait
            try:
                await asyncio.gather(*(link.close() for link in self._links))
            finally:
                await self._exposed.aclose()


def _why_none(errors: list[RpcError | None]) -> RpcError:
    """One error for all: a server that answered and refused says more than that nobody listens."""
    refused = [error for error in errors if error is not None and not isinstance(error, ConnectFailed)]
    if refused:
        return refused[0]
    texts = dict.fromkeys(str(error) for error in errors)
    return ConnectFailed("; ".join(texts))
