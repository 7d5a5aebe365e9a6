"""SingleArray: that the second array of a kind goes and arrives as the first did, and that nothing is taken for another."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from shmrpc.buffers import Packed
from shmrpc.codec import RowCodec, ValueCodec
from shmrpc.slots import NO_DEFAULT

Numbers = npt.NDArray[np.uint16]
LARGE, SMALL = 10_000, 100


def codec() -> RowCodec:
    return RowCodec([Numbers], [NO_DEFAULT], "row")


def views_of(packed: Packed) -> list[Any]:
    views = [bytearray(piece.nbytes) for piece in packed.pieces]
    for piece, view in zip(packed.pieces, views, strict=True):
        piece.copy_into(memoryview(view))
    return [bytes(view) for view in views]


SHAPES: list[Any] = [
    np.arange(LARGE, dtype=np.uint16),
    np.arange(SMALL, dtype=np.uint16),
    np.arange(LARGE, dtype=np.uint16).reshape(100, 100),
    np.asfortranarray(np.arange(LARGE, dtype=np.uint16).reshape(100, 100)),
    np.asfortranarray(np.arange(SMALL, dtype=np.uint16).reshape(10, 10)),
    np.arange(2 * LARGE, dtype=np.uint16)[::2],
    np.arange(2 * SMALL, dtype=np.uint16)[::2],
    np.zeros((0, 3), np.uint16),
    np.array(5, np.uint16),
    np.arange(LARGE, dtype=">u2"),
]


@pytest.mark.parametrize("array", SHAPES)
def test_the_second_one_goes_and_arrives_as_the_first(array: Any) -> None:
    row, value = codec(), ValueCodec(Numbers)
    for turn in range(3):
        sent = (
            np.asarray(array + turn, array.dtype) if turn != 1 else array
        )  # the strides of a copy, and those of the array
        for packed, unpack in ((row.pack((sent,)), lambda p, v: row.unpack(p, v)[0]), (value.pack(sent), value.unpack)):
            came = unpack(packed.payload, views_of(packed))
            assert (came.dtype, came.shape, came.flags.writeable) == (sent.dtype, sent.shape, False)
            assert came.flags.f_contiguous == sent.flags.f_contiguous or not sent.flags.forc
            assert came.flags.aligned
            np.testing.assert_array_equal(came, sent)


def test_what_is_described_is_what_would_be_packed() -> None:
    row = codec()
    array = np.arange(LARGE, dtype=np.uint16)
    assert row.describe((array,)) is None, "it was never met"
    packed = row.pack((array,))
    assert row.describe((array,)) == packed.payload == row.pack((array,)).payload
    assert row.describe((array.reshape(100, 100),)) is None
    assert row.describe((array.view(">u2"),)) is None


def test_only_what_is_one_piece_as_it_lies_is_described() -> None:
    row = codec()
    for array in (np.arange(SMALL, dtype=np.uint16), np.arange(2 * LARGE, dtype=np.uint16)[::2]):
        row.pack((array,))
        assert row.describe((array,)) is None
    assert row.describe(()) is None
    assert row.describe(([1, 2],)) is None


def test_an_array_that_changes_its_shape_is_met_anew() -> None:
    row = codec()
    array = np.arange(LARGE, dtype=np.uint16)
    flat = row.pack((array,)).payload
    array.resize((100, 100))
    assert row.describe((array,)) is None
    assert row.pack((array,)).payload != flat


def test_an_array_of_another_kind_is_refused_after_one_that_fits() -> None:
    row = codec()
    row.pack((np.arange(LARGE, dtype=np.uint16),))
    for wrong in (np.zeros(LARGE, np.uint32), np.ma.zeros(LARGE, np.uint16), "text"):
        with pytest.raises(ValueError, match=r"expected|masked"):
            row.pack((wrong,))


@pytest.mark.parametrize("nbytes", [0, 2 * LARGE - 1, 2 * LARGE + 1])
def test_a_view_of_another_length_is_refused_also_the_second_time(nbytes: int) -> None:
    row, value = codec(), ValueCodec(Numbers)
    for unpack, packed in (
        (row.unpack, row.pack((np.arange(LARGE, dtype=np.uint16),))),
        (value.unpack, value.pack(np.arange(LARGE, dtype=np.uint16))),
    ):
        unpack(packed.payload, [bytes(2 * LARGE)])
        with pytest.raises(ValueError, match=f"got {nbytes} bytes"):
            unpack(packed.payload, [bytes(nbytes)])


def test_views_that_are_missing_or_too_many_are_refused_also_the_second_time() -> None:
    row = codec()
    payload = row.pack((np.arange(LARGE, dtype=np.uint16),)).payload
    row.unpack(payload, [bytes(2 * LARGE)])
    with pytest.raises(ValueError, match="is not there"):
        row.unpack(payload, [])
    with pytest.raises(ValueError, match="hold fewer"):
        row.unpack(payload, [bytes(2 * LARGE)] * 2)


def test_bytes_after_or_before_the_inline_ones_are_not_taken_for_them() -> None:
    row = codec()
    payload = row.pack((np.arange(SMALL, dtype=np.uint16),)).payload
    row.unpack(payload, ())
    for wrong in (payload + b"\x00", payload[:-1], b"\x92" + payload[1:], bytes(len(payload))):
        with pytest.raises(ValueError, match=r".+"):
            row.unpack(wrong, ())


def test_a_memoryview_arrives_read_only_also_the_second_time() -> None:
    row = codec()
    packed = row.pack((np.arange(LARGE, dtype=np.uint16),))
    for _ in range(2):
        (came,) = row.unpack(packed.payload, [memoryview(bytearray(2 * LARGE)).toreadonly()])
        assert not came.flags.writeable


def test_layouts_are_forgotten_when_there_are_too_many() -> None:
    row = codec()
    for size in range(LARGE, LARGE + 300):
        packed = row.pack((np.zeros(size, np.uint16),))
        row.unpack(packed.payload, [bytes(2 * size)])
        inline = row.pack((np.zeros(size - LARGE + 1, np.uint16),))
        row.unpack(inline.payload, ())
    owner: Any = row.pack
    quick = owner.__self__
    assert max(len(quick._sent), len(quick._met), len(quick._inline)) <= 256
