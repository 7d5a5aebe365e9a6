"""address_of: where the memory of an object lies, so that an array that was born in a block is known by its address."""

import array
import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmrpc.shm.ring import View, address_of


def where(found: Any) -> Any:
    """The address of a numpy array, by numpy's own word."""
    return found.__array_interface__["data"][0]


ARRAYS: dict[str, Callable[[], Any]] = {
    "plain": lambda: np.arange(12.0).reshape(3, 4),
    "zero-dimensional": lambda: np.array(5, np.int16),
    "zero-size": lambda: np.zeros((3, 0)),
    "Fortran-ordered": lambda: np.asfortranarray(np.zeros((3, 4))),
    "axes in another order": lambda: np.zeros((2, 3, 4)).transpose(1, 0, 2).transpose(1, 0, 2),
    "structured": lambda: np.zeros(3, [("a", "u1"), ("b", "<f8")]),
    "structured with objects of bytes": lambda: np.zeros(
        3, np.dtype({"names": ["a"], "formats": ["V3"], "itemsize": 8})
    ),
    "dates": lambda: np.zeros(3, "M8[ns]"),
    "half floats": lambda: np.zeros(3, np.float16),
    "big-endian": lambda: np.zeros(3, ">u4"),
    "text": lambda: np.zeros(3, "U5"),
    "part of an array": lambda: np.arange(10)[3:7],
    "one row": lambda: np.zeros((3, 4))[1],
    "read-only": lambda: np.frombuffer(b"bytes", np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_one_run_of_bytes_is_found(name: str) -> None:
    found = ARRAYS[name]()
    assert address_of(found) == (where(found), found.nbytes, True, not found.flags.writeable)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((4, 4))[:, 1],
        lambda: np.zeros((4, 4))[::2],
        lambda: np.zeros(4)[::-1],
        lambda: np.broadcast_to(np.zeros(3), (2, 3)),
        lambda: np.zeros(3, [("a", "u1"), ("b", "<f8")])["b"],
    ],
)
def test_an_array_with_gaps_is_told_from_one_without(make: Callable[[], Any]) -> None:
    found = make()
    address = address_of(found)
    assert address == (where(found), found.nbytes, False, not found.flags.writeable)


def test_other_exporters_are_found() -> None:
    numbers = array.array("i", range(5))
    assert address_of(numbers) == (*map(int, (numbers.buffer_info()[0], 20)), True, False)
    raw = (ctypes.c_double * 4)()
    assert address_of(raw) == (ctypes.addressof(raw), 32, True, False)
    memory = mmap.mmap(-1, 4096)
    found = address_of(memory)
    assert found is not None
    begin, *rest = found
    assert rest == [4096, True, False]
    assert address_of(memoryview(memory)[100:110]) == (begin + 100, 10, True, False)
    assert address_of(memoryview(memory)[100:110:3]) == (begin + 100, 4, False, False)
    assert address_of(memoryview(memory).toreadonly()) == (begin, 4096, True, True)
    assert address_of(View(memory, 100, 10, None, 0, 0)) == (begin + 100, 10, True, True)
    assert address_of(View(memory, 100, 10, None, 0, 0, writable=True)) == (begin + 100, 10, True, False)
    assert (address_of(b"bytes") or ())[1:] == (5, True, True)
    assert (address_of(bytearray(5)) or ())[1:] == (5, True, False)


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


def closed() -> mmap.mmap:
    memory = mmap.mmap(-1, 4096)
    memory.close()
    return memory


@pytest.mark.parametrize("make", [int, str, list, object, lambda: None, released, closed])
def test_what_has_no_memory_to_show_has_no_address(make: Callable[[], object]) -> None:
    assert address_of(make()) is None


def test_nothing_is_kept() -> None:
    memory = bytearray(100)
    before = sys.getrefcount(memory)
    assert address_of(memory)
    memory.extend(memory)
    assert sys.getrefcount(memory) == before


if sys.version_info >= (3, 12):  # before, a class of Python could not export a buffer

    @pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
    def test_an_exporter_that_fails_otherwise_is_heard(error: type[BaseException]) -> None:
        class Failing:
            def __buffer__(self, flags: int) -> memoryview:
                raise error

        with pytest.raises(error):
            address_of(Failing())
