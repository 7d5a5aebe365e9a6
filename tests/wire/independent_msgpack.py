"""Msgpack, read and written from its own specification (https://github.com/msgpack/msgpack/blob/master/spec.md).

Nothing but `struct`: it shares no code with what it checks.
"""

import struct
from typing import Any, NamedTuple


class Extension(NamedTuple):
    """A value of a type that msgpack leaves to its users."""

    code: int
    body: bytes


class NotMsgpack(ValueError):
    """What was to be read is not one whole value."""


class Reader:
    """Reads values one after the other."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self.at = 0

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self._packed):
            raise NotMsgpack(f"{count} bytes are wanted at {self.at}, there are {len(self._packed) - self.at}")
        self.at += count
        return self._packed[self.at - count : self.at]

    def _number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self._take(struct.calcsize(f">{code}")))[0]

    def value(self) -> Any:
        """The next value."""
        first = self._number("B")
        if first <= 0x7F:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first <= 0x8F:
            return self._map(first & 0x0F)
        if first <= 0x9F:
            return self._array(first & 0x0F)
        if first <= 0xBF:
            return self._take(first & 0x1F).decode()
        return self._long(first)

    def _long(self, first: int) -> Any:
        match first:
            case 0xC0:
                return None
            case 0xC2 | 0xC3:
                return first == 0xC3
            case 0xC4 | 0xC5 | 0xC6:
                return self._take(self._number("BHI"[first - 0xC4]))
            case 0xC7 | 0xC8 | 0xC9:
                length = self._number("BHI"[first - 0xC7])
                return Extension(self._number("b"), self._take(length))
            case 0xCA | 0xCB:
                return self._number("fd"[first - 0xCA])
            case 0xCC | 0xCD | 0xCE | 0xCF | 0xD0 | 0xD1 | 0xD2 | 0xD3:
                return self._number("BHIQbhiq"[first - 0xCC])
            case 0xD4 | 0xD5 | 0xD6 | 0xD7 | 0xD8:
                return Extension(self._number("b"), self._take(1 << (first - 0xD4)))
            case 0xD9 | 0xDA | 0xDB:
                return self._take(self._number("BHI"[first - 0xD9])).decode()
            case 0xDC | 0xDD:
                return self._array(self._number("HI"[first - 0xDC]))
            case 0xDE | 0xDF:
                return self._map(self._number("HI"[first - 0xDE]))
        raise NotMsgpack(f"byte {first:#x} begins nothing")

    def _array(self, count: int) -> list[Any]:
        return [self.value() for _ in range(count)]

    def _map(self, count: int) -> dict[Any, Any]:
        return {self.value(): self.value() for _ in range(count)}


def read(packed: bytes) -> Any:
    """The one value that these bytes are."""
    reader = Reader(packed)
    value = reader.value()
    if reader.at != len(packed):
        raise NotMsgpack(f"{len(packed) - reader.at} bytes follow the value")
    return value


def write(value: Any) -> bytes:
    """A value in its shortest encoding."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return _write_int(value)
        case float():
            return struct.pack(">Bd", 0xCB, value)
        case str():
            return _head(len(value.encode()), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + value.encode()
        case bytes():
            return _head(len(value), None, (0xC4, 0xC5, 0xC6)) + value
        case list() | tuple():
            return _head(len(value), (0x90, 16), (None, 0xDC, 0xDD)) + b"".join(map(write, value))
        case dict():
            items = b"".join(write(key) + write(item) for key, item in value.items())
            return _head(len(value), (0x80, 16), (None, 0xDE, 0xDF)) + items
    raise TypeError(f"{value!r} has no place in msgpack")


def _write_int(value: int) -> bytes:
    if -32 <= value <= 127:
        return struct.pack(">b", value)
    codes = "BHIQ" if value >= 0 else "bhiq"
    first = 0xCC if value >= 0 else 0xD0
    for step, code in enumerate(codes):
        bits = 8 << step
        if (value < 1 << bits) if value >= 0 else (value >= -(1 << (bits - 1))):
            return struct.pack(f">B{code}", first + step, value)
    raise OverflowError(value)


def _head(length: int, short: tuple[int, int] | None, heads: tuple[int | None, int, int]) -> bytes:
    if short is not None and length < short[1]:
        return bytes((short[0] | length,))
    for head, code, limit in zip(heads, "BHI", (1 << 8, 1 << 16, 1 << 32), strict=True):
        if head is not None and length < limit:
            return struct.pack(f">B{code}", head, length)
    raise OverflowError(length)
