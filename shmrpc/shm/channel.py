"""A channel: two segments, their rings, release rings and doorbells, composed; and the arena of this side's memory.

Going out: a record is published, and the doorbell is rung if the peer sleeps. What finds no room waits in the outbox, in
order, and goes when the peer has made some. Coming in: records are copied out and given to whom they belong. Coming home:
released leases are taken out of the release ring, each after the records that were published before it. What is in the
blocks is `memory`'s.
"""

import asyncio
import bisect
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from shmrpc.errors import ProtocolError
from shmrpc.shm import ring
from shmrpc.shm.arena import Arena, ForgedRelease, Region
from shmrpc.shm.doorbell import Doorbell, Ringer
from shmrpc.shm.ring import PendingCall, Requester
from shmrpc.shm.segment import Segment

Handler = Callable[[int, int, int, int, bytes], None]
Record = tuple[int, int, int, int, int, bytes]
"""kind, flags, method, call id, deadline in ns, payload."""


class Channel:
    """One end of a channel. Not thread-safe: it belongs to one event loop."""

    def __init__(self, own: Segment, peer: Segment, doorbell: Doorbell, ringer: Ringer, max_message: int) -> None:
        self.own: Final = own
        self.peer: Final = peer
        self.doorbell: Final = doorbell
        self.consumer: Final = ring.open_consumer(own, peer)
        self.releaser: Final = ring.open_releaser(own, peer, ringer.ring)
        self.max_message: Final = max_message
        self.inline_limit: Final = min(own.geometry.inline_limit, max_message)
        self.arena: Final = Arena(_base_region(own), peer.geometry.release_entries)
        self._producer = ring.open_producer(own, peer, max_message)
        self._reaper = ring.open_reaper(own, peer)
        self._ringer = ringer
        self.outbox: Final[deque[Record]] = deque()
        """What waits for room, oldest first."""
        self._kept: dict[tuple[int, int], Any] = {}
        """What records in the outbox need until they are published, by kind and call id."""
        self._roomless: list[tuple[int, asyncio.Future[None]]] = []
        """Those who wait until nothing waits in the outbox, with their numbers, in order."""
        self._next_roomless = 0
        self.on_home: Callable[[], None] | None = None
        """Set while somebody waits for memory: called, once, when some came home."""
        self._homecoming: deque[tuple[int, list[tuple[int, int]]]] = deque()
        """Released leases, and the position up to which the peer's records must be handled before they count."""
        self._coming = 0
        """How many leases are in it."""
        self.announces = True
        """Whether ringing ahead can be of use: the peer could only wake instead of this process where both share a CPU."""
        self._waiting_for_room = False
        self._closed = False
        self.push: Final[Callable[[int, int, int, int, int, bytes], int]] = self._producer.send
        """The fast half of `send`: tries to publish one record inline, and answers a status of `ring`. `ring.RING` and
        `ring.FULL` must be passed to `settle` with the same record; `ring.LARGE` says that it must go through a block."""

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.outbox)} records waiting"
        return f"<Channel {self.doorbell.kind} {state}, {self.arena!r}>"

    def requester(self, loop: asyncio.AbstractEventLoop, pending: dict[int, PendingCall]) -> Requester:
        """What begins calls over this channel; `pending` is the dict to keep them in."""
        return Requester(loop, self._producer, pending, self.settle)

    # ---- sending ----

    def send(self, kind: int, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """Sends one record that fits inline, or queues it when there is no room.

        Raises:
            ProtocolError: the peer's cursor is impossible.
        """
        record = (kind, flags, method, call_id, deadline_ns, payload)
        if status := self._push(record):
            self.settle(status, record)

    def _push(self, record: Record) -> int:
        try:
            return self.push(*record)
        except ring.RingCorrupt as error:
            raise ProtocolError(str(error)) from None

    def settle(self, status: int, record: Record) -> None:
        """Finishes what `push` began: rings, or queues the record. Raises what `send` raises."""
        if status == ring.RING:
            self._ringer.ring()
        elif status == ring.FULL:
            self.outbox.append(record)
            if len(self.outbox) == 1:
                self.flush()  # and corks the producer, if that does not help
        else:
            raise AssertionError(f"a payload of {len(record[5])} bytes was not put into a block")

    def announce(self) -> None:
        """Rings ahead of a record that takes a while to be written, so that the peer wakes meanwhile; if that is of use."""
        if self.announces and not self.outbox and not self._closed and self._producer.announce():
            self._ringer.ring()

    def keep(self, kind: int, call_id: int, what: Any) -> None:
        """Keeps something until the record that was just sent is published; nothing to do if it is."""
        if self.outbox and self.outbox[-1][0] == kind and self.outbox[-1][3] == call_id:
            self._kept[kind, call_id] = what

    def flush(self) -> None:
        """Sends what waited for room, and wakes who waits for memory, as far as there is some. Raises what `send` raises."""
        if not self.outbox and self.on_home is None:
            return
        producer = self._producer
        if self._waiting_for_room:
            producer.room_found()  # a fresh epoch for a fresh wait: the peer rings once for each
            self._waiting_for_room = False
        producer.corked = False
        try:
            while True:
                done = self._empty_outbox()
                if (self._tell_home() and done) or self._waiting_for_room:
                    break
                producer.want_room()  # and look once more before waiting
                self._waiting_for_room = True
        finally:
            producer.corked = bool(self.outbox)
        if not self.outbox and self.on_home is None and self._waiting_for_room:
            producer.room_found()
            self._waiting_for_room = False

    def _empty_outbox(self) -> bool:
        while self.outbox:
            record = self.outbox[0]
            status = self._push(record)
            if status == ring.FULL:
                return False
            if status == ring.RING:
                self._ringer.ring()
            self.outbox.popleft()
            if self._kept:
                self._kept.pop((record[0], record[3]), None)
        self._tell_room()
        return True

    async def room(self) -> None:
        """Returns when nothing waits in the outbox, or the channel is closed; who came first, first."""
        number = self._next_roomless
        self._next_roomless += 1
        while self.outbox:
            waiting = number, asyncio.get_running_loop().create_future()
            bisect.insort(self._roomless, waiting)  # in its old place, if another one took the room
            try:
                await waiting[1]
            finally:
                if waiting in self._roomless:
                    self._roomless.remove(waiting)

    def _tell_room(self) -> None:
        waiters, self._roomless = self._roomless, []
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell_home(self) -> bool:
        """Whether nobody waits for memory any more."""
        return self.on_home is None or self.collect()

    def withdraw(self, kind: int, call_id: int) -> tuple[bool, Any]:
        """Drops a record that still waits in the outbox: whether it did, and what was kept with it."""
        for record in self.outbox:
            if record[0] == kind and record[3] == call_id:
                self.outbox.remove(record)
                if not self.outbox:
                    self._tell_room()
                return True, self._kept.pop((kind, call_id), None)
        return False, None

    def unread(self) -> list[tuple[int, int]]:
        """Kind and call id of every record that the peer has certainly not taken; also after its death."""
        try:
            published = self._producer.unread()
        except ring.RingCorrupt:
            published = []  # a peer with an impossible cursor may have taken anything
        return published + self.unsent()

    def unsent(self) -> list[tuple[int, int]]:
        """Kind and call id of every record that was never published."""
        return [(record[0], record[3]) for record in self.outbox]

    # ---- coming home ----

    def collect(self) -> bool:
        """Takes home what the peer has released, and what died here, and tells who waits. Returns whether anything came.

        A release counts only after every record that the peer published before it was handled: one of them may send the
        block back by reference, under the lease that is released.

        Raises:
            ProtocolError: a release of the peer is forged.
        """
        came = self._take_home()
        if came and (on_home := self.on_home) is not None:
            self.on_home = None
            on_home()
        return came

    def _take_home(self) -> bool:
        came = self.arena.settle_drops()
        try:
            if entries := self._reaper.take():
                self._homecoming.append((self.consumer.published(), entries))
                self._coming += len(entries)
            while self._homecoming and self._homecoming[0][0] <= self.consumer.handled:
                _, entries = self._homecoming.popleft()
                self._coming -= len(entries)
                self.arena.take_home(entries)
                came = True
            if self._coming > len(self.arena.loans):  # else a peer that lies about its records could fill the memory
                raise ForgedRelease(f"{self._coming} leases were released, {len(self.arena.loans)} are out")
        except (ring.RingCorrupt, ForgedRelease) as error:
            raise ProtocolError(str(error)) from None
        return came

    def release(self, number: int, lease: int) -> None:
        """Sends a block of the peer's home.

        Raises:
            RingCorrupt: the peer's position in the release ring is impossible.
        """
        if self.releaser.release(number, lease):
            self._ringer.ring()

    # ---- receiving ----

    def dispatch(self, budget: int, handlers: tuple[Handler, ...], pending: dict[int, PendingCall]) -> None:
        """Takes up to `budget` records and gives each to whom it belongs: see `Consumer.dispatch`.

        Raises:
            ProtocolError: the peer's ring or cursor is impossible, or a handler says that a record is.
        """
        consumer = self.consumer
        try:
            consumer.dispatch(budget, handlers, pending)
        except ring.RingCorrupt as error:
            raise ProtocolError(str(error)) from None
        finally:
            if consumer.room_due and not self._closed:
                self._ringer.ring()

    # ---- the end ----

    def forget(self) -> None:
        """In a forked child: lets go of its copies."""
        self._ringer.forget()
        self.close()

    def close(self) -> None:
        """Lets go of everything. Idempotent. Memory that somebody still sees goes with its last view."""
        if self._closed:
            return
        self._closed = True
        self.on_home = None
        self.outbox.clear()
        self._kept.clear()
        self._tell_room()
        for end in (self._producer, self.consumer, self.releaser, self._reaper):
            end.close()
        self.doorbell.close()
        self._ringer.close()
        self.own.close()
        self.peer.close()


def _base_region(own: Segment) -> Region:
    where = ring.address_of(own.mapping)
    assert where is not None  # a mapping always has an address
    geometry = own.geometry
    return Region(
        0, own.mapping, where[0] + geometry.slab_offset, geometry.slab_offset, geometry.slab_bytes, backing=None
    )
