"""Checks JSON against a method's JSON Schema before it is sent, to say what is wrong in words.

Only what people get wrong: types, missing fields, allowed values and limits. What passes here the server still checks, in
full, so that a word of JSON Schema that is not known here does no harm.
"""

import json
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Final

from shmrpc.json_schema import JsonSchema

_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}
_NAMES: Final = {
    "null": "null",
    "boolean": "bool",
    "integer": "int",
    "number": "float",
    "string": "str",
    "array": "list",
    "object": "object",
}
_LIMITS: Final = {
    "minimum": (operator.ge, "at least"),
    "maximum": (operator.le, "at most"),
    "exclusiveMinimum": (operator.gt, "more than"),
    "exclusiveMaximum": (operator.lt, "less than"),
}
_SHOWN: Final = 60
"""Characters of a value that an error shows."""


def why_unfit(values: Mapping[str, Any], arguments: JsonSchema) -> str | None:
    """What is wrong with arguments by name, or None. That all are there and none is unknown is not looked at."""
    checker = _Checker(arguments.get("$defs", {}))
    for name, value in values.items():
        for why in checker.faults(value, arguments["properties"].get(name, {}), f"parameter {name!r}"):
            return why
    return None


def why_value_unfit(value: Any, described: JsonSchema, where: str) -> str | None:
    """What is wrong with one value, or None. `where` names it."""
    return next(_Checker(described.get("$defs", {})).faults(value, described, where), None)


class _Checker:
    def __init__(self, definitions: JsonSchema) -> None:
        self._definitions = definitions

    def _resolve(self, described: JsonSchema) -> JsonSchema:
        while (name := described.get("$ref", "").removeprefix("#/$defs/")) in self._definitions:
            described = self._definitions[name]
        return described

    def faults(self, value: Any, described: JsonSchema, where: str) -> Iterator[str]:
        """What is wrong with a value, the first thing first."""
        described = self._resolve(described)
        if members := described.get("anyOf"):
            yield from self._union_faults(value, members, where)
            return
        kinds = _kinds_of(described)
        if "enum" in described or "const" in described:
            allowed = described["enum"] if "enum" in described else [described["const"]]
            if not any(value == one and type(value) is type(one) for one in allowed):
                yield f"{where} is one of {', '.join(map(json.dumps, allowed))}, got {_shown(value)}"
        elif kinds and not any(_is_of(value, kind) for kind in kinds):
            yield f"{where} takes {self._words(described)}, got {_named(value)}"
        elif isinstance(value, list):
            yield from self._list_faults(value, described, where)
        elif isinstance(value, dict):
            yield from self._object_faults(value, described, where)
        elif not isinstance(value, (str, bool)) and value is not None:
            yield from _number_faults(value, described, where)

    def _union_faults(self, value: Any, members: list[JsonSchema], where: str) -> Iterator[str]:
        found = [next(self.faults(value, member, where), None) for member in members]
        if None in found:
            return
        meant = [
            why
            for member, why in zip(members, found, strict=True)
            if any(_is_of(value, kind) for kind in _kinds_of(self._resolve(member)))
        ]
        if len(meant) == 1:  # it is of that kind, and something inside is wrong
            yield str(meant[0])
        else:
            yield f"{where} takes {self._words({'anyOf': members})}, got {_named(value)}"

    def _list_faults(self, value: list[Any], described: JsonSchema, where: str) -> Iterator[str]:
        first = described.get("prefixItems", [])
        least, most = described.get("minItems", 0), described.get("maxItems", len(value))
        if not least <= len(value) <= most:
            allowed = (
                f"exactly {least}"
                if least == most
                else f"at least {least}"
                if len(value) < least
                else f"at most {most}"
            )
            yield f"{where} takes {allowed} items, got {len(value)}"
        rest = described.get("items")
        for index, item in enumerate(value):
            inner = first[index] if index < len(first) else rest
            if isinstance(inner, dict):
                yield from self.faults(item, inner, f"{where}[{index}]")

    def _object_faults(self, value: dict[str, Any], described: JsonSchema, where: str) -> Iterator[str]:
        properties = described.get("properties", {})
        for name in described.get("required", ()):
            if name not in value:
                yield f"{where} ({self._words(described)}) lacks {name!r}; it has {', '.join(properties)}"
        rest = described.get("additionalProperties")
        for name, item in value.items():
            if name in properties:
                yield from self.faults(item, properties[name], f"{where}.{name}")
            elif isinstance(rest, dict):
                yield from self.faults(item, rest, f"{where}[{name!r}]")
            elif rest is False:
                yield f"{where} ({self._words(described)}) has no {name!r}; it has {', '.join(properties)}"

    def _words(self, described: JsonSchema) -> str:
        """A type as people call it."""
        if "x-dtypes" in described:
            return f"{described['title']} as nested lists"
        described = self._resolve(described)
        if members := described.get("anyOf"):
            return " or ".join(dict.fromkeys(self._words(member) for member in members))
        if described.get("contentEncoding") == "base64":
            return "bytes as base64"
        if isinstance(title := described.get("title"), str):
            return title
        if "enum" in described:
            return f"one of {', '.join(map(json.dumps, described['enum']))}"
        if isinstance(items := described.get("items"), dict) and items:
            return f"list of {self._words(items)}"
        return " or ".join(_NAMES.get(kind, kind) for kind in _kinds_of(described)) or "anything"


def _kinds_of(described: JsonSchema) -> list[str]:
    kinds = described.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _is_of(value: Any, kind: str) -> bool:
    if kind not in _KINDS:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _number_faults(value: float, described: JsonSchema, where: str) -> Iterator[str]:
    for word, (fits, words) in _LIMITS.items():
        if word in described and not fits(value, described[word]):
            yield f"{where} is {words} {described[word]}, got {_shown(value)}"


def _named(value: Any) -> str:
    """A value after the name of its type."""
    kind = next((kind for kind in ("boolean", "string", "array", "object") if isinstance(value, _KINDS[kind])), None)
    name = type(value).__name__ if kind is None else _NAMES[kind]
    return "null" if value is None else f"{name} {_shown(value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
