"""One method of a contract with a stream among its parameters, or as its result: what is read, passed, checked and said.

Methods without streams: see `test_contract` and `test_contract_calls`.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import shmrpc
from shmrpc.contract import read
from shmrpc.signature import Signature

U8 = npt.NDArray[np.uint8]


class Label(msgspec.Struct):
    name: str


class Api(Protocol):
    def tiles(self, image: U8, rows: int = 2) -> AsyncIterator[U8]: ...
    async def total(self, first: int, parts: AsyncIterator[Label], last: str = "z") -> int: ...
    def negate(self, parts: AsyncIterable[U8], *, scale: float = 1.0) -> AsyncGenerator[U8, None]: ...
    async def by_name(self, first: int, *, parts: AsyncIterator[int], last: str) -> int: ...
    async def plain(self, first: int) -> int: ...
    @shmrpc.method(idempotent=True)
    def count(self) -> AsyncIterator[int]: ...


methods = read(Api).methods


async def nothing() -> AsyncIterator[Any]:
    return
    yield


# What is read of it


def test_a_method_knows_its_streams() -> None:
    found = {name: (method.stream_index, method.streams_result) for name, method in methods.items()}
    assert found == {
        "tiles": (None, True),
        "total": (1, False),
        "negate": (0, True),
        "by_name": (1, False),
        "plain": (None, False),
        "count": (None, True),
    }


def test_a_method_with_streams_describes_itself() -> None:
    assert (
        str(methods["tiles"].signature)
        == "tiles(image: NDArray[uint8], rows: int = …) -> AsyncIterator[NDArray[uint8]]"
    )
    assert str(methods["total"].signature) == "total(first: int, parts: AsyncIterator[Label], last: str = …) -> int"
    assert methods["negate"].signature.parameters[0].type == methods["negate"].signature.result


def test_only_streams_have_items() -> None:
    for name, arguments, results in (("tiles", 0, 1), ("total", 1, 0), ("negate", 1, 1), ("plain", 0, 0)):
        method = methods[name]
        assert [method.argument_items is not None, method.result_items is not None] == [arguments, results]
    assert methods["negate"].argument_items.buffered  # type: ignore[union-attr]
    assert not methods["total"].argument_items.buffered  # type: ignore[union-attr]


def test_a_stream_is_no_buffer_of_the_request_or_the_reply() -> None:
    assert not methods["negate"].buffered_arguments
    assert not methods["negate"].buffered_result
    assert methods["tiles"].buffered_arguments


def test_a_method_with_a_stream_may_be_declared_idempotent() -> None:
    assert methods["count"].policy.idempotent


# What is passed


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "row"),
    [
        ("total", (1, "stream"), {}, (1,)),
        ("total", (1, "stream", "x"), {}, (1, "x")),
        ("total", (1,), {"last": "x", "parts": "stream"}, (1, "x")),
        ("total", (), {"parts": "stream", "first": 1}, (1,)),
        ("negate", ("stream",), {}, ()),
        ("negate", ("stream",), {"scale": 2.0}, (2.0,)),
        ("by_name", (1,), {"last": "x", "parts": "stream"}, (1, "x")),
    ],
)
def test_the_stream_is_taken_out_of_the_arguments_and_put_back_for_the_handler(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], row: tuple[Any, ...]
) -> None:
    method, stream = methods[name], nothing()
    args = tuple(stream if value == "stream" else value for value in args)
    kwargs = {key: stream if value == "stream" else value for key, value in kwargs.items()}
    bound = method.bind(args, kwargs)
    travelling, source = method.split(bound)
    assert travelling == row
    assert source is stream
    arrived = method.decode_arguments(method.pack_arguments(travelling).payload)
    joined = method.join(arrived, "inlet")
    assert len(joined) == method.arity
    assert joined[method.stream_index or 0] == "inlet"
    assert joined[: len(row)] == method.join(row, "inlet")[: len(row)]


def test_a_method_without_a_stream_is_neither_split_nor_joined() -> None:
    assert methods["plain"].split((1,)) == ((1,), None)
    assert methods["plain"].join((1,), None) == (1,)


def test_a_handler_gets_a_stream_by_name_where_it_is_keyword_only() -> None:
    def handler(first: int, *, parts: Any, last: str) -> Any:
        return first, parts, last

    assert methods["by_name"].call(handler, (1, "inlet", "x")) == (1, "inlet", "x")


@pytest.mark.parametrize("source", [[1], (1,), {1}, iter([1]), {"a": 1}, range(3), (n for n in (1,)), bytearray(b"ab")])
def test_whatever_can_be_iterated_may_be_passed_as_a_stream(source: Any) -> None:
    assert methods["total"].split((1, source))[1] is source


@pytest.mark.parametrize("source", [None, 5, "text", b"bytes", object(), nothing])
def test_what_cannot_be_iterated_or_is_text_is_refused_by_name(source: Any) -> None:
    got = type(source).__name__
    text = (
        rf"^Api\.total: parameter 'parts' is a stream; got {got}, expected an async iterator, or something to iterate$"
    )
    with pytest.raises(shmrpc.InvalidArgument, match=text):
        methods["total"].split((1, source))


def test_a_stream_that_is_missing_is_a_missing_argument() -> None:
    with pytest.raises(shmrpc.InvalidArgument, match="missing a required argument: 'parts'"):
        methods["total"].bind((1,), {})


def test_an_argument_beside_a_stream_that_does_not_fit_is_named() -> None:
    total = methods["total"]
    with pytest.raises(shmrpc.InvalidArgument, match=r"^Api\.total: parameter 'last': Expected `str`, got `int`"):
        total.decode_arguments(msgspec.msgpack.encode((1, 2)))
    with pytest.raises(shmrpc.InvalidArgument, match=r"^Api\.total: parameter 'last' cannot be encoded"):
        total.pack_arguments((1, object()))


# Items


def test_items_that_do_not_fit_are_refused_with_the_parameters_name() -> None:
    total = methods["total"]
    payload = msgspec.msgpack.encode({"name": 1})
    with pytest.raises(
        shmrpc.InvalidArgument, match=r"^Api\.total: an item of parameter 'parts' does not fit: Expected"
    ):
        total.read_argument_items(payload, (), many=False)


def test_items_of_the_server_that_do_not_fit_are_internal() -> None:
    payload = msgspec.msgpack.encode("one")
    with pytest.raises(
        shmrpc.Internal, match=r"^Api\.count: an item of the server does not fit the contract: Expected"
    ):
        methods["count"].read_result_items(payload, (), many=False)


def test_items_arrive() -> None:
    items = methods["total"].argument_items
    assert items is not None
    payload = items.pack(Label("cat")).payload
    assert methods["total"].read_argument_items(payload, (), many=False) == [Label("cat")]


# Two versions of a contract


class Old(Protocol):
    """Signatures are compared by what their methods say, so each version is one method of this."""

    def ints(self) -> AsyncIterator[int]: ...
    def floats(self) -> AsyncIterator[float]: ...
    async def unary(self) -> int: ...
    async def unary_list(self) -> list[int]: ...
    async def anything(self) -> Any: ...
    def anythings(self) -> AsyncIterator[Any]: ...
    def generated(self) -> AsyncGenerator[int, None]: ...
    async def takes_ints(self, parts: AsyncIterator[int]) -> None: ...
    async def takes_floats(self, parts: AsyncIterable[float]) -> None: ...
    async def takes_list(self, parts: list[int]) -> None: ...
    async def takes_anything(self, parts: Any) -> None: ...
    async def takes_more(self, parts: AsyncIterator[int], scale: float = 1.0) -> None: ...


@pytest.mark.parametrize(
    ("client", "server", "why"),
    [
        ("ints", "ints", None),
        ("ints", "generated", None),
        ("floats", "ints", None),
        ("ints", "anythings", None),
        ("takes_ints", "takes_floats", None),
        ("takes_ints", "takes_more", None),
        ("takes_more", "takes_ints", None),
        ("ints", "floats", "an item of the result is sent as float and read as int"),
        ("ints", "unary", "the result is sent as int and read as AsyncIterator[int]"),
        ("unary", "ints", "the result is sent as AsyncIterator[int] and read as int"),
        ("unary_list", "ints", "the result is sent as AsyncIterator[int] and read as list[int]"),
        ("anything", "ints", "the result is sent as AsyncIterator[int] and read as Any"),
        ("ints", "anything", "the result is sent as Any and read as AsyncIterator[int]"),
        ("takes_floats", "takes_ints", "an item of parameter 'parts' is sent as float and read as int"),
        ("takes_list", "takes_ints", "parameter 'parts' is sent as list[int] and read as AsyncIterator[int]"),
        ("takes_ints", "takes_list", "parameter 'parts' is sent as AsyncIterator[int] and read as list[int]"),
        ("takes_ints", "takes_anything", "parameter 'parts' is sent as AsyncIterator[int] and read as Any"),
    ],
)
def test_two_versions_of_a_stream_fit_or_it_is_said_why_not(client: str, server: str, why: str | None) -> None:
    old = read(Old).methods
    assert old[client].signature.why_unfit(old[server].signature) == why


def test_the_signature_of_a_stream_survives_the_handshake() -> None:
    signatures = read(Old).signatures
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(signatures), type=list[Signature]) == signatures
