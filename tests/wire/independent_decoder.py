"""A second decoder of everything that two processes exchange, written from docs/specification.md alone.

It imports nothing of shmrpc, nor of the packages that shmrpc uses: what it cannot read, the specification does not say.
What it gives is plain: numbers, texts, lists and dicts as JSON has them; bytes are ``{"hex": …}``.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Any

from independent_msgpack import Extension, read, write

GRANULE = 1024
CURSOR_PAGE, RECORD_RING, PAGE = 0x1000, 0x2000, 4096
CURSORS = ("tail", "head", "release tail", "release head", "doorbell epoch", "room epoch")
SIZES = ("ring_bytes", "release_entries", "slab_bytes", "inline_limit")
DEFAULT_SIZES = {"ring_bytes": 131072, "release_entries": 1024, "slab_bytes": 368640, "inline_limit": 8192}
KINDS = {
    0: "PAD",
    1: "REQUEST",
    2: "REPLY",
    3: "FAILURE",
    4: "CANCEL",
    5: "GOAWAY",
    6: "ARGUMENTS",
    7: "END_OF_ARGUMENTS",
    8: "RESULTS",
    9: "ARGUMENT_CREDIT",
    10: "RESULT_CREDIT",
    11: "INITIAL_METADATA",
}
FLAGS = {1: "IN_BLOCK", 2: "HAS_METADATA", 4: "AS_JSON", 8: "HAS_BUFFERS", 16: "MANY"}
PEER_OWNED = 1 << 63
BUFFER_CODE, TIMESTAMP_CODE = 66, -1
ORDERS = {1: "rows first", 2: "columns first"}

ReadBlock = Callable[[int, int, int], bytes]
"""The bytes of a block: its extent, its first granule, how many."""


class Unspecified(ValueError):
    """Bytes that the specification does not allow."""


def demand(condition: object, what: str) -> None:
    if not condition:
        raise Unspecified(what)


# ---- values ----


def plain(value: Any) -> Any:
    """A value of msgpack as JSON can say it."""
    match value:
        case bytes():
            return {"hex": value.hex()}
        case Extension(code=code, body=body):
            return (
                timestamp(body) if code == TIMESTAMP_CODE else buffer(body) if code == BUFFER_CODE else unknown(value)
            )
        case list():
            return [plain(item) for item in value]
        case dict():
            demand(all(isinstance(key, str) for key in value), "a map's keys are texts here")
            return {key: plain(item) for key, item in value.items()}
    return value


def unknown(extension: Extension) -> Any:
    raise Unspecified(f"extension {extension.code}")


def timestamp(body: bytes) -> dict[str, int]:
    """A datetime with a zone: msgpack's own extension, in UTC."""
    if len(body) == 4:
        return {"seconds": struct.unpack(">I", body)[0], "nanoseconds": 0}
    if len(body) == 8:
        (packed,) = struct.unpack(">Q", body)
        return {"seconds": packed & 0x3FFFFFFFF, "nanoseconds": packed >> 34}
    nanoseconds, seconds = struct.unpack(">Iq", body)
    return {"seconds": seconds, "nanoseconds": nanoseconds}


def buffer(body: bytes) -> dict[str, Any]:
    """What stands for a buffer in a payload."""
    inline = body[:4] == b"\xff\xff\xff\xff"
    said: dict[str, Any] = {"buffer": "inline" if inline else struct.unpack("<I", body[:4])[0]}
    what, at = body[4], 5
    if what:
        axes, length = struct.unpack_from("<BH", body, 5)
        demand(axes <= 64, "an array has 64 axes at most")
        at = 8 + length + 8 * axes
        said |= {"order": ORDERS[what], "element": element(body[8 : 8 + length])}
        said["shape"] = list(struct.unpack_from(f"<{axes}Q", body, 8 + length))
    demand(inline or at == len(body), "nothing follows the description of a buffer that is not inline")
    return said | ({"hex": body[at:].hex()} if inline else {})


def element(text: bytes) -> Any:
    """An element type: a text, or for a structured one its size and its fields."""
    return text.decode("ascii") if text[:1] in (b"<", b">", b"|") else plain(read(text))


# ---- frames ----


def frame(packed: bytes) -> dict[str, Any]:
    """A frame of the control socket, in the handshake or after it."""
    magic, length = struct.unpack_from("<4sI", packed)
    demand(magic == b"SHMR", "a frame begins with SHMR")
    demand(len(packed) == 8 + length, "a frame is as long as it says")
    body = read(packed[8:])
    demand(isinstance(body, dict) and "type" in body, "a body is a map with a type")
    said: dict[str, Any] = plain(body)
    return said


def digest(signatures: list[Any]) -> bytes:
    """The digest of a contract, of its signatures in order."""
    return hashlib.blake2b(write(signatures), digest_size=16).digest()


# ---- segments ----


def offsets(sizes: dict[str, int]) -> dict[str, int]:
    """What follows from a geometry."""
    release_ring = RECORD_RING + sizes["ring_bytes"]
    slab = release_ring + 16 * sizes["release_entries"]
    end = slab + sizes["slab_bytes"]
    return {"release ring": release_ring, "slab": slab, "segment": -(-end // PAGE) * PAGE}


def header(packed: bytes) -> dict[str, Any]:
    """The header of a segment, whose numbers fit each other."""
    magic, version, zero, size, ring, ring_bytes, release, entries, slab, slab_bytes, limit = struct.unpack_from(
        "<8sII8Q", packed
    )
    demand(magic == b"SHMRPC\r\n" and zero == 0, "a header begins with its magic")
    sizes = dict(zip(SIZES, (ring_bytes, entries, slab_bytes, limit), strict=True))
    expected = offsets(sizes)
    demand(ring == RECORD_RING, "the record ring begins at 0x2000")
    demand((release, slab, size) == tuple(expected.values()), "offsets follow from the geometry")
    return {"version": version, "geometry": sizes, "offsets": expected}


class Segment:
    """One side's segment, read from the bytes of it."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        self.header = header(image)
        self._sizes: dict[str, int] = self.header["geometry"]
        self._offsets: dict[str, int] = self.header["offsets"]

    def cursors(self) -> dict[str, int]:
        """The six shared words."""
        return {
            name: struct.unpack_from("<Q", self._image, CURSOR_PAGE + 128 * line)[0]
            for line, name in enumerate(CURSORS)
        }

    def block(self, extent: int, granule: int, nbytes: int) -> bytes:
        """Bytes of a block in the segment's slab."""
        demand(extent == 0, "this segment has no extents")
        at = self._offsets["slab"] + GRANULE * granule
        return self._image[at : at + nbytes]

    def raw_records(self, begin: int = 0) -> list[tuple[int, bytes]]:
        """Position, and words with payload, of every record from a position to the tail, PADs included."""
        size, at, found = self._sizes["ring_bytes"], begin, []
        while at < self.cursors()["tail"]:
            start = RECORD_RING + at % size
            length, kind = struct.unpack_from("<IB", self._image, start)
            need = length if kind == 0 else 24 + length
            found.append((at, self._image[start : start + (8 if kind == 0 else need)]))
            at += -(-need // 8) * 8
        return found

    def records(self, begin: int = 0) -> list[dict[str, Any]]:
        """The same, decoded."""
        return [{"at": at} | record(packed, self.block) for at, packed in self.raw_records(begin)]

    def releases(self) -> list[dict[str, Any]]:
        """What was sent home, from the first entry that is still in the ring."""
        entries, tail = self._sizes["release_entries"], self.cursors()["release tail"]
        found = []
        for number in range(max(0, tail - entries), tail):
            packed = struct.unpack_from("<QQ", self._image, self._offsets["release ring"] + 16 * (number % entries))
            found.append(block_number(packed[0]) | {"generation": packed[1]})
        return found


def block_number(number: int) -> dict[str, Any]:
    return {
        "extent": (number & ~PEER_OWNED) >> 32,
        "granule": number & 0xFFFFFFFF,
        "peer_owned": bool(number & PEER_OWNED),
    }


# ---- records ----


def record(packed: bytes, read_block: ReadBlock) -> dict[str, Any]:
    """One record, with what its payload says."""
    length, kind, flags, method = struct.unpack_from("<IBBH", packed)
    if kind == 0:
        return {"kind": "PAD", "length": length}
    demand(kind in KINDS and not flags & ~31, "kinds and flags are those of the tables")
    call_id, deadline_ns = struct.unpack_from("<QQ", packed, 8)
    payload = packed[24 : 24 + length]
    said: dict[str, Any] = {
        "kind": KINDS[kind],
        "flags": [name for bit, name in FLAGS.items() if flags & bit],
        "method": method,
        "call_id": call_id,
        "deadline_ns": deadline_ns,
    }
    if flags & 1:
        number, generation, nbytes = read(payload)
        where = block_number(number)
        said["block"] = where | {"generation": generation, "nbytes": nbytes}
        payload = read_block(where["extent"], where["granule"], nbytes)
    if flags & 8:
        said["references"], payload = references(payload)
    if flags & 2:
        metadata, payload = read(payload)
        said["metadata"] = metadata_of(metadata)
    return said | content(KINDS[kind], payload, many=bool(flags & 16), as_json=bool(flags & 4))


def references(payload: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The table of buffers, and the payload proper."""
    count, zero = struct.unpack_from("<II", payload)
    demand(zero == 0, "the second word of a table is 0")
    end = 8 + 32 * count
    table = []
    for number, generation, offset, nbytes in struct.iter_unpack("<QQQQ", payload[8:end]):
        table.append(block_number(number) | {"generation": generation, "offset": offset, "nbytes": nbytes})
    return table, payload[end:]


def metadata_of(metadata: Any) -> dict[str, Any]:
    demand(
        isinstance(metadata, dict) and all(isinstance(value, (str, bytes)) for value in metadata.values()),
        "metadata is a map of texts to texts or binaries",
    )
    said: dict[str, Any] = plain(metadata)
    return said


def content(kind: str, payload: bytes, *, many: bool, as_json: bool) -> dict[str, Any]:
    """What the payload proper says; that of a reply to a call with JSON is not known from the record alone."""
    match kind:
        case "REQUEST" if as_json:
            return {"json": payload.decode()}
        case "REQUEST":
            arguments = plain(read(payload))
            demand(isinstance(arguments, list), "arguments are an array")
            return {"arguments": arguments}
        case "REPLY":
            return {"result": plain(read(payload))}
        case "FAILURE":
            return {"failure": failure(read(payload))}
        case "ARGUMENTS" | "RESULTS" if many:
            demand(payload[:1] == b"\xdd", "many items begin with the long head")
            return {"items": plain(read(payload))}
        case "ARGUMENTS" | "RESULTS":
            return {"items": [plain(read(payload))]}
        case "ARGUMENT_CREDIT" | "RESULT_CREDIT":
            items, nbytes = read(payload)
            return {"credit": {"items": items, "bytes": nbytes}}
        case "INITIAL_METADATA":
            return {"metadata": metadata_of(read(payload))}
    demand(not payload, f"{kind} has no payload")
    return {}


def failure(fields: list[Any]) -> dict[str, Any]:
    """How a call failed."""
    code, text, name, packed, correlation_id, maybe_executed = (*fields, *("", b"", "", True)[len(fields) - 2 :])[:6]
    return {
        "code": code,
        "text": text,
        "class": name,
        "fields": plain(read(packed)) if packed else {},
        "correlation_id": correlation_id,
        "maybe_executed": maybe_executed,
    }
