"""A channel: two segments, their rings, slab and doorbells, composed. The only file that knows how they work together.

Going out: a payload is put inline in a record, or into a block of the slab with a reference in the record; the record is
published; the doorbell is rung if the peer sleeps. What finds no room waits in the outbox, in order, and goes when the
peer has consumed or released. Coming in: records are copied out, and blocks are copied out and sent home at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from shmrpc.errors import ProtocolError, ResourceExhausted
from shmrpc.shm import envelope, ring
from shmrpc.shm.doorbell import Doorbell, Ringer
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.ring import PendingCall, Requester
from shmrpc.shm.segment import Segment
from shmrpc.shm.slab import ForgedRelease, Slab

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
        self.max_message: Final = max_message
        self.slab: Final = Slab(own.geometry.slab_bytes)
        self._producer = ring.open_producer(own, peer, max_message)
        self._releaser = ring.open_releaser(own, peer)
        self._reaper = ring.open_reaper(own, peer)
        self._ringer = ringer
        self.outbox: Final[deque[Record]] = deque()
        """What waits for room, oldest first."""
        self._waiting_for_room = False
        self._closed = False
        self._peer_is_gone = False
        self._block_bytes = 0
        """Copied out of blocks in this dispatch, and how many slabs full of them there can be in it."""
        self._slabs_at_once = 1
        self.push: Final[Callable[[int, int, int, int, int, bytes], int]] = self._producer.send
        """The fast half of `send`: tries to publish one record inline, and answers a status of `ring`. Every answer but
        `ring.SENT` must be passed to `settle`, with the same record."""

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.outbox)} records waiting"
        return f"<Channel {self.doorbell.kind} {state}, {self.slab!r}>"

    def requester(self, loop: asyncio.AbstractEventLoop, pending: dict[int, PendingCall]) -> Requester:
        """What begins calls over this channel; `pending` is the dict to keep them in."""
        return Requester(loop, self._producer, pending, self.settle)

    # ---- sending ----

    def send(self, kind: int, flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        """Sends one record, or queues it when there is no room.

        Raises:
            ResourceExhausted: the payload is larger than a message may be.
            ProtocolError: the peer's cursor or a release of it is impossible.
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
        """Finishes what `push` began: rings, or finds another way for the record. Raises what `send` raises."""
        if status == ring.RING:
            self._ringer.ring()
        elif status == ring.FULL:
            self._queue(record)
        elif status == ring.LARGE:
            self._check_size(len(record[5]))
            if self.outbox or not self._send_in_block(record):
                self._queue(record)

    def _check_size(self, nbytes: int) -> None:
        if nbytes > self.max_message:
            raise ResourceExhausted(f"message is {_size(nbytes)}, the limit is {_size(self.max_message)} (max_message)")
        if nbytes > self.slab.capacity:
            raise ResourceExhausted(
                f"message is {_size(nbytes)}, the largest that this version can carry is the base slab, "
                f"{_size(self.slab.capacity)}; extents for larger ones come with a later version"
            )

    def _send_in_block(self, record: Record) -> bool:
        kind, flags, method, call_id, deadline_ns, payload = record
        block = self.slab.lend(len(payload))
        if block is None:
            self._collect()
            block = self.slab.lend(len(payload))
        if block is None:
            return False
        at = self.own.geometry.slab_offset + block.offset
        self.own.mapping[at : at + block.nbytes] = payload
        reference = envelope.encode_reference(envelope.BlockReference(*block))
        status = self._push((kind, flags | envelope.IN_BLOCK, method, call_id, deadline_ns, reference))
        if status == ring.FULL:
            self.slab.take_back(block.number, block.generation)
            return False
        if status == ring.RING:
            self._ringer.ring()
        return True

    def _queue(self, record: Record) -> None:
        self.outbox.append(record)
        if len(self.outbox) == 1:
            self.flush()  # and corks the producer, if that does not help

    def flush(self) -> None:
        """Sends what waited for room, as far as there is room now. Raises what `send` raises."""
        if not self.outbox:
            return
        producer = self._producer
        if self._waiting_for_room:
            producer.room_found()  # a fresh epoch for a fresh wait: the peer rings once for each
            self._waiting_for_room = False
        producer.corked = False
        try:
            while self.outbox:
                if self._try(self.outbox[0]):
                    self.outbox.popleft()
                elif self._waiting_for_room:
                    break
                else:
                    producer.want_room()  # and look once more before waiting
                    self._waiting_for_room = True
        finally:
            producer.corked = bool(self.outbox)
        if not self.outbox and self._waiting_for_room:
            producer.room_found()
            self._waiting_for_room = False

    def _try(self, record: Record) -> bool:
        status = self._push(record)
        if status == ring.LARGE:
            return self._send_in_block(record)
        if status == ring.RING:
            self._ringer.ring()
        return status != ring.FULL

    def _collect(self) -> None:
        """Takes home the blocks that the peer has released."""
        try:
            for number, generation in self._reaper.take():
                self.slab.take_back(number, generation)
        except (ring.RingCorrupt, ForgedRelease) as error:
            raise ProtocolError(str(error)) from None

    def withdraw(self, kind: int, call_id: int) -> bool:
        """Drops a record that still waits in the outbox. False: it is on its way."""
        for record in self.outbox:
            if record[0] == kind and record[3] == call_id:
                self.outbox.remove(record)
                return True
        return False

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

    # ---- receiving ----

    def dispatch(self, budget: int, handlers: tuple[Handler, ...], pending: dict[int, PendingCall]) -> None:
        """Takes up to `budget` records and gives each to whom it belongs: see `Consumer.dispatch`.

        Raises:
            ProtocolError: the peer's ring or cursor is impossible, or a handler says that a record is.
        """
        consumer = self.consumer
        if not self._peer_is_gone:
            self._block_bytes = 0
            self._slabs_at_once = -(-budget // ring.CHUNK)
        try:
            consumer.dispatch(budget, handlers, pending)
        except ring.RingCorrupt as error:
            raise ProtocolError(str(error)) from None
        finally:
            if consumer.room_due and not self._closed:
                self._ringer.ring()

    def open_block(self, payload: bytes) -> bytes:
        """Copies a payload out of the peer's slab and sends the block home.

        Raises:
            ProtocolError: the reference does not lie in the peer's slab.
        """
        try:
            reference = envelope.decode_reference(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"a block reference cannot be decoded: {error}") from None
        number, generation, nbytes = reference.number, reference.generation, reference.nbytes
        geometry = self.peer.geometry
        if number < 0 or nbytes < 0 or number * GRANULE + nbytes > geometry.slab_bytes or nbytes > self.max_message:
            raise ProtocolError(
                f"block {number} with {nbytes} bytes is outside of the peer's slab of {geometry.slab_bytes} bytes"
            )
        self._block_bytes += nbytes
        if self._block_bytes > self._slabs_at_once * geometry.slab_bytes:
            raise ProtocolError(
                f"the peer sent {self._block_bytes} bytes in blocks at once, its slab has {geometry.slab_bytes}: "
                "it names a block again before that has come home"
            )
        at = geometry.slab_offset + number * GRANULE
        contents = bytes(self.peer.mapping[at : at + nbytes])
        try:
            if self._releaser.release(number, generation):
                self._ringer.ring()
        except (ring.RingCorrupt, OverflowError) as error:
            raise ProtocolError(f"block {number} cannot be released: {error}") from None
        return contents

    # ---- the end ----

    def peer_is_gone(self) -> None:
        """Nothing can be published any more: what is still there came at once, and its blocks are at most one slab."""
        self._peer_is_gone = True
        self._block_bytes = 0
        self._slabs_at_once = 1

    def close(self) -> None:
        """Lets go of everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.outbox.clear()
        for end in (self._producer, self.consumer, self._releaser, self._reaper):
            end.close()
        self.doorbell.close()
        self._ringer.close()
        self.own.close()
        self.peer.close()


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes} bytes"
