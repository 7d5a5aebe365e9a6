"""Arrays as buffers: every kind arrives equal and read-only, what does not fit is refused, and a peer may say anything."""

import re
import warnings
from typing import Any, Literal

import hypothesis.extra.numpy as npst
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from travelling import arrive

from shmrpc import arrays, buffers
from shmrpc.arrays import array_over, nbytes_of
from shmrpc.buffers import ANNOUNCED_BYTES, INLINE_BYTES, NEAR_END_BYTES, Ext, Piece
from shmrpc.slots import spec_of

big = np.arange(30_000, dtype=np.float64).reshape(100, 300)
colours = np.zeros(2000, [("name", "U5"), ("rgb", "u1", (3,)), ("at", [("x", "f4"), ("y", ">f8")])])
colours["rgb"][:, 1] = 7
colours["at"]["y"] = 2.5
padded = np.zeros((50, 40), np.dtype([("a", "i1"), ("b", "i8")], align=True))
padded["b"] = 3

KINDS: dict[str, Any] = {
    "rows first": big,
    "columns first": np.asfortranarray(big),
    "transposed": big.T,
    "every other": big[::2, ::3],
    "backwards": big[::-1, ::-1],
    "one column": big[:, 7],
    "broadcast": np.broadcast_to(np.arange(5000), (3, 5000)),
    "three axes, moved": np.moveaxis(np.arange(24_000).reshape(20, 30, 40), 0, 1),
    "no elements": np.zeros((3, 0, 4)),
    "no axes": np.array(3.5),
    "small": np.arange(5),
    "small, columns first": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "small, scattered": np.arange(20)[::3],
    "bool": big > 5,
    "complex": big * 1j,
    "half": big.astype(np.float16),
    "long double": big.astype(np.longdouble),
    "big-endian": big.astype(">f8"),
    "datetime": big.astype("M8[us]"),
    "timedelta": big.astype("m8[25s]"),
    "scattered datetime": big.astype("M8[D]")[::2],
    "datetime, columns first": np.asfortranarray(big.astype("M8[ns]")),
    "text": np.full((80, 40), "größe"),
    "big-endian text": np.full((80, 40), "größe").astype(">U9"),
    "bytes": np.full((80, 40), b"abc"),
    "raw": np.zeros(800, "V9"),
    "empty text": np.zeros(3, "U0"),
    "structured": colours,
    "scattered structured": colours[::2],
    "padded": padded,
    "padded, scattered": padded[:, ::2],
    "one field": colours["at"]["x"],
    "some fields": colours[["name", "at"]],
    "structured with a time": np.zeros(900, [("when", "M8[s]"), ("what", "u1")]),
    "overlapping fields": np.zeros(5000, {"names": ["w", "l"], "formats": ["<u4", "<u2"], "offsets": [0, 0]}),
    "subarrays over rows": np.zeros(200, [("m", "f8", (3, 3))]),
}


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays are equal in every respect but where they lie."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_any_kind_arrives_equal_and_read_only(kind: str) -> None:
    array = KINDS[kind]
    arrived = arrive(array, np.ndarray)
    assert type(arrived) is np.ndarray
    if "padded" in kind or "fields" in kind:  # what lies between the fields is nobody's
        assert (arrived.dtype, arrived.shape) == (array.dtype, array.shape)
        assert (arrived == array).all()
    else:
        assert same(arrived, array)
    assert not arrived.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        arrived.flags.writeable = True


@given(npst.arrays(npst.scalar_dtypes(), npst.array_shapes(min_dims=0, min_side=0, max_side=30)), st.data())
def test_whatever_array_and_part_of_it_arrives_equal(array: npt.NDArray[Any], data: st.DataObject) -> None:
    part = array[data.draw(npst.basic_indices(array.shape, allow_newaxis=True))]
    assume(isinstance(part, np.ndarray))
    part = np.asarray(part).transpose()
    assert same(arrive(part, np.ndarray), part)


def test_an_array_that_lies_columns_first_travels_as_it_lies() -> None:
    for array in (np.asfortranarray(big), np.asfortranarray(np.arange(6).reshape(2, 3))):
        arrived = arrive(array, np.ndarray)
        assert arrived.flags.f_contiguous
        assert not arrived.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "whole"),
    [
        (big, True),
        (big.T, True),
        (big[3:90], True),
        (big.astype("M8[s]"), True),
        (np.asfortranarray(big.astype("M8[s]")), True),
        (KINDS["structured with a time"], True),
        (KINDS["overlapping fields"], True),
        (big[::2], False),
        (KINDS["broadcast"], False),
    ],
)
def test_an_array_that_is_one_run_of_bytes_exports_them_itself(array: npt.NDArray[Any], whole: bool) -> None:
    pieces: list[Piece] = []
    arrays.anything().pack(array, pieces)
    (piece,) = pieces
    assert piece.nbytes == array.nbytes
    assert (piece.exporter is not None) == whole
    if whole:
        memory = memoryview(piece.exporter).cast("B")  # type: ignore[arg-type]
        assert memory.nbytes == array.nbytes
        assert np.shares_memory(np.asarray(memory), array)


MIB = NEAR_END_BYTES


def ones(nbytes: int, dtype: str = "u1") -> npt.NDArray[Any]:
    """An array without a byte that is zero."""
    return np.full(nbytes, 1, np.uint8).view(dtype)


@pytest.mark.parametrize(
    ("array", "copied_before"),
    [
        (ones(ANNOUNCED_BYTES - 1), None),
        (ones(ANNOUNCED_BYTES), 0),
        (ones(MIB, "f4").reshape(512, 512), 0),
        (ones(4 * MIB), 3 * MIB),
        (ones(8 * MIB, "u8").reshape(1024, 1024, order="F"), 7 * MIB),
        (ones(3 * MIB, "M8[s]"), 2 * MIB),
        (ones(2 * MIB).reshape(1024, 2048)[:, ::2], 0),
        (ones(4 * MIB).reshape(1024, 4096)[:, ::2], None),
    ],
)
def test_a_long_copy_of_an_array_says_once_when_its_end_is_near(
    array: npt.NDArray[Any], copied_before: int | None
) -> None:
    pieces: list[Piece] = []
    arrays.anything().pack(array, pieces)
    target = bytearray(array.nbytes)
    told: list[int] = []
    pieces[0].copy_into(memoryview(target), lambda: told.append(len(target.rstrip(b"\0"))))
    assert told == ([] if copied_before is None else [copied_before])
    assert target == array.tobytes("A")


def test_an_array_travels_inside_of_the_payload_up_to_the_limit() -> None:
    for size, count in ((INLINE_BYTES, 0), (INLINE_BYTES + 1, 1)):
        pieces: list[Piece] = []
        arrays.anything().pack(np.zeros(size, np.uint8), pieces)
        assert len(pieces) == count


def test_an_array_that_came_inline_is_aligned() -> None:
    assert arrive(np.arange(3, dtype=np.int16).astype(np.float64), np.ndarray).flags.aligned


def test_an_array_over_a_view_copies_nothing() -> None:
    spec = arrays.anything()
    ext = spec.pack(big, [])
    memory = bytearray(big.tobytes())
    array = spec.unpack(bytes(ext.data), [memoryview(memory).toreadonly()])
    memory[:8] = np.float64(99).tobytes()
    assert array[0, 0] == 99


class Metres(np.ndarray[Any, Any]):
    """A subclass, like that of a package for units."""


def test_arrays_of_subclasses_travel_as_arrays(tmp_path: Any) -> None:
    mapped = np.memmap(tmp_path / "numbers", dtype=np.int32, mode="w+", shape=(2000,))
    mapped[5] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix([[1, 2], [3, 4]])
    records = np.rec.array([(1, 2.0)] * 1000, dtype=[("a", "i4"), ("b", "f8")])
    for array in (mapped, matrix, records, big.view(Metres)):
        arrived = arrive(array, np.ndarray)
        assert type(arrived) is np.ndarray
        assert arrived.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.ma.masked_array([1, 2], [True, False]), "a masked array, whose mask would be lost; pass .filled()"),
        ([1, 2], "got a list, expected an array; numpy.asarray makes one"),
        (np.float64(1.5), "got a float64, expected an array"),
        (3, "got an int, expected an array"),
        ("abc", "got a str, expected an array"),
        (None, "got None, expected an array"),
        (np.zeros(2, object), "dtype object cannot travel"),
        (np.zeros(2, [("a", object)]), "dtype object cannot travel"),
        (np.array(["a"], np.dtypes.StringDType()), "StringDType"),
    ],
)
def test_what_is_no_array_that_can_travel_is_refused_with_the_remedy(value: Any, text: str) -> None:
    with pytest.raises(TypeError, match=re.escape(text)):
        arrays.anything().pack(value, [])


# Which arrays a contract takes

Ints = npt.NDArray[np.integer[Any]]
Rgb = np.ndarray[tuple[int, int, Literal[3]], np.dtype[np.uint8]]
Either = np.ndarray[tuple[Any, ...], np.dtype[np.uint8 | np.float32]]


@pytest.mark.parametrize(
    ("type_", "fitting", "misfits", "expected"),
    [
        (npt.NDArray[np.uint8], ["u1"], ["i1", "u2", "?"], "expected uint8"),
        (npt.NDArray[np.float64], ["<f8", ">f8"], ["f4"], "expected float64"),
        (npt.NDArray[np.longlong], ["i8"], ["u8"], "expected int64"),
        (Ints, ["u1", "i8", ">i2"], ["f8", "?", "c8"], "expected integer"),
        (npt.NDArray[np.floating[Any]], ["f2", "g"], ["i8", "c8"], "expected floating"),
        (npt.NDArray[np.datetime64], ["M8[ns]", "M8[D]"], ["m8[s]", "i8"], "expected datetime64"),
        (npt.NDArray[np.str_], ["U3"], ["S3"], "expected str_"),
        (npt.NDArray[np.void], ["V3", [("a", "i4")]], ["S3"], "expected void"),
        (Either, ["u1", "f4"], ["f8"], "expected uint8 or float32"),
        (npt.NDArray[Any], ["u1", "U3", [("a", "i4")]], [], ""),
        (npt.NDArray, ["u1", "M8[s]"], [], ""),
        (np.ndarray, ["u1", "M8[s]"], [], ""),
        (np.ndarray[Any, np.dtype], ["u1"], [], ""),
    ],
)
def test_the_dtype_is_checked(type_: Any, fitting: list[Any], misfits: list[Any], expected: str) -> None:
    spec = spec_of(type_)
    assert spec is not None
    for dtype in fitting:
        assert arrive(np.zeros(3, dtype), type_).dtype == np.dtype(dtype)
    for dtype in misfits:
        with pytest.raises(ValueError, match=rf"got .* of shape \(3,\), {expected}"):
            spec.pack(np.zeros(3, dtype), [])
        with pytest.raises(ValueError, match=rf"got .* of shape \(3,\), {expected}"):
            spec.unpack(bytes(arrays.anything().pack(np.zeros(3, dtype), []).data), [])


@pytest.mark.parametrize(
    ("type_", "shape", "fits"),
    [
        (Rgb, (4, 5, 3), True),
        (Rgb, (4, 5, 4), False),
        (Rgb, (4, 5), False),
        (np.ndarray[tuple[int, int], np.dtype[np.uint8]], (0, 9), True),
        (np.ndarray[tuple[int, int], np.dtype[np.uint8]], (9,), False),
        (np.ndarray[tuple[()], np.dtype[np.uint8]], (), True),
        (np.ndarray[tuple[()], np.dtype[np.uint8]], (1,), False),
        (np.ndarray[tuple[int, ...], np.dtype[np.uint8]], (1, 2, 3, 4), True),
    ],
)
def test_the_shape_is_checked_where_it_is_annotated(type_: Any, shape: tuple[int, ...], fits: bool) -> None:
    spec = spec_of(type_)
    assert spec is not None
    if fits:
        assert arrive(np.zeros(shape, np.uint8), type_).shape == shape
        return
    with pytest.raises(ValueError, match=r"got uint8 of shape \(.*\), expected uint8 of shape \("):
        spec.pack(np.zeros(shape, np.uint8), [])


def test_a_spec_says_what_it_takes() -> None:
    assert str(spec_of(Rgb)) == "uint8 of shape (any, any, 3)"
    assert repr(spec_of(npt.NDArray)) == "<ArraySpec any dtype>"
    assert spec_of(list[int]) is None


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (npt.NDArray[np.object_], "an array of Python objects cannot travel"),
        (np.ndarray[Any, np.dtype[int]], "is no element type"),  # type: ignore[type-var]
        (np.ndarray[tuple[Literal[1, 2]], np.dtype[np.uint8]], "is no size of an axis"),
        (np.ndarray[tuple[Literal[-1]], np.dtype[np.uint8]], "is no size of an axis"),
    ],
)
def test_an_annotation_of_which_no_array_could_travel_is_refused(type_: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        spec_of(type_)


def test_what_is_remembered_of_arrays_is_bounded() -> None:
    spec = arrays.ArraySpec([arrays.Alternative(None, None)])
    for size in range(600):
        ext = spec.pack(np.zeros(size, np.uint8), [])
        assert spec.unpack(bytes(ext.data), []).shape == (size,)
    assert max(len(spec._sent), len(spec._met)) <= 256


def test_lists_that_are_no_array_of_numbers_are_refused() -> None:
    assert arrays.anything().from_list([[1, 2]]).tolist() == [[1, 2]]
    with pytest.raises(TypeError, match="dtype object cannot travel"):
        arrays.anything().from_list([{"a": 1}])


# A hostile peer


def body(dtype: bytes, *sizes: int, kind: int = buffers.ROWS_FIRST, index: int = 0) -> bytes:
    return index.to_bytes(4, "little") + buffers.head_of_array(dtype, sizes, kind)


GOOD = body(b"<f8", 2, 3)


@pytest.mark.parametrize(
    ("said", "views", "text"),
    [
        (GOOD, [], "buffer 0 of 0 is not there"),
        (GOOD, [b"x" * 47], "got 47 bytes for float64 of shape"),
        (GOOD, [b"x" * 49], "got 49 bytes for float64 of shape"),
        (body(b"<f8", 2, 3, index=7), [b"x" * 48], "buffer 7 of 1 is not there"),
        (GOOD[:3], [b"x" * 48], "malformed"),
        (GOOD[:4], [b"x" * 48], "malformed"),
        (GOOD[:5], [b"x" * 48], "malformed"),
        (GOOD[:7], [b"x" * 48], "malformed"),
        (GOOD[:-1], [b"x" * 48], "the length"),
        (GOOD + b"x", [b"x" * 48], "the length"),
        (buffers.INLINE, [], "cut off"),
        (buffers.INLINE + GOOD[4:-1], [], "cut off"),
        (buffers.INLINE + GOOD[4:] + b"x" * 47, [], "got 47 bytes"),
        (buffers.INLINE + b"\x00", [], "expected an array, got bytes"),
        (body(b"<f8", 2, 3, kind=3), [b"x" * 48], "expected an array"),
        (body(b"|O8", 6), [b"x" * 48], "is no dtype"),
        (body(b"<f8", 1 << 61), [b""], "fits into no memory"),
        (body(b"<f8", (1 << 64) - 1), [b"x" * 48], "fits into no memory"),
        (body(b"<f8", 1 << 32, 1 << 32), [b""], "fits into no memory"),
        (body(b"<f8", 0, (1 << 64) - 1), [b""], "fits into no memory"),
        (body(b"<f8", 0, 1 << 62), [b""], "too big"),
        (body(b"|u1", *[1] * 65), [b"x"], "malformed"),
        (body(b"|V0", 1 << 40), [b"x"], "got 1 bytes"),
    ],
)
def test_a_description_that_a_peer_made_up_is_refused(said: bytes, views: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        arrays.anything().unpack(said, views)


@given(
    st.binary(max_size=60)
    | st.tuples(st.integers(0, 60), st.binary(max_size=4)).map(
        lambda cut: cut[1].join((GOOD[: cut[0]], GOOD[cut[0] :]))
    )
)
def test_whatever_a_peer_says_is_an_array_of_the_memory_that_is_there_or_an_error(said: bytes) -> None:
    try:
        array = arrays.anything().unpack(said, [b"x" * 48])
    except ValueError:
        return
    assert array.nbytes <= max(48, len(said))
    array.tobytes()


def test_a_buffer_can_be_used_once_only() -> None:
    views: list[Any] = [memoryview(big.tobytes())]
    ext = arrays.anything().pack(big, [])
    arrays.anything().unpack(bytes(ext.data), views)
    with pytest.raises(ValueError, match="buffer 0 of 1 is not there, or was used twice"):
        arrays.anything().unpack(bytes(ext.data), views)


def test_only_the_extension_of_the_first_buffer_is_shared() -> None:
    pieces: list[Piece] = []
    first, second = (arrays.anything().pack(big, pieces) for _ in range(2))
    assert isinstance(second, Ext)
    assert [bytes(ext.data)[:4] for ext in (first, second)] == [b"\0\0\0\0", b"\1\0\0\0"]


# Memory for arrays to be born in


def test_the_size_of_an_array_to_be() -> None:
    assert nbytes_of((2, 3), np.float32) == ((2, 3), np.dtype("f4"), 24)
    assert nbytes_of(5, "u2") == ((5,), np.dtype("u2"), 10)
    assert nbytes_of(np.int64(5), "u2") == ((5,), np.dtype("u2"), 10)
    assert nbytes_of([2, 0], bool) == ((2, 0), np.dtype(bool), 0)
    assert nbytes_of((), "M8[s]") == ((), np.dtype("M8[s]"), 8)
    assert nbytes_of(4, ("f4", (2,))) == ((4, 2), np.dtype("f4"), 32)


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [((2, -1), "u1", ValueError), ((1,) * 65, "u1", ValueError), (3, object, TypeError), (2.5, "u1", TypeError)],
)
def test_an_array_that_cannot_be_is_refused(shape: Any, dtype: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        nbytes_of(shape, dtype)


def test_an_array_over_memory_is_writable_and_takes_all_of_it() -> None:
    memory = bytearray(24)
    array = array_over(memory, (2, 3), np.dtype("f4"))
    array[:] = 1.5
    assert np.frombuffer(memory, "f4").tolist() == [1.5] * 6
    assert array_over(memory, (2, 3), np.dtype("f4"), "F").flags.f_contiguous
    with pytest.raises(TypeError, match="too small"):
        array_over(bytearray(23), (2, 3), np.dtype("f4"))
    assert array_over(bytearray(), (2, 0), np.dtype("f4")).shape == (2, 0)
