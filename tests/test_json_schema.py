"""JSON Schema of the types in a contract."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from shmrpc import Buffer, codec, json_schema, schema
from shmrpc.slots import NO_DEFAULT

BASE64 = {"type": "string", "contentEncoding": "base64"}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Tagged(msgspec.Struct, tag="picture"):
    """With a docstring."""

    pixels: npt.NDArray[np.uint8]
    about: list[npt.NDArray[np.float32] | None] = []


class Row(NamedTuple):
    number: int
    values: np.ndarray[tuple[int, Literal[3]], np.dtype[np.int16]]


class Node(msgspec.Struct):
    value: npt.NDArray[np.bool_]
    next: "Node | None" = None


@dataclass
class Plain:
    limit: Annotated[int, msgspec.Meta(ge=1)]


def of(type_: Any) -> dict[str, Any]:
    """The schema of a value, without the name of the dialect."""
    made = json_schema.of_value(type_, schema.describe(type_))
    assert made.pop("$schema") == json_schema.DIALECT
    return made


def array(
    title: str, kinds: str | list[str], dtypes: list[str] | None, sizes: list[int | None] | None
) -> dict[str, Any]:
    said = {"title": title, "description": "an array as nested lists", "type": kinds}
    return {**said, "x-dtypes": dtypes, "x-shape": sizes}


UINT8 = array("NDArray[uint8]", ["array", "integer"], ["uint8"], None)
FLOAT32 = array("NDArray[float32]", ["array", "number"], ["float32"], None)


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (int, {"type": "integer"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (datetime.date, {"type": "string", "format": "date"}),
        (bytes, BASE64),
        (memoryview, BASE64),
        (Buffer, BASE64),
        (Buffer | None, {"anyOf": [BASE64, {"type": "null"}]}),
    ],
)
def test_what_msgspec_describes_is_described_so(type_: Any, expected: dict[str, Any]) -> None:
    assert of(type_) == expected


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (npt.NDArray[np.uint8], UINT8),
        (npt.NDArray[np.float32], FLOAT32),
        (np.ndarray, array("NDArray[Any]", ["array", "boolean", "integer", "number", "string"], None, None)),
        (
            npt.NDArray[np.str_],
            array("NDArray[str_]", ["array", "boolean", "integer", "number", "string"], ["str_"], None),
        ),
        (
            np.ndarray[tuple[int, Literal[3]], np.dtype[np.int16]],
            array("NDArray[int16, (int, 3)]", "array", ["int16"], [None, 3]),
        ),
        (np.ndarray[tuple[()], np.dtype[np.bool_]], array("NDArray[bool, ()]", "boolean", ["bool"], [])),
    ],
)
def test_an_array_is_nested_lists_and_says_what_it_may_hold(type_: Any, expected: dict[str, Any]) -> None:
    assert of(type_) == expected


@pytest.mark.parametrize(
    ("type_", "path", "expected"),
    [
        (list[npt.NDArray[np.uint8]], ["items"], UINT8),
        (dict[str, npt.NDArray[np.uint8]], ["additionalProperties"], UINT8),
        (tuple[int, npt.NDArray[np.uint8]], ["prefixItems", 1], UINT8),
        (tuple[npt.NDArray[np.uint8], ...], ["items"], UINT8),
        (npt.NDArray[np.uint8] | None, ["anyOf", 0], UINT8),
        (list[npt.NDArray[np.uint8]] | None, ["anyOf", 0, "items"], UINT8),
        (npt.NDArray[np.uint8] | str, ["anyOf", 0], UINT8),
        (npt.NDArray[np.uint8] | str, ["anyOf", 1], {"type": "string"}),
        (npt.NDArray[np.uint8] | bytes, ["anyOf", 1], BASE64),
        (npt.NDArray[np.uint8] | bytes | None, ["anyOf", 2], {"type": "null"}),
        (Tagged, ["$defs", "Tagged", "properties", "pixels"], UINT8),
        (Tagged, ["$defs", "Tagged", "properties", "about", "items", "anyOf", 0], FLOAT32),
        (list[Tagged], ["$defs", "Tagged", "properties", "pixels"], UINT8),
        (Tagged | None, ["$defs", "Tagged", "properties", "pixels"], UINT8),
        (npt.NDArray[np.uint8] | Tagged, ["$defs", "Tagged", "properties", "pixels"], UINT8),
        (Row, ["$defs", "Row", "prefixItems", 1, "title"], "NDArray[int16, (int, 3)]"),
        (Node, ["$defs", "Node", "properties", "value", "title"], "NDArray[bool]"),
    ],
)
def test_an_array_inside_of_something_is_described_as_well(type_: Any, path: list[Any], expected: Any) -> None:
    found: Any = of(type_)
    for step in path:
        found = found[step]
    assert found == expected


def refs_in(described: Any) -> Iterator[str]:
    if isinstance(described, dict):
        yield from (value for key, value in described.items() if key == "$ref")
    for inner in (
        described.values() if isinstance(described, dict) else described if isinstance(described, list) else ()
    ):
        yield from refs_in(inner)


@pytest.mark.parametrize("type_", [Tagged, list[Node | None], npt.NDArray[np.uint8] | Tagged, dict[str, Plain], Colour])
def test_a_schema_is_complete_in_itself(type_: Any) -> None:
    described = of(type_)
    refs = set(refs_in(described))
    assert refs
    assert {ref.removeprefix("#/$defs/") for ref in refs} <= set(described["$defs"])


def test_docstrings_and_limits_are_kept() -> None:
    assert of(Tagged)["$defs"]["Tagged"]["description"] == "With a docstring."
    assert of(Plain)["$defs"]["Plain"]["properties"]["limit"] == {"type": "integer", "minimum": 1}


def test_arguments_are_an_object_by_name() -> None:
    types = [npt.NDArray[np.uint8], int, Colour, Plain]
    made = json_schema.of_arguments(
        ["image", "top", "colour", "plain"],
        types,
        [schema.describe(type_) for type_ in types],
        [NO_DEFAULT, 3, Colour.BLUE, Plain(1)],
    )
    assert made["type"] == "object"
    assert made["required"] == ["image"]
    assert made["additionalProperties"] is False
    assert made["properties"] == {
        "image": UINT8,
        "top": {"type": "integer", "default": 3},
        "colour": {"$ref": "#/$defs/Colour", "default": "blue"},
        "plain": {"$ref": "#/$defs/Plain", "default": {"limit": 1}},
    }
    assert set(made["$defs"]) == {"Colour", "Plain"}


def test_a_type_that_json_schema_has_no_words_for_takes_anything_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise TypeError("no words")

    monkeypatch.setattr(msgspec.json, "schema_components", refuse)
    assert of(list[int]) == {"description": "list[int]; it has no JSON Schema: no words"}


def test_a_default_that_cannot_be_shown_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(value: Any) -> bytes:
        raise ValueError("not as JSON")

    monkeypatch.setattr(codec, "encode_json", refuse)
    made = json_schema.of_arguments(["top"], [int], [["int"]], [3])
    assert made["properties"] == {"top": {"type": "integer"}}
    assert made["required"] == []
