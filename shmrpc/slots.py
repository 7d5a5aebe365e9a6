"""Slots: the places of a type at which a buffer may stand, and what goes out and comes in there.

A type of a contract is rewritten before msgspec sees it: a union of an array with something else, which msgspec does not
take, becomes a type of its own whose values are chosen here. `come_in` is msgspec's hook for types that it does not know.
Imports numpy only when an array is met.
"""

import sys
import threading
import types
import typing
from collections.abc import Callable
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import msgspec

from shmrpc import buffers
from shmrpc.buffers import EXT_CODE, INLINE, Buffer, Ext, Piece, pack_bytes
from shmrpc.exporters import BYTES_LIKE, has_memory, is_array, pack_memory

if TYPE_CHECKING:
    from shmrpc.arrays import AnyArray, ArraySpec

NO_DEFAULT: Final = object()
"""Stands for the default of a parameter that has none."""


class Slot:
    """One place at which a buffer may stand.

    Args:
        members: What it takes, the members of a union one by one.
        whole: Whether it is a whole parameter or result, whose bytes travel out of band when they are many.

    Raises:
        TypeError: the members cannot be told apart when they arrive.
    """

    def __init__(self, members: tuple[Any, ...], *, whole: bool, default: object = NO_DEFAULT) -> None:
        self.members: Final = members
        self.whole: Final = whole
        self.default: Final = default
        self.optional: Final = any(member in (None, NoneType) for member in members)
        specs = [spec for member in members if (spec := spec_of(member)) is not None]
        self.spec: Final = _merged(specs) if specs else None
        byteses = [member for member in members if bytes_type_of(member) is not None]
        if len(byteses) > 1:
            raise TypeError("Type unions may not contain more than one bytes-like type")
        self.bytes_type: Final = bytes_type_of(byteses[0]) if byteses else None
        """One of `BYTES_LIKE`, `Buffer`, or None."""
        self._bytes: Final = byteses[0] if byteses and byteses[0] not in (*BYTES_LIKE, Buffer) else None
        """With constraints, which msgspec is to check."""
        rest = tuple(m for m in members if m not in (None, NoneType, *byteses) and spec_of(m) is None)
        others = (*rest, *(byteses if self.bytes_type is not Buffer else (bytes,) if rest and byteses else ()))
        if others:
            msgspec.msgpack.Decoder(typing.Union[others], dec_hook=come_in)  # noqa: UP007  # refuses what it cannot tell apart
        self.rest: Final = typing.Union[rest] if rest else None  # noqa: UP007

    def __repr__(self) -> str:
        return f"<Slot {self}>"

    def __str__(self) -> str:
        names = [f"an array of {self.spec}"] if self.spec is not None else []
        names += [self.bytes_type.__name__] if self.bytes_type is not None else []
        names += [str(getattr(self.rest, "__name__", self.rest))] if self.rest is not None else []
        return " or ".join([*names, "None"] if self.optional else names)

    # ---- out ----

    def packer(self) -> Callable[[Any, list[Piece]], Any]:
        """The quickest function that does what `pack` does."""
        return self.spec.pack if self.spec is not None and len(self.members) == 1 else self.pack

    def pack(self, value: Any, pieces: list[Piece]) -> Any:
        """What stands for a value in the payload. Whatever is no buffer is left for the encoder as it is.

        Raises:
            TypeError, ValueError: it does not fit, or cannot travel.
        """
        if value is None:
            if self.optional or self.spec is None:
                return None
        elif value.__class__ in BYTES_LIKE and self.bytes_type is not None:
            return pack_bytes(value, pieces)
        elif self.spec is not None:
            if self.rest is None or has_memory(value):
                return self.spec.pack(value, pieces)
            return value
        elif self.bytes_type is Buffer and (self.rest is None or has_memory(value)):
            return pack_memory(value, pieces)
        else:
            return value
        raise TypeError(f"got None, expected {self}")

    # ---- in ----

    def finisher(self) -> Callable[[Any, list[Any]], Any]:
        """The quickest function that does what `finish` does."""
        slowly = self.finish
        if self.spec is None or self.bytes_type is not None:
            return slowly
        unpack = self.spec.unpack

        def finish(value: Any, views: list[Any]) -> Any:
            if value.__class__ is Ext and value.code == EXT_CODE:
                return unpack(value.data, views)  # type: ignore[arg-type]
            return slowly(value, views)

        return finish

    def finish(self, value: Any, views: list[Any]) -> Any:
        """The value that arrived, from what the decoder made of it: an extension for a buffer, else plain data.

        Raises:
            ValueError: it does not fit; TypeError: the same.
        """
        if value.__class__ is Ext and value.code == EXT_CODE:
            return self._open(value.data, views)  # type: ignore[arg-type]
        if value is None and self.optional:
            return None
        if value.__class__ is bytes and self.bytes_type is not None:
            return self._bytes_from(value)
        if value is self.default:
            return value
        if value is not None and is_array(value):  # opened by `open_anything`, which did not know this slot
            return self._from_array(value)
        if self.rest is not None:
            return _convert(value, self.rest)
        raise ValueError(f"Expected {self}, got {_name_of(value)}")

    def _open(self, body: bytes, views: list[Any]) -> Any:
        is_bytes = body[4:5] == b"\x00"
        if self.spec is not None and not is_bytes:
            return self.spec.unpack(body, views)
        if self.bytes_type is Buffer or (is_bytes and self.bytes_type is not None):
            if body[:4] != INLINE and len(body) != buffers.length_of_head(body):
                raise ValueError("a buffer's description does not have the length that it says")
            return self._bytes_from(buffers.take(body, views))
        raise ValueError(f"Expected {self}, got {'bytes' if is_bytes else 'an array'}")

    def _from_array(self, value: "AnyArray") -> Any:
        if self.spec is not None:
            self.spec.check(value.dtype, value.shape)
            return value
        if self.bytes_type is Buffer:
            return memoryview(value.reshape(-1, order="A").view("u1"))  # type: ignore[arg-type]
        raise ValueError(f"Expected {self}, got an array")

    def _bytes_from(self, memory: Any) -> Any:
        kind: Any = self.bytes_type
        if kind is Buffer or kind is memoryview:
            value: Any = memoryview(memory)
        else:
            value = memory if memory.__class__ is kind else kind(memory)
        return value if self._bytes is None else _convert(value, self._bytes)

    def from_json(self, value: Any) -> Any:
        """The value that arrived as JSON: an array as nested lists, bytes as base64.

        Raises:
            ValueError: it does not fit.
        """
        if value is None and self.optional:
            return None
        try:
            return self._from_json(value)
        except Exception as error:  # numpy's, of many kinds
            raise ValueError(_within(error)) from error

    def _from_json(self, value: Any) -> Any:
        if isinstance(value, str) and self.bytes_type is not None:
            return self._bytes_from(msgspec.convert(value, bytes))
        if self.rest is not None:
            try:
                return msgspec.convert(value, self.rest, dec_hook=come_in_json)
            except msgspec.ValidationError:
                if self.spec is None:
                    raise
        if self.spec is not None and isinstance(value, (list, int, float, str)):
            return self.spec.from_list(value)
        raise ValueError(f"Expected {self}, got {_name_of(value)}")


def _convert(value: Any, type_: Any) -> Any:
    try:
        return msgspec.convert(value, type_, dec_hook=come_in)
    except msgspec.ValidationError as error:
        raise ValueError(_within(error)) from error


def _within(error: Exception) -> str:
    """An error's text, its place in brackets, for msgspec to say the place of all of it."""
    reason, separator, place = str(error).partition(" - at `$")
    return f"{reason} (in its {place.rstrip('`')})" if separator else reason


def _name_of(value: Any) -> str:
    return "null" if value is None else type(value).__name__


class _Chosen(type):
    """The class of types that stand for a slot in a rewritten annotation: whatever the slot gives is an instance."""

    slot: Slot

    def __instancecheck__(cls, instance: object) -> bool:
        return True


def stand_in(slot: Slot) -> Any:
    """A type for msgspec that stands for a slot."""
    made = _Chosen(str(slot), (), {"__doc__": "What a slot takes."})
    made.slot = slot
    return made


def slot_of(type_: Any) -> Slot | None:
    """The slot that a type stands for."""
    return type_.slot if isinstance(type_, _Chosen) else None


# Annotations


def bare(annotation: Any) -> Any:
    """An annotation without Annotated, NewType and type aliases around it."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = annotation.__origin__
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif type(alias := get_origin(annotation)).__name__ == "TypeAliasType":  # such is NDArray[…] from numpy 2.5 on
            annotation = alias.__value__[get_args(annotation)]
        else:
            return annotation


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    annotation = annotation if _is_constrained_bytes(annotation) else bare(annotation)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in members_of(member))
    return (annotation,)


def _is_constrained_bytes(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and bare(annotation) in BYTES_LIKE


def bytes_type_of(annotation: Any) -> Any:
    """The bytes-like class that an annotation says, or `Buffer`, or None."""
    annotation = bare(annotation)
    return annotation if annotation in (*BYTES_LIKE, Buffer) else None


_specs: Final[dict[Any, "ArraySpec"]] = {}


def spec_of(annotation: Any) -> "ArraySpec | None":
    """What arrays an annotation takes; None for one that is no array.

    Raises:
        TypeError: no array that it takes could travel.
    """
    if "numpy" not in sys.modules:
        return None  # then it names no type of numpy's
    annotation = bare(annotation)
    if (get_origin(annotation) or annotation) is not getattr(sys.modules["numpy"], "ndarray", None):
        return None
    if (spec := _specs.get(annotation)) is None:
        from shmrpc import arrays

        spec = _specs[annotation] = arrays.spec_of(annotation) or arrays.anything()
    return spec


def _merged(specs: "list[ArraySpec]") -> "ArraySpec":
    if len(specs) == 1:
        return specs[0]
    from shmrpc import arrays

    return arrays.ArraySpec([alternative for spec in specs for alternative in spec.alternatives])


_CONTAINERS: Final[tuple[Any, ...]] = (list, set, frozenset, tuple, dict)


def rewrite(annotation: Any) -> Any:
    """An annotation in which each union of a buffer with something else is a stand-in.

    Raises:
        TypeError: the members of such a union cannot be told apart.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = rewrite(annotation.__origin__)
        return annotation if inner is annotation.__origin__ else Annotated[(inner, *annotation.__metadata__)]
    plain = bare(annotation)
    if plain is not annotation:
        inner = rewrite(plain)
        return annotation if inner is plain else inner
    if origin in (typing.Union, types.UnionType):
        members = members_of(annotation)
        custom = [member for member in members if bytes_type_of(member) is Buffer or spec_of(member) is not None]
        if custom and any(member not in (*custom[:1], None, NoneType) for member in members):
            return stand_in(Slot(tuple(map(rewrite, members)), whole=False))
        rewritten = tuple(map(rewrite, arguments))
        return annotation if _same(rewritten, arguments) else typing.Union[rewritten]  # noqa: UP007
    if origin is not None and (origin in _CONTAINERS or getattr(origin, "__module__", "") == "collections.abc"):
        rewritten = tuple(argument if argument is Ellipsis else rewrite(argument) for argument in arguments)
        return annotation if _same(rewritten, arguments) else origin[rewritten]
    return annotation


def _same(ones: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return all(one is other for one, other in zip(ones, others, strict=True))


def whole_slot(annotation: Any, default: object = NO_DEFAULT) -> Slot | None:
    """The slot that a whole parameter or result is; None when it is no buffer, or holds some deeper only.

    Raises:
        TypeError: the members of a union cannot be told apart.
    """
    members = members_of(annotation)
    if not any(bytes_type_of(member) is not None or spec_of(member) is not None for member in members):
        return None
    return Slot(tuple(map(rewrite, members)), whole=True, default=default)


# Msgspec's hooks for what arrives. They need the views of the message that is being decoded.


class _Arriving(threading.local):
    views: list[Any] = []  # noqa: RUF012  # replaced, never changed


arriving: Final = _Arriving()
"""The views of the message that this thread decodes."""

_finishers: Final[dict[int, tuple[Any, Callable[[Any, list[Any]], Any]]]] = {}
"""By the id of a type, since some are slow to hash, and the type, so that no other one gets its id."""


def _slot_for(type_: Any) -> Slot:
    return slot_of(type_) or Slot((type_,), whole=False)


def come_in(type_: Any, value: Any) -> Any:
    """Msgspec's hook for decoding a type that it does not know."""
    known = _finishers.get(id(type_))
    if known is None:
        known = _finishers[id(type_)] = type_, _slot_for(type_).finisher()
    return known[1](value, arriving.views)


def come_in_json(type_: Any, value: Any) -> Any:
    """The same for JSON."""
    return _slot_for(type_).from_json(value)


def open_anything(code: int, data: memoryview) -> Any:
    """Msgspec's hook for extensions, where any value is taken: a buffer becomes bytes or an array."""
    body = bytes(data)
    if code != EXT_CODE or len(body) < 5:
        return Ext(code, body)
    if body[4] == buffers.BYTES:
        return bytes(buffers.take(body, arriving.views))
    from shmrpc import arrays

    return arrays.anything().unpack(body, arriving.views)


def keep(code: int, data: memoryview) -> Any:
    """The same where every type is known, so that `come_in` opens it."""
    return Ext(code, bytes(data))
