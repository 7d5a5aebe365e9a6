"""Golden vectors of how calls and streams go on and end: failures, items, credit, and records without a payload."""

from typing import Any

import independent_msgpack
import msgspec
from wire_contract import Lost, Wire
from wire_records import ARRAYS_MEANING, BUFFER_MEANING, BUFFERS_VALUE, opened_buffers, record, with_buffers
from wire_vector import Vector

from shmrpc import failure
from shmrpc.codec import ItemCodec, head_of_many
from shmrpc.failure import Failure
from shmrpc.shm import envelope
from shmrpc.shm.envelope import HAS_BUFFERS, HAS_METADATA, MANY

# ---- failures ----


def failed(name: str, error: Failure, meaning: list[Any], *, short: int = 6) -> Vector:
    """A failure; `short` leaves the last fields out, as they may be."""
    payload = envelope.encode_failure(error)
    if short < 6:
        payload = msgspec.msgpack.encode(msgspec.msgpack.decode(payload)[:short])
    keys = ("code", "text", "class", "fields", "correlation_id", "maybe_executed")
    said = dict(zip(keys, meaning, strict=True))
    return record(
        f"failure-{name}", envelope.FAILURE, payload, {"failure": said}, envelope.decode_failure, error, call_id=4
    )


LOST = failure.failure_of(Lost("k", 2), Wire, "Wire.plain", debug=False)
LONGER = [5, "none", "", b"", "", False, "later", {"more": 1}]
FAILURES = [
    record(
        "failure-of-a-later-version",
        envelope.FAILURE,
        independent_msgpack.write(LONGER),
        {
            "failure": {
                "code": 5,
                "text": "none",
                "class": "",
                "fields": {},
                "correlation_id": "",
                "maybe_executed": False,
            }
        },
        envelope.decode_failure,
        Failure(5, "none", maybe_executed=False),
    ),
    failed("internal", Failure(13, "it failed", "", b"", "c0ffee", True), [13, "it failed", "", {}, "c0ffee", True]),
    failed("declared", LOST, [5, "Lost(key='k', tries=2)", "Lost", {"key": "k", "tries": 2}, "", True]),
    failed("unavailable", Failure(14, "drains", maybe_executed=False), [14, "drains", "", {}, "", False]),
    failed("short", Failure(99, ""), [99, "", "", {}, "", True], short=2),
    record(
        "failure-with-metadata",
        envelope.FAILURE,
        envelope.with_metadata({"a": ""}, envelope.encode_failure(Failure(8, "full"))),
        {
            "metadata": {"a": ""},
            "failure": {
                "code": 8,
                "text": "full",
                "class": "",
                "fields": {},
                "correlation_id": "",
                "maybe_executed": True,
            },
        },
        lambda payload: envelope.decode_failure(envelope.open_metadata(payload)[1]),
        Failure(8, "full"),
        flags=HAS_METADATA,
    ),
]


# ---- streams, and records without a payload ----


def items(payload: bytes, *, many: bool) -> list[Any]:
    return ItemCodec(int).read(payload, (), many=many)


ITEM, SEVERAL = ItemCodec(int).pack(300).payload, head_of_many(3) + b"\x01\x02\x03"
STREAMS = [
    record("cancel", envelope.CANCEL, b"", {}, call_id=7),
    record("goaway", envelope.GOAWAY, b"", {}, call_id=41),
    record("goaway-before-any-call", envelope.GOAWAY, b"", {}, call_id=0),
    record(
        "arguments-one", envelope.ARGUMENTS, ITEM, {"items": [300]}, lambda payload: items(payload, many=False), [300]
    ),
    record(
        "arguments-many",
        envelope.ARGUMENTS,
        SEVERAL,
        {"items": [1, 2, 3]},
        lambda payload: items(payload, many=True),
        [1, 2, 3],
        flags=MANY,
    ),
    record("end-of-arguments", envelope.END_OF_ARGUMENTS, b"", {}, call_id=7),
    record("results-one", envelope.RESULTS, ITEM, {"items": [300]}, lambda payload: items(payload, many=False), [300]),
    record(
        "results-many",
        envelope.RESULTS,
        SEVERAL,
        {"items": [1, 2, 3]},
        lambda payload: items(payload, many=True),
        [1, 2, 3],
        flags=MANY,
    ),
    record(
        "results-with-buffers",
        envelope.RESULTS,
        with_buffers(),
        BUFFER_MEANING | {"items": [ARRAYS_MEANING]},
        opened_buffers,
        BUFFERS_VALUE,
        flags=HAS_BUFFERS,
    ),
    *(
        record(
            name,
            kind,
            envelope.encode_credit(envelope.Credit(256, 1 << 33)),
            {"credit": {"items": 256, "bytes": 1 << 33}},
            envelope.decode_credit,
            envelope.Credit(256, 1 << 33),
        )
        for name, kind in (
            ("argument-credit", envelope.ARGUMENT_CREDIT),
            ("result-credit", envelope.RESULT_CREDIT),
        )
    ),
    record(
        "initial-metadata",
        envelope.INITIAL_METADATA,
        envelope.encode_metadata({"etag": "1", "bin": b""}),
        {"metadata": {"etag": "1", "bin": {"hex": ""}}},
        envelope.decode_metadata,
        {"etag": "1", "bin": b""},
    ),
]
