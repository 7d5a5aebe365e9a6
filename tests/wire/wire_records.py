"""Golden vectors of records: requests and replies, and the values and buffers that they carry."""

import datetime as dt
import decimal
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import wire_scene
from wire_contract import METHODS, Circle, Color, Packed, Pair, Point, Tree, Wire
from wire_vector import Vector

from shmrpc import contract
from shmrpc.codec import ValueCodec
from shmrpc.shm import envelope
from shmrpc.shm.envelope import AS_JSON, HAS_BUFFERS, HAS_METADATA
from shmrpc.shm.ring import pack_references

WIRE = contract.read(Wire)
PEER_OWNED = 1 << 63


def record(
    name: str,
    kind: int,
    payload: bytes,
    meaning: dict[str, Any],
    opens: Callable[[bytes], Any] = lambda payload: None,
    value: Any = None,
    *,
    flags: int = 0,
    method: int = 0,
    call_id: int = 1,
    deadline_ns: int = 0,
) -> Vector:
    """A record with its payload; `opens` is what today's code makes of the payload, which is `value`."""
    words = (kind, flags, method, call_id, deadline_ns, payload)
    names = {1: "IN_BLOCK", 2: "HAS_METADATA", 4: "AS_JSON", 8: "HAS_BUFFERS", 16: "MANY"}

    def today(packed: bytes) -> Any:
        got = wire_scene.read(packed)
        return got, opens(got[5])

    return Vector(
        name,
        "record",
        lambda: wire_scene.written(words),
        {
            "kind": envelope.KIND_NAMES[kind],
            "flags": [each for bit, each in names.items() if flags & bit],
            "method": method,
            "call_id": call_id,
            "deadline_ns": deadline_ns,
            **meaning,
        },
        today,
        (words, value),
    )


def request(name: str, method: str, args: tuple[Any, ...], meaning: list[Any], **words: int) -> Vector:
    """A request whose arguments all travel inline."""
    served = WIRE.methods[method]
    payload, pieces = served.pack_arguments(args)
    assert not pieces
    return record(
        f"request-{name}",
        envelope.REQUEST,
        payload,
        {"arguments": meaning},
        lambda payload: readable(served.decode_arguments(payload)),
        readable(args),
        method=METHODS.index(method),
        **words,
    )


def readable(value: Any) -> Any:
    """Values that can be compared: arrays as their type, shape and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return [readable(item) for item in value]
    return bytes(value) if isinstance(value, (memoryview, bytearray)) else value


def ext(element: Any, shape: list[int], contents: bytes, order: str = "rows first") -> dict[str, Any]:
    """What stands for an array that travels inline."""
    return {"buffer": "inline", "order": order, "element": element, "shape": shape, "hex": contents.hex()}


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
ZONED = dt.datetime(2026, 1, 2, 3, 4, 5, 678000, dt.UTC)
STRUCTURED = np.array([(1, [2, 3])], dtype=[("a", "<i4"), ("b", "<u2", (2,))])
REQUESTS = [
    request("empty-values", "plain", (False, 0, 0.0, "", b""), [False, 0, 0.0, "", {"hex": ""}]),
    request(
        "plain",
        "plain",
        (True, -129, 1.5, "a" * 40, b"\x00" * 300),
        [True, -129, 1.5, "a" * 40, {"hex": "00" * 300}],
        call_id=(1 << 64) - 1,
        deadline_ns=1 << 62,
    ),
    request(
        "times",
        "times",
        (ZONED, dt.date(2026, 2, 28), dt.time(23, 59, 59), dt.timedelta(days=1, seconds=30, microseconds=5)),
        [{"seconds": 1767323045, "nanoseconds": 678000000}, "2026-02-28", "23:59:59", "P1DT30.000005S"],
    ),
    request(
        "times-without-zone",
        "times",
        (dt.datetime(2026, 1, 2, 3, 4, 5), dt.date(1, 1, 1), dt.time(0, 0, 0, 1), dt.timedelta(0)),
        ["2026-01-02T03:04:05", "0001-01-01", "00:00:00.000001", "P0D"],
    ),
    request(
        "named",
        "named",
        (UUID, decimal.Decimal("1.50"), Color.BLUE, "r"),
        [str(UUID), "1.50", "blue", "r"],
    ),
    request(
        "records",
        "records",
        (Point(1.0), Circle(3), Packed("p", 7), Pair(1, 2), {"deep": True}, Tree("a", [Tree("b", [])])),
        [
            {"x": 1.0, "y": 0.0},
            {"type": "circle", "radius": 3},
            ["p", 7],
            [1, 2],
            {"deep": True},
            {"label": "a", "children": [{"label": "b", "children": []}]},
        ],
    ),
    request(
        "containers",
        "containers",
        (list(range(0, 1 << 17, 8192)), {"one"}, (-32, "ü"), {"pi": 3.25}, 1 << 40),
        [list(range(0, 1 << 17, 8192)), ["one"], [-32, "ü"], {"pi": 3.25}, 1 << 40],
    ),
    request(
        "arrays-inline",
        "memory",
        (np.array([1, 2, 3], np.uint8), np.asfortranarray(np.arange(6.0).reshape(2, 3)), b"blob"),
        [
            ext("|u1", [3], b"\1\2\3"),
            ext("<f8", [2, 3], np.arange(6.0).reshape(2, 3).tobytes("F"), "columns first"),
            {"hex": b"blob".hex()},
        ],
    ),
    record(
        "request-with-metadata",
        envelope.REQUEST,
        envelope.with_metadata({"trace": "00-ab", "raw": b"\xff"}, msgspec.msgpack.encode(("hi",))),
        {"metadata": {"trace": "00-ab", "raw": {"hex": "ff"}}, "arguments": ["hi"]},
        envelope.open_metadata,
        ({"trace": "00-ab", "raw": b"\xff"}, msgspec.msgpack.encode(("hi",))),
        flags=HAS_METADATA,
        method=METHODS.index("told"),
    ),
    record(
        "request-as-json",
        envelope.REQUEST,
        b'["hi"]',
        {"json": '["hi"]'},
        lambda payload: WIRE.methods["told"].decode_arguments(payload, json=True),
        ("hi",),
        flags=AS_JSON,
        method=METHODS.index("told"),
    ),
]


# ---- records with buffers ----

EXTENT = bytes(range(256)) * 64
LARGE = np.frombuffer(EXTENT, np.uint8, 9000, offset=1024 * 3 + 16)
REFERENCES = [(1 << 32 | 3, 7, 16, 9000), (PEER_OWNED | 5, 9, 0, 8008)]


def with_buffers() -> bytes:
    """An array in extent 1, and one that the peer owns."""
    codec = ValueCodec(list[Any])
    payload, pieces = codec.pack([np.array(LARGE), np.zeros((1001,))])
    assert [piece.nbytes for piece in pieces] == [9000, 8008]
    return pack_references(REFERENCES, payload)


def opened_buffers(payload: bytes) -> Any:
    return wire_scene.opened(payload, {1: bytearray(EXTENT)})


BUFFER_MEANING = {
    "references": [
        {"extent": 1, "granule": 3, "peer_owned": False, "generation": 7, "offset": 16, "nbytes": 9000},
        {"extent": 0, "granule": 5, "peer_owned": True, "generation": 9, "offset": 0, "nbytes": 8008},
    ],
}
ARRAYS_MEANING = [
    {"buffer": 0, "order": "rows first", "element": "|u1", "shape": [9000]},
    {"buffer": 1, "order": "rows first", "element": "<f8", "shape": [1001]},
]
BUFFERS_VALUE = (
    with_buffers()[8 + 64 :],
    [(1 << 32 | 3, 7, LARGE.tobytes()), (5, 9, 0, 8008)],
)


def reply(name: str, payload: bytes, result: Any, opens: Callable[[bytes], Any], value: Any, **words: int) -> Vector:
    return record(f"reply-{name}", envelope.REPLY, payload, {"result": result}, opens, value, **words)


def decoded(type_: Any) -> Callable[[bytes], Any]:
    return lambda payload: readable(ValueCodec(type_).unpack(payload, ()))


def packed(type_: Any, value: Any) -> bytes:
    payload, pieces = ValueCodec(type_).pack(value)
    assert not pieces
    return payload


REPLIES = [
    reply("none", packed(None, None), None, decoded(None), None),
    reply("value", packed(list[int], [1, -1]), [1, -1], decoded(list[int]), [1, -1], call_id=300),
    reply(
        "array-structured",
        packed(np.ndarray, STRUCTURED),
        ext([8, [["a", "<i4", 0], ["b", [[2], "<u2"], 4]]], [1], STRUCTURED.tobytes()),
        decoded(np.ndarray),
        readable(STRUCTURED),
    ),
    reply(
        "array-of-no-axes",
        packed(np.ndarray, np.array(2.5)),
        ext("<f8", [], np.array(2.5).tobytes()),
        decoded(np.ndarray),
        readable(np.array(2.5)),
    ),
    reply(
        "array-of-times",
        packed(np.ndarray, np.array(["2026-01-01"], "<M8[D]")),
        ext("<M8[D]", [1], (20454).to_bytes(8, "little")),
        decoded(np.ndarray),
        readable(np.array(["2026-01-01"], "<M8[D]")),
    ),
    record(
        "reply-with-metadata",
        envelope.REPLY,
        envelope.with_metadata({"rows": "3"}, packed(int, 5)),
        {"metadata": {"rows": "3"}, "result": 5},
        envelope.open_metadata,
        ({"rows": "3"}, b"\x05"),
        flags=HAS_METADATA,
    ),
    record(
        "reply-with-buffers",
        envelope.REPLY,
        with_buffers(),
        BUFFER_MEANING | {"result": ARRAYS_MEANING},
        opened_buffers,
        BUFFERS_VALUE,
        flags=HAS_BUFFERS,
    ),
    record(
        "reply-with-buffers-and-metadata",
        envelope.REPLY,
        pack_references(
            [REFERENCES[0]],
            envelope.with_metadata({"a": "b"}, packed_one := ValueCodec(bytes).pack(bytes(9000)).payload),
        ),
        {
            "references": BUFFER_MEANING["references"][:1],
            "metadata": {"a": "b"},
            "result": {"buffer": 0},
        },
        lambda payload: envelope.open_metadata(opened_buffers(payload)[0]),
        ({"a": "b"}, packed_one),
        flags=HAS_BUFFERS | HAS_METADATA,
    ),
]
