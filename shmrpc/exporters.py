"""Objects that give memory: which ones do, and msgspec's hooks for sending them, and numpy's numbers, from any depth.

Imports numpy only when something comes that only it can read.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from shmrpc import buffers
from shmrpc.buffers import EXT_CODE, INLINE, INLINE_BYTES, Ext, Piece, pack_bytes

BYTES_LIKE: Final = (bytes, bytearray, memoryview)


def has_memory(value: Any) -> bool:
    """Whether a value is, or gives, memory, other than text and numbers."""
    if isinstance(value, (str, int, float, list, dict, tuple)) or _is_numpy_scalar(value):
        return False
    if isinstance(value, BYTES_LIKE) or hasattr(value, "__dlpack__"):
        return True
    try:
        memoryview(value).release()
    except (TypeError, ValueError, BufferError):
        return False
    return True


def pack_memory(value: Any, pieces: list[Piece]) -> Any:
    """What stands in the payload for the bytes of any object that gives memory, rows first.

    Raises:
        TypeError: it gives none that can be read.
    """
    if not is_array(value):
        try:
            return pack_bytes(value if value.__class__ in BYTES_LIKE else memoryview(value), pieces)
        except (TypeError, ValueError, BufferError) as error:
            if not hasattr(value, "__dlpack__"):
                raise TypeError(f"got {type(value).__name__}, expected an object with the buffer protocol") from error
    from shmrpc import arrays

    return arrays.pack_bytes_of(arrays.as_array(value), pieces)


def is_array(value: Any) -> bool:
    """Whether a value is an array of numpy's, without importing it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def unwrap(value: Any) -> Any:
    """Msgspec's hook for encoding what it does not know, where no buffer can travel: a number of numpy's becomes Python's.

    Raises:
        TypeError: for anything else.
    """
    if _is_numpy_scalar(value):
        numpy: Any = sys.modules["numpy"]
        number: Any = value
        makers: tuple[tuple[Any, Callable[[Any], Any]], ...]
        makers = ((numpy.bool_, bool), (numpy.integer, int), (numpy.floating, float), (str, str), (bytes, bytes))
        if not isinstance(
            value, numpy.timedelta64
        ):  # an integer in numpy's eyes, but without its unit it means nothing
            for kind, make in makers:
                if isinstance(value, kind):
                    return make(number)
    raise TypeError(f"Encoding objects of type {type(value).__module__}.{type(value).__qualname__} is unsupported")


def to_json(value: Any) -> Any:
    """Msgspec's hook for encoding what it does not know as JSON: an array becomes nested lists.

    Raises:
        TypeError: for anything else, but numbers of numpy's.
    """
    return value.tolist() if is_array(value) else unwrap(value)


def out(pieces: list[Piece]) -> Callable[[Any], Any]:
    """Msgspec's hook for encoding what it does not know, into a payload whose buffers are put into `pieces`."""
    numpy = sys.modules.get("numpy")
    ndarray = None if numpy is None else numpy.ndarray

    def pack(value: Any) -> Any:
        if value.__class__ is ndarray:
            return _array_packer()(value, pieces)
        if not has_memory(value):
            return unwrap(value)
        if not hasattr(value, "__dlpack__"):
            memory = memoryview(value)
            dtype = buffers.dtype_of_format(memory.format, memory.itemsize)
            if memory.c_contiguous and dtype is not None:
                return _pack_plain(memory, dtype, pieces)
        return _array_packer()(value, pieces)

    return pack


@cache
def _array_packer() -> Callable[[Any, list[Piece]], Ext]:
    from shmrpc import arrays

    return arrays.anything().pack


def _pack_plain(memory: memoryview, dtype: str, pieces: list[Piece]) -> Ext:
    """Numbers in a row, without numpy."""
    head = buffers.head_of_array(dtype.encode(), memory.shape or (), buffers.ROWS_FIRST)
    if memory.nbytes <= INLINE_BYTES:
        return Ext(EXT_CODE, INLINE + head + memory.tobytes())
    pieces.append(Piece(memory.nbytes, memory))
    return Ext(EXT_CODE, (len(pieces) - 1).to_bytes(4, "little") + head)
