"""Two endpoints in one process: segments that map each other, and the ends of rings and channels on them."""

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from shmrpc.shm import doorbell, envelope, ring, segment
from shmrpc.shm.channel import Channel, Record
from shmrpc.shm.doorbell import Doorbell
from shmrpc.shm.layout import Geometry
from shmrpc.shm.ring import Consumer, Producer, Reaper, Releaser
from shmrpc.shm.segment import Segment

SMALL: Final = Geometry(ring_bytes=4096, release_entries=16, slab_bytes=16 * 1024, inline_limit=256)
"""Small enough to be filled by a few records."""
LIMIT: Final = 1 << 20

RECORD: Final = 24
"""Bytes of a record without a payload."""
INLINE: Final = SMALL.inline_limit
FITTING: Final = SMALL.ring_bytes // (RECORD + INLINE)
"""How many records with the longest inline payload fit at once into a ring that is empty."""

KINDS: Final = 128
"""`Consumer.dispatch` takes a handler for each kind, and again for each kind with its payload in a block."""


class Side(NamedTuple):
    """What one endpoint has mapped."""

    own: Segment
    peer: Segment


def reattached(owned: Segment) -> Segment:
    """The read-only mapping that the peer makes of a segment."""
    return segment.attach(os.dup(owned.fd), owned.geometry, owned.kind, max_segment_bytes=LIMIT)


@contextmanager
def two_sides(geometry: Geometry = SMALL, kind: segment.Kind = "memfd") -> Iterator[tuple[Side, Side]]:
    """Two endpoints with one segment each."""
    left, right = segment.create(geometry, kind), segment.create(geometry, kind)
    sides = Side(left, reattached(right)), Side(right, reattached(left))
    left.drop_fd()
    right.drop_fd()
    try:
        yield sides
    finally:
        for side in sides:
            side.own.close()
            side.peer.close()


class Ends(NamedTuple):
    """Both ends of the left side's record ring, and of the right side's release ring."""

    left: Side
    right: Side
    producer: Producer
    consumer: Consumer
    releaser: Releaser
    reaper: Reaper

    def close(self) -> None:
        """Lets go of the segments."""
        for end in (self.producer, self.consumer, self.releaser, self.reaper):
            end.close()

    def send(self, call_id: int, payload: bytes = b"", kind: int = 1) -> int:
        """Pushes one record, and gives the status."""
        return self.producer.send(kind, 0, 0, call_id, 0, payload)

    def fill(self) -> int:
        """Sends the longest records until none fits; gives their number."""
        for count in range(1, 1000):
            if self.send(count, bytes(INLINE)) == ring.FULL:
                return count - 1
        raise AssertionError("the ring never gets full")

    def call_ids(self, budget: int = 1000) -> list[int]:
        """Takes records, and gives their call ids."""
        return [record[3] for record in taken(self.consumer, budget)]


@contextmanager
def two_ends() -> Iterator[Ends]:
    """A small ring of each kind."""
    with two_sides() as (left, right):
        ends = Ends(
            left,
            right,
            ring.open_producer(*left),
            ring.open_consumer(*right),
            ring.open_releaser(*right),
            ring.open_reaper(*left),
        )
        try:
            yield ends
        finally:
            ends.close()


@contextmanager
def two_channels(
    geometry: Geometry = SMALL, bell: doorbell.Kind = "eventfd", max_message: int = LIMIT
) -> Iterator[tuple[Channel, Channel]]:
    """Two joined channels. Whoever closes one owns that; the others are closed at the end."""
    with two_sides(geometry) as (left, right):
        bells = Doorbell(bell), Doorbell(bell)
        ringers = [doorbell.open_ringer(os.dup(each.far_fd), bell) for each in bells]
        for each in bells:
            each.drop_far_fd()
            each.clear()
        channels = (
            Channel(left.own, left.peer, bells[0], ringers[1], max_message),
            Channel(right.own, right.peer, bells[1], ringers[0], max_message),
        )
        try:
            yield channels
        finally:
            for channel in channels:
                channel.close()


def handlers_of(
    handle: Callable[[Record], None], open_block: Callable[[bytes], bytes] = lambda payload: payload
) -> tuple[Callable[[int, int, int, int, bytes], None], ...]:
    """The handlers of `Consumer.dispatch` that give every record, with its kind, to one function."""

    def handler_of(number: int) -> Callable[[int, int, int, int, bytes], None]:
        def handler(flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
            opened = payload if number < KINDS else open_block(payload)
            handle((number % KINDS, flags, method, call_id, deadline_ns, opened))

        return handler

    return tuple(handler_of(number) for number in range(2 * KINDS))


def taken(consumer: Consumer, budget: int = 1000) -> list[Record]:
    """What a consumer has, as it lies in the ring."""
    records: list[Record] = []
    consumer.dispatch(budget, handlers_of(records.append), {})
    return records


def received(channel: Channel, budget: int = 1000, pending: dict[int, Any] | None = None) -> list[Record]:
    """What a channel has, payloads as they lie in the ring."""
    records: list[Record] = []
    channel.dispatch(budget, handlers_of(records.append), pending or {})
    return records


def word(owned: Segment, offset: int) -> int:
    """A shared word of a segment."""
    return int.from_bytes(owned.mapping[offset : offset + 8], "little")


def set_word(owned: Segment, offset: int, value: int) -> None:
    """Writes a shared word of one's own segment, as a peer that keeps no rules would."""
    owned.mapping[offset : offset + 8] = value.to_bytes(8, "little")


def send(channel: Channel, call_id: int, payload: bytes = b"", kind: int = envelope.REQUEST) -> None:
    """Sends one record with a payload that fits inline."""
    channel.send(kind, 0, 0, call_id, 0, payload)


def fill(channel: Channel) -> int:
    """Sends until the first record waits; gives the number of those that went."""
    call_id = 0
    while not channel.outbox:
        call_id += 1
        send(channel, call_id, bytes(INLINE))
    return call_id - 1


def rung(channel: Channel) -> bool:
    """Whether the doorbell of a channel's owner rings."""
    return bool(select.select([channel.doorbell.fd], [], [], 0)[0])


def crowd(channel: Channel) -> None:
    """Publishes empty records until not one more fits, without queueing one."""
    while channel.push(envelope.REQUEST, 0, 0, 1, 0, b"") != ring.FULL:
        pass
