"""Records, envelopes and frames that are nearly right: valid ones, with changes that a seeded generator makes."""

import asyncio
import random
import struct
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
from life_waiting import PATIENCE
from raw_channel import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    CANCEL,
    END_OF_ARGUMENTS,
    FAILURE,
    GOAWAY,
    HAS_BUFFERS,
    HAS_METADATA,
    IN_BLOCK,
    INLINE,
    MANY,
    PEER_OWNED,
    REPLY,
    REQUEST,
    RESULT_CREDIT,
    RESULTS,
    Reference,
    many,
    table_of,
)

encode: Final = msgspec.msgpack.encode
AS_JSON: Final = 4
INITIAL_METADATA: Final = 11

TELLING_NUMBERS: Final = (
    *(0, 1, 2, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 1 << 15, (1 << 16) - 1, 1 << 16),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 42, (1 << 63) - 1, 1 << 63, (1 << 64) - 1024, (1 << 64) - 1),
)
TELLING_BYTES: Final = (
    *(b"\xc0", b"\xc1", b"\xc2", b"\xff", b"\x00", b"\x80", b"\x90", b"\xa0", b"\xa1\xff", b"\xc4\x00"),
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"),
    *(b"\xc9\xff\xff\xff\xff\x42", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00"),
    *(b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\x00" * 7, b"\xd6\xff\xff\xff\xff\xff", b"\xc7\x0c\xff" + b"\xff" * 12),
    *(b"\x91" * 1500, b"\x81\xa1a" * 1500, INLINE, b"\xd9\x02\xed\xa0", b"\xd9\x04\xf0\x9f\x98\x80"),
)
"""Nil, what msgpack never uses, sizes that nothing has, NaN, infinity, the ends of numbers, times, towers, broken UTF-8."""


async def soon(condition: Callable[[], bool], what: str) -> None:
    """As `until`, but looks in every turn of the event loop: for what happens in it, thousands of times."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + PATIENCE, f"waited in vain for {what}"
        await asyncio.sleep(0)


class Sent(NamedTuple):
    """One record on its way to be sent."""

    kind: int
    payload: bytes
    flags: int = 0
    method: int = 0
    deadline_ns: int = 0
    call: int = 0
    """The call that it is of: 0 the last one that began, or is to begin; else so many ahead of it."""


class Changes:
    """Makes inputs wrong. The same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self.random: Final = random.Random(seed)

    def number(self, bits: int = 64) -> int:
        """A telling number, or one beside it, or any at all."""
        limit = 1 << bits
        if self.random.random() < 0.2:
            return self.random.randrange(limit)
        return (self.random.choice(TELLING_NUMBERS) + self.random.choice((0, 0, 0, 1, -1))) % limit

    def bytes(self, valid: bytes, others: list[bytes] | None = None) -> bytes:
        """Bytes with one to four changes."""
        changed = bytearray(valid)
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 4))):
            self.random.choice((self._flip, self._set, self._put, self._cut, self._double, self._word))(changed)
        if others and self.random.random() < 0.1:
            other = self.random.choice(others)
            at = self.random.randrange(len(changed) + 1)
            changed[at:] = other[self.random.randrange(len(other) + 1) :]
        return bytes(changed)

    def _at(self, changed: bytearray) -> int:
        return self.random.randrange(len(changed) or 1)

    def _flip(self, changed: bytearray) -> None:
        if changed:
            changed[self._at(changed)] ^= 1 << self.random.randrange(8)

    def _set(self, changed: bytearray) -> None:
        if changed:
            changed[self._at(changed)] = self.random.randrange(256)

    def _put(self, changed: bytearray) -> None:
        at, telling = self._at(changed), self.random.choice(TELLING_BYTES)
        changed[at : at + self.random.choice((0, 1, len(telling)))] = telling

    def _cut(self, changed: bytearray) -> None:
        at = self._at(changed)
        del changed[at : self.random.choice((at + 1, at + 4, len(changed)))]

    def _double(self, changed: bytearray) -> None:
        at = self._at(changed)
        changed[at:at] = changed[at : at + self.random.choice((1, 4, 16))]

    def _word(self, changed: bytearray) -> None:
        """Numbers in fixed fields: the length of a table, the four words of a reference, the sizes of an array."""
        width, code = self.random.choice(((2, "<H"), (4, "<I"), (8, "<Q"), (4, ">I")))
        if len(changed) >= width:
            at = self.random.randrange(len(changed) - width + 1) & ~3
            changed[at : at + width] = struct.pack(code, self.number(8 * width))

    def record(self, valid: Sent) -> Sent:
        """A record with a change, in its payload most often."""
        what = self.random.random()
        if what < 0.6:
            return valid._replace(payload=self.bytes(valid.payload))
        if what < 0.7:
            return valid._replace(flags=valid.flags ^ 1 << self.random.randrange(8))
        if what < 0.75:
            return valid._replace(kind=self.random.choice((*range(1, 13), 127, 128, 255)))
        if what < 0.8:
            return valid._replace(method=self.random.choice((0, 1, 2, 5, 9, 14, 99, 65535)))
        if what < 0.85:
            return valid._replace(deadline_ns=self.number())
        if what < 0.9:
            return valid._replace(call=self.random.choice((-2, -1, 1, 2, 1000)))
        return self.record(valid._replace(payload=self.bytes(valid.payload)))


def extension(body: bytes) -> msgspec.msgpack.Ext:
    """What stands for a buffer."""
    return msgspec.msgpack.Ext(66, body)


def array_body(index: bytes, dtype: bytes, shape: tuple[int, ...], contents: bytes = b"", order: int = 1) -> bytes:
    """The body of the extension that stands for an array."""
    sizes = b"".join(size.to_bytes(8, "little") for size in shape)
    return index + bytes((order, len(shape))) + struct.pack("<H", len(dtype)) + dtype + sizes + contents


def inline_array(nbytes: int = 12) -> msgspec.msgpack.Ext:
    """A small array of bytes."""
    return extension(array_body(INLINE, b"|u1", (nbytes,), bytes(nbytes)))


def lent_array(nbytes: int, index: int = 0) -> msgspec.msgpack.Ext:
    """An array of bytes in a buffer of the message."""
    return extension(array_body(index.to_bytes(4, "little"), b"|u1", (nbytes,)))


def with_metadata(metadata: dict[str, Any], payload: bytes) -> bytes:
    """A payload that something is attached to."""
    return encode((msgspec.Raw(encode(metadata)), payload))


METADATA: Final[dict[str, Any]] = {"tenant": "a", "trace": b"\x00\x01", "empty": ""}
BIG: Final = 9000
"""Bytes of an array that does not travel inside of a payload."""


def conversations(methods: list[str]) -> list[list[Sent]]:
    """What a client says of one call of `fuzz_api.Fuzzed`, from its request on, as it should be."""
    number = {name: methods.index(name) for name in methods}

    def request(name: str, *arguments: object, flags: int = 0) -> Sent:
        return Sent(REQUEST, encode(arguments), flags, number[name])

    def lent(name: str, *arguments: object, blocks: int = 1) -> Sent:
        table = [(16 * block, 1000 + block, 0, BIG) for block in range(blocks)]
        return Sent(REQUEST, table_of(table, encode(arguments)), HAS_BUFFERS, number[name])

    reference = encode((4, 999, 20))
    buffer = extension(b"\0\0\0\0\0")
    end, cancel = Sent(END_OF_ARGUMENTS, b""), Sent(CANCEL, b"")
    lent_item = Sent(ARGUMENTS, table_of([(64, 2000, 0, BIG)], encode(lent_array(BIG))), HAS_BUFFERS)
    item, items = Sent(ARGUMENTS, encode(3)), Sent(ARGUMENTS, many(1, 2, 3), MANY)
    array_item = Sent(ARGUMENTS, encode(inline_array()))
    credit = Sent(RESULT_CREDIT, encode((0, 0)))
    return [
        [request("add", 1, 2)],
        [request("add", 1), cancel],
        [Sent(REQUEST, b"[1, 2]", AS_JSON, number["add"])],
        [Sent(REQUEST, with_metadata(METADATA, encode((1, 2))), HAS_METADATA, number["add"])],
        [Sent(REQUEST, reference, IN_BLOCK, number["add"])],
        [request("record", {"name": "a", "sizes": [1, 2], "parts": {"b": None}, "when": 1.5})],
        [request("texts", ["a", "b"], {"c": "d"})],
        [request("size_of_bytes", b"abc")],
        [lent("size_of_bytes", buffer)],
        [request("size_of_array", inline_array())],
        [lent("size_of_array", lent_array(BIG))],
        [request("sizes_of_arrays", [inline_array(), inline_array(3)])],
        [lent("sizes_of_arrays", [lent_array(BIG), lent_array(BIG, 1)], blocks=2)],
        [request("anything", {"a": [1, 2.5, None, inline_array()]})],
        [lent("anything", {"a": lent_array(BIG)})],
        [request("array", 20_000)],
        [request("any_value")],
        [request("forget", 7)],
        [request("count", 50), credit],
        [request("count", 50), cancel],
        [request("total"), item, items, end],
        [request("total"), items, item, item, item, end],
        [request("turn"), array_item, credit, lent_item, array_item, end],
        [request("turn"), lent_item, cancel],
    ]


def sent_back(references: list[Reference], method: int) -> Sent:
    """A request that gives memory back to who lent it: `size_of_bytes` of the first reference."""
    first = references[0]._replace(block=references[0].block | PEER_OWNED)
    return Sent(REQUEST, table_of([first], encode((extension(b"\0\0\0\0\0"),))), HAS_BUFFERS, method)


def answers() -> dict[str, list[Sent]]:
    """What a server may say to a call that is under way, by the method that was called."""
    failure = encode((9, "no", "", b"", "", True))
    declared = encode((9, "no", "Broken", encode({"size": 3, "names": ["a"]}), "", True))
    table = table_of([(16, 1000, 0, BIG)], encode(lent_array(BIG)))
    common = [
        Sent(FAILURE, failure),
        Sent(FAILURE, declared),
        Sent(FAILURE, with_metadata(METADATA, failure), HAS_METADATA),
        Sent(INITIAL_METADATA, encode(METADATA)),
        Sent(RESULT_CREDIT, encode((1, 1))),
        Sent(ARGUMENT_CREDIT, encode((1, 1))),
        Sent(GOAWAY, b""),
    ]
    own: dict[str, list[Sent]] = {
        "add": [
            Sent(REPLY, encode(3)),
            Sent(REPLY, with_metadata(METADATA, encode(3)), HAS_METADATA),
            Sent(REPLY, encode((4, 999, 1)), IN_BLOCK),
        ],
        "array": [Sent(REPLY, encode(inline_array())), Sent(REPLY, table, HAS_BUFFERS)],
        "any_value": [Sent(REPLY, encode({"a": [1, inline_array()]})), Sent(REPLY, table, HAS_BUFFERS)],
        "count": [
            Sent(RESULTS, encode(1)),
            Sent(RESULTS, many(1, 2, 3), MANY),
            Sent(REPLY, encode(None)),
        ],
        "turn": [
            Sent(RESULTS, encode(inline_array())),
            Sent(RESULTS, table, HAS_BUFFERS),
            Sent(REPLY, encode(None)),
        ],
    }
    return {name: sent + common for name, sent in own.items()}
