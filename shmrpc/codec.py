"""How the arguments and the result of one method are encoded and decoded, with the buffers in them.

Owns the choice of the quickest way for a method's types. Most methods take no buffers at all: these are encoded by
msgspec alone. When the buffers are whole parameters, or the whole result, they are taken out and put in by position.
When they lie deeper, or anything is allowed, msgspec calls the hooks of `slots`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import inspect as mi

from shmrpc import exporters, slots
from shmrpc.buffers import Buffer, Packed, Piece, pack_bytes, packed
from shmrpc.slots import NO_DEFAULT

if TYPE_CHECKING:
    from shmrpc.single import SingleArray

encode: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder(enc_hook=exporters.unwrap).encode
"""Encodes what holds no buffers."""


class Misfit(ValueError):
    """A value that cannot be packed."""

    def __init__(self, index: int, reason: str, *, checked: bool) -> None:
        super().__init__(reason)
        self.index: Final = index
        """Its position among the arguments; -1 when it is not known."""
        self.checked: Final = checked
        """Whether it does not fit its type; else it cannot be encoded."""


class Content(NamedTuple):
    """What buffers a type can hold, at any depth."""

    anything: bool
    """Something in it takes any value."""
    buffers: bool
    """Something in it takes arrays or other memory."""


def content_of(annotation: Any) -> Content:
    """What buffers a rewritten type can hold, at any depth."""
    kinds = set(_kinds(mi.type_info(annotation), set()))
    return Content(mi.AnyType in kinds, mi.CustomType in kinds)


def _kinds(node: Any, seen: set[Any]) -> Iterator[type]:
    """Any and custom types in a type, found by looking at every node of msgspec's description of it."""
    if isinstance(node, (mi.StructType, mi.DataclassType, mi.TypedDictType, mi.NamedTupleType)):
        if (node.cls, len(node.fields)) in seen:
            return
        seen.add((node.cls, len(node.fields)))
    if isinstance(node, mi.CustomType) and (slot := slots.slot_of(node.cls)) is not None and slot.rest is not None:
        yield from _kinds(mi.type_info(slot.rest), seen)
    if isinstance(node, (mi.AnyType, mi.CustomType)):
        yield type(node)
    elif isinstance(node, (mi.Type, mi.Field)):
        for name in node.__struct_fields__:
            inner = getattr(node, name)
            for part in inner if isinstance(inner, tuple) else (inner,):
                if isinstance(part, (mi.Type, mi.Field)):
                    yield from _kinds(part, seen)


class RowCodec:
    """How a row of values travels: the arguments of a method.

    Args:
        types: The annotation of each.
        defaults: The default of each, or `NO_DEFAULT`.
        name: What the row is called in a debugger.

    Raises:
        TypeError: a type cannot travel.
    """

    def __init__(self, types: Sequence[Any], defaults: Sequence[Any], name: str) -> None:
        self._defaults: Final = defaults
        self._name: Final = name
        self._has_defaults: Final = any(default is not NO_DEFAULT for default in defaults)
        whole = [slots.whole_slot(type_, default) for type_, default in zip(types, defaults, strict=True)]
        self._slots: Final = [(index, slot) for index, slot in enumerate(whole) if slot is not None]
        """The parameters that are buffers themselves, by position."""
        rewritten = [slots.rewrite(type_) for type_ in types]
        contents = [
            content_of(type_) if slot is None or slot.rest is None else content_of(slot.rest)
            for type_, slot in zip(rewritten, whole, strict=True)
            if slot is None or slot.rest is not None
        ]
        self._takes_anything: Final = any(content.anything for content in contents)
        self._is_deep: Final = any(content.anything or content.buffers for content in contents)
        self.buffered: Final = bool(self._slots) or self._is_deep
        """Whether a value can hold a buffer, at any depth."""
        self._typed: Final = [
            type_ if slot is None else slots.stand_in(slot) for type_, slot in zip(rewritten, whole, strict=True)
        ]
        self._packers: Final = [
            *((index, slot.packer()) for index, slot in self._slots),
            *((index, _pack_anything) for index, type_ in enumerate(types) if slots.bare(type_) is Any),
        ]
        self._finishers: Final = [(index, slot.finisher()) for index, slot in self._slots]
        self._decode: Final = self._make_decoder()
        self.pack: Callable[[tuple[Any, ...]], Packed] = self._pack
        """Encodes a row. Raises `Misfit`: a value does not fit or cannot be encoded."""
        self.decode: Final[Callable[[bytes], tuple[Any, ...]]] = (
            self._decode_and_fill if self._has_defaults else self._decode
        )
        """Decodes a row that holds no buffers; with the decoder's own errors."""
        self.unpack: Callable[[bytes, Sequence[Buffer]], tuple[Any, ...]] = (
            self._unpack_deep if self._is_deep else self._unpack_whole
        )
        """Decodes a row, given its buffers; with the decoder's own errors."""
        self.describe: Callable[[tuple[Any, ...]], bytes | None] = _describe_nothing
        """The payload of a row that is one array and has been met before, if its memory travels out of band; else None."""
        if len(types) == 1 and not self._has_defaults and (single := _single(whole[0], self._pack, self._unpack_whole)):
            self.pack, self.unpack, self.describe = single.pack_row, single.unpack_row, single.describe_row

    def _make_decoder(self) -> Callable[[bytes], Any]:
        if not self.buffered:
            return msgspec.msgpack.Decoder(self._row(self._typed)).decode
        if self._is_deep:
            hook = slots.open_anything if self._takes_anything else slots.keep
            return msgspec.msgpack.Decoder(self._row(self._typed), dec_hook=slots.come_in, ext_hook=hook).decode
        by_position = dict(self._slots)
        types = [Any if index in by_position else type_ for index, type_ in enumerate(self._typed)]
        return msgspec.msgpack.Decoder(self._row(types)).decode

    def _row(self, types: Sequence[Any]) -> Any:
        """What a row is decoded as: a tuple, or with defaults an array-like Struct that fills them in."""
        if not self._has_defaults:
            return tuple.__class_getitem__(tuple(types))
        fields: list[Any] = [
            # Not the parameters' names: they may be anything, and a Struct's field may not shadow its machinery.
            (f"argument_{index}", type_)
            if default is NO_DEFAULT
            else (f"argument_{index}", type_, msgspec.field(default_factory=_constant(default)))
            for index, (type_, default) in enumerate(zip(types, self._defaults, strict=True))
        ]
        return msgspec.defstruct(self._name, fields, array_like=True, forbid_unknown_fields=True, module=__name__)

    def _decode_and_fill(self, payload: bytes) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self._decode(payload))

    # ---- out ----

    def _pack(self, values: tuple[Any, ...]) -> Packed:
        pieces: list[Piece] = []
        row = list(values)
        index = -1
        try:
            for index, pack in self._packers:
                if index < len(row):
                    row[index] = pack(row[index], pieces)
        except Exception as error:  # the memory of any object
            raise Misfit(index, str(error), checked=True) from error
        try:
            if self._is_deep:
                return packed(msgspec.msgpack.Encoder(enc_hook=exporters.out(pieces)).encode(row), pieces)
            return packed(encode(row), pieces)
        except Exception as error:  # the encoder meets arbitrary values
            raise self._misfit_of(row, error) from error

    def _misfit_of(self, row: Sequence[Any], error: Exception) -> Misfit:
        one = msgspec.msgpack.Encoder(enc_hook=exporters.out([]) if self._is_deep else exporters.unwrap)
        for index, value in enumerate(row):
            try:
                one.encode(value)
            except Exception as cause:
                return Misfit(index, str(cause), checked=False)
        return Misfit(-1, str(error), checked=False)

    # ---- in ----

    def _unpack_whole(self, payload: bytes, views: Sequence[Buffer]) -> tuple[Any, ...]:
        decoded = self._decode(payload)
        row: list[Any] = list(decoded) if not self._has_defaults else list(msgspec.structs.astuple(decoded))
        left: list[Any] = list(views)
        for index, finish in self._finishers:
            try:
                row[index] = finish(row[index], left)
            except Exception as error:  # numpy's too, at the mercy of the peer
                raise ValueError(f"{error} - at `$[{index}]`") from error
        if left and left.count(None) != len(left):
            raise ValueError(f"{len(left)} buffers came, and the values hold fewer")
        return tuple(row)

    def _unpack_deep(self, payload: bytes, views: Sequence[Buffer]) -> tuple[Any, ...]:
        row: tuple[Any, ...] = _with_views(self.decode, payload, views)
        return row

    # ---- JSON ----

    @cached_property
    def _decode_json(self) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(self._row(self._typed), dec_hook=slots.come_in_json).decode

    def unpack_json(self, payload: bytes) -> tuple[Any, ...]:
        """Decodes a row of JSON, arrays as nested lists; with the decoder's own errors."""
        decoded = self._decode_json(payload)
        return msgspec.structs.astuple(decoded) if self._has_defaults else decoded


class ValueCodec:
    """How one value travels: the result of a method.

    Raises:
        TypeError: its type cannot travel.
    """

    def __init__(self, type_: Any) -> None:
        slot = slots.whole_slot(type_)
        rewritten = slots.rewrite(type_)
        inner = rewritten if slot is None else slot.rest
        content = Content(anything=False, buffers=False) if inner is None and slot is not None else content_of(inner)
        self._is_deep: Final = content.anything or content.buffers
        self.buffered: Final = slot is not None or self._is_deep
        """Whether it can hold a buffer, at any depth."""
        self._replace: Final = (
            slot.packer() if slot is not None else _pack_anything if slots.bare(type_) is Any else None
        )
        self._finish: Final = slot.finisher() if slot is not None else None
        self.pack: Callable[[Any], Packed] = self._pack
        """Encodes the value. Raises whatever is wrong with it."""
        self.unpack: Callable[[bytes, Sequence[Buffer]], Any]
        """Decodes the value, given its buffers; with the decoder's own errors."""
        if self._is_deep:
            hook = slots.open_anything if content.anything else slots.keep
            typed = rewritten if slot is None else slots.stand_in(slot)
            self.decode = msgspec.msgpack.Decoder(typed, dec_hook=slots.come_in, ext_hook=hook).decode
            self.unpack = self._unpack_deep
        else:
            self.decode = msgspec.msgpack.Decoder(rewritten if slot is None else Any).decode
            self.unpack = self._unpack_whole
            if single := _single(slot, self._pack, self._unpack_whole):
                self.pack, self.unpack = single.pack_value, single.unpack_value

    def _pack(self, value: Any) -> Packed:
        pieces: list[Piece] = []
        if self._replace is not None:
            value = self._replace(value, pieces)
        if self._is_deep:
            return packed(msgspec.msgpack.Encoder(enc_hook=exporters.out(pieces)).encode(value), pieces)
        return packed(encode(value), pieces)

    def _unpack_whole(self, payload: bytes, views: Sequence[Buffer]) -> Any:
        left: list[Any] = list(views)
        value = self.decode(payload)
        if self._finish is not None:
            value = self._finish(value, left)
        if left and left.count(None) != len(left):
            raise ValueError(f"{len(left)} buffers came, and the value holds fewer")
        return value

    def _unpack_deep(self, payload: bytes, views: Sequence[Buffer]) -> Any:
        return _with_views(self.decode, payload, views)


class ItemCodec:
    """How the items of a stream travel: many in one message where they can hold no buffers, else one in each.

    A message of many is a msgpack array, with the long form of its head (array 32) whatever its length.

    Raises:
        TypeError: the items' type cannot travel.
    """

    def __init__(self, type_: Any) -> None:
        value = ValueCodec(type_)
        self.type: Final = type_
        """The annotation of an item."""
        self.buffered: Final = value.buffered
        """Whether an item can hold a buffer, at any depth."""
        self.pack: Final = value.pack
        """Encodes one item. Raises whatever is wrong with it."""
        self.unpack: Final = value.unpack
        """Decodes one item, given its buffers; with the decoder's own errors."""
        self.decode_many: Final[Callable[[bytes], list[Any]]] = msgspec.msgpack.Decoder(
            list.__class_getitem__(msgspec.Raw if self.buffered else slots.rewrite(type_))
        ).decode
        """Decodes a message of many; of items that can hold buffers, only as far as to where each begins."""

    def read(self, payload: bytes, views: Sequence[Buffer], *, many: bool) -> list[Any]:
        """The items of one message; with the decoder's own errors, whose places begin at the item.

        Raises ValueError: many come with buffers.

        The writer's types may hold no buffers where the reader's can, and then many come that are unpacked one by one.
        """
        if not many:
            return [self.unpack(payload, views)]
        if views:
            raise ValueError("an item that has buffers comes alone in its message")
        try:
            items = self.decode_many(payload)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(_within_item(str(error))) from None
        return [self.unpack(bytes(item), ()) for item in items] if self.buffered else items

    @cached_property
    def _decode_json(self) -> Callable[[bytes], Any]:
        slot = slots.whole_slot(self.type)
        typed = slots.rewrite(self.type) if slot is None else slots.stand_in(slot)
        return msgspec.json.Decoder(typed, dec_hook=slots.come_in_json).decode

    def read_json(self, payload: bytes) -> list[Any]:
        """The item of one message of JSON, arrays as nested lists; with the decoder's own errors."""
        return [self._decode_json(payload)]


MANY_HEAD_BYTES: Final = 5
_MANY: Final = 0xDD

encode_into: Final[Callable[[Any, bytearray, int], None]] = msgspec.msgpack.Encoder(
    enc_hook=exporters.unwrap
).encode_into
"""Encodes what holds no buffers into the end of a bytearray."""


def _within_item(text: str) -> str:
    """A decoder's text of many items as one of the item that is wrong: its number in the message tells nobody anything."""
    reason, separator, place = text.partition(" - at `$[")
    _, _, rest = place.partition("]")
    return reason if not separator or rest == "`" else f"{reason} - at `${rest}"


def head_of_many(count: int) -> bytes:
    """How a message of so many items begins."""
    return b"\xdd" + count.to_bytes(4, "big")


def count_of_many(payload: bytes) -> int:
    """How many items a message of many says that it has.

    Raises:
        ValueError: it does not begin as such a message does, or is too short for what it says.
    """
    count = int.from_bytes(payload[1:MANY_HEAD_BYTES], "big")
    if len(payload) < MANY_HEAD_BYTES + max(count, 1) or payload[0] != _MANY or not count:
        raise ValueError(f"{len(payload)} bytes are no message of {count} items")
    return count


def _describe_nothing(values: tuple[Any, ...]) -> bytes | None:
    return None


def _single(
    slot: slots.Slot | None, pack: Callable[[Any], Packed], unpack: Callable[[bytes, Sequence[Buffer]], Any]
) -> "SingleArray | None":
    """The quick way for a slot that takes arrays and nothing else."""
    if slot is None or slot.spec is None or len(slot.members) != 1:
        return None
    from shmrpc.single import SingleArray

    return SingleArray(pack, unpack)


def _with_views(decode: Callable[[bytes], Any], payload: bytes, views: Sequence[Buffer]) -> Any:
    """Decodes with hooks that find the views. Decoding runs arbitrary code, which may decode in its turn."""
    arriving = slots.arriving
    before, arriving.views = arriving.views, list(views)
    try:
        return decode(payload)
    finally:
        arriving.views = before


def _pack_anything(value: Any, pieces: list[Piece]) -> Any:
    return pack_bytes(value, pieces) if value.__class__ in exporters.BYTES_LIKE else value


def travel(type_: Any, value: Any) -> Any:
    """The value as it would arrive, to see whether it fits a type.

    Raises:
        Exception: it does not.
    """
    codec = ValueCodec(type_)
    payload, pieces = codec.pack(value)
    views = [bytearray(piece.nbytes) for piece in pieces]
    for piece, view in zip(pieces, views, strict=True):
        piece.copy_into(memoryview(view))
    return codec.unpack(payload, views)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


encode_json: Final[Callable[[Any], bytes]] = msgspec.json.Encoder(enc_hook=exporters.to_json).encode
"""Encodes any value as JSON, arrays as nested lists."""
