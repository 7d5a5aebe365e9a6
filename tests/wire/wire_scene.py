"""Bytes as today's code writes them, and reads them: one record, one frame, two segments with all that lies in them."""

import os
import socket
from collections.abc import Callable
from typing import Any, Final

from shmrpc.shm import doorbell, envelope, frames, ring, segment
from shmrpc.shm.channel import Channel
from shmrpc.shm.envelope import BlockReference
from shmrpc.shm.layout import CURSOR_TAIL, RING_OFFSET, Geometry
from shmrpc.shm.segment import Segment

SMALL: Final = Geometry(ring_bytes=8192, release_entries=16, slab_bytes=16 * 1024, inline_limit=1024)
LIMIT: Final = 1 << 20
Words = tuple[int, int, int, int, int, bytes]
"""kind, flags, method, call id, deadline in ns, payload."""


def attached(owned: Segment) -> Segment:
    """The read-only mapping that the peer makes of a segment."""
    return segment.attach(os.dup(owned.fd), owned.geometry, owned.kind, max_segment_bytes=LIMIT)


class Scene:
    """Two channels, joined. Context manager."""

    def __init__(self) -> None:
        left, right = segment.create(SMALL), segment.create(SMALL)
        self.left_image, self.right_image = left.mapping, right.mapping
        bells = [doorbell.Doorbell("eventfd") for _ in range(2)]
        ringers = [doorbell.open_ringer(os.dup(bell.far_fd), "eventfd") for bell in bells]
        self.left = Channel(left, attached(right), bells[0], ringers[1], LIMIT)
        self.right = Channel(right, attached(left), bells[1], ringers[0], LIMIT)

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.left.close()
        self.right.close()

    def take(self) -> list[Words]:
        """What the right side has received, payloads as they lie in the ring."""
        taken: list[Words] = []
        self.right.dispatch(64, handlers_of(taken), {})
        return taken

    def lend(self, contents: bytes) -> tuple[int, int]:
        """A block of the left side's with these contents: its number, and that of a lease on it."""
        block = self.left.arena.take(len(contents), attached=True)
        assert block is not None
        block.memory(len(contents))[:] = contents
        return block.number, self.left.arena.lend(block, 0, len(contents), "Wire.method")

    def send_in_block(self, words: Words) -> None:
        """Sends a record whose payload lies in a block."""
        kind, flags, method, call_id, deadline_ns, payload = words
        number, lease = self.lend(payload)
        reference = envelope.encode_reference(BlockReference(number, lease, len(payload)))
        self.left.send(kind, flags | envelope.IN_BLOCK, method, call_id, deadline_ns, reference)


def handlers_of(taken: list[Words]) -> tuple[Callable[[int, int, int, int, bytes], None], ...]:
    """The handlers of `Consumer.dispatch` that keep every record."""

    def handler_of(kind: int) -> Callable[[int, int, int, int, bytes], None]:
        def handler(flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
            taken.append((kind % 128, flags, method, call_id, deadline_ns, payload))

        return handler

    return tuple(handler_of(kind) for kind in range(256))


def written(words: Words) -> bytes:
    """One record, as it lies in a ring that was empty."""
    with Scene() as scene:
        scene.left.send(*words)
        tail = int.from_bytes(scene.left_image[CURSOR_TAIL : CURSOR_TAIL + 8], "little")
        return scene.left_image[RING_OFFSET : RING_OFFSET + tail]


def read(packed: bytes) -> Words:
    """What today's code takes out of a ring that has these bytes."""
    own, peer = segment.create(SMALL), segment.create(SMALL)
    consumer = ring.open_consumer(own, attached(peer))
    try:
        peer.mapping[RING_OFFSET : RING_OFFSET + len(packed)] = packed
        peer.mapping[CURSOR_TAIL : CURSOR_TAIL + 8] = len(packed).to_bytes(8, "little")
        taken: list[Words] = []
        consumer.dispatch(64, handlers_of(taken), {})
    finally:
        consumer.close()
        own.close()
        peer.close()
    (words,) = taken
    return words


def body_of(packed: bytes) -> bytes:
    """What today's code takes out of a socket that has one frame."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(packed)
        return frames.Frame("vector", longest=LIMIT, most_fds=0).receive_nowait(theirs)


def opened(payload: bytes, memory: dict[int, Any]) -> tuple[bytes, list[Any]]:
    """The payload proper, and of each buffer its block, its lease and its bytes; PEER_OWNED references as they are."""
    with Scene() as scene:
        extents = {number: (contents, 0, len(contents)) for number, contents in memory.items()}
        body, views = ring.open_references(payload, extents, scene.right.releaser, 16)
        seen = [
            view if isinstance(view, tuple) else (view.block, view.generation, bytes(memoryview(view)))
            for view in views
        ]
        del views
        return body, seen
