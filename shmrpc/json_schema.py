"""JSON Schema of the types in a contract, for callers that have only its name: what a call with JSON takes and gives.

Msgspec describes what it knows. Buffers are added here: bytes are base64 text, and arrays nested lists, as `slots` reads
them; what an array may hold is in the title of its schema, and under ``x-dtypes`` and ``x-shape`` for programs.
https://json-schema.org/draft/2020-12
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shmrpc import codec, schema, slots
from shmrpc.buffers import Buffer
from shmrpc.schema import Description
from shmrpc.slots import NO_DEFAULT

JsonSchema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_BASE64: Final[JsonSchema] = {"type": "string", "contentEncoding": "base64"}
_TEMPLATE: Final = "#/$defs/{name}"
_ELEMENTS: Final = {"int": "integer", "uint": "integer", "float": "number", "bool": "boolean", "bool_": "boolean"}


def of_value(type_: Any, description: Description) -> JsonSchema:
    """The schema of one value of a type, complete in itself.

    Args:
        type_: An annotation that can travel.
        description: The same as data, from `schema.describe`.
    """
    described, definitions = _describe(type_, description)
    return _complete(described, definitions)


def of_arguments(
    names: Sequence[str], types: Sequence[Any], descriptions: Sequence[Description], defaults: Sequence[Any]
) -> JsonSchema:
    """The schema of a method's arguments: an object by parameter name, complete in itself.

    Args:
        names: Of the parameters.
        types: Their annotations.
        descriptions: The same as data.
        defaults: The default of each, or `NO_DEFAULT`.
    """
    properties: JsonSchema = {}
    definitions: JsonSchema = {}
    for name, type_, description, default in zip(names, types, descriptions, defaults, strict=True):
        described, more = _describe(type_, description)
        definitions |= more
        if default is not NO_DEFAULT:
            described = {**described, **_default(default)}
        properties[name] = described
    required = [name for name, default in zip(names, defaults, strict=True) if default is NO_DEFAULT]
    whole = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return _complete(whole, definitions)


def _complete(described: JsonSchema, definitions: JsonSchema) -> JsonSchema:
    return {"$schema": DIALECT, **described, **({"$defs": definitions} if definitions else {})}


def _describe(type_: Any, description: Description) -> tuple[JsonSchema, JsonSchema]:
    """A type's schema, and those that it refers to by name."""
    further: JsonSchema = {}

    def describe_custom(cls: Any) -> JsonSchema:
        """Msgspec's hook for types that it does not know."""
        if cls is Buffer:
            return _BASE64
        if (slot := slots.slot_of(cls)) is None:
            return _array(None, None)  # `_refine` says more where the annotation does
        members: list[JsonSchema] = []
        if slot.spec is not None:
            members += [_array(*alternative) for alternative in slot.spec.describe()]
        if slot.bytes_type is not None:
            members.append(_BASE64)
        if slot.rest is not None:
            (rest,), more = _components(slot.rest, describe_custom)
            further.update(more)
            members.append(rest)
        if slot.optional:
            members.append({"type": "null"})
        return members[0] if len(members) == 1 else {"anyOf": members}

    try:
        (described,), definitions = _components(slots.rewrite(type_), describe_custom)
    except TypeError as error:  # a type that travels as msgpack, and that JSON Schema has no words for
        return {"description": f"{schema.render(description)}; it has no JSON Schema: {error}"}, {}
    definitions = {**definitions, **further}
    _refine(described, description, definitions)
    return described, definitions


def _components(type_: Any, hook: Any) -> tuple[tuple[JsonSchema, ...], JsonSchema]:
    return msgspec.json.schema_components([type_], schema_hook=hook, ref_template=_TEMPLATE)


def _refine(described: JsonSchema, description: Description, definitions: JsonSchema) -> None:
    """Says of each array what it may hold, which msgspec's hook is not told: it gets the class without its arguments."""
    kind, *parts = description
    if (name := described.get("$ref", "").removeprefix("#/$defs/")) in definitions:
        _refine(
            definitions[name], description, definitions
        )  # which ends: in a description, a type in itself is a "ref"
        return
    match kind:
        case "ndarray":
            described.clear()
            described.update(_array(*parts))
        case "list" if isinstance(items := described.get("items"), dict):
            _refine(items, parts[0], definitions)
        case "dict" if isinstance(values := described.get("additionalProperties"), dict):
            _refine(values, parts[1], definitions)
        case "tuple":
            for item, part in zip(described.get("prefixItems", ()), parts, strict=False):
                _refine(item, part, definitions)
        case "array":
            for item, field in zip(described.get("prefixItems", ()), parts[2], strict=False):
                _refine(item, field[1], definitions)
        case "object":
            for field_name, part, _ in parts[2]:
                if (found := described.get("properties", {}).get(field_name)) is not None:
                    _refine(found, part, definitions)
        case "union":
            _refine_union(described, parts, definitions)


def _refine_union(described: JsonSchema, parts: list[Description], definitions: JsonSchema) -> None:
    arrays = [part for part in parts if part[0] == "ndarray"]
    for member in described.get("anyOf", ()):
        if "x-dtypes" in member and len(arrays) == 1:
            _refine(member, arrays[0], definitions)
        for part in parts:
            name = member.get("$ref", "").rpartition("/")[2]
            if (part[0] in ("object", "array") and part[1] == name) or _CONTAINERS.get(part[0], "") == member.get(
                "type"
            ):
                _refine(member, part, definitions)


_CONTAINERS: Final = {"list": "array", "dict": "object", "tuple": "array"}


def _array(names: list[str] | None, sizes: list[int | None] | None) -> JsonSchema:
    """The schema of an array as nested lists: of one without axes, a single element."""
    elements = {_ELEMENTS.get(name.rstrip("0123456789")) for name in names or ()}
    element = elements.pop() if len(elements) == 1 else None
    kinds = [] if sizes else ["boolean", "integer", "number", "string"] if element is None else [element]
    if sizes != []:
        kinds.insert(0, "array")
    return {
        "title": schema.render(["ndarray", names, sizes]),
        "description": "an array as nested lists",
        "type": kinds[0] if len(kinds) == 1 else kinds,
        "x-dtypes": names,
        "x-shape": sizes,
    }


def _default(value: Any) -> JsonSchema:
    try:
        return {"default": msgspec.json.decode(codec.encode_json(value))}
    except Exception:  # an arbitrary value, and it is only shown
        return {}
