"""Values on their way through a codec, as a transport would carry them: for the tests of buffers and arrays."""

from collections.abc import Sequence
from typing import Any

from shmrpc.buffers import Packed
from shmrpc.codec import RowCodec, ValueCodec
from shmrpc.contract import read
from shmrpc.methods import Method
from shmrpc.slots import NO_DEFAULT


def views_of(packed: Packed) -> list[memoryview]:
    """What the receiver sees of the buffers: read-only memory of its own."""
    views = []
    for piece in packed.pieces:
        memory = bytearray(b"\xee" * piece.nbytes)
        piece.copy_into(memoryview(memory))
        views.append(memoryview(memory).toreadonly())
    return views


def arrive(value: Any, type_: Any) -> Any:
    """A value as it arrives, written and read as one type: a whole result."""
    codec = ValueCodec(type_)
    packed = codec.pack(value)
    return codec.unpack(packed.payload, views_of(packed))


def arrive_in_row(values: Sequence[Any], types: Sequence[Any]) -> tuple[Any, ...]:
    """Values as they arrive, as arguments."""
    codec = RowCodec(types, [NO_DEFAULT] * len(types), "row")
    packed = codec.pack(tuple(values))
    return codec.unpack(packed.payload, views_of(packed))


def method_of(**annotations: Any) -> Method:
    """A method ``Api.call`` with these parameters; ``result`` is its result, None by default."""
    result = annotations.pop("result", None)
    scope: dict[str, Any] = dict(annotations)
    parameters = ", ".join(f"{name}: {name}" for name in annotations)
    scope["result"] = result
    exec(f"async def call(self, {parameters}) -> result: ...", scope)
    call = scope["call"]
    call.__annotations__ = {**annotations, "return": result}
    return read(type("Api", (), {"call": call})).methods["call"]
