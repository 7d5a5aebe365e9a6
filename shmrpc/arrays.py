"""Numpy's arrays as buffers: which ones a contract takes, how they go into a payload, and how they come out of it.

Imports numpy: whoever may run without it imports this module late.
"""

import types
import typing
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import prod
from operator import index
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin

import numpy as np

from shmrpc import buffers, dtypes
from shmrpc.buffers import ANNOUNCED_BYTES, EXT_CODE, INLINE, INLINE_BYTES, NEAR_END_BYTES, Buffer, Ext, Piece, copy_run

AnyArray = np.ndarray[Any, np.dtype[Any]]

_KNOWN_MOST: Final = 256
"""Layouts of arrays that are remembered for each place of a contract; beyond it they are forgotten, and met anew."""

_CPU: Final = {1, 3, 11, 13}
"""DLPack's numbers of devices whose memory the CPU can read: its own, and what CUDA and ROCm pinned or manage for both."""


_LET_OTHERS_RUN: Final = 1 << 20
"""Bytes from which on numpy copies, which lets other threads run meanwhile, and takes longer to begin."""


class _Sent(NamedTuple):
    """What is known of arrays of one dtype, shape and strides."""

    nbytes: int
    whole: bool
    """Its bytes are one run."""
    exports: bool
    """It can be asked for its bytes itself, which takes plain numbers, rows first."""
    order: Literal["C", "F"]
    head: bytes
    first: Ext
    """The extension of the first buffer of a message, which is nearly every one."""


class ArrayPiece(Piece):
    """An array on its way out."""

    order: Literal["C", "F"] = "C"

    def copy_into(self, target: memoryview, near_end: Callable[[], None] | None = None) -> None:
        """Copies the elements, once, in the order in which they travel: see `Piece.copy_into`."""
        array: AnyArray = self.source
        if self.exporter is not None and self.nbytes < _LET_OTHERS_RUN:
            copy_run(target, memoryview(self.exporter).cast("B"), near_end)  # type: ignore[arg-type]
        elif self.exporter is not None:
            copy_run(np.frombuffer(target, np.uint8), _run_of(array), near_end)
        elif self.nbytes:
            if near_end is not None and ANNOUNCED_BYTES <= self.nbytes <= NEAR_END_BYTES:
                near_end()
            np.copyto(np.ndarray(array.shape, array.dtype, target, order=self.order), array)


def _run_of(array: AnyArray) -> AnyArray:
    """The bytes of an array that is one run, without a copy."""
    return array.reshape(-1, order="A").view(np.uint8)


class Alternative(NamedTuple):
    """One kind of array that a place takes."""

    scalars: tuple[type[np.generic], ...] | None
    """The scalar types of its elements, abstract ones too; None: any."""
    shape: tuple[int | None, ...] | None
    """The size of each axis, None: any; None for all: any shape."""


class ArraySpec:
    """Which arrays one place of a contract takes, and how they travel there. Made from an annotation, or several."""

    def __init__(self, alternatives: Sequence[Alternative]) -> None:
        self.alternatives: Final = tuple(alternatives)
        self._sent: Final[dict[tuple[Any, ...], _Sent]] = {}
        self._met: Final[dict[bytes, tuple[Any, ...]]] = {}

    def __repr__(self) -> str:
        return f"<ArraySpec {self}>"

    def __str__(self) -> str:
        return " or ".join(map(_expected, self.alternatives))

    def describe(self) -> list[tuple[list[str] | None, list[int | None] | None]]:
        """The names of the element types and the sizes of the axes of each alternative, as contracts are compared."""
        return [
            (None if scalars is None else sorted(map(name_of, scalars)), None if shape is None else list(shape))
            for scalars, shape in self.alternatives
        ]

    def check(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Refuses an array that does not fit.

        Raises:
            ValueError: says what it is and what was expected.
        """
        if not any(_fits(alternative, dtype, shape) for alternative in self.alternatives):
            raise ValueError(f"got {dtype} of shape {shape}, expected {self}")

    def pack(self, value: Any, pieces: list[Piece]) -> Ext:
        """What stands for an array in the payload; its piece is added to the others, unless it is small.

        Raises:
            TypeError: it is no array, and none can be made of it without copying; or its dtype cannot travel.
            ValueError: it does not fit.
        """
        array: AnyArray = value if value.__class__ is np.ndarray else as_array(value)
        try:
            sent = self._sent[array.dtype, array.shape, array.strides]
        except KeyError:
            sent = self._learn(array)
        if sent.nbytes <= INLINE_BYTES:
            return Ext(EXT_CODE, INLINE + sent.head + array.tobytes(sent.order))
        exporter = array if sent.exports else _run_of(array) if sent.whole else None
        position = len(pieces)
        pieces.append(ArrayPiece(sent.nbytes, exporter, array, sent.order))
        return sent.first if not position else Ext(EXT_CODE, position.to_bytes(4, "little") + sent.head)

    def _learn(self, array: AnyArray) -> _Sent:
        self.check(array.dtype, array.shape)
        flags = array.flags
        order: Literal["C", "F"] = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
        kind = buffers.COLUMNS_FIRST if order == "F" else buffers.ROWS_FIRST
        head = buffers.head_of_array(dtypes.write(array.dtype), array.shape, kind)
        whole = bool(flags.forc)
        sent = _Sent(
            array.nbytes, whole, whole and _exports(array), order, head, Ext(EXT_CODE, b"\x00\x00\x00\x00" + head)
        )
        if len(self._sent) >= _KNOWN_MOST:
            self._sent.clear()
        self._sent[array.dtype, array.shape, array.strides] = sent
        return sent

    def unpack(self, body: bytes, views: list[Any]) -> AnyArray:
        """The array that an extension's body stands for: read-only, over one of the views.

        Raises:
            ValueError: it does not fit, or is malformed.
        """
        head = body[4:] if body[:4] != INLINE else body[4 : buffers.length_of_head(body)]
        try:
            dtype, shape, order, nbytes = self._met[head]
        except KeyError:
            dtype, shape, order, nbytes = self._meet(head)
        memory = buffers.take(body, views)
        if len(memory) != nbytes:
            raise ValueError(f"got {len(memory)} bytes for {dtype} of shape {shape}, which takes {nbytes}")
        if memory.__class__ is memoryview and nbytes:
            memory = np.frombuffer(memory, np.uint8)  # else numpy forgets the memoryview, and that it is read-only
        return np.ndarray(shape, dtype, memory, 0, None, order)

    def _meet(self, head: bytes) -> tuple[Any, ...]:
        layout = _read_head(head)
        self.check(layout[0], layout[1])
        if len(head) < 256:  # a peer may send anything, and must not fill the memory with it
            if len(self._met) >= _KNOWN_MOST:
                self._met.clear()
            self._met[head] = layout
        return layout

    def from_list(self, values: Any) -> AnyArray:
        """An array of nested lists, as JSON has them; read-only.

        Raises:
            ValueError, TypeError: they do not fit.
        """
        wanted = {scalar for alternative in self.alternatives for scalar in alternative.scalars or (None,)}
        scalar = wanted.pop() if len(wanted) == 1 else None
        array = np.array(values, None if scalar is None or _is_abstract(scalar) else scalar)
        dtypes.write(array.dtype)  # refuses what is only an array of Python objects
        self.check(array.dtype, array.shape)
        array.flags.writeable = False
        return array


def pack_bytes_of(array: AnyArray, pieces: list[Piece]) -> Any:
    """What stands in the payload for an array of which only the bytes count, rows first."""
    if array.nbytes <= INLINE_BYTES:
        return array.tobytes()
    whole = bool(array.flags.c_contiguous)
    exporter = None if not whole else array if _exports(array) else _run_of(array)
    pieces.append(ArrayPiece(array.nbytes, exporter, array))
    return buffers.head_of_bytes(len(pieces) - 1)


def _read_head(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"], int]:
    """Dtype, shape, order and size of an array that a peer described.

    Raises:
        ValueError: it is malformed.
    """
    kind, axes = (head[0], head[1]) if len(head) > 1 else (head[0] if head else 0xFF, 0)
    end = len(head) - 8 * axes
    if kind == buffers.BYTES:
        raise ValueError("expected an array, got bytes")
    if kind not in (buffers.ROWS_FIRST, buffers.COLUMNS_FIRST) or axes > dtypes.MAX_AXES or end < 4:
        raise ValueError("expected an array, got another buffer or a malformed one")
    if int.from_bytes(head[2:4], "little") != end - 4:
        raise ValueError("an array's description does not have the length that it says")
    dtype = dtypes.read(head[4:end])
    shape = tuple(int.from_bytes(head[at : at + 8], "little") for at in range(end, len(head), 8))
    nbytes = prod(shape) * dtype.itemsize
    if prod(shape) * max(1, dtype.itemsize) >> 63 or max(shape, default=0) >> 63:
        raise ValueError(f"an array of shape {shape} fits into no memory")
    return dtype, shape, "F" if kind == buffers.COLUMNS_FIRST else "C", nbytes


def _exports(array: AnyArray) -> bool:
    try:
        memoryview(array).cast("B")  # type: ignore[arg-type]
    except (TypeError, ValueError):  # memoryview takes plain numbers only, rows first
        return False
    return True


def as_array(value: Any) -> AnyArray:
    """An ordinary array over the memory of whatever has some: an array of a subclass, or anything with the buffer protocol
    or DLPack.

    Raises:
        TypeError: it has none that can be read; says what to pass instead.
    """
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("got a masked array, whose mask would be lost; pass .filled(), or data and mask apart")
        return np.asarray(value)
    if not isinstance(value, np.generic):
        try:
            memory = memoryview(value)
        except (TypeError, ValueError, BufferError):
            if hasattr(value, "__dlpack__"):
                return _from_dlpack(value)
        else:
            return np.asarray(memory)
    got = "None" if value is None else _article(type(value).__name__)
    raise TypeError(f"got {got}, expected an array; numpy.asarray makes one")


def _from_dlpack(value: Any) -> AnyArray:
    name = type(value).__name__
    try:
        device, _ = value.__dlpack_device__()
        if device not in _CPU:
            raise TypeError(
                f"got {_article(name)} on device {device}, expected CPU memory; move it there, as .cpu() does"
            )
        return np.from_dlpack(value)
    except TypeError:
        raise
    except Exception as error:  # the package's own: it wants gradients, has nulls, or a dtype that numpy lacks
        raise TypeError(f"got {_article(name)} that does not give its memory: {error}") from error


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# Annotations


def spec_of(annotation: Any) -> ArraySpec | None:
    """What an annotation like ``npt.NDArray[np.uint8]`` takes; None for one that is no array.

    Raises:
        TypeError: no array that it takes could travel.
    """
    if annotation is np.ndarray:
        return anything()
    if get_origin(annotation) is not np.ndarray:
        return None
    shape, dtype = (*get_args(annotation), Any)[:2]
    return ArraySpec([Alternative(_scalars_of(dtype), _shape_of(shape))])


@cache
def anything() -> ArraySpec:
    """The spec of an array about which nothing is said."""
    return ArraySpec([Alternative(None, None)])


def _scalars_of(annotation: Any) -> tuple[type[np.generic], ...] | None:
    if get_origin(annotation) is not np.dtype:
        return None
    (scalar,) = get_args(annotation)
    members = get_args(scalar) if get_origin(scalar) in (typing.Union, types.UnionType) else (scalar,)
    members = tuple(get_origin(member) or member for member in members)  # np.floating[Any]
    if any(member is Any or isinstance(member, TypeVar) for member in members):
        return None
    for member in members:
        if not isinstance(member, type) or not issubclass(member, np.generic):
            raise TypeError(f"{member!r} is no element type of an array")
        if issubclass(member, np.object_):
            raise TypeError("an array of Python objects cannot travel; take a list, or an array of numbers")
    return members


def _shape_of(annotation: Any) -> tuple[int | None, ...] | None:
    sizes = get_args(annotation)
    if get_origin(annotation) is not tuple or Ellipsis in sizes:
        return None
    return tuple(_size_of(size) for size in sizes)


def _size_of(annotation: Any) -> int | None:
    if get_origin(annotation) is not Literal:
        return None
    sizes = get_args(annotation)
    if len(sizes) != 1 or type(sizes[0]) is not int or sizes[0] < 0:
        raise TypeError(f"{annotation} is no size of an axis")
    return int(sizes[0])


def _fits(alternative: Alternative, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    scalars, sizes = alternative
    if scalars is not None and not any(_is_of(dtype, scalar) for scalar in scalars):
        return False
    if sizes is None:
        return True
    return len(sizes) == len(shape) and all(size is None or size == got for size, got in zip(sizes, shape, strict=True))


def _is_of(dtype: np.dtype[Any], scalar: type[np.generic]) -> bool:
    if issubclass(dtype.type, scalar):
        return True
    # The same numbers under another name: longlong is int64 where both have eight bytes.
    return not _is_abstract(scalar) and np.dtype(scalar) == dtype.newbyteorder("=")


def _is_abstract(scalar: type[np.generic]) -> bool:
    return scalar in (
        np.generic,
        np.number,
        np.integer,
        np.signedinteger,
        np.unsignedinteger,
        np.inexact,
        np.floating,
        np.complexfloating,
        np.flexible,
        np.character,
    )


def name_of(scalar: type[np.generic]) -> str:
    """What a scalar type is called when contracts are compared: ``uint8``, ``floating``."""
    if _is_abstract(scalar) or issubclass(scalar, np.flexible):
        return scalar.__name__
    return np.dtype(scalar).name


def _expected(alternative: Alternative) -> str:
    text = "any dtype" if alternative.scalars is None else " or ".join(map(name_of, alternative.scalars))
    if alternative.shape is None:
        return text
    sizes = ", ".join("any" if size is None else str(size) for size in alternative.shape)
    return f"{text} of shape ({sizes}{',' if len(alternative.shape) == 1 else ''})"


# Memory for arrays to be born in


def nbytes_of(shape: Any, dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """The shape as a tuple, the dtype, and how many bytes such an array takes.

    Raises:
        TypeError: the dtype cannot travel.
        ValueError: a size is negative, or there are too many axes.
    """
    sizes = tuple(map(index, shape)) if isinstance(shape, Sequence) else (index(shape),)
    element = _element_of(dtype) if isinstance(dtype, type) else np.dtype(dtype)
    if element.subdtype is not None:
        base, inner = element.subdtype
        sizes, element = sizes + inner, base
    if not isinstance(dtype, type):
        dtypes.write(element)
    if min(sizes, default=0) < 0:
        raise ValueError(f"shape {sizes} has a negative size")
    if len(sizes) > dtypes.MAX_AXES:
        raise ValueError(f"shape {sizes} has {len(sizes)} axes, the limit is {dtypes.MAX_AXES}")
    return sizes, element, prod(sizes) * element.itemsize


@lru_cache(maxsize=_KNOWN_MOST)
def _element_of(scalar: type) -> np.dtype[Any]:
    """The dtype of a scalar type, which is what `shmrpc.empty` mostly gets."""
    element = np.dtype(scalar)
    dtypes.write(element)
    return element


def array_over(
    memory: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"] = "C"
) -> AnyArray:
    """An array over memory, of what `nbytes_of` gave; writable if the memory is. Nothing is filled in.

    Raises:
        TypeError: the memory is too short.
    """
    return np.ndarray(shape, dtype, memory, 0, None, order)  # type: ignore[arg-type]
