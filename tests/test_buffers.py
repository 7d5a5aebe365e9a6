"""Buffers on their way: what is taken out of a payload, and how its bytes are copied."""

import array
import ctypes
from typing import Any

import pytest

from shmrpc import buffers
from shmrpc.buffers import ANNOUNCED_BYTES, INLINE_BYTES, NEAR_END_BYTES, Ext, Packed, Piece, pack_bytes, take

LARGE = bytes(range(256)) * 100


def copied(piece: Piece) -> bytes:
    target = bytearray(b"\xee" * piece.nbytes)
    piece.copy_into(memoryview(target))
    return bytes(target)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_beyond_the_limit_are_taken_out_of_the_payload(kind: Any) -> None:
    for size, count in ((0, 0), (INLINE_BYTES, 0), (INLINE_BYTES + 1, 1)):
        value = kind(LARGE[:size])
        pieces: list[Piece] = []
        stands = pack_bytes(value, pieces)
        assert len(pieces) == count
        if count:
            assert isinstance(stands, Ext)
            assert pieces[0].exporter is value
            assert copied(pieces[0]) == LARGE[:size]
        else:
            assert stands is value


@pytest.mark.parametrize(
    ("memory", "whole"),
    [
        (memoryview(LARGE)[::2], False),
        (memoryview(LARGE)[::-1], False),
        (memoryview(array.array("d", range(3000))), True),
        (memoryview(array.array("i", range(9000)))[::3], False),
        (memoryview(LARGE).cast("B", (100, 256)), True),
        (memoryview((ctypes.c_int * 3000)(*range(3000))), True),
        (memoryview((ctypes.c_int * 9000)(*range(9000)))[::3], False),
    ],
)
def test_the_bytes_of_a_memoryview_of_any_shape_and_format_are_copied(memory: memoryview, whole: bool) -> None:
    pieces: list[Piece] = []
    pack_bytes(memory, pieces)
    (piece,) = pieces
    assert piece.nbytes == memory.nbytes
    assert (piece.exporter is not None) == whole
    assert copied(piece) == memory.tobytes()


@pytest.mark.parametrize(
    ("nbytes", "copied_before"),
    [
        (ANNOUNCED_BYTES - 1, None),
        (ANNOUNCED_BYTES, 0),
        (NEAR_END_BYTES, 0),
        (NEAR_END_BYTES + 1, 1),
        (5 * NEAR_END_BYTES + 9, 4 * NEAR_END_BYTES + 9),
    ],
)
def test_a_long_copy_says_once_when_its_end_is_near(nbytes: int, copied_before: int | None) -> None:
    contents = bytes(range(1, 256)) * (nbytes // 255 + 1)
    target = bytearray(nbytes)
    told: list[int] = []
    Piece(nbytes, contents[:nbytes]).copy_into(memoryview(target), lambda: told.append(nbytes - target.count(0)))
    assert told == ([] if copied_before is None else [copied_before])
    assert target == contents[:nbytes]


def test_what_must_be_gathered_says_nothing_of_its_end() -> None:
    memory = memoryview(bytes(4 * NEAR_END_BYTES))[::2]
    target = bytearray(memory.nbytes)
    Piece(memory.nbytes, None, memory).copy_into(memoryview(target), lambda: pytest.fail("it takes any time"))


def test_a_small_memoryview_with_gaps_is_closed_up() -> None:
    assert pack_bytes(memoryview(b"abcdef")[::2], []) == b"ace"


def test_each_extension_says_which_buffer_it_stands_for() -> None:
    pieces: list[Piece] = []
    exts = [pack_bytes(LARGE, pieces) for _ in range(40)]
    assert [bytes(ext.data) for ext in exts] == [index.to_bytes(4, "little") + b"\x00" for index in range(40)]
    assert {ext.code for ext in exts} == {buffers.EXT_CODE}


def test_a_buffer_is_taken_once() -> None:
    views: list[Any] = [b"first", b"second"]
    assert take(b"\1\0\0\0\0", views) == b"second"
    for index in (1, 2, 0xFFFFFFFE):
        with pytest.raises(ValueError, match=f"buffer {index} of 2 is not there, or was used twice"):
            take(index.to_bytes(4, "little") + b"\0", views)
    assert views == [b"first", None]


def test_inline_bytes_follow_the_description() -> None:
    assert take(buffers.INLINE + b"\0abc", []) == b"abc"
    head = buffers.head_of_array(b"|u1", (3,), buffers.ROWS_FIRST)
    assert take(buffers.INLINE + head + b"abc", []) == b"abc"
    for cut in range(len(head)):
        with pytest.raises(ValueError, match="cut off"):
            take(buffers.INLINE + head[:cut], [])


@pytest.mark.parametrize(
    ("format_", "itemsize", "dtype"),
    [
        ("B", 1, "|u1"),
        ("b", 1, "|i1"),
        ("?", 1, "|b1"),
        ("d", 8, "<f8"),
        ("l", 8, "<i8"),
        ("<i", 4, None),
        ("c", 1, None),
    ],
)
def test_the_element_types_of_plain_numbers_are_known_without_numpy(
    format_: str, itemsize: int, dtype: str | None
) -> None:
    assert buffers.dtype_of_format(format_, itemsize) == dtype


def test_what_was_packed_can_be_taken_apart() -> None:
    payload, pieces = buffers.packed(b"payload")
    assert (payload, list(pieces)) == (b"payload", [])
    assert isinstance(buffers.packed(b""), Packed)
