"""Arrays and other buffers in a call: every kind, in every place. Stated once, for every transport."""

import array
from typing import Any, cast

import numpy as np
import pytest
from conformance_arrays import AnyArray, Arrays, Frame, Pixels, Seen
from conformance_checks import SIZES, assert_same, numbers
from conformance_transports import Transport, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]


def structured(count: int) -> AnyArray:
    dtype = np.dtype([("name", "S4"), ("place", "<f4", (2,)), ("inner", [("on", "?"), ("when", "<M8[s]")])], align=True)
    records = np.zeros(count, dtype)
    records["name"] = b"abc"
    records["place"] = np.arange(2 * count).reshape(count, 2)
    records["inner"]["on"] = True
    return records


LAYOUTS: dict[str, Any] = {
    "contiguous": lambda n: numbers(n, np.int32),
    "every third": lambda n: numbers(3 * n, np.float32)[::3],
    "backwards": lambda n: numbers(n, np.int64)[::-1],
    "turned": lambda n: numbers(10 * n, np.int16).reshape(n, 10).T,
    "a corner": lambda n: numbers(4 * n).reshape(n, 4)[1:, 1:3],
    "three axes turned": lambda n: numbers(6 * n).reshape(2, n, 3).transpose(2, 0, 1),
    "Fortran's order": lambda n: np.asfortranarray(numbers(3 * n, np.float64).reshape(n, 3)),
    "one row many times": lambda n: np.broadcast_to(numbers(3), (n, 3)),
    "nothing": lambda n: np.empty((0, n), np.float64),
    "no axes": lambda n: np.array(n, np.uint64),
    "truths": lambda n: numbers(n) % 2 == 0,
    "complex": lambda n: numbers(n) + 1j * numbers(n),
    "half": lambda n: numbers(n, np.float16),
    "the other byte order": lambda n: numbers(n, ">f8"),
    "the other byte order, turned": lambda n: numbers(2 * n, ">u2").reshape(n, 2).T,
    "moments": lambda n: np.datetime64("2026-02-03T04:05:06", "ms") + np.arange(n),
    "days, backwards": lambda n: (np.datetime64("2026-02-03", "D") + np.arange(n))[::-1],
    "durations": lambda n: np.arange(n).astype("m8[us]"),
    "words": lambda n: np.array(["grün", "rot", ""] * n),
    "bytes": lambda n: np.array([b"ab", b"c"] * n),
    "raw": lambda n: numbers(4 * n).view("V4"),
    "records": structured,
    "records, backwards": lambda n: structured(n)[::-1],
    "a column of records": lambda n: structured(n)["place"],
    "read-only": lambda n: np.frombuffer(bytes(n), np.uint8),
}


@on_every_transport
async def test_an_array_of_every_layout_comes_back_equal_and_read_only(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for name, make in LAYOUTS.items():
            for count in (1, 30, 20_000):
                sent = make(count)
                assert_same(await arrays.anything(sent), sent, (name, count))


@on_every_transport
async def test_a_handler_gets_an_ordinary_array_that_it_cannot_write(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in SIZES:
            assert await arrays.look(numbers(count)) == Seen("uint8", (count,), False, "ndarray")
            assert "read-only" in await arrays.write(cast(Pixels, numbers(count)))


@on_every_transport
async def test_an_array_may_be_anywhere_in_a_value(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for count in SIZES:
            pixels: Any = numbers(count)
            reals = numbers(count // 4, np.float64)
            frame = await arrays.frame(Frame(pixels, "all", pixels > 3, [reals, reals[:5]]))
            assert frame.label == "all"
            assert_same(frame.pixels, pixels, count)
            assert_same(frame.mask, pixels > 3, count)
            for arrived_reals, sent in zip(frame.rest, [reals, reals[:5]], strict=True):
                assert_same(arrived_reals, sent, count)
            assert (await arrays.frame(Frame(pixels))).mask is None
            for arrived, given in zip(await arrays.row([pixels, pixels[3:]]), [pixels, pixels[3:]], strict=True):
                assert_same(arrived, given, count)
            one, other = await arrays.pair((pixels, reals))
            assert_same(one, pixels, count)
            assert_same(other, reals, count)
            assert_same((await arrays.table({"one": pixels}))["one"], pixels, count)
            assert_same(await arrays.optional(pixels), pixels, count)
            assert_same(await arrays.either(pixels), pixels, count)
            nothing, some = await arrays.frames([None, Frame(pixels)])
            assert nothing is None
            assert some is not None
            assert_same(some.pixels, pixels, count)
            assert_same((await arrays.free({"deep": [pixels]}))["deep"][0], pixels, count)
            three = await arrays.several(pixels, other=pixels[1:], third=pixels[2:])
            for begin in range(3):
                assert_same(three[begin], pixels[begin:], count)
            assert len(three) == 3


@on_every_transport
async def test_what_is_no_array_may_stand_in_its_place_where_the_contract_says_so(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        assert await arrays.optional() is None
        assert await arrays.optional(None) is None
        assert await arrays.either("text") == "text"
        assert await arrays.either([1, 2]) == [1, 2]
        assert await arrays.row([]) == []
        assert await arrays.free("text") == "text"


@on_every_transport
async def test_an_array_that_does_not_fit_is_refused_and_the_parameter_named(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        wrong: Any = arrays
        calls: list[tuple[Any, str]] = [
            (lambda: wrong.pixels(np.zeros(3)), "got float64 of shape (3,), expected uint8"),
            (lambda: wrong.pixels(np.zeros(3, np.int8)), "got int8"),
            (lambda: wrong.real(np.zeros(3, np.float32)), "got float32"),
            (lambda: wrong.number(np.zeros(3, np.int64)), "expected floating"),
            (lambda: wrong.colours(np.zeros((3, 3), np.uint8)), "got uint8 of shape (3, 3), expected"),
            (lambda: wrong.colours(np.zeros((3, 3, 4), np.uint8)), "got uint8 of shape (3, 3, 4), expected"),
            (lambda: wrong.pixels(None), "None"),
            (lambda: wrong.pixels("text"), "a str, expected an array"),
            (lambda: wrong.pixels([1, 2]), "a list, expected an array; numpy.asarray makes one"),
            (lambda: wrong.anything(np.array([object()])), "object"),
            (lambda: wrong.anything(np.zeros(3, [("a", "O")])), "object"),
            (lambda: wrong.free([np.array([object()])]), "object"),
            (lambda: wrong.row([np.zeros(3)]), "float64"),
            (lambda: wrong.text("text"), "str"),
            (lambda: wrong.view(7), "int"),
        ]
        for call, text in calls:
            with pytest.raises(shmrpc.InvalidArgument) as caught:
                await call()
            assert "parameter 'value'" in str(caught.value)
            assert text in str(caught.value)
        assert await arrays.text(b"alive") == b"alive"


@on_every_transport
async def test_a_result_that_does_not_fit_is_internal(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        for call in (arrays.give_objects, arrays.give_reals):
            with pytest.raises(shmrpc.Internal, match=r"its result cannot be encoded"):
                await call()
        assert await arrays.text(b"alive") == b"alive"


@on_every_transport
async def test_bytes_of_every_kind_arrive_as_what_the_contract_says(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        anything: Any = arrays
        for count in (0, *SIZES):
            sent = numbers(count).tobytes()
            for value in (sent, bytearray(sent), memoryview(sent)):
                for method, type_ in (("text", bytes), ("changeable", bytearray), ("view", memoryview)):
                    arrived = await getattr(anything, method)(value)
                    assert (type(arrived), bytes(arrived)) == (type_, sent), (method, type(value), count)
            view = await arrays.view(memoryview(sent))
            assert view.readonly
            assert view.format == "B"


class OnlyDlpack:
    """As a tensor of another package: gives its memory by DLPack alone."""

    def __init__(self, memory: AnyArray) -> None:
        self._memory = memory

    def __dlpack__(self, **how: Any) -> Any:
        return self._memory.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return cast(tuple[int, int], self._memory.__dlpack_device__())


class OnGpu(OnlyDlpack):
    """One that cannot be read from here."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@on_every_transport
async def test_whatever_has_memory_can_be_passed_as_an_array(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        anything: Any = arrays
        for count in SIZES:
            plain: Any = numbers(count)
            others = (plain.tobytes(), bytearray(plain), array.array("B", plain.tobytes()), OnlyDlpack(plain))
            for value in (*others, memoryview(plain)):
                assert_same(await anything.pixels(value), plain, (type(value), count))
            reals = array.array("d", range(count // 8))
            assert_same(await anything.real(reals), np.asarray(reals), count)
            assert_same(await anything.anything(reals), np.asarray(reals), count)
            halves: Any = numbers(count // 2 * 2, np.float32)
            shaped = memoryview(halves).cast("B").cast("f", (2, count // 2))
            assert_same(await anything.anything(shaped), np.asarray(shaped), count)
            matrix = numbers(count).view(np.recarray)
            assert_same(await anything.pixels(matrix), plain, count)
        with pytest.raises(shmrpc.InvalidArgument, match=r"parameter 'value'.*expected CPU memory"):
            await anything.pixels(OnGpu(numbers(3)))
        with pytest.raises(shmrpc.InvalidArgument, match=r"parameter 'value'.*masked array"):
            await anything.pixels(np.ma.masked_array(numbers(3)))


@on_every_transport
async def test_whatever_has_memory_can_be_passed_as_a_buffer(transport: Transport) -> None:
    async with transport.connect(Arrays) as arrays:
        anything: Any = arrays
        for count in SIZES:
            reals: Any = numbers(count // 8, np.float64)
            for value in (
                reals,
                reals[::-1],
                array.array("d", reals),
                memoryview(reals),
                reals.tobytes(),
                bytearray(reals),
            ):
                sent = np.asarray(value).tobytes()
                assert await anything.look_at_buffer(value) == ("memoryview", True, len(sent))
                arrived = await anything.buffer(value)
                assert type(arrived) is memoryview
                assert bytes(arrived) == sent
