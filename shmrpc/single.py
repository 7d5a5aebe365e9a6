"""Messages that are one array and nothing else: the quick way in and out, beside the general one of `codec`.

What the general way did is remembered by the array's layout, and by the payload's bytes: then the next message of the same
kind takes no encoder, and nothing is checked twice. Whatever is new, or odd, goes the general way.

Imports numpy: whoever may run without it imports this module late.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final, Literal

import numpy as np

from shmrpc.arrays import AnyArray, ArrayPiece
from shmrpc.buffers import INLINE_BYTES, Buffer, Packed, packed

_KNOWN_MOST: Final = 256
"""Layouts that are remembered for each message; beyond it they are forgotten, and met anew."""
_LONGEST: Final = 256
"""What describes an array in a payload is remembered up to this length: a peer must not fill the memory with it."""

_layout_of: Final = attrgetter("dtype", "shape", "strides")


class SingleArray:
    """Packs and unpacks what one codec would, quicker.

    Args:
        pack: The general way out: gives what a message becomes.
        unpack: The general way in: gives the message, of a payload and its views.
    """

    def __init__(self, pack: Callable[[Any], Packed], unpack: Callable[[bytes, Sequence[Buffer]], Any]) -> None:
        self._pack: Final = pack
        self._unpack: Final = unpack
        self._sent: Final[dict[Any, tuple[bytes, int, Literal["C", "F"]]]] = {}
        """By layout: the payload without inline bytes, the size, the order of the bytes."""
        self._met: Final[dict[bytes, tuple[int, tuple[int, ...], np.dtype[Any], Literal["C", "F"]]]] = {}
        """By payload: the layout of an array whose bytes are in a view."""
        self._inline: Final[dict[int, tuple[bytes, tuple[int, ...], np.dtype[Any], Literal["C", "F"]]]] = {}
        """By the payload's length: how it begins, and the layout of an array whose bytes follow."""

    # ---- out ----

    def describe_row(self, values: tuple[Any, ...]) -> bytes | None:
        """The payload of a row whose array is one piece, and is the piece's exporter; None: that is not known."""
        if len(values) == 1 and (array := values[0]).__class__ is np.ndarray:
            known = self._sent.get(_layout_of(array))
            if known is not None and known[1] > INLINE_BYTES:
                return known[0]
        return None

    def pack_row(self, values: tuple[Any, ...]) -> Packed:
        """What a row becomes that holds an array; raises what the general way raises."""
        if len(values) == 1 and values[0].__class__ is np.ndarray:
            (array,) = values
            try:
                payload, nbytes, order = self._sent[_layout_of(array)]
            except KeyError:
                return self._learn_sent(array, self._pack(values))
            if nbytes > INLINE_BYTES:
                return packed(payload, [ArrayPiece(nbytes, array, array, order)])
            return packed(payload + array.tobytes(order))
        return self._pack(values)

    def pack_value(self, value: Any) -> Packed:
        """What an array becomes; raises what the general way raises."""
        if value.__class__ is np.ndarray:
            try:
                payload, nbytes, order = self._sent[_layout_of(value)]
            except KeyError:
                return self._learn_sent(value, self._pack(value))
            if nbytes > INLINE_BYTES:
                return packed(payload, [ArrayPiece(nbytes, value, value, order)])
            return packed(payload + value.tobytes(order))
        return self._pack(value)

    def _learn_sent(self, array: AnyArray, message: Packed) -> Packed:
        payload, pieces = message
        order = _order_of(array)
        if len(self._sent) >= _KNOWN_MOST:
            self._sent.clear()
        if not pieces:
            self._sent[_layout_of(array)] = payload[: len(payload) - array.nbytes], array.nbytes, order
        elif pieces[0].exporter is array:  # others must be gathered, or seen in another way
            self._sent[_layout_of(array)] = payload, array.nbytes, order
        return message

    # ---- in ----

    def unpack_row(self, payload: bytes, views: Sequence[Buffer]) -> tuple[Any, ...]:
        """The row that arrived; raises what the general way raises."""
        if len(views) == 1 and (met := self._met.get(payload)) is not None:  # as in `_open`, which costs a call
            (view,) = views
            if view.__class__ is not memoryview and len(view) == met[0]:  # type: ignore[arg-type]
                return (np.ndarray(met[1], met[2], view, 0, None, met[3]),)  # type: ignore[arg-type]
        elif (array := self._open(payload, views)) is not None:
            return (array,)
        row: tuple[Any, ...] = self._unpack(payload, views)
        self._learn_met(payload, views, row[0])
        return row

    def unpack_value(self, payload: bytes, views: Sequence[Buffer]) -> Any:
        """The value that arrived; raises what the general way raises."""
        array = self._open(payload, views)
        if array is None:
            array = self._unpack(payload, views)
            self._learn_met(payload, views, array)
        return array

    def _open(self, payload: bytes, views: Sequence[Buffer]) -> AnyArray | None:
        if len(views) == 1:
            met = self._met.get(payload)
            if met is not None:
                (view,) = views
                nbytes, shape, dtype, order = met
                if view.__class__ is not memoryview and len(view) == nbytes:  # type: ignore[arg-type]
                    return np.ndarray(shape, dtype, view, 0, None, order)  # type: ignore[arg-type]
        elif not views and (inline := self._inline.get(len(payload))) is not None:
            head, shape, dtype, order = inline
            if payload.startswith(head):
                return np.ndarray(shape, dtype, payload[len(head) :], 0, None, order)  # aligned, as a part would not be
        return None

    def _learn_met(self, payload: bytes, views: Sequence[Buffer], array: AnyArray) -> None:
        nbytes = array.nbytes
        if views:
            if len(payload) < _LONGEST and nbytes:
                if len(self._met) >= _KNOWN_MOST:
                    self._met.clear()
                self._met[payload] = nbytes, array.shape, array.dtype, _order_of(array)
        elif nbytes and len(payload) - nbytes < _LONGEST:
            if len(self._inline) >= _KNOWN_MOST:
                self._inline.clear()
            self._inline[len(payload)] = payload[: len(payload) - nbytes], array.shape, array.dtype, _order_of(array)


def _order_of(array: AnyArray) -> Literal["C", "F"]:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
