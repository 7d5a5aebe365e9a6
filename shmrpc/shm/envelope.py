"""What a record says: its kind and flags, and the msgspec Structs of everything that is not a plain payload.

The routing words of a call (kind, flags, method, call id, deadline) are fixed words of the record's header, because every
call has them and the receiver checks them before it decodes anything; the payload behind them is msgpack.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from shmrpc.context import MAX_METADATA
from shmrpc.errors import ResourceExhausted
from shmrpc.failure import Failure

REQUEST: Final = 1
"""Begins a call. Header: method, call id, deadline. Payload: the arguments, or `WithMetadata`."""
REPLY: Final = 2
"""Ends a call with its result. Payload: the result; nil for a method without one."""
FAILURE: Final = 3
"""Ends a call with an error. Payload: a `shmrpc.failure.Failure`."""
CANCEL: Final = 4
"""The caller has gone; the call still ends with a reply or failure. No payload."""
GOAWAY: Final = 5
"""The sender drains. Call id: the last request that it accepted. Later ones were not executed. No payload."""
ARGUMENTS: Final = 6
"""Items of the parameter that is a stream, from the caller. Payload: one item, or several."""
END_OF_ARGUMENTS: Final = 7
"""There are no more of them. No payload."""
RESULTS: Final = 8
"""Items of a result that is a stream, from the handler; it ends with the call. Payload: one item, or several."""
ARGUMENT_CREDIT: Final = 9
"""What the handler has read of the items, in total. Payload: a `Credit`."""
RESULT_CREDIT: Final = 10
"""What the caller has read of the items, in total. Payload: a `Credit`."""
INITIAL_METADATA: Final = 11
"""What the handler attaches to the call ahead of its result. Payload: a map of str to str or bin."""
LAST_KIND: Final = INITIAL_METADATA

IN_BLOCK: Final = 1
"""Flag: the payload is a `BlockReference`; the real payload is in the sender's slab."""
HAS_METADATA: Final = 2
"""Flag of REQUEST, REPLY and FAILURE: the payload, behind references to buffers, is a `WithMetadata`."""
AS_JSON: Final = 4
"""Flag of REQUEST: arguments and result are JSON. For callers without the contract, like the command line."""

HAS_BUFFERS: Final = 8
"""Flag of REQUEST, REPLY, ARGUMENTS and RESULTS: the payload begins with a table of references to buffers: see
`_native/references.h`."""

MANY: Final = 16
"""Flag of ARGUMENTS and RESULTS: the payload is an array of items, with the long head of msgpack's (array 32)."""

KIND_NAMES: Final = {
    REQUEST: "REQUEST",
    REPLY: "REPLY",
    FAILURE: "FAILURE",
    CANCEL: "CANCEL",
    GOAWAY: "GOAWAY",
    ARGUMENTS: "ARGUMENTS",
    END_OF_ARGUMENTS: "END_OF_ARGUMENTS",
    RESULTS: "RESULTS",
    ARGUMENT_CREDIT: "ARGUMENT_CREDIT",
    RESULT_CREDIT: "RESULT_CREDIT",
    INITIAL_METADATA: "INITIAL_METADATA",
}


class BlockReference(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where in the sender's memory a payload lies."""

    number: int
    """The block: its extent << 32 | its first granule."""
    generation: int
    """The number of the lease on it."""
    nbytes: int


class Credit(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What was read of a stream since it began."""

    items: Annotated[int, msgspec.Meta(ge=0)]
    nbytes: Annotated[int, msgspec.Meta(ge=0)]
    """Of their payloads, and of the buffers in them."""


class WithMetadata(msgspec.Struct, array_like=True, frozen=True):
    """The arguments or the end of a call, and what was attached."""

    metadata: msgspec.Raw
    """A map of str to str or bin: see `open_metadata`."""
    payload: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
encode_reference = _encode
encode_failure = _encode
encode_credit = _encode
decode_credit: Final = msgspec.msgpack.Decoder(Credit).decode
decode_reference: Final = msgspec.msgpack.Decoder(BlockReference).decode
_decode_raw_map: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_decode_str: Final = msgspec.msgpack.Decoder(str).decode
_decode_bytes: Final = msgspec.msgpack.Decoder(bytes).decode
decode_failure: Final = msgspec.msgpack.Decoder(Failure).decode
_decode_with_metadata: Final = msgspec.msgpack.Decoder(WithMetadata).decode
DecodeError: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What the decoders raise on what is not an envelope."""


def with_metadata(metadata: Mapping[str, str | bytes], payload: bytes) -> bytes:
    """A payload with metadata.

    Raises:
        ResourceExhausted: the metadata is larger than it may be.
    """
    raw = _encode(dict(metadata))
    if len(raw) > MAX_METADATA:
        raise ResourceExhausted(f"the metadata has {len(raw)} bytes, the limit is {MAX_METADATA}")
    return _encode(WithMetadata(msgspec.Raw(raw), payload))


def open_metadata(payload: bytes) -> tuple[dict[str, str | bytes], bytes]:
    """The metadata, and the payload that it goes with.

    Raises:
        ValueError, msgspec.DecodeError: it is not what `with_metadata` makes.
    """
    opened = _decode_with_metadata(payload)
    return decode_metadata(bytes(opened.metadata)), opened.payload


def encode_metadata(metadata: Mapping[str, str | bytes]) -> bytes:
    """Metadata that travels alone."""
    return _encode(dict(metadata))


def decode_metadata(payload: bytes) -> dict[str, str | bytes]:
    """Metadata of the peer's. Nothing but str and bytes is ever made of it.

    Raises:
        ValueError, msgspec.DecodeError: it is not what it should be.
    """
    if len(payload) > MAX_METADATA:
        raise ValueError(f"it has {len(payload)} bytes, the limit is {MAX_METADATA}")
    return {key: _open_value(key, bytes(raw)) for key, raw in _decode_raw_map(payload).items()}


def _open_value(key: str, raw: bytes) -> str | bytes:
    if 0xA0 <= raw[0] <= 0xBF or 0xD9 <= raw[0] <= 0xDB:  # msgpack's fixstr, str 8, str 16, str 32
        return _decode_str(raw)
    if 0xC4 <= raw[0] <= 0xC6:  # bin 8, bin 16, bin 32
        return _decode_bytes(raw)
    raise ValueError(f"the value of {key!r} is neither text nor bytes")
