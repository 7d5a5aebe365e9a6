"""Every golden vector: what it is called, how today's code makes it and reads it, and what it means in plain words.

To add one, add it to its module and run ``make_golden.py``, which writes the files of those that have none. One that is
there is never changed: see "Versions" in docs/specification.md.
"""

import json
from pathlib import Path
from typing import Any, Final

import wire_endings
import wire_frames
import wire_records
import wire_scene
from wire_vector import Vector

from shmrpc.shm import envelope, ring, segment
from shmrpc.shm.envelope import HAS_BUFFERS, HAS_METADATA
from shmrpc.shm.layout import HEADER_BYTES

GOLDEN: Final = Path(__file__).parent / "golden"
TEXT: Final = "a text of some length, " * 130
ROUND: Final = 7
"""Records of 1024 bytes that fill the ring but for as much."""


def nested() -> bytes:
    """A payload with references to buffers, and with metadata."""
    payload = wire_records.packed(str, TEXT)
    return ring.pack_references([wire_records.REFERENCES[1]], envelope.with_metadata({"a": "b"}, payload))


def played() -> tuple[bytes, bytes]:
    """Both segments after some records: a PAD before the one that begins anew, one in a block, which was released."""
    with wire_scene.Scene() as scene:
        for number in range(ROUND):
            scene.left.send(envelope.REPLY, 0, 0, number + 1, 0, wire_records.packed(bytes, bytes(997)))
        assert len(scene.take()) == ROUND
        scene.left.send(envelope.REPLY, 0, 0, 20, 0, wire_records.packed(bytes, bytes(1021)))
        scene.send_in_block((envelope.REPLY, 0, 0, 21, 0, wire_records.packed(str, TEXT)))
        scene.send_in_block((envelope.REPLY, HAS_BUFFERS | HAS_METADATA, 0, 22, 0, nested()))
        scene.left.send(envelope.GOAWAY, 0, 0, 9, 0, b"")
        records = scene.take()
        block = envelope.decode_reference(records[1][5])
        scene.right.release(block.number, block.generation)
        assert scene.right.consumer.arm()  # it sleeps
        return bytes(scene.left_image), bytes(scene.right_image)


def checked(image: bytes) -> None:
    wire_scene.SMALL.check_header(image[:HEADER_BYTES])


def came_home(image: bytes) -> list[tuple[int, int]]:
    """What today's code takes home from the release ring of a segment with these bytes."""
    own, peer = segment.create(wire_scene.SMALL), segment.create(wire_scene.SMALL)
    reaper = ring.open_reaper(own, wire_scene.attached(peer))
    try:
        peer.mapping[:] = image
        return reaper.take()
    finally:
        reaper.close()
        own.close()
        peer.close()


def said(call_id: int, **more: Any) -> dict[str, Any]:
    return {"kind": "REPLY", "flags": [], "method": 0, "call_id": call_id, "deadline_ns": 0, **more}


HEADER: Final = {
    "version": 1,
    "geometry": wire_frames.SMALL_GEOMETRY,
    "offsets": {"release ring": 0x4000, "slab": 0x4100, "segment": 0x9000},
}
END: Final = 8192 + 24 + 1024 + 2 * (24 + 8) + 24
BLOCK: Final = {"extent": 0, "granule": 0, "peer_owned": False, "generation": 1}
STILL: Final = dict.fromkeys(("release tail", "release head", "doorbell epoch", "room epoch"), 0)
SEGMENTS: Final = [
    Vector(
        "segment-of-the-sender",
        "segment",
        lambda: played()[0],
        {
            "header": HEADER,
            "cursors": {"tail": END, "head": 0, **STILL},
            "begin": ROUND * 1024,
            "records": [
                {"at": ROUND * 1024, "kind": "PAD", "length": 1024},
                {"at": 8192, **said(20, result={"hex": "00" * 1021})},
                {
                    "at": 9240,
                    **said(21, flags=["IN_BLOCK"], block=BLOCK | {"nbytes": len(TEXT) + 3}, result=TEXT),
                },
                {
                    "at": 9272,
                    **said(
                        22,
                        flags=["IN_BLOCK", "HAS_METADATA", "HAS_BUFFERS"],
                        block=BLOCK | {"granule": 3, "generation": 2, "nbytes": len(TEXT) + 52},
                        references=wire_records.BUFFER_MEANING["references"][1:],
                        metadata={"a": "b"},
                        result=TEXT,
                    ),
                },
                {"at": 9304, **said(9, kind="GOAWAY")},
            ],
            "releases": [],
        },
        checked,
        None,
    ),
    Vector(
        "segment-of-the-receiver",
        "segment",
        lambda: played()[1],
        {
            "header": HEADER,
            "cursors": {"tail": 0, "head": END, **STILL, "release tail": 1, "doorbell epoch": 1},
            "begin": 0,
            "records": [],
            "releases": [BLOCK],
        },
        came_home,
        [(0, 1)],
    ),
]
VECTORS: Final = [
    *wire_frames.FRAMES,
    *wire_frames.FOREIGN,
    *wire_frames.HEADERS,
    *wire_frames.DIGESTS,
    *wire_records.REQUESTS,
    *wire_records.REPLIES,
    *wire_endings.FAILURES,
    *wire_endings.STREAMS,
    *SEGMENTS,
]


def as_json(vector: Vector) -> str:
    """The text of a vector's JSON file."""
    return json.dumps({"kind": vector.kind, "meaning": vector.meaning}, indent=1, ensure_ascii=False) + "\n"
