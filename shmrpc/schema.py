"""Describes types as data, so that two processes can compare their contracts before the first call.

Owns the description of a type, its rendering for people, and the rule by which values written as one type can be read as
another. Knows nothing of methods or of the wire: `contract` builds on this.

A description is a list ``[kind, …]`` of msgpack-friendly values. The rule follows msgspec's own reading rules
(https://jcristharif.com/msgspec/supported-types.html): a reader's extra fields need defaults, a writer's extra fields
are skipped unless the reader is closed, integers can be read as floats.
"""

import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect as mi

from shmrpc import slots
from shmrpc.buffers import Buffer

Description = list[Any]
"""``[kind]``, ``[kind, item, …]`` for containers, ``["object", name, tag, fields, closed]`` for named records; a closed one
refuses fields that it does not know; ``["ndarray", dtypes, shape]`` for arrays, with the names of the element types and the
size of each axis, None for any; ``["stream", item]`` for a parameter or result that is a stream, and nowhere else."""

_SIMPLE: Final[dict[type[mi.Type], str]] = {
    mi.AnyType: "any",
    mi.NoneType: "None",
    mi.BoolType: "bool",
    mi.IntType: "int",
    mi.FloatType: "float",
    mi.StrType: "str",
    mi.BytesType: "bytes",
    mi.ByteArrayType: "bytes",
    mi.MemoryViewType: "bytes",
    mi.DateTimeType: "datetime",
    mi.TimeType: "time",
    mi.DateType: "date",
    mi.TimeDeltaType: "timedelta",
    mi.UUIDType: "UUID",
    mi.DecimalType: "Decimal",
}

_COMPOUND: Final = frozenset(
    ("list", "dict", "tuple", "union", "object", "array", "literal", "ref", "ndarray", "stream")
)


class UnsupportedType(TypeError):
    """A type that cannot travel; the text names it."""


def describe(type_: Any) -> Description:
    """The description of a type annotation.

    Raises:
        UnsupportedType: msgspec cannot carry the type, or a part of it.
    """
    try:
        rewritten = slots.rewrite(type_)
        node = mi.type_info(rewritten)
        msgspec.msgpack.Decoder(rewritten)
    except (TypeError, NameError) as error:
        raise UnsupportedType(str(error)) from error
    return _describe(node, rewritten, ())


def _describe(node: mi.Type, type_: Any, inside: tuple[str, ...]) -> Description:
    """The description of a type, as msgspec sees it and as it is written: only the latter knows an array's elements."""
    if (simple := _SIMPLE.get(type(node))) is not None:
        return [simple]
    type_ = slots.bare(type_)
    match node:
        case mi.Metadata(type=inner):
            return _describe(inner, type_, inside)
        case mi.ListType(item_type=item) | mi.SetType(item_type=item) | mi.FrozenSetType(item_type=item):
            return ["list", _describe(item, _argument(type_, 0), inside)]
        case mi.VarTupleType(item_type=item):
            return ["list", _describe(item, _argument(type_, 0), inside)]
        case mi.TupleType(item_types=items):
            return ["tuple", *(_describe(item, _argument(type_, index), inside) for index, item in enumerate(items))]
        case mi.DictType(key_type=key, value_type=value):
            return ["dict", _describe(key, _argument(type_, 0), inside), _describe(value, _argument(type_, 1), inside)]
        case mi.UnionType(types=types):
            # Msgspec has put the members in another order, but only one at most can need the annotation.
            return ["union", *(_describe(member, _member(member, type_), inside) for member in types)]
        case mi.EnumType(cls=cls):
            return ["literal", cls.__name__, [member.value for member in cls]]
        case mi.LiteralType(values=values):
            return ["literal", "", list(values)]
        case mi.StructType(cls=cls, fields=fields, array_like=array_like, forbid_unknown_fields=closed):
            tag = None if node.tag is None else [node.tag_field, node.tag]
            kind = "array" if array_like else "object"
            return _describe_fields(kind, cls, tag, fields, inside, closed=closed)
        case mi.DataclassType(cls=cls, fields=fields) | mi.TypedDictType(cls=cls, fields=fields):
            return _describe_fields("object", cls, None, fields, inside, closed=False)
        case mi.NamedTupleType(cls=cls, fields=fields):
            return _describe_fields("array", cls, None, fields, inside, closed=True)
        case mi.CustomType(cls=cls) if (described := _describe_buffer(cls, type_, inside)) is not None:
            return described
    name = getattr(getattr(node, "cls", None), "__qualname__", type(node).__name__)
    raise UnsupportedType(f"{name} cannot travel: msgspec has no encoding for it")


def _describe_buffer(cls: type, type_: Any, inside: tuple[str, ...]) -> Description | None:
    if (slot := slots.slot_of(cls)) is not None:
        return ["union", *(_describe(mi.type_info(member), member, inside) for member in slot.members)]
    if cls is Buffer:
        return ["buffer"]
    try:
        spec = slots.spec_of(type_ if get_origin(type_) is cls else cls)
    except TypeError as error:
        raise UnsupportedType(str(error)) from error
    if spec is None:
        return None
    described: list[Description] = [["ndarray", *alternative] for alternative in spec.describe()]
    return described[0] if len(described) == 1 else ["union", *described]


def _argument(type_: Any, index: int) -> Any:
    arguments = get_args(type_)
    return arguments[index] if index < len(arguments) else Any


def _member(node: mi.Type, type_: Any) -> Any:
    if isinstance(node, mi.CustomType):
        return next((m for m in slots.members_of(type_) if node.cls in (m, get_origin(m))), Any)
    # Containers of arrays: the member of the same kind, of which a union can have one, or of the same class. Not by `==`,
    # which does not end for a record that holds itself.
    for member in slots.members_of(type_):
        try:
            if _kind_of(mi.type_info(member)) == _kind_of(node):
                return member
        except TypeError:
            continue
    return Any


def _kind_of(node: mi.Type) -> tuple[Any, ...]:
    node = node.type if isinstance(node, mi.Metadata) else node
    return type(node), getattr(node, "cls", None)


def _annotations_of(cls: Any) -> dict[str, Any]:
    """The annotations of a record's fields, with what a generic one was given for its variables."""
    arguments = get_args(cls)
    cls = get_origin(cls) or cls
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception:  # msgspec could evaluate them, in its own way: it is only arrays that lose something
        return {}
    given: dict[Any, Any] = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    if not given:
        return hints
    return {name: _filled(hint, given) for name, hint in hints.items()}


def _filled(hint: Any, given: dict[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return given.get(hint, hint)
    variables = getattr(hint, "__parameters__", ())
    if not variables or isinstance(hint, type):
        return hint
    return hint[tuple(given.get(variable, variable) for variable in variables)]


def _describe_fields(
    kind: str, cls: type, tag: Any, fields: Sequence[mi.Field], inside: tuple[str, ...], *, closed: bool
) -> Description:
    name = cls.__name__
    if name in inside:
        return ["ref", name]
    inner = (*inside, name)
    hints = _annotations_of(cls)
    return [
        kind,
        name,
        tag,
        [[f.encode_name, _describe(f.type, hints.get(f.name, Any), inner), f.required] for f in fields],
        closed,
    ]


def check(description: Any) -> None:
    """Refuses what is no description, so that one that came from a peer can be used like one's own. Kinds that this
    version does not know are let pass: no type of its own fits them.

    Raises:
        ValueError: it is malformed.
    """
    parts: list[Any] = []
    match description:
        case ["list", _] | ["dict", _, _] | ["tuple", *_] | ["union", _, *_] | ["stream", _]:
            parts = list(description[1:])
        case ["object" | "array", str(), _, [*fields], bool()]:
            for field in fields:
                match field:
                    case [str(), part, bool()]:
                        parts.append(part)
                    case _:
                        raise ValueError(f"{field!r} does not describe a field")
        case ["literal", str(), [_, *_] as values] if all(isinstance(value, (str, int, NoneType)) for value in values):
            pass
        case ["ref", str()]:
            pass
        case ["ndarray", names, sizes] if _are_names(names) and _are_sizes(sizes):
            pass
        case [str(kind), *_] if kind not in _COMPOUND:
            pass
        case _:
            raise ValueError(f"{description!r} does not describe a type")
    for part in parts:
        check(part)


def _are_names(names: Any) -> bool:
    return names is None or (
        isinstance(names, list) and 0 < len(names) <= 64 and all(isinstance(name, str) for name in names)
    )


def _are_sizes(sizes: Any) -> bool:
    return sizes is None or (
        isinstance(sizes, list)
        and len(sizes) <= 64
        and all(size is None or (type(size) is int and size >= 0) for size in sizes)
    )


def render(description: Description) -> str:
    """The description as a Python annotation, for error texts and listings."""
    kind, *rest = description
    match kind:
        case "list":
            return f"list[{render(rest[0])}]"
        case "stream":
            return f"AsyncIterator[{render(rest[0])}]"
        case "tuple" | "dict":
            return f"{kind}[{', '.join(render(item) for item in rest) or '()'}]"
        case "any":
            return "Any"
        case "union":
            return " | ".join(render(member) for member in rest)
        case "literal":
            return str(rest[0]) or f"Literal[{', '.join(map(repr, rest[1]))}]"
        case "object" | "array" | "ref":
            return str(rest[0])
        case "buffer":
            return "Buffer"
        case "ndarray":
            return _render_array(*rest)
    return str(kind)


def _render_array(names: list[str] | None, sizes: list[int | None] | None) -> str:
    text = "Any" if names is None else " | ".join(names)
    if sizes is not None:
        text += (
            f", ({', '.join('int' if size is None else str(size) for size in sizes)}{',' if len(sizes) == 1 else ''})"
        )
    return f"NDArray[{text}]"


def why_unreadable(written: Description, read: Description, where: str) -> str | None:
    """Why values written as one type cannot be read as the other, or None when they can.

    `where` names the place for the text, like ``"parameter 'top'"``.
    """
    if "stream" in (written[0], read[0]) and written[0] != read[0]:
        return _differ(written, read, where)
    if written == read or written[0] in ("any", "ref") or read[0] in ("any", "ref"):
        return None
    parts = _parts(written)
    if len(parts) > 1:
        return next(filter(None, (why_unreadable(part, read, where) for part in parts)), None)
    (written,) = parts
    if read[0] == "union":
        if any(why_unreadable(written, member, where) is None for member in read[1:]):
            return None
        return _differ(written, read, where)
    if written[0] == "literal":
        return _literal(written, read, where)
    if written[0] != read[0]:
        return None if (written[0], read[0]) in _WIDER else _differ(written, read, where)
    match written[0]:
        case "list" | "dict" | "tuple" | "stream":
            if len(written) != len(read):
                return _differ(written, read, where)
            pairs = zip(written[1:], read[1:], strict=True)
            return next(filter(None, (why_unreadable(w, r, f"an item of {where}") for w, r in pairs)), None)
        case "object" | "array":
            return _fields(written, read, where)
        case "ndarray":
            return None if _array_fits(written, read) else _differ(written, read, where)
    return None if written[0] == read[0] and len(read) == 1 else _differ(written, read, where)


_WIDER: Final = {
    ("int", "float"),
    ("bytes", "buffer"),
    ("list", "tuple"),
    ("tuple", "list"),
    ("object", "dict"),
    ("dict", "object"),
}


_ABOVE: Final = {
    "number": "generic",
    "integer": "number",
    "signedinteger": "integer",
    "unsignedinteger": "integer",
    "inexact": "number",
    "floating": "inexact",
    "complexfloating": "inexact",
    "flexible": "generic",
    "character": "flexible",
    "str_": "character",
    "bytes_": "character",
    "void": "flexible",
    "timedelta64": "signedinteger",
}
"""Numpy's scalar types: the abstract ones and what they are a kind of. A type of numbers is its name and its bits."""

_OF_NUMBERS: Final = {
    "int": "signedinteger",
    "uint": "unsignedinteger",
    "float": "floating",
    "complex": "complexfloating",
}


def _is_kind_of(written: str, read: str) -> bool:
    name: str | None = written
    while name is not None:
        if name == read:
            return True
        name = (
            _ABOVE.get(name) or _OF_NUMBERS.get(name.rstrip("0123456789")) or ("generic" if name != "generic" else None)
        )
    return False


def _array_fits(written: Description, read: Description) -> bool:
    (_, names, sizes), (_, read_names, read_sizes) = written, read
    # Arrays of which nothing is said fit like Any does: each is looked at when it comes.
    if None not in (names, read_names) and not all(any(_is_kind_of(n, r) for r in read_names) for n in names):
        return False
    if sizes is None or read_sizes is None:
        return True
    return len(sizes) == len(read_sizes) and all(r in (None, s) for s, r in zip(sizes, read_sizes, strict=True))


def _differ(written: Description, read: Description, where: str) -> str:
    return f"{where} is sent as {render(written)} and read as {render(read)}"


def _parts(written: Description) -> list[Description]:
    """What a value written as this type may be, one by one: the members of a union, the values of a literal."""
    if written[0] == "union":
        return written[1:]
    if written[0] == "literal":
        return [["literal", "", [value]] for value in written[2]]
    return [written]


def _literal(written: Description, read: Description, where: str) -> str | None:
    (value,) = written[2]
    if read[0] != "literal":
        return why_unreadable(["None" if value is None else type(value).__name__], read, where)
    return None if value in read[2] else f"{where} can be sent as {value!r}, which {render(read)} lacks"


def _fields(written: Description, read: Description, where: str) -> str | None:
    (_, name, written_tag, written_fields, _), (_, _, read_tag, read_fields, closed) = written, read
    if written_tag != read_tag:
        return f"{where} ({name}) is tagged {written_tag!r} by the writer and {read_tag!r} by the reader"
    if written[0] == "array":
        sent = {read_field[0]: field for field, read_field in zip(written_fields, read_fields, strict=False)}
        unknown = written_fields[len(read_fields) :]
    else:
        sent = {field[0]: field for field in written_fields}
        unknown = [field for field in written_fields if field[0] not in {field[0] for field in read_fields}]
    if closed and unknown:
        return f"{where} ({name}) is sent with a field {unknown[0][0]!r}, which the reader refuses"
    for field_name, field_read, required in read_fields:
        if (field := sent.get(field_name)) is None:
            if required:
                return f"{where} ({name}) is read with a field {field_name!r} that the writer lacks"
            continue
        if (why := why_unreadable(field[1], field_read, f"{where}.{field_name}")) is not None:
            return why
    return None
