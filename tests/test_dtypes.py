"""Element types on the wire: every one that can travel comes back equal, and a peer's nonsense is refused."""

from typing import Any

import hypothesis.extra.numpy as npst
import msgspec
import numpy as np
import pytest
from hypothesis import assume, given

from shmrpc import dtypes

PLAIN = [
    *("?", "i1", "u8", ">i4", "<u2", "f2", ">f8", "g", "c8", ">c16", "S5", "S0", "U7", ">U2", "V3", "V0"),
    *("M8", "M8[ns]", ">M8[25s]", "m8[D]", "<m8[as]"),
]

STRUCTURED: list[Any] = [
    [("a", "<i4"), ("b", ">f8")],
    [("point", [("x", "f4"), ("y", "f4")]), ("name", "U3")],
    [("matrix", "f8", (2, 3)), ("rows", [("r", "u1")], (4,))],
    {"names": ["b", "a"], "formats": ["u1", "<i8"], "offsets": [16, 4], "itemsize": 40},
    {"names": ["whole", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0], "itemsize": 4},
    [("when", "M8[us]"), ("what", "S1")],
    [],
]


@pytest.mark.parametrize("dtype", [*PLAIN, *STRUCTURED], ids=str)
def test_a_dtype_comes_back_equal(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    again = dtypes.read(dtypes.write(dtype))
    assert again == dtype
    assert again.itemsize == dtype.itemsize
    assert again.fields == dtype.fields


def test_an_aligned_dtype_keeps_its_padding() -> None:
    dtype = np.dtype([("a", "i1"), ("b", "i8")], align=True)
    assert dtypes.read(dtypes.write(dtype)).itemsize == 16


def has_titles(dtype: np.dtype[Any]) -> bool:
    base = dtype.base
    return any(len(field) > 2 or has_titles(field[0]) for field in (base.fields or {}).values())


@given(npst.scalar_dtypes() | npst.nested_dtypes(max_itemsize=400))
def test_whatever_dtype_numpy_makes_comes_back_equal(dtype: np.dtype[Any]) -> None:
    assume(dtype.subdtype is None and not has_titles(dtype))  # an array is no element; titles do not travel
    assert dtypes.read(dtypes.write(dtype)) == dtype


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (object, "dtype object cannot travel: its elements are Python objects"),
        ([("a", "i4"), ("b", object)], "dtype object cannot travel"),
        ([("a", [("b", "O", (2,))])], "dtype object cannot travel"),
        (np.dtypes.StringDType(), r"StringDType.* use \.astype\('U'\)"),
        ([(("title", "a"), "i4")], "field 'a' of its dtype has a title"),
        ([(f"{'long' * 50}{i}", "i4") for i in range(400)], "its dtype takes .* bytes to describe, the limit is 65535"),
    ],
)
def test_a_dtype_that_cannot_travel_is_refused_with_the_reason(dtype: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        dtypes.write(np.dtype(dtype))


def test_the_dtype_of_another_package_is_refused_although_it_says_that_it_is_void() -> None:
    rational_tests = pytest.importorskip("numpy._core._rational_tests")
    with pytest.raises(TypeError, match="it is not one of numpy's own"):
        dtypes.write(np.dtype(rational_tests.rational))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ([8, [["a", "<f8", 1]]], "field 'a' lies outside of the 8 bytes of its dtype"),
        ([8, [["a", "<f8", -1]]], "field 'a' lies outside of the 8 bytes of its dtype"),
        ([[1 << 20, 1 << 20], "|u1"], r"a field of shape \(1048576, 1048576\) is too large"),
    ],
)
def test_the_extent_of_a_field_is_checked_before_numpy_sees_it(said: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dtypes.read(msgspec.msgpack.encode(said))


def nested(depth: int) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype("i1")
    for _ in range(depth):
        dtype = np.dtype([("a", dtype)])
    return dtype


def test_the_depth_of_a_dtype_is_limited_on_both_sides() -> None:
    deepest = nested(dtypes.MAX_DEPTH)
    assert dtypes.read(dtypes.write(deepest)) == deepest
    with pytest.raises(TypeError, match="nested deeper than 16"):
        dtypes.write(nested(dtypes.MAX_DEPTH + 1))
    said: Any = "|i1"
    for _ in range(dtypes.MAX_DEPTH + 1):
        said = [1, [["a", said, 0]]]
    with pytest.raises(ValueError, match="nested deeper than 16"):
        dtypes.read(msgspec.msgpack.encode(said))


HOSTILE: list[Any] = [
    *(
        b"",
        b"<",
        b"O",
        b"|O",
        b"|O8",
        b"<f7",
        b"<i3",
        b"<f8 ",
        b"<f8,<f8",
        b"<T16",
        b"<M8[parsec]",
        b"\xff",
        b"<U99999999999",
    ),
    *("|O", "(2,)<f8", "object", "<f8\x00", 3, None, {}, [], [8], ["|O"], [["|O"]]),
    *([8, [["a", "<f8", 1]]], [8, [["a", "<f8", -1]]], [7, [["a", "<f8", 0]]], [-1, []], [1 << 31, []], [True, [3]]),
    *([8, [["a", "|O", 0]]], [8, [["a", "<i4", 0], ["a", "<i4", 4]]], [8, [["a", "<f8"]]], [8, [[3, "<f8", 0]]]),
    *(
        [[-1], "<f8"],
        [[1 << 31], "|u1"],
        [[1 << 20, 1 << 20], "|u1"],
        [[1.5], "<f8"],
        [[True], "<f8"],
        [[1] * 65, "|u1"],
    ),
]


@pytest.mark.parametrize("said", HOSTILE, ids=repr)
def test_what_a_peer_may_not_say_is_a_value_error(said: Any) -> None:
    with pytest.raises(ValueError):
        dtypes.read(said if isinstance(said, bytes) else msgspec.msgpack.encode(said))
