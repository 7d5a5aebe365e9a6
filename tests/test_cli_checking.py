"""JSON that is checked against JSON Schema before it is sent: what is wrong, in words."""

import datetime
import math
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from shmrpc import Buffer, json_schema, schema
from shmrpc.cli import checking


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Pair(msgspec.Struct, forbid_unknown_fields=True):
    left: int
    right: "Pair | None" = None


class Cat(msgspec.Struct, tag=True):
    lives: int


class Dog(msgspec.Struct, tag=True):
    name: str


Three = Annotated[list[int], msgspec.Meta(min_length=1, max_length=3)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Above = Annotated[int, msgspec.Meta(gt=10, le=20)]


def why(type_: Any, value: object) -> str | None:
    return checking.why_value_unfit(value, json_schema.of_value(type_, schema.describe(type_)), "it")


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (int, 3),
        (int, 3.0),
        (float, 3),
        (float, 3.5),
        (bool, True),
        (str, ""),
        (None, None),
        (Any, [{"anything": None}]),
        (int | None, None),
        (int | str, "x"),
        (list[int], []),
        (Three, [1, 2, 3]),
        (tuple[int, str], [1, "x"]),
        (dict[str, list[int]], {"a": [1]}),
        (Colour, "red"),
        (Literal[1, "x", None], None),
        (Pair, {"left": 1, "right": {"left": 2}}),
        (Cat | Dog, {"type": "Dog", "name": "Rex"}),
        (Share, 0),
        (Above, 20),
        (bytes, "Ynl0ZXM="),
        (Buffer, "Ynl0ZXM="),
        (datetime.datetime, "2026-01-01T00:00:00"),
        (npt.NDArray[np.uint8], [[1, 2], [3, 4]]),
        (npt.NDArray[np.uint8], 3),
        (npt.NDArray[np.uint8] | None, None),
    ],
)
def test_what_fits_is_let_pass(type_: Any, value: object) -> None:
    assert why(type_, value) is None


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (int, "x", 'it takes int, got str "x"'),
        (int, 3.5, "it takes int, got float 3.5"),
        (int, True, "it takes int, got bool true"),
        (int, None, "it takes int, got null"),
        (float, "x", 'it takes float, got str "x"'),
        (bool, 1, "it takes bool, got int 1"),
        (str, ["x"], 'it takes str, got list ["x"]'),
        (str, {"a": 1}, 'it takes str, got object {"a": 1}'),
        (None, 1, "it takes null, got int 1"),
        (int | None, "x", 'it takes int or null, got str "x"'),
        (list[int], 1, "it takes list of int, got int 1"),
        (list[int], [1, "x"], 'it[1] takes int, got str "x"'),
        (list[int] | None, [1, "x"], 'it[1] takes int, got str "x"'),
        (list[list[int]], [[1], ["x"]], 'it[1][0] takes int, got str "x"'),
        (Three, [], "it takes at least 1 items, got 0"),
        (Three, [1, 2, 3, 4], "it takes at most 3 items, got 4"),
        (tuple[int, str], [1], "it takes exactly 2 items, got 1"),
        (tuple[int, str], [1, 2], "it[1] takes str, got int 2"),
        (dict[str, int], {"a": "x"}, "it['a'] takes int, got str \"x\""),
        (Colour, "green", 'it is one of "blue", "red", got "green"'),
        (Literal[1, "x"], True, 'it is one of 1, "x", got true'),
        (Pair, {}, "it (Pair) lacks 'left'; it has left, right"),
        (Pair, {"left": 1, "rigth": None}, "it (Pair) has no 'rigth'; it has left, right"),
        (Pair, {"left": 1, "right": {"left": "x"}}, 'it.right.left takes int, got str "x"'),
        (Pair, 3, "it takes Pair, got int 3"),
        (Cat | Dog, 3, "it takes Cat or Dog, got int 3"),
        (Share, 1, "it is less than 1, got 1"),
        (Share, -0.5, "it is at least 0, got -0.5"),
        (Above, 10, "it is more than 10, got 10"),
        (Above, 21, "it is at most 20, got 21"),
        (bytes, 3, "it takes bytes as base64, got int 3"),
        (npt.NDArray[np.uint8], "x", 'it takes NDArray[uint8] as nested lists, got str "x"'),
        (
            npt.NDArray[np.uint8] | bytes,
            3.5,
            "it takes NDArray[uint8] as nested lists or bytes as base64, got float 3.5",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_what_was_got_and_what_is_allowed(type_: Any, value: object, text: str) -> None:
    assert why(type_, value) == text


def test_a_long_value_is_cut() -> None:
    assert why(int, "x" * 1000) == f'it takes int, got str "{"x" * 58}…'


def test_arguments_are_checked_by_name() -> None:
    types: list[Any] = [int, list[str]]
    arguments = json_schema.of_arguments(["top", "names"], types, [schema.describe(t) for t in types], [1, ["x"]])
    assert checking.why_unfit({"top": 3, "names": []}, arguments) is None
    assert checking.why_unfit({"top": 3, "names": [4]}, arguments) == "parameter 'names'[0] takes str, got int 4"


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"type": "telepathy"},
        {"not": {"type": "integer"}},
        {"$ref": "#/$defs/Missing"},
        {"type": "integer", "minimum": -math.inf},
        {"type": ["integer", "telepathy"]},
    ],
)
def test_words_of_json_schema_that_are_not_known_are_left_to_the_server(described: dict[str, Any]) -> None:
    assert checking.why_value_unfit(3, described, "it") is None
