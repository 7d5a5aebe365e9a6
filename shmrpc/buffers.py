"""Buffers: payloads that travel out of band, as a call's codec sees them.

Owns what packing gives to a transport (`Packed`, `Piece`), the msgpack extension that stands for a buffer in a payload,
and bytes-like objects. Knows nothing of shared memory, which is a transport's affair, nor of numpy: that is `arrays`.

The extension has the code `EXT_CODE`. Its body, little-endian: u32 index of the buffer among those of the message, or
`INLINE` when its bytes follow in the body itself; then what it is. Bytes: u8 0, and nothing else. An array: u8 1 (rows
first) or 2 (columns first, Fortran's order), u8 number of axes, u16 length of the element type, the element type (see
`dtypes`), one u64 for the size of each axis, and its bytes when they are inline.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec.msgpack import Ext
from typing_extensions import Buffer

__all__ = ["EXT_CODE", "INLINE", "INLINE_BYTES", "Buffer", "Ext", "Packed", "Piece"]

INLINE_BYTES: Final = 8000
"""A buffer up to this size travels inside of the payload, and so with it in a record: copying it costs less than a block."""

ANNOUNCED_BYTES: Final = 512 << 10
"""A copy of at least this size lasts long enough to be told of: 10 us and more, where telling costs both sides a few."""

NEAR_END_BYTES: Final = 1 << 20
"""What is left of a long copy when it is told of: it takes about as long as waking a process does."""

EXT_CODE: Final = 66

INLINE: Final = b"\xff\xff\xff\xff"
"""In place of an index: the bytes are in the extension's body."""

BYTES: Final = 0
ROWS_FIRST: Final = 1
COLUMNS_FIRST: Final = 2


class Piece(msgspec.Struct, eq=False):
    """One buffer on its way out. It keeps the object that was passed alive."""

    nbytes: int
    exporter: object | None
    """Gives the bytes by the buffer protocol, as one run in the order in which they travel. None: they lie scattered, and
    `copy_into` must gather them. One that is an array gives plain numbers, rows first: a memoryview of it can be cast."""
    source: Any = None
    """What to gather from, when there is no exporter."""

    def copy_into(self, target: memoryview, near_end: Callable[[], None] | None = None) -> None:
        """Copies the bytes, once, into a writable memoryview of format ``B`` that is as long as they are.

        Args:
            target: Where to.
            near_end: Called once when a copy of at least `ANNOUNCED_BYTES` has `NEAR_END_BYTES` left, or fewer. Not called
                where how far it is cannot be told.
        """
        memory: memoryview = self.source if self.exporter is None else memoryview(self.exporter)  # type: ignore[arg-type]
        if memory.c_contiguous and memory.format in _NATIVE:
            copy_run(target, memory.cast("B"), near_end)
        elif memory.ndim == 1 and memory.format in _NATIVE:
            target.cast(cast(Any, memory.format))[:] = memory
        else:
            target[:] = memory.tobytes()  # a second copy: memoryview has no better way for odd formats and several axes


def copy_run(target: Any, source: Any, near_end: Callable[[], None] | None) -> None:
    """Copies a run of bytes to another, both memoryviews or both arrays: see `Piece.copy_into`."""
    nbytes = len(source)
    if near_end is None or nbytes < ANNOUNCED_BYTES:
        target[:] = source
        return
    head = max(0, nbytes - NEAR_END_BYTES)
    if head:
        target[:head] = source[:head]
    near_end()
    target[head:] = source[head:]


class Packed(NamedTuple):
    """Encoded arguments, or an encoded result, and the buffers that do not travel inside of it."""

    payload: bytes
    """Msgpack, with an extension for each buffer."""
    pieces: Sequence[Piece]
    """Those that are not inline in the payload; an extension's index is the position here."""


_NO_PIECES: Final[Sequence[Piece]] = ()
_new: Final[Callable[..., Packed]] = tuple.__new__  # half the price of the class's own constructor


def packed(payload: bytes, pieces: Sequence[Piece] = _NO_PIECES) -> Packed:
    """A `Packed`, made quickly."""
    return _new(Packed, (payload, pieces))


_NATIVE: Final = dict(zip("bBhHiIlLqQfd?e", "iuiuiuiuiuffbf", strict=True))
"""Formats of the buffer protocol and struct that are plain numbers, and numpy's letter for their kind."""

_BYTES_HEADS: Final = [Ext(EXT_CODE, index.to_bytes(4, "little") + b"\x00") for index in range(16)]


def pack_bytes(value: Any, pieces: list[Piece]) -> Any:
    """What stands for a bytes-like value in the payload: itself when it is small, else an extension."""
    exporter: object | None = value
    if value.__class__ is memoryview:
        nbytes = value.nbytes
        if not value.c_contiguous:
            if nbytes <= INLINE_BYTES:
                return value.tobytes()
            exporter = None
    else:
        nbytes = len(value)
    if nbytes <= INLINE_BYTES:
        return value
    pieces.append(Piece(nbytes, exporter, value))
    return head_of_bytes(len(pieces) - 1)


def head_of_bytes(index: int) -> Ext:
    """The extension that stands for the bytes of one piece."""
    return _BYTES_HEADS[index] if index < 16 else Ext(EXT_CODE, index.to_bytes(4, "little") + b"\x00")


def dtype_of_format(format_: str, itemsize: int) -> str | None:
    """Numpy's text for the element type of a memoryview of plain numbers, or None for one that takes numpy to tell."""
    kind = _NATIVE.get(format_)
    return None if kind is None else f"{'|' if itemsize == 1 else _ORDER}{kind}{itemsize}"


_ORDER: Final = "<" if memoryview(b"\x01\x00").cast("H")[0] == 1 else ">"


def head_of_array(dtype: bytes, shape: Sequence[int], kind: int) -> bytes:
    """What an extension says of an array, without the index."""
    sizes = b"".join(size.to_bytes(8, "little") for size in shape)
    return bytes((kind, len(shape))) + len(dtype).to_bytes(2, "little") + dtype + sizes


def length_of_head(body: bytes) -> int:
    """Where in an extension's body inline bytes begin.

    Raises:
        ValueError: the body is shorter than what it announces.
    """
    length = 5
    if len(body) >= 8 and body[4] != BYTES:
        length = 8 + int.from_bytes(body[6:8], "little") + 8 * body[5]
    if len(body) < max(length, 5) or (body[4] != BYTES and length == 5):
        raise ValueError("a buffer's description is cut off")
    return length


def take(body: bytes, views: list[Any]) -> Any:
    """The bytes of the buffer that an extension stands for: one of the views, taken out of them, or a copy of those inline.

    Raises:
        ValueError: it stands for a buffer that the message does not have, or for one that was taken already.
    """
    if body[:4] == INLINE:
        return body[length_of_head(body) :]
    index = int.from_bytes(body[:4], "little")
    if index >= len(views) or (view := views[index]) is None:
        raise ValueError(f"buffer {index} of {len(views)} is not there, or was used twice")
    views[index] = None
    return view
