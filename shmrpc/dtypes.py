"""Element types of arrays on the wire: a text that says all of a dtype, and strict reading of one that a peer sent.

A plain type is numpy's own text, ``<f8`` or ``<M8[ns]``. A structured one is msgpack: ``[itemsize, [[name, type, offset],
…]]``, and in it an array as a field is ``[[size, …], type]``. Nothing that is read here can name a Python object.

Imports numpy: whoever may run without it imports this module late.
"""

import re
from math import prod
from typing import Any, Final

import msgspec
import numpy as np

MAX_TEXT_BYTES: Final = 0xFFFF
MAX_DEPTH: Final = 16
"""How deep structured types may be nested."""
MAX_ITEM_BYTES: Final = (1 << 31) - 1
"""Numpy's own limit."""
MAX_AXES: Final = 64

AnyDtype = np.dtype[Any]

_PLAIN: Final = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV][0-9]{1,10}|[mM]8(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?)"
)


def write(dtype: AnyDtype) -> bytes:
    """The text for a dtype.

    Raises:
        TypeError: it cannot travel; says why.
    """
    if dtype.names is None:
        return _plain(dtype).encode()
    text = msgspec.msgpack.encode(_structure(dtype, 0))
    if len(text) > MAX_TEXT_BYTES:
        raise TypeError(f"its dtype takes {len(text)} bytes to describe, the limit is {MAX_TEXT_BYTES}")
    return text


def _plain(dtype: AnyDtype) -> str:
    text = dtype.str
    if dtype.hasobject:
        hint = "numpy's StringDType keeps its text elsewhere, use .astype('U')" if dtype.kind == "T" else ""
        raise TypeError(f"dtype {dtype} cannot travel: {hint or 'its elements are Python objects, not memory'}")
    # The dtypes of other packages, like bfloat16, say that they are void: they would arrive as something else.
    if not _PLAIN.fullmatch(text) or np.dtype(text) != dtype:
        raise TypeError(f"dtype {dtype} cannot travel: it is not one of numpy's own; send a view as another dtype")
    return text


def _structure(dtype: AnyDtype, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise TypeError(f"its dtype is nested deeper than {MAX_DEPTH}")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [list(shape), _structure(base, depth + 1)]
    if dtype.names is None:
        return _plain(dtype)
    described: Any = dtype.fields
    fields = []
    for name in dtype.names:
        field, offset, *title = described[name]
        if title:
            raise TypeError(f"field {name!r} of its dtype has a title, and titles do not travel")
        fields.append([name, _structure(field, depth + 1), offset])
    return [dtype.itemsize, fields]


def read(text: bytes) -> AnyDtype:
    """The dtype that a text from a peer says.

    Raises:
        ValueError: it is no such text.
    """
    try:
        if text[:1] in (b"<", b">", b"|"):
            return _read(text.decode("ascii"), 0)
        return _read(msgspec.msgpack.decode(text), 0)
    except msgspec.DecodeError as error:  # a ValueError, and its text does not say of what
        raise ValueError(f"{text[:80]!r} is no dtype: {error}") from None
    except ValueError:
        raise
    except Exception as error:  # numpy's constructor, or a decoder, at the mercy of the peer
        raise ValueError(f"{text[:80]!r} is no dtype: {error}") from None


def _read(said: Any, depth: int) -> AnyDtype:
    if depth > MAX_DEPTH:
        raise ValueError(f"a dtype is nested deeper than {MAX_DEPTH}")
    match said:
        case str() if _PLAIN.fullmatch(said):
            return np.dtype(said)
        case [int(itemsize), [*fields]] if 0 <= itemsize <= MAX_ITEM_BYTES:
            return _read_fields(itemsize, fields, depth)
        case [[*sizes], base] if len(sizes) <= MAX_AXES and all(type(size) is int and size >= 0 for size in sizes):
            element = _read(base, depth + 1)
            if prod(sizes) * element.itemsize > MAX_ITEM_BYTES:
                raise ValueError(f"a field of shape {tuple(sizes)} is too large")
            return np.dtype((element, tuple(sizes)))
    raise ValueError(f"{str(said)[:80]!r} is no dtype")


def _read_fields(itemsize: int, fields: list[Any], depth: int) -> AnyDtype:
    names, formats, offsets = [], [], []
    for field in fields:
        match field:
            case [str(name), inner, int(offset)]:
                format_ = _read(inner, depth + 1)
                if offset < 0 or offset + format_.itemsize > itemsize:
                    raise ValueError(f"field {name!r} lies outside of the {itemsize} bytes of its dtype")
                names.append(name)
                formats.append(format_)
                offsets.append(offset)
            case _:
                raise ValueError(f"{str(field)[:80]!r} is no field of a dtype")
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": itemsize})
