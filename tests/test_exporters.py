"""Objects that give memory, and numbers of numpy's: what msgspec does not know, at any depth."""

import array
import ctypes
import mmap
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from travelling import arrive

from shmrpc.buffers import Buffer, Piece
from shmrpc.exporters import has_memory, out, pack_memory, unwrap


class Tensor:
    """What gives its memory by DLPack alone, like a tensor of PyTorch."""

    def __init__(self, values: Any, *, device: int = 1, error: Exception | None = None) -> None:
        self.values = np.asarray(values)
        self.device = device
        self.error = error

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.values.__dlpack__(**options)


numbers = np.arange(5000, dtype=np.int32)
mapped = mmap.mmap(-1, 20_000)
mapped[:] = numbers.tobytes()

GIVERS: dict[str, Any] = {
    "an array of the standard library": array.array("i", range(5000)),
    "one of ctypes": (ctypes.c_int * 5000)(*range(5000)),
    "a memoryview": memoryview(numbers.tobytes()).cast("i"),
    "a tensor": Tensor(numbers),
    "a transposed tensor": Tensor(numbers.reshape(50, 100).T),
    "a small one": array.array("i", range(3)),
    "a small tensor": Tensor(numbers[:3]),
    "a shared mapping": mapped,
    "a numpy array": numbers,
    "a scattered one": numbers[::2],
    "columns first": np.asfortranarray(numbers.reshape(50, 100)),
    "times": numbers.astype("M8[s]"),
    "nothing at all": array.array("i"),
}


@pytest.mark.parametrize("giver", GIVERS)
def test_whatever_gives_memory_arrives_as_an_array(giver: str) -> None:
    value = GIVERS[giver]
    expected = value.values if isinstance(value, Tensor) else np.asarray(value)
    deep = [value] if not isinstance(value, memoryview) else [np.asarray(value)]  # msgspec takes it for mere bytes
    for arrived in (arrive(value, np.ndarray), arrive(deep, list[np.ndarray])[0]):
        assert arrived.dtype == expected.dtype
        assert arrived.tolist() == expected.tolist()
        assert not arrived.flags.writeable


@pytest.mark.parametrize("giver", GIVERS)
def test_whatever_gives_memory_arrives_as_a_memoryview_of_bytes(giver: str) -> None:
    value = GIVERS[giver]
    expected = (value.values if isinstance(value, Tensor) else np.asarray(value)).tobytes()
    arrived = arrive(value, Buffer)
    assert type(arrived) is memoryview
    assert (arrived.format, arrived.ndim, arrived.readonly) == ("B", 1, True)
    assert arrived == expected


def test_memory_deep_in_a_value_arrives_as_a_memoryview_of_bytes() -> None:
    for value in (
        GIVERS["a tensor"],
        GIVERS["times"],
        GIVERS["a small one"],
        b"abc",
        bytearray(20_000),
        memoryview(b"abc"),
    ):
        (arrived,) = arrive([value], list[Buffer])
        whole = arrive(value, Buffer)
        assert type(arrived) is memoryview
        assert (arrived.format, arrived.readonly) == ("B", True)
        assert arrived == whole


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Tensor(numbers, device=2), r"got a Tensor on device 2, expected CPU memory; .* \.cpu\(\)"),
        (
            Tensor(numbers, error=RuntimeError("use tensor.detach()")),
            r"a Tensor that does not give its memory: use .*detach",
        ),
        (Tensor(numbers, error=BufferError("has nulls")), "a Tensor that does not give its memory: has nulls"),
    ],
)
def test_a_tensor_that_gives_no_memory_is_refused_with_the_remedy(value: Any, text: str) -> None:
    for type_ in (np.ndarray, Buffer):
        with pytest.raises(TypeError, match=text):
            arrive(value, type_)
    with pytest.raises(TypeError, match=text):
        arrive([value], list[np.ndarray])


def test_a_tensor_in_memory_that_the_gpu_sees_too_is_taken() -> None:
    assert arrive(Tensor(numbers, device=3), Buffer) == numbers.tobytes()


def test_what_gives_no_memory_is_said_to_give_none() -> None:
    pieces: list[Piece] = []
    with pytest.raises(TypeError, match="got object, expected an object with the buffer protocol"):
        pack_memory(object(), pieces)
    for value in (None, "abc", 3, [b"x"], {}, np.float64(3), np.str_("abc"), object()):
        assert not has_memory(value)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(1.5), 1.5),
        (np.float16(1.5), 1.5),
        (np.longdouble(1.5), 1.5),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (np.bytes_(b"raw"), b"raw"),
    ],
)
def test_a_number_of_numpys_becomes_pythons(number: Any, value: Any) -> None:
    for hook in (unwrap, out([])):
        assert hook(number) == value
        assert type(hook(number)) is type(value)
        assert msgspec.msgpack.Encoder(enc_hook=hook).encode([number]) == msgspec.msgpack.encode([value])


@pytest.mark.parametrize("value", [np.datetime64(3, "s"), np.timedelta64(3, "s"), np.complex64(1j), object(), 1j])
def test_what_is_neither_memory_nor_a_number_cannot_be_encoded(value: Any) -> None:
    for hook in (unwrap, out([])):
        with pytest.raises(TypeError, match=r"^Encoding objects of type .* is unsupported$"):
            hook(value)


WITHOUT_NUMPY = """
import array, mmap, sys, {before}
import msgspec, shmrpc
from shmrpc.contract import read

class Box(msgspec.Struct):
    content: shmrpc.Buffer

class Api:
    async def store(
        self, key: bytes, value: shmrpc.Buffer, boxes: list[Box], rest: bytearray | None = None
    ) -> memoryview: ...

method = read(Api).methods["store"]
numbers = array.array("i", range(5000))
payload, pieces = method.pack_arguments((b"k" * 20_000, numbers, [Box(numbers), Box(b"abc")], bytearray(20_000)))
views = []
for piece in pieces:
    views.append(memoryview(bytearray(piece.nbytes)))
    piece.copy_into(views[-1])
key, value, boxes, rest = method.unpack_arguments(payload, [view.toreadonly() for view in views])
assert value == boxes[0].content == numbers.tobytes() and boxes[1].content == b"abc"
assert (len(key), len(rest), len(pieces)) == (20_000, 20_000, 4)
print("numpy" in sys.modules)
"""


@pytest.mark.parametrize(("before", "there"), [("json", False), ("numpy", True)])
def test_memory_travels_without_numpy(before: str, there: bool) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_NUMPY.format(before=before)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{there}\n", "")
