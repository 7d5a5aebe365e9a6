"""Record rings, release rings, views and the ledger of leases: the native core, opened for the two segments of a channel.

The classes are C (``_native/ring.h`` has the algorithm and its ordering points); this file says where in the segments they
lie and what their answers mean.
"""

from collections.abc import Callable
from typing import Final

from shmrpc._native import (
    Block,
    Consumer,
    Ledger,
    PendingCall,
    Producer,
    Reaper,
    Releaser,
    Requester,
    RingCorrupt,
    View,
    address_of,
    first_step,
    open_references,
    pack_references,
    watch,
)
from shmrpc.shm.layout import RING_OFFSET
from shmrpc.shm.segment import Segment

__all__ = [
    "FULL",
    "LARGE",
    "RING",
    "SENT",
    "Block",
    "Consumer",
    "Ledger",
    "PendingCall",
    "Producer",
    "Reaper",
    "Releaser",
    "Requester",
    "RingCorrupt",
    "View",
    "address_of",
    "first_step",
    "open_consumer",
    "open_producer",
    "open_reaper",
    "open_references",
    "open_releaser",
    "pack_references",
    "watch",
]

CHUNK: Final = 64
"""`Consumer.dispatch` copies out this many records before it gives any to its handler."""
SENT: Final = 0
"""`Producer.send`: published; the peer is awake, or has been rung already."""
RING: Final = 1
"""`Producer.send`: published; ring the doorbell."""
FULL: Final = 2
"""`Producer.send`: no room, nothing was written."""
LARGE: Final = 3
"""`Producer.send`: over the inline limit, nothing was written; send it through the slab."""


def open_producer(own: Segment, peer: Segment, max_message: int = 1 << 62) -> Producer:
    """The sending end of my record ring. Payloads over the inline limit, or over `max_message`, are LARGE."""
    geometry = own.geometry
    limit = min(geometry.inline_limit, max_message)
    return Producer(own.mapping, peer.mapping, RING_OFFSET, geometry.ring_bytes, limit)


def open_consumer(own: Segment, peer: Segment) -> Consumer:
    """The receiving end of the peer's record ring."""
    geometry = peer.geometry
    return Consumer(own.mapping, peer.mapping, RING_OFFSET, geometry.ring_bytes, geometry.inline_limit)


def open_releaser(own: Segment, peer: Segment, on_ring: Callable[[], object] | None = None) -> Releaser:
    """The sending end of my release ring, for blocks of the peer's memory.

    Args:
        own: My segment.
        peer: The peer's.
        on_ring: Rings the peer. Called on any thread, and within anything, when a View has died and the peer waits for it.
    """
    return Releaser(own.mapping, peer.mapping, own.geometry.release_offset, own.geometry.release_entries, on_ring)


def open_reaper(own: Segment, peer: Segment) -> Reaper:
    """The receiving end of the peer's release ring, for blocks of my slab."""
    return Reaper(own.mapping, peer.mapping, peer.geometry.release_offset, peer.geometry.release_entries)
