"""What this side of a connection sends out of band: pieces go into blocks of its arena, and leases on them to the peer.

Owns where each piece of a message goes: an array that was born in the arena, or came from the peer, by reference; all else
by one copy. Owns the waiting for memory: until some comes home or is made, or until the deadline; where none came home, it
then says who holds how much of it. Extents are made by `extents`.
"""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from time import monotonic_ns
from typing import Final

from shmrpc.buffers import Buffer, Packed, Piece
from shmrpc.context import Lease, Peer, remaining_seconds
from shmrpc.errors import DeadlineExceeded, ProtocolError, ResourceExhausted, Unavailable, anew
from shmrpc.shm import envelope
from shmrpc.shm.arena import Region, size_text, whole_granules
from shmrpc.shm.borrowing import PEER_OWNED, Borrowed, Returned, own_view
from shmrpc.shm.channel import Channel
from shmrpc.shm.extents import Extents
from shmrpc.shm.placed import Place, Placed, Shortage, check_size, placed_as
from shmrpc.shm.ring import View, address_of, pack_references

log: Final = logging.getLogger("shmrpc")

_REFERENCE_BYTES: Final = 32
_TABLE_BYTES: Final = 8
_LOOK_AFTER: Final = 64
"""So many leases are lent before this side looks again which of them are over."""


class Lender:
    """The memory that one side of a connection sends from."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        borrowed: Borrowed,
        extents: Extents,
        peer: Peer,
        warning_ns: int,
        on_broken: Callable[[ProtocolError], None],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._arena = channel.arena
        self._ledger = channel.arena.ledger
        self._announce = channel.announce
        self._borrowed = borrowed
        self._extents = extents
        self._peer = peer
        self._warning_ns = warning_ns
        self._on_broken = on_broken
        self._ledger.longest_body = channel.inline_limit - _TABLE_BYTES - _REFERENCE_BYTES  # to fit in a record
        self._ledger.largest_message = channel.max_message
        self.most_bytes: Final = max(extents.limit, channel.arena.base.nbytes)
        """Of all blocks of a message."""
        self._thread = threading.get_ident()
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._context: Final = Context()
        """Of the timer: not that of a call which happens to be served when it is set, and would be kept by it."""
        self._warned: set[int] = set()
        self._ended: Unavailable | None = None

    def __repr__(self) -> str:
        return f"<Lender {self._arena!r}, {len(self._waiters)} waiting>"

    # ---- placing what is sent ----

    def try_place(self, packed: Packed, method: str) -> Placed | Shortage:
        """Puts a payload and its pieces where the peer can read them, if that is possible now.

        Raises:
            ResourceExhausted: it is larger than a message, or all memory of the connection, may be.
            ProtocolError: a release of the peer is forged.
        """
        if len(packed.pieces) == 1 and (placed := self._try_place_one(packed, method)) is not None:
            return placed
        outcome = self._try_place(packed, method)
        if isinstance(outcome, Shortage):
            self._give_up(outcome.held)
        return outcome

    def _try_place_one(self, packed: Packed, method: str) -> Placed | None:
        """The same for one piece, quicker. None: it takes more than this, or there is something to see to first."""
        payload, (piece,) = packed
        arena, ledger, nbytes = self._arena, self._ledger, piece.nbytes
        if len(arena.loans) >= ledger.mark:
            self._look_home()
        if (referred := ledger.refer(piece.exporter, method, payload)) is not None:
            return placed_as(Placed, (referred[0], envelope.HAS_BUFFERS, referred[1:], ()))
        room = min(ledger.longest_body, ledger.largest_message - nbytes)
        if len(arena.loans) >= ledger.mark or len(payload) > room or nbytes > self.most_bytes:
            return None
        found = self._find(piece)
        if isinstance(found, Shortage):
            return None
        if isinstance(found, Returned):
            view = found.view
            payload = pack_references([(view.block | PEER_OWNED, view.generation, found.offset, nbytes)], payload)
            return placed_as(Placed, (payload, envelope.HAS_BUFFERS, (), (view,)))
        if found is None:
            self._channel.collect()  # first, so that the block that is warmest is used again, and not the next one
            if (block := arena.take(nbytes, attached=True)) is None:
                return None
            try:
                piece.copy_into(block.memory(nbytes), self._announce)
            except BaseException:
                arena.give_back(block)
                raise
            offset = 0
        else:
            block, offset, _ = found
        lease = arena.lend(block, offset, nbytes, method)
        payload = pack_references([(block.number, lease, offset, nbytes)], payload)
        return placed_as(Placed, (payload, envelope.HAS_BUFFERS, (lease,), ()))

    def _look_home(self) -> None:
        """Takes home what came, so that the ledger stays small and warm, and says until when there is no need to look."""
        if self._timer is not None and self._channel.on_home is None:
            self._channel.collect()
            self._ledger.mark = min(len(self._arena.loans) + _LOOK_AFTER, self._arena.most_leases)

    def _try_place(self, packed: Packed, method: str) -> Placed | Shortage:
        payload, pieces = packed
        sizes = [piece.nbytes for piece in pieces]
        whole = len(payload) + (_TABLE_BYTES + _REFERENCE_BYTES * len(pieces) if pieces else 0)
        in_block = whole > self._channel.inline_limit
        in_blocks = sum(map(whole_granules, sizes)) + (whole_granules(whole) if in_block else 0)
        self._check_size(len(payload) + sum(sizes), in_blocks, len(pieces), in_block)
        if not self._may_lend(len(pieces) + in_block):
            return Shortage()
        places: list[Place | Returned] = []
        try:
            for piece in pieces:
                place = self._find(piece) or self._take(piece.nbytes)
                if isinstance(place, Shortage):
                    return place._replace(held=places)
                places.append(place)
            envelope_place = None
            if in_block:
                place = self._take(whole)
                if isinstance(place, Shortage):
                    return place._replace(held=places)
                places.append(envelope_place := place)
            fresh = [
                (piece, place.block)
                for piece, place in zip(pieces, places, strict=False)
                if isinstance(place, Place) and place.fresh
            ]
            fresh.sort(key=lambda each: each[0].nbytes)  # the largest last, which is the one to be announced
            for number, (piece, block) in enumerate(fresh, 1):
                piece.copy_into(block.memory(piece.nbytes), self._announce if number == len(fresh) else None)
        except BaseException:
            self._give_up(places)
            raise
        return self._lend(payload, sizes, places[: len(pieces)], envelope_place, method)

    def _give_up(self, places: Sequence[Place | Returned]) -> None:
        for place in places:
            if isinstance(place, Place) and place.fresh:
                self._arena.give_back(place.block)

    def _lend(
        self,
        payload: bytes,
        sizes: list[int],
        places: list[Place | Returned],
        envelope_place: Place | None,
        method: str,
    ) -> Placed:
        arena = self._arena
        leases: list[int] = []
        keep: list[View] = []
        flags = 0
        if places:
            flags = envelope.HAS_BUFFERS
            references = []
            for nbytes, place in zip(sizes, places, strict=True):
                if isinstance(place, Place):
                    leases.append(arena.lend(place.block, place.offset, nbytes, method))
                    references.append((place.block.number, leases[-1], place.offset, nbytes))
                else:
                    keep.append(place.view)
                    number = place.view.block | PEER_OWNED
                    references.append((number, place.view.generation, place.offset, nbytes))
            payload = pack_references(references, payload)
        if envelope_place is not None:
            flags |= envelope.IN_BLOCK
            block = envelope_place.block
            block.memory(len(payload))[:] = payload
            leases.append(arena.lend(block, 0, len(payload), method))
            payload = envelope.encode_reference(envelope.BlockReference(block.number, leases[-1], len(payload)))
        if leases and self._timer is None:
            self._schedule()
        return Placed(payload, flags, leases, keep)

    def _check_size(self, nbytes: int, in_blocks: int, buffers: int, payload_in_block: bool = False) -> None:
        most, leases = self._channel.max_message, self._arena.most_leases
        check_size(nbytes, in_blocks, buffers, payload_in_block, most, self.most_bytes, leases)

    def _may_lend(self, count: int) -> bool:
        if len(self._arena.loans) + count > self._arena.most_leases:
            self._channel.collect()
        return len(self._arena.loans) + count <= self._arena.most_leases

    def _find(self, piece: Piece) -> Place | Returned | Shortage | None:
        """Where a piece lies that needs no copy; None for other memory."""
        if piece.exporter is None or (where := address_of(piece.exporter)) is None or not where[2]:
            return None
        address, _, _, readonly = where
        if readonly and (returned := self._borrowed.find(address, piece.exporter)) is not None:
            return returned
        if (found := self._arena.find(address, piece.nbytes)) is None:
            return None
        block, offset = found
        return Place(block, offset, fresh=False) if block.region.attached else Shortage(region=block.region)

    def _take(self, nbytes: int) -> Place | Shortage:
        self._channel.collect()  # first, so that the block that is warmest is used again, and not the next one
        block = self._arena.take(nbytes, attached=True)
        return Place(block, 0, fresh=True) if block is not None else Shortage(nbytes)

    def undo(self, placed: Placed) -> None:
        """Takes back what was placed and then not sent."""
        for lease in placed.leases:
            self._arena.end_lease(lease)
        if self._waiters:
            self.look_again()

    # ---- waiting for memory ----

    async def place(self, packed: Packed, method: str, deadline_ns: int) -> Placed:
        """`try_place`, waiting for memory where that helps.

        Raises:
            ResourceExhausted: it is too large, the system has no memory, or none came home before the deadline; the text
                says who holds it.
            DeadlineExceeded: there was room, and its memory was still being made then.
            Unavailable: the connection ended.
        """
        made: Region | None = None
        try:
            async with asyncio.timeout(remaining_seconds(deadline_ns) if deadline_ns else None):
                while True:
                    if self._ended is not None:
                        raise anew(self._ended)
                    outcome = self._try_place(packed, method)
                    if isinstance(outcome, Placed):
                        return outcome
                    made = self._relief(outcome, packed)
                    await (self._extents.wait_attached(made) if made is not None else self._wait_home())
        except TimeoutError:
            size = size_text(len(packed.payload) + sum(piece.nbytes for piece in packed.pieces))
            if made is not None:
                raise DeadlineExceeded(f"{method} was not sent: an extent for {size} was not ready in time") from None
            raise ResourceExhausted(
                f"{method} was not sent: no room for {size} before the deadline; {self.usage_text()}"
            ) from None

    def _relief(self, shortage: Shortage, packed: Packed) -> Region | None:
        """The extent that is being made for a message, or comes with an array of its own; None: memory must come home."""
        region = shortage.region
        try:
            if region is None and shortage.nbytes:
                region = self._extents.promise(shortage.nbytes)  # while what it already has cannot be detached for it
        finally:
            self._give_up(shortage.held)
        if region is None and shortage.held:
            region = self._extents.promise(self._fresh_bytes(packed))  # one for all of it
        if region is not None and self._timer is None:
            self._schedule()
        return region

    def _fresh_bytes(self, packed: Packed) -> int:
        """The size of all blocks that a message needs, beside those that it refers to."""
        sizes = [piece.nbytes for piece in packed.pieces if self._find(piece) is None]
        whole = len(packed.payload) + _TABLE_BYTES + _REFERENCE_BYTES * len(packed.pieces)
        sizes.append(whole if whole > self._channel.inline_limit else 0)
        return sum(map(whole_granules, sizes))

    async def _wait_home(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._channel.on_home = self.look_again
        self._arena.on_drop = self._on_drop
        self._flush()  # arms, and looks once more
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    def look_again(self) -> None:
        """There may be memory: all that wait look again, in their order."""
        self._arena.on_drop = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _on_drop(self) -> None:
        """An array died, on any thread, while somebody waits."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        if self._ended is None:
            try:
                self._channel.flush()
            except ProtocolError as error:
                self._on_broken(error)

    # ---- memory for arrays that are born in it ----

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory in a block of its own, which is free again when nobody sees it and no lease is out.

        When there is no room now, or the connection has ended, it is ordinary memory: sending that waits for room, and
        copies. May be called in other threads too, while the event loop runs.

        Raises:
            ResourceExhausted: it is larger than anything that can be sent.
        """
        if threading.get_ident() == self._thread:
            return self._allocate(nbytes)
        if self._ended is not None or self._loop.is_closed():
            return bytearray(nbytes)
        answer: concurrent.futures.Future[Buffer] = concurrent.futures.Future()

        def allocate() -> None:
            try:
                answer.set_result(self._allocate(nbytes))
            except Exception as error:
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(allocate)
        return answer.result()

    def _allocate(self, nbytes: int) -> Buffer:
        if self._ended is not None:
            return bytearray(nbytes)
        self._check_size(nbytes, whole_granules(nbytes), 1)
        try:
            place = self._take(nbytes)
        except ProtocolError as error:
            self._on_broken(error)
            return bytearray(nbytes)
        block = place.block if isinstance(place, Place) else self._arena.take(nbytes, attached=False)
        if block is None and (region := self._extents.try_grow(nbytes)) is not None:
            block = self._arena.take_in(region, nbytes)
        if block is None:
            return bytearray(nbytes)
        if self._timer is None:
            self._schedule()
        return own_view(self._arena, block, 0, nbytes, writable=True)

    # ---- who holds what ----

    def leases(self) -> list[Lease]:
        """What is out now, by method; the largest first."""
        if self._ended is None:
            try:
                self._channel.collect()
            except ProtocolError as error:
                self._on_broken(error)
        now_ns = monotonic_ns()
        return [
            Lease(
                usage.method,
                self._peer if usage.method else None,
                usage.blocks,
                usage.nbytes,
                (now_ns - usage.since_ns) / 1e9,
            )
            for usage in self._arena.usage()
        ]

    def usage_text(self) -> str:
        """Who holds how much since when, for an error's text."""
        holders = [
            f"extents have {size_text(self._arena.extent_bytes)} of {size_text(self._extents.limit)} (max_extent_bytes), "
            f"{len(self._arena.loans)} of {self._arena.most_leases} leases are out (release_entries)"
        ]
        for lease in self.leases():
            amount = f"{size_text(lease.nbytes)} in {lease.blocks} block{'s' * (lease.blocks != 1)}"
            if lease.holder is not None:
                holders.append(f"{lease.holder} holds {amount} of {lease.method}, the oldest for {lease.age:.1f} s")
            else:
                holders.append(f"this process holds {amount} in arrays of its own, the oldest for {lease.age:.1f} s")
        return "; ".join(holders)

    def _schedule(self) -> None:
        now_ns = monotonic_ns()
        due = self._extents.next_idle_ns(now_ns)
        due += [
            loan.since_ns + self._warning_ns for lease, loan in self._arena.loans.items() if lease not in self._warned
        ]
        if due and self._ended is None:
            # What begins to be idle or to be lent meanwhile must not wait for what is due much later.
            wait_ns = min(min(due) - now_ns, self._warning_ns, self._extents.idle_ns)
            self._timer = self._loop.call_later(max(0.01, wait_ns / 1e9), self._tidy, context=self._context)

    def _tidy(self) -> None:
        """Detaches what was idle for long, and says who holds something for long."""
        self._timer = None
        self._ledger.mark = 0  # until the next timer is set
        try:
            self._channel.collect()
        except ProtocolError as error:
            self._on_broken(error)
            return
        now_ns = monotonic_ns()
        self._extents.detach_idle(now_ns)
        self._warned &= self._arena.loans.keys()
        for lease, loan in self._arena.loans.items():
            if now_ns - loan.since_ns >= self._warning_ns and lease not in self._warned:
                self._warned.add(lease)
                age = (now_ns - loan.since_ns) / 1e9
                log.warning(
                    "%s has held %s of %s for %.1f s (lease_warning)",
                    self._peer,
                    size_text(loan.nbytes),
                    loan.method,
                    age,
                )
        self._schedule()

    def close(self, why: Unavailable) -> None:
        """Ends all waiting. Idempotent."""
        if self._ended is not None:
            return
        self._ended = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._ledger.mark = 0
        self.look_again()

    def forget(self, why: Unavailable) -> None:
        """In a forked child: the blocks are the parent's."""
        self._ended = why
        self._arena.on_drop = None
