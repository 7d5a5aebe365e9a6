"""Golden vectors of what is exchanged before the first record: frames, headers of segments, contracts."""

from typing import Any

import independent_msgpack
import msgspec
import wire_scene
from wire_contract import Wire
from wire_vector import Vector

from shmrpc import contract
from shmrpc.shm import control, frames, handshake
from shmrpc.shm.handshake import Hello, Offered, Rejection, Wanted, Welcome
from shmrpc.shm.layout import Geometry
from shmrpc.signature import Signature

WIRE = contract.read(Wire)
ROUNDING = Geometry(ring_bytes=4096, release_entries=8, slab_bytes=5120, inline_limit=64)
SIGNATURES = [signature for signature in WIRE.signatures if signature.name in ("plain", "told")]
PLAIN = {
    "name": "plain",
    "parameters": [
        {"name": "flag", "type": ["bool"], "has_default": False},
        {"name": "number", "type": ["int"], "has_default": False},
        {"name": "ratio", "type": ["float"], "has_default": False},
        {"name": "text", "type": ["str"], "has_default": False},
        {"name": "raw", "type": ["bytes"], "has_default": False},
    ],
    "result": ["None"],
    "oneway": False,
}
TOLD = {
    "name": "told",
    "parameters": [{"name": "text", "type": ["str"], "has_default": False}],
    "result": ["None"],
    "oneway": True,
}
DEFAULT_GEOMETRY = {"ring_bytes": 131072, "release_entries": 1024, "slab_bytes": 368640, "inline_limit": 8192}
SMALL_GEOMETRY = {"ring_bytes": 8192, "release_entries": 16, "slab_bytes": 16384, "inline_limit": 1024}


# ---- frames ----


def frame(name: str, message: Any, meaning: dict[str, Any]) -> Vector:
    type_ = type(message)
    make = frames.pack if isinstance(message, (control.Attach, control.Detach)) else None
    pack = (lambda: frames.pack(msgspec.msgpack.encode(message))) if make else lambda: handshake.pack_frame(message)
    return Vector(
        name,
        "frame",
        pack,
        meaning,
        lambda packed: msgspec.msgpack.decode(wire_scene.body_of(packed), type=type_),
        message,
    )


def foreign(name: str, body: dict[str, Any], meaning: dict[str, Any], message: Any) -> Vector:
    """A frame that another implementation has made, with what today's code reads in it."""
    packed = independent_msgpack.write(body)
    return frame(name, message, meaning)._replace(make=lambda: b"SHMR" + len(packed).to_bytes(4, "little") + packed)


def half(**more: Any) -> dict[str, Any]:
    """What both a hello and a welcome must have, and nothing that may be missing."""
    sizes = {"max_message": 4096, "max_extent_bytes": 0}
    return {"features": ["x"], "segment": "memfd", "doorbell": "pipe", "geometry": {}, **sizes, **more}


FOREIGN = [
    foreign(
        "hello-with-the-least",
        half(versions=[0, 9], wanted=[], type="hello"),
        half(versions=[0, 9], wanted=[], type="hello"),
        Hello(
            versions=(0, 9),
            features=["x"],
            segment="memfd",
            doorbell="pipe",
            geometry=Geometry(),
            wanted=[],
            max_message=4096,
            max_extent_bytes=0,
        ),
    ),
    foreign(
        "hello-with-unknown-keys",
        half(type="hello", versions=[1, 1], wanted=[{"name": "A", "digest": b"", "later": 1}], later=[1, {"a": None}]),
        half(
            type="hello",
            versions=[1, 1],
            wanted=[{"name": "A", "digest": {"hex": ""}, "later": 1}],
            later=[1, {"a": None}],
        ),
        Hello(
            versions=(1, 1),
            features=["x"],
            segment="memfd",
            doorbell="pipe",
            geometry=Geometry(),
            wanted=[Wanted("A", b"")],
            max_message=4096,
            max_extent_bytes=0,
        ),
    ),
    foreign(
        "welcome-with-unknown-keys",
        half(type="welcome", version=1, offered=[], max_in_flight=7, later="x"),
        half(type="welcome", version=1, offered=[], max_in_flight=7, later="x"),
        Welcome(
            version=1,
            features=["x"],
            segment="memfd",
            doorbell="pipe",
            geometry=Geometry(),
            offered=[],
            max_message=4096,
            max_extent_bytes=0,
            max_in_flight=7,
        ),
    ),
    foreign(
        "attach-with-unknown-keys",
        {"type": "attach", "later": 1, "extent": 2, "nbytes": 8192, "kind": "memfd"},
        {"type": "attach", "later": 1, "extent": 2, "nbytes": 8192, "kind": "memfd"},
        control.Attach(2, 8192, "memfd"),
    ),
]
FRAMES = [
    frame(
        "hello",
        Hello(
            versions=(1, 1),
            features=[],
            segment="memfd",
            doorbell="eventfd",
            geometry=Geometry(),
            wanted=[Wanted("Wire", bytes(range(16)))],
            max_message=1 << 30,
            max_extent_bytes=1 << 30,
        ),
        {
            "type": "hello",
            "versions": [1, 1],
            "features": [],
            "segment": "memfd",
            "doorbell": "eventfd",
            "geometry": DEFAULT_GEOMETRY,
            "wanted": [{"name": "Wire", "digest": {"hex": bytes(range(16)).hex()}}],
            "max_message": 1 << 30,
            "max_extent_bytes": 1 << 30,
            "stream_window": [256, 4194304],
            "exposed": [],
            "max_in_flight": 1024,
        },
    ),
    frame(
        "hello-exposing",
        Hello(
            versions=(1, 3),
            features=["later"],
            segment="posix",
            doorbell="pipe",
            geometry=wire_scene.SMALL,
            wanted=[],
            max_message=1024,
            max_extent_bytes=0,
            stream_window=(16, 65536),
            exposed=[Offered("Wire", b"", 0, SIGNATURES)],
            max_in_flight=8,
        ),
        {
            "type": "hello",
            "versions": [1, 3],
            "features": ["later"],
            "segment": "posix",
            "doorbell": "pipe",
            "geometry": SMALL_GEOMETRY,
            "wanted": [],
            "max_message": 1024,
            "max_extent_bytes": 0,
            "stream_window": [16, 65536],
            "exposed": [{"name": "Wire", "digest": {"hex": ""}, "first_method": 0, "signatures": [PLAIN, TOLD]}],
            "max_in_flight": 8,
        },
    ),
    frame(
        "welcome",
        Welcome(
            version=1,
            features=[],
            segment="memfd",
            doorbell="pipe",
            geometry=Geometry(),
            offered=[Offered("Wire", bytes(16), 3), Offered("shmrpc.Introspection", b"\xff" * 16, 300, SIGNATURES)],
            max_message=1 << 20,
            max_extent_bytes=1 << 32,
            max_in_flight=1,
        ),
        {
            "type": "welcome",
            "version": 1,
            "features": [],
            "segment": "memfd",
            "doorbell": "pipe",
            "geometry": DEFAULT_GEOMETRY,
            "offered": [
                {"name": "Wire", "digest": {"hex": "00" * 16}, "first_method": 3, "signatures": []},
                {
                    "name": "shmrpc.Introspection",
                    "digest": {"hex": "ff" * 16},
                    "first_method": 300,
                    "signatures": [PLAIN, TOLD],
                },
            ],
            "max_message": 1 << 20,
            "max_extent_bytes": 1 << 32,
            "max_in_flight": 1,
            "stream_window": [256, 4194304],
        },
    ),
    frame(
        "rejection-contract",
        Rejection("contract", "there is no service Wire"),
        {"type": "rejection", "code": "contract", "message": "there is no service Wire"},
    ),
    frame(
        "rejection-refused",
        Rejection("refused", "uid 7 \N{EN DASH} not allowed"),
        {"type": "rejection", "code": "refused", "message": "uid 7 \N{EN DASH} not allowed"},
    ),
    frame(
        "attach",
        control.Attach(1, 1 << 22, "memfd"),
        {"type": "attach", "extent": 1, "nbytes": 1 << 22, "kind": "memfd"},
    ),
    frame(
        "attach-last",
        control.Attach((1 << 31) - 1, 4096, "posix"),
        {"type": "attach", "extent": 2147483647, "nbytes": 4096, "kind": "posix"},
    ),
    frame("detach", control.Detach(300), {"type": "detach", "extent": 300}),
]


# ---- headers, digests ----


def header(name: str, geometry: Geometry, meaning: dict[str, Any]) -> Vector:
    return Vector(
        name, "header", geometry.header, {"version": 1, **meaning}, lambda packed: geometry.check_header(packed), None
    )


HEADERS = [
    header(
        "header-default",
        Geometry(),
        {
            "geometry": DEFAULT_GEOMETRY,
            "offsets": {"release ring": 0x22000, "slab": 0x26000, "segment": 524288},
        },
    ),
    header(
        "header-rounding-up",
        ROUNDING,
        {
            "geometry": {"ring_bytes": 4096, "release_entries": 8, "slab_bytes": 5120, "inline_limit": 64},
            "offsets": {"release ring": 0x3000, "slab": 0x3080, "segment": 0x5000},
        },
    ),
]
DIGESTS = [
    Vector(
        "digest",
        "digest",
        lambda: handshake.digest_of(WIRE.signatures),
        msgspec.to_builtins(WIRE.signatures),
        lambda packed: packed,
        handshake.digest_of(WIRE.signatures),
    ),
    Vector(
        "signatures",
        "msgpack",
        lambda: msgspec.msgpack.encode(WIRE.signatures),
        msgspec.to_builtins(WIRE.signatures),
        lambda packed: msgspec.msgpack.decode(packed, type=list[Signature]),
        WIRE.signatures,
    ),
]
