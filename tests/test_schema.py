"""Descriptions of types, and the rule by which one type's values can be read as another: msgspec itself is the judge."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypedDict, TypeVar
from uuid import UUID

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrpc import schema
from shmrpc.buffers import Buffer

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class MoreColours(enum.Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Point(msgspec.Struct):
    x: int
    y: int = 0


class NamedPoint(msgspec.Struct):
    x: int
    y: int
    name: str


class ClosedPoint(msgspec.Struct, forbid_unknown_fields=True):
    x: int


class RealPoint(msgspec.Struct):
    x: float


class Row(msgspec.Struct, array_like=True):
    a: int
    b: str = ""


class WiderRow(msgspec.Struct, array_like=True):
    a: int
    b: str
    c: int


class ClosedRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    a: int


class Pair(NamedTuple):
    left: int
    right: int = 0


class Triple(NamedTuple):
    left: int
    right: int
    middle: int


class Cat(msgspec.Struct, tag=True):
    name: str


class Dog(msgspec.Struct, tag=True):
    name: str


class KindCat(msgspec.Struct, tag_field="kind", tag="Cat"):
    name: str


class KindDog(msgspec.Struct, tag_field="kind", tag="Dog"):
    name: str


class Tree(msgspec.Struct):
    name: str
    children: "list[Tree]" = []


class Link(msgspec.Struct):
    next: "Link | None" = None


class Box(msgspec.Struct, Generic[T]):
    content: T


U8 = npt.NDArray[np.uint8]
Rgb = np.ndarray[tuple[int, int, Literal[3]], np.dtype[np.uint8]]


class Frame(msgspec.Struct):
    image: U8
    mask: U8 | None = None


class WiderFrame(msgspec.Struct):
    image: npt.NDArray[np.integer[Any]]
    mask: np.ndarray | None = None


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str


class Settings(TypedDict, total=False):
    depth: int


@dataclass
class Person:
    name: str
    age: int = 0
    aliases: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (None, "None"),
        (bool, "bool"),
        (int, "int"),
        (float, "float"),
        (str, "str"),
        (bytes, "bytes"),
        (bytearray, "bytes"),
        (memoryview, "bytes"),
        (datetime, "datetime"),
        (date, "date"),
        (time, "time"),
        (timedelta, "timedelta"),
        (UUID, "UUID"),
        (Decimal, "Decimal"),
        (Any, "Any"),
        (list[int], "list[int]"),
        (list, "list[Any]"),
        (set[int], "list[int]"),
        (frozenset[str], "list[str]"),
        (tuple[int, ...], "list[int]"),
        (tuple[int, str], "tuple[int, str]"),
        (tuple[()], "tuple[()]"),
        (dict[str, list[bool]], "dict[str, list[bool]]"),
        (int | str | None, "int | str | None"),
        (Optional[bytes], "bytes | None"),  # noqa: UP045
        (Literal["b", "a"], "Literal['a', 'b']"),
        (Colour, "Colour"),
        (Point, "Point"),
        (Person, "Person"),
        (Settings, "Settings"),
        (Pair, "Pair"),
        (Tree, "Tree"),
        (Annotated[int, msgspec.Meta(ge=0)], "int"),
        (Cat | Dog, "Cat | Dog"),
    ],
)
def test_a_description_reads_like_the_annotation(type_: Any, text: str) -> None:
    assert schema.render(schema.describe(type_)) == text


def test_a_record_is_described_by_what_travels() -> None:
    assert schema.describe(Person) == [
        "object",
        "Person",
        None,
        [["name", ["str"], True], ["age", ["int"], False], ["aliases", ["list", ["str"]], False]],
        False,
    ]
    assert schema.describe(Row) == ["array", "Row", None, [["a", ["int"], True], ["b", ["str"], False]], False]
    assert schema.describe(Renamed) == ["object", "Renamed", None, [["firstName", ["str"], True]], False]
    assert schema.describe(KindCat) == ["object", "KindCat", ["kind", "Cat"], [["name", ["str"], True]], False]
    assert schema.describe(Box[Point])[3] == [["content", schema.describe(Point), True]]


def test_a_recursive_type_refers_to_itself() -> None:
    assert schema.describe(Tree)[3][1] == ["children", ["list", ["ref", "Tree"]], False]


def test_a_type_that_may_be_followed_by_itself_refers_to_itself() -> None:
    described = schema.describe(Link | None)
    assert described == [
        "union",
        ["object", "Link", None, [["next", ["union", ["ref", "Link"], ["None"]], False]], False],
        ["None"],
    ]


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        (object, "object"),
        (complex, "complex"),
        (Exception, "Exception"),
        (Callable[[], int], "Callable"),
        (msgspec.Raw, "Raw"),
        (msgspec.msgpack.Ext, "Ext"),
        (list[object], "object"),
        (dict[str, complex | None], "complex"),
        (str | bytes, "more than one str-like type"),
        (Point | Person, "more than one dict-like type"),
    ],
)
def test_a_type_that_cannot_travel_is_refused_by_name(type_: Any, name: str) -> None:
    with pytest.raises(schema.UnsupportedType, match=name):
        schema.describe(type_)


# What can be read as what. For each pair: the type as it is written, a value of it, and the type that reads it.

READABLE: list[tuple[Any, Any, Any]] = [
    (int, 1, int),
    (int, 1, float),
    (int, 1, int | str),
    (int | str, "x", str | int | None),
    (int, 1, Any),
    (int, 1, Annotated[int, msgspec.Meta(ge=0)]),
    (list[int], [1], list[float]),
    (list[int], [1], set[int]),
    (set[int], {1}, tuple[int, ...]),
    (tuple[int, ...], (1, 2), list[int]),
    (dict[str, int], {"a": 1}, dict[str, int | None]),
    (Colour, Colour.RED, MoreColours),
    (Colour, Colour.RED, str),
    (Colour, Colour.RED, str | None),
    (Colour | None, None, MoreColours | None),
    (Level, Level.LOW, int),
    (Level, Level.LOW, float),
    (Literal["a", 1, None], 1, Literal["a", "b", 1, None]),
    (Literal["a", 1, None], None, str | int | None),
    (Literal["red"], "red", Colour),
    (Point, Point(1, 2), Point),
    (NamedPoint, NamedPoint(1, 2, "p"), Point),
    (ClosedPoint, ClosedPoint(1), Point),
    (ClosedPoint, ClosedPoint(1), ClosedPoint),
    (ClosedPoint, ClosedPoint(1), RealPoint),
    (Person, Person("Ada"), Person),
    (Person, Person("Ada"), dict),
    (WiderRow, WiderRow(1, "b", 2), Row),
    (ClosedRow, ClosedRow(1), Row),
    (Pair, Pair(1, 2), Pair),
    (Cat, Cat("Tom"), Cat | Dog),
    (Cat | Dog, Dog("Rex"), Dog | Cat),
    (Tree, Tree("a", [Tree("b")]), Tree),
    (Box[int], Box(1), Box[float]),
    (Settings, {}, Settings),
    (bytes, b"x", bytearray),
]

ARRAYS_READABLE: list[tuple[Any, Any]] = [
    (U8, U8),
    (U8, npt.NDArray[np.integer[Any]]),
    (U8, npt.NDArray[np.number[Any]]),
    (U8, npt.NDArray[Any]),
    (U8, np.ndarray),
    (U8, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]),
    (np.ndarray, U8),
    (U8, U8 | None),
    (U8, U8 | bytes),
    (U8 | bytes, bytes | U8 | None),
    (U8, Any),
    (npt.NDArray[np.integer[Any]], npt.NDArray[np.number[Any]]),
    (npt.NDArray[np.floating[Any]], npt.NDArray[np.generic]),
    (npt.NDArray[np.timedelta64], npt.NDArray[np.signedinteger[Any]]),
    (npt.NDArray[np.str_], npt.NDArray[np.character]),
    (npt.NDArray[np.bool_], npt.NDArray[np.generic]),
    (npt.NDArray[np.datetime64], npt.NDArray[np.generic]),
    (Rgb, np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]),
    (Rgb, U8),
    (list[U8], list[np.ndarray]),
    (Frame, WiderFrame),
    (bytes, Buffer),
    (Buffer, Buffer | None),
]

ARRAYS_UNREADABLE: list[tuple[Any, Any, str]] = [
    (U8, npt.NDArray[np.int8], "it is sent as NDArray[uint8] and read as NDArray[int8]"),
    (U8, npt.NDArray[np.signedinteger[Any]], "it is sent as NDArray[uint8] and read as NDArray[signedinteger]"),
    (npt.NDArray[np.integer[Any]], U8, "it is sent as NDArray[integer] and read as NDArray[uint8]"),
    (npt.NDArray[np.generic], U8, "it is sent as NDArray[generic] and read as NDArray[uint8]"),
    (npt.NDArray[np.bool_], npt.NDArray[np.number[Any]], "it is sent as NDArray[bool] and read as NDArray[number]"),
    (npt.NDArray[np.datetime64], npt.NDArray[np.integer[Any]], "it is sent as NDArray[datetime64] and read as"),
    (U8 | None, U8, "it is sent as None and read as NDArray[uint8]"),
    (U8 | bytes, U8, "it is sent as bytes and read as NDArray[uint8]"),
    (U8, bytes, "it is sent as NDArray[uint8] and read as bytes"),
    (U8, list[int], "it is sent as NDArray[uint8] and read as list[int]"),
    (U8, Buffer, "it is sent as NDArray[uint8] and read as Buffer"),
    (Buffer, bytes, "it is sent as Buffer and read as bytes"),
    (
        np.ndarray[tuple[int, int], np.dtype[np.uint8]],
        np.ndarray[tuple[int], np.dtype[np.uint8]],
        "it is sent as NDArray[uint8, (int, int)] and read as NDArray[uint8, (int,)]",
    ),
    (
        np.ndarray[tuple[int, int, int], np.dtype[np.uint8]],
        Rgb,
        "it is sent as NDArray[uint8, (int, int, int)] and read as NDArray[uint8, (int, int, 3)]",
    ),
    (WiderFrame, Frame, "it.image is sent as NDArray[integer] and read as NDArray[uint8]"),
    (Box[U8], Box[npt.NDArray[np.int8]], "it.content is sent as NDArray[uint8] and read as NDArray[int8]"),
]

UNREADABLE: list[tuple[Any, Any, Any, str]] = [
    (str, "x", int, "it is sent as str and read as int"),
    (float, 1.5, int, "it is sent as float and read as int"),
    (int | str, "x", int, "it is sent as str and read as int"),
    (int | None, None, int, "it is sent as None and read as int"),
    (str, "x", int | None, "it is sent as str and read as int | None"),
    (list[str], ["x"], list[int], "an item of it is sent as str and read as int"),
    (dict[str, str], {"a": "x"}, dict[str, int], "an item of it is sent as str and read as int"),
    (tuple[int, int], (1, 2), tuple[int, int, int], "it is sent as tuple[int, int] and read as tuple[int, int, int]"),
    (MoreColours, MoreColours.BLUE, Colour, "it can be sent as 'blue', which Colour lacks"),
    (
        MoreColours | None,
        MoreColours.BLUE,
        Colour | None,
        "it is sent as Literal['blue'] and read as Colour | None",
    ),
    (Literal["a", 1], 1, str, "it is sent as int and read as str"),
    (str, "x", Colour, "it is sent as str and read as Colour"),
    (Point, Point(1), NamedPoint, "it (Point) is read with a field 'name' that the writer lacks"),
    (Point, Point(1), ClosedPoint, "it (Point) is sent with a field 'y', which the reader refuses"),
    (RealPoint, RealPoint(1.5), Point, "it.x is sent as float and read as int"),
    (Row, Row(1), ClosedRow, "it (Row) is sent with a field 'b', which the reader refuses"),
    (Row, Row(1), WiderRow, "it (Row) is read with a field 'c' that the writer lacks"),
    (Triple, Triple(1, 2, 3), Pair, "it (Triple) is sent with a field 'middle', which the reader refuses"),
    (Cat, Cat("Tom"), Dog, "it (Cat) is tagged ['type', 'Cat'] by the writer and ['type', 'Dog'] by the reader"),
    (Cat, Cat("Tom"), KindCat | KindDog, "it is sent as Cat and read as KindCat | KindDog"),
    (Point, Point(1), Row, "it is sent as Point and read as Row"),
    (bytes, b"x", str, "it is sent as bytes and read as str"),
    (list[Point], [Point(1)], list[NamedPoint], "an item of it (Point) is read with a field 'name'"),
    (Box[str], Box("x"), Box[int], "it.content is sent as str and read as int"),
]


@pytest.mark.parametrize(("written", "read"), ARRAYS_READABLE, ids=str)
def test_arrays_that_can_be_read_are_let_pass(written: Any, read: Any) -> None:
    assert schema.why_unreadable(schema.describe(written), schema.describe(read), "it") is None


@pytest.mark.parametrize(("written", "read", "text"), ARRAYS_UNREADABLE, ids=str)
def test_arrays_that_cannot_be_read_are_said_to_be_so(written: Any, read: Any, text: str) -> None:
    why = schema.why_unreadable(schema.describe(written), schema.describe(read), "it")
    assert why is not None
    assert why.startswith(text)


@pytest.mark.parametrize(
    ("type_", "description"),
    [
        (U8, ["ndarray", ["uint8"], None]),
        (np.ndarray, ["ndarray", None, None]),
        (Rgb, ["ndarray", ["uint8"], [None, None, 3]]),
        (npt.NDArray[np.longlong], ["ndarray", ["int64"], None]),
        (Buffer, ["buffer"]),
        (list[U8 | bytes], ["list", ["union", ["ndarray", ["uint8"], None], ["bytes"]]]),
        (
            U8 | list[U8] | None,
            ["union", ["ndarray", ["uint8"], None], ["list", ["ndarray", ["uint8"], None]], ["None"]],
        ),
        (list[U8] | None, ["union", ["list", ["ndarray", ["uint8"], None]], ["None"]]),
        (dict[str, U8], ["dict", ["str"], ["ndarray", ["uint8"], None]]),
        (tuple[int, U8], ["tuple", ["int"], ["ndarray", ["uint8"], None]]),
        (Annotated[U8, "an image"], ["ndarray", ["uint8"], None]),
    ],
)
def test_an_array_is_described_by_what_is_known_of_it(type_: Any, description: Any) -> None:
    assert schema.describe(type_) == description
    schema.check(description)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(description)) == description


def test_an_array_in_a_record_is_described_in_full() -> None:
    image = ["ndarray", ["uint8"], None]
    assert schema.describe(Frame)[3] == [["image", image, True], ["mask", ["union", image, ["None"]], False]]
    assert schema.describe(Box[U8])[3] == [["content", image, True]]
    assert schema.describe(Box[list[U8]])[3] == [["content", ["list", image], True]]


@pytest.mark.parametrize(
    "description",
    [
        ["ndarray"],
        ["ndarray", ["uint8"]],
        ["ndarray", ["uint8"], None, 3],
        ["ndarray", "uint8", None],
        ["ndarray", [], None],
        ["ndarray", [3], None],
        ["ndarray", ["x"] * 1000, None],
        ["ndarray", None, 3],
        ["ndarray", None, [-1]],
        ["ndarray", None, [True]],
        ["ndarray", None, [1.5]],
        ["ndarray", None, [1] * 65],
    ],
)
def test_a_malformed_description_of_an_array_is_refused(description: Any) -> None:
    with pytest.raises(ValueError, match="does not describe a type"):
        schema.check(description)


def reads(value: Any, type_: Any) -> bool:
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type_)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize(("written", "value", "read"), READABLE)
def test_what_can_be_read_is_let_pass(written: Any, value: Any, read: Any) -> None:
    assert reads(value, read), "msgspec is the judge, and cannot read this"
    assert schema.why_unreadable(schema.describe(written), schema.describe(read), "it") is None


@pytest.mark.parametrize(("written", "value", "read", "text"), UNREADABLE)
def test_what_cannot_be_read_is_said_to_be_so(written: Any, value: Any, read: Any, text: str) -> None:
    assert not reads(value, read), "msgspec is the judge, and can read this"
    why = schema.why_unreadable(schema.describe(written), schema.describe(read), "it")
    assert why is not None
    assert why.startswith(text)


def test_an_unknown_kind_of_a_newer_peer_differs_from_everything_but_itself() -> None:
    new = ["tensor", "float32", [2, 3]]
    schema.check(new)
    assert schema.why_unreadable(new, new, "it") is None
    assert schema.why_unreadable(new, ["int"], "it") == "it is sent as tensor and read as int"
    assert schema.why_unreadable(["int"], new, "it") == "it is sent as int and read as tensor"


# Streams, which a signature describes


STREAM = ["stream", ["int"]]


def test_a_stream_is_rendered_as_an_annotation() -> None:
    assert schema.render(STREAM) == "AsyncIterator[int]"
    assert schema.render(["stream", ["list", ["any"]]]) == "AsyncIterator[list[Any]]"


def test_a_stream_can_be_read_as_a_stream_whose_items_can_be_read() -> None:
    assert schema.why_unreadable(STREAM, STREAM, "it") is None
    assert schema.why_unreadable(STREAM, ["stream", ["float"]], "it") is None
    assert schema.why_unreadable(STREAM, ["stream", ["any"]], "it") is None
    assert schema.why_unreadable(["stream", ["any"]], STREAM, "it") is None
    why = schema.why_unreadable(["stream", ["str"]], STREAM, "it")
    assert why == "an item of it is sent as str and read as int"


@pytest.mark.parametrize(
    "other",
    [
        ["any"],
        ["ref", "Name"],
        ["int"],
        ["list", ["int"]],
        ["union", ["int"], ["str"]],
        ["literal", "", [1]],
        ["tensor", 3],
    ],
)
def test_a_stream_is_nothing_else_and_nothing_else_is_a_stream(other: Any) -> None:
    text = schema.render(other)
    assert schema.why_unreadable(STREAM, other, "it") == f"it is sent as AsyncIterator[int] and read as {text}"
    assert schema.why_unreadable(other, STREAM, "it") == f"it is sent as {text} and read as AsyncIterator[int]"


@pytest.mark.parametrize("description", [["stream"], ["stream", "int"], ["stream", ["int"], ["int"]], ["stream", []]])
def test_a_malformed_description_of_a_stream_is_refused(description: Any) -> None:
    with pytest.raises(ValueError, match="does not describe"):
        schema.check(description)


def test_a_description_of_a_stream_passes_the_check() -> None:
    schema.check(STREAM)


# Descriptions that come from a peer


@pytest.mark.parametrize("type_", [case[0] for case in READABLE])
def test_a_description_of_ones_own_passes_the_check_also_after_it_has_travelled(type_: Any) -> None:
    description = schema.describe(type_)
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(description))
    assert travelled == description
    schema.check(travelled)


MALFORMED: list[Any] = [
    None,
    "int",
    [],
    [1],
    [[]],
    {"int": 1},
    ["list"],
    ["list", ["int"], ["int"]],
    ["list", "int"],
    ["dict", ["str"]],
    ["union"],
    ["union", ["int"], []],
    ["tuple", []],
    ["literal", "Name"],
    ["literal", "Name", []],
    ["literal", "Name", [[]]],
    ["literal", 1, ["a"]],
    ["ref"],
    ["object", "Name", None, []],
    ["object", "Name", None, "fields", False],
    ["object", "Name", None, [["a", ["int"]]], False],
    ["object", "Name", None, [[1, ["int"], True]], False],
    ["object", "Name", None, [["a", ["list"], True]], False],
    ["array", 1, None, [], False],
]


@pytest.mark.parametrize("description", MALFORMED)
def test_a_malformed_description_is_refused(description: Any) -> None:
    with pytest.raises(ValueError, match="does not describe"):
        schema.check(description)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["int", "list", "dict", "tuple", "union"])
    | st.sampled_from(["object", "array", "literal", "ref", "any", "name"]),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(json_like, st.sampled_from([case[0] for case in READABLE]))
def test_a_description_that_passes_the_check_can_be_rendered_and_compared(description: Any, type_: Any) -> None:
    try:
        schema.check(description)
    except ValueError:
        return
    own = schema.describe(type_)
    assert isinstance(schema.render(description), str)
    for written, read in ((description, own), (own, description), (description, description)):
        why = schema.why_unreadable(written, read, "it")
        assert why is None or why.startswith(("it", "an item of"))
