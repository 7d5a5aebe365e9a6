"""What a record says: its kind and flags, and the msgspec Structs of everything that is not a plain payload.

The routing words of a call (kind, flags, method, call id, deadline) are fixed words of the record's header, because every
call has them and the receiver checks them before it decodes anything; the payload behind them is msgpack.
"""

from typing import Any, Final

import msgspec

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
LAST_KIND: Final = GOAWAY

IN_BLOCK: Final = 1
"""Flag: the payload is a `BlockReference`; the real payload is in the sender's slab."""
HAS_METADATA: Final = 2
"""Flag of REQUEST: the payload is a `WithMetadata`."""
AS_JSON: Final = 4
"""Flag of REQUEST: arguments and result are JSON. For callers without the contract, like the command line."""

KIND_NAMES: Final = {
    REQUEST: "REQUEST",
    REPLY: "REPLY",
    FAILURE: "FAILURE",
    CANCEL: "CANCEL",
    GOAWAY: "GOAWAY",
}


class BlockReference(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Where in the sender's slab a payload lies."""

    number: int
    generation: int
    nbytes: int


class WithMetadata(msgspec.Struct, array_like=True, frozen=True):
    """The arguments of a call, and what the caller attached."""

    metadata: dict[str, Any]
    """Values are str or bytes; the receiver checks, since msgspec cannot tell the two in a union."""
    payload: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
encode_reference = _encode
encode_failure = _encode
encode_with_metadata = _encode
decode_reference: Final = msgspec.msgpack.Decoder(BlockReference).decode
decode_failure: Final = msgspec.msgpack.Decoder(Failure).decode
decode_with_metadata: Final = msgspec.msgpack.Decoder(WithMetadata).decode
DecodeError: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What the decoders raise on what is not an envelope."""
