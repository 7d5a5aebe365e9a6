"""Where in a type buffers may stand: annotations that msgspec cannot read are rewritten, and each place picks its values."""

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from travelling import arrive

from shmrpc import buffers, slots
from shmrpc.buffers import Buffer

T = TypeVar("T")

U8 = npt.NDArray[np.uint8]
F4 = npt.NDArray[np.float32]
Image = NewType("Image", np.ndarray)

pixels = np.arange(20_000, dtype=np.uint8)
floats = np.ones((50, 90), np.float32)
LARGE = b"x" * 20_000


class Frame(msgspec.Struct):
    image: U8
    mask: U8 | None = None
    tiles: list[F4] = []
    raw: Buffer = b""


class Tagged(msgspec.Struct, tag="tagged"):
    image: U8


class Other(msgspec.Struct, tag="other"):
    number: int


@dataclass
class Plain:
    image: U8
    label: str = ""


class Named(NamedTuple):
    image: U8
    label: str


class Typed(TypedDict):
    image: U8


class Box(msgspec.Struct, Generic[T]):
    content: T


class Row(msgspec.Struct, array_like=True):
    number: int
    image: U8


class Anything(msgspec.Struct):
    content: Any
    image: U8
    raw: Buffer = b""


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, whatever arrays and memory are in them."""
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (bytes, bytearray, memoryview)):
        return bytes(one) == bytes(other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if hasattr(one, "__annotations__"):
        return type(one) is type(other) and all(alike(getattr(one, n), getattr(other, n)) for n in one.__annotations__)
    return bool(one == other)


TRAVELLERS: list[tuple[Any, list[Any]]] = [
    (U8, [pixels, pixels[:3]]),
    (U8 | None, [pixels, None]),
    (Optional[U8], [pixels, None]),  # noqa: UP045
    (U8 | F4, [pixels, floats]),
    (U8 | F4 | None, [pixels, floats, None]),
    (U8 | bytes, [pixels, LARGE, b"abc"]),
    (U8 | list[int] | None, [pixels, [1, 2], None]),
    (U8 | list[U8], [pixels, [pixels, pixels[:3]], []]),
    (U8 | str | int, [pixels, "abc", 3]),
    (U8 | Other, [pixels, Other(3)]),
    (U8 | Tagged | Other, [pixels, Tagged(pixels), Other(3)]),
    (U8 | dict[str, U8 | bytes], [pixels, {"a": pixels, "b": b"abc"}]),
    (bytes | int | None, [LARGE, b"abc", 3, None]),
    (bytearray | None, [bytearray(LARGE), None]),
    (memoryview | float, [memoryview(LARGE), memoryview(b"abc"), 1.5]),
    (Buffer | None, [pixels, LARGE, b"abc", None]),
    (Buffer | int, [LARGE, b"abc", 3]),
    (list[U8], [[pixels, pixels[:3]], []]),
    (list[U8 | None], [[pixels, None]]),
    (list[U8 | bytes], [[pixels, b"abc", LARGE]]),
    (dict[str, U8 | F4], [{"a": pixels, "b": floats}]),
    (tuple[int, U8, F4 | str], [(3, pixels, floats), (3, pixels, "abc")]),
    (tuple[U8, ...], [(pixels, pixels[:3])]),
    (list[list[U8 | int]], [[[pixels, 3], []]]),
    (list[U8] | None, [[pixels], None]),
    (Annotated[U8, "an image"], [pixels]),
    (Annotated[U8 | None, "an image"], [pixels, None]),
    (list[Annotated[U8 | bytes, "an image"]], [[pixels, b"abc"]]),
    (Annotated[bytes, msgspec.Meta(max_length=30_000)], [LARGE, b"abc"]),
    (Image, [pixels]),
    (list[Image | int], [[pixels, 3]]),
    (Frame, [Frame(pixels, pixels[:3], [floats, floats[:2]], LARGE), Frame(pixels)]),
    (list[Frame] | None, [[Frame(pixels), Frame(pixels, pixels)]]),
    (Tagged | Other, [Tagged(pixels), Other(3)]),
    (Plain, [Plain(pixels, "a")]),
    (Named, [Named(pixels, "a")]),
    (Typed, [{"image": pixels}]),
    (Box[U8], [Box(pixels)]),
    (Box[list[U8]], [Box([pixels])]),
    (Row, [Row(3, pixels)]),
    (
        Anything,
        [Anything({"a": [pixels, 3, LARGE]}, pixels, LARGE), Anything(None, pixels, pixels), Anything(pixels, pixels)],  # type: ignore[arg-type]
    ),
    (Any, [pixels, LARGE, b"abc", [pixels, {"a": floats}], None, 3]),
    (list, [[pixels, 3]]),
    (dict, [{"a": pixels}]),
    (T, [pixels, 3]),
]


@pytest.mark.parametrize(("type_", "values"), TRAVELLERS, ids=[str(type_) for type_, _ in TRAVELLERS])
def test_buffers_travel_wherever_a_type_has_them(type_: Any, values: list[Any]) -> None:
    for value in values:
        arrived = arrive(value, type_)
        assert alike(
            arrived if type_ not in (Buffer | None,) or value is not pixels else np.frombuffer(arrived, "u1"), value
        )


def test_bytes_arrive_as_the_class_that_is_annotated() -> None:
    for kind in (bytes, bytearray, memoryview):
        for value in (LARGE, b"abc"):
            assert type(arrive(value, kind)) is kind
            assert type(arrive(value, kind | None)) is kind


def test_a_memoryview_that_arrives_is_over_the_view() -> None:
    slot = slots.whole_slot(memoryview)
    assert slot is not None
    pieces: list[Any] = []
    ext = slot.pack(LARGE, pieces)
    memory = bytearray(LARGE)
    arrived = slot.finish(ext, [memoryview(memory).toreadonly()])
    memory[0] = 7
    assert arrived[0] == 7
    assert arrived.readonly


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (U8, [1, 2], "got a list, expected an array"),
        (U8, None, "got None, expected an array"),
        (U8 | bytes, "abc", "got a str, expected an array"),
        (U8 | bytes, None, "got None, expected an array of uint8 or bytes"),
        (U8 | F4, pixels.astype("i8"), "got int64 of shape (20000,), expected uint8 or float32"),
        (U8 | list[int], floats, "got float32 of shape (50, 90), expected uint8"),
        (U8 | list[int], None, "got None, expected an array of uint8 or list"),
        (Buffer, "abc", "got str, expected an object with the buffer protocol"),
    ],
)
def test_a_whole_value_that_does_not_fit_is_refused_where_it_is_sent(type_: Any, value: Any, text: str) -> None:
    slot = slots.whole_slot(type_)
    assert slot is not None
    with pytest.raises((TypeError, ValueError)) as caught:
        slot.packer()(value, [])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("written", "value", "read", "text"),
    [
        (Any, None, U8, "Expected an array of uint8, got null"),
        (Any, [1], U8, "Expected an array of uint8, got list"),
        (bytes, b"abc", U8, "Expected an array of uint8, got bytes"),
        (bytes, LARGE, U8, "expected an array, got bytes"),
        (F4, floats, U8, "got float32 of shape (50, 90), expected uint8"),
        (F4, floats, bytes, "Expected bytes, got an array"),
        (Any, 3, bytes, "Expected bytes, got int"),
        (Any, None, memoryview, "Expected memoryview, got null"),
        (Any, "abc", Buffer, "Expected Buffer, got str"),
        (Any, "abc", U8 | int, "Expected `int`, got `str`"),
        (bytes, LARGE, Annotated[bytes, msgspec.Meta(max_length=10)], "Expected `bytes` of length <= 10"),
        (Any, [3], list[U8], "Expected an array of uint8, got int - at `$[0]`"),
        (Any, [floats], list[U8], "got float32 of shape (50, 90), expected uint8 - at `$[0]`"),
        (Any, [b"abc"], list[U8], "Expected an array of uint8, got bytes - at `$[0]`"),
        (Any, {"image": floats}, Frame, "got float32 of shape (50, 90), expected uint8 - at `$.image`"),
        (Any, {"image": floats, "content": 3}, Anything, "expected uint8 - at `$.image`"),
        (Any, {"image": pixels, "raw": 3}, Frame, "Expected Buffer, got int - at `$.raw`"),
        (Any, [floats, 3], list[int], "Expected `int`, got `ext`"),
        (U8, pixels, list[U8], "Expected `array`, got `ext`"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_where_it_arrives(written: Any, value: Any, read: Any, text: str) -> None:
    from travelling import views_of

    from shmrpc.codec import ValueCodec

    packed = ValueCodec(written).pack(value)
    with pytest.raises((TypeError, ValueError)) as caught:
        ValueCodec(read).unpack(packed.payload, views_of(packed))
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (U8 | str | bytes, "may not contain more than one str-like type"),
        (Buffer | bytes, "may not contain more than one bytes-like type"),
        (bytes | memoryview, "may not contain more than one"),
        (Buffer | str, "may not contain more than one str-like type"),
        (U8 | list[int] | list[str], "may not contain more than one array-like"),
        (npt.NDArray[np.object_] | None, "an array of Python objects cannot travel"),
    ],
)
def test_a_union_whose_members_cannot_be_told_apart_is_refused(type_: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        slots.whole_slot(type_)


def test_the_description_of_a_buffer_is_checked_even_where_only_its_bytes_count() -> None:
    slot = slots.whole_slot(Buffer)
    assert slot is not None
    head = buffers.head_of_array(b"|u1", (3,), buffers.ROWS_FIRST)
    assert slot.finish(buffers.Ext(buffers.EXT_CODE, b"\0\0\0\0" + head), [b"abc"]) == b"abc"
    for said in (head + b"x", head[:-1], b"\0x", b"\1", b""):
        with pytest.raises(ValueError, match=r"cut off|does not have the length"):
            slot.finish(buffers.Ext(buffers.EXT_CODE, b"\0\0\0\0" + said), [b"abc"])


def test_annotations_without_unions_of_buffers_are_left_as_they_are() -> None:
    for type_ in (
        int,
        U8,
        U8 | None,
        list[U8],
        dict[str, list[U8 | None]],
        Frame,
        bytes | int,
        Literal[1],
        tuple[()],
        T,
    ):
        assert slots.rewrite(type_) is type_


def test_a_slot_describes_itself() -> None:
    assert repr(slots.whole_slot(U8 | bytes | int | None)) == "<Slot an array of uint8 or bytes or int or None>"
    assert slots.slot_of(slots.stand_in(slots.Slot((U8, int), whole=False))) is not None
    assert slots.slot_of(int) is None
