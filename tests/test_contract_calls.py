"""What a contract that was read is used for: binding and checking arguments, and comparing two versions of a method."""

from typing import Any, Literal, Protocol

import msgspec
import pytest

import shmrpc
from shmrpc.contract import read
from shmrpc.signature import Parameter, Signature


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Api(Protocol):
    async def first(self, a: int, b: str = "b", *, c: float = 1.0, d: bool = False) -> str: ...
    async def plain(self, point: Point) -> Point: ...
    async def look(self) -> int: ...


# Binding and encoding arguments

first = read(Api).methods["first"]


@pytest.mark.parametrize(
    ("args", "kwargs", "bound"),
    [
        ((1,), {}, (1,)),
        ((1, "x"), {}, (1, "x")),
        ((), {"a": 1}, (1,)),
        ((), {"b": "x", "a": 1}, (1, "x")),
        ((1,), {"c": 2.0}, (1, "b", 2.0)),
        ((1,), {"d": True}, (1, "b", 1.0, True)),
        ((1, "x"), {"d": True, "c": 3.0}, (1, "x", 3.0, True)),
    ],
)
def test_arguments_are_bound_by_position_up_to_the_last_that_was_given(
    args: tuple[Any, ...], kwargs: dict[str, Any], bound: tuple[Any, ...]
) -> None:
    assert first.bind(args, kwargs) == bound


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, "x", 2.0), {}, "too many positional arguments"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
        ((1,), {"z": 1}, "got an unexpected keyword argument 'z'"),
        ((), {"b": "x"}, "missing a required argument: 'a'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_signature(
    args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=rf"^Api\.first: {text}; it is first\(a: int, b"):
        first.bind(args, kwargs)


@pytest.mark.parametrize(
    ("args", "decoded"),
    [
        ((1,), (1, "b", 1.0, False)),
        ((1, "x"), (1, "x", 1.0, False)),
        ((1, "x", 2.0, True), (1, "x", 2.0, True)),
    ],
)
def test_defaults_are_filled_in_when_arguments_are_decoded(args: tuple[Any, ...], decoded: tuple[Any, ...]) -> None:
    assert first.decode_arguments(first.encode_arguments(args)) == decoded
    assert first.decode(first.encode_arguments(args)) == decoded
    assert first.decode_arguments(msgspec.json.encode(args), json=True) == decoded


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("x",), "parameter 'a': Expected `int`, got `str`"),
        ((1, 2), "parameter 'b': Expected `str`, got `int`"),
        ((1, "x", 1.0, 7), "parameter 'd': Expected `bool`, got `int`"),
        ((), "Expected `array` of at least length 1, got 0"),
        ((1, "x", 1.0, True, 5), "Expected `array` of at most length 4"),
        ({"a": 1}, "Expected `array`, got `object`"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused_by_name(args: Any, text: str) -> None:
    for json, encode in ((False, msgspec.msgpack.encode), (True, msgspec.json.encode)):
        with pytest.raises(shmrpc.InvalidArgument, match=rf"^Api\.first: {text}.*; it is first\("):
            first.decode_arguments(encode(args), json=json)


def test_the_place_inside_of_an_argument_is_named() -> None:
    plain = read(Api).methods["plain"]
    with pytest.raises(shmrpc.InvalidArgument, match=r"parameter 'point'\.y: Expected `int`, got `str`"):
        plain.decode_arguments(msgspec.msgpack.encode([{"x": 1, "y": "two"}]))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91", b"\x91" * 2000])
def test_bytes_that_are_no_arguments_are_refused(payload: bytes) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"^Api\.first: "):
        first.decode_arguments(payload)


def test_whatever_a_type_raises_about_its_fields_is_an_invalid_argument() -> None:
    class Picky(msgspec.Struct):
        size: int

        def __post_init__(self) -> None:
            raise KeyError("not this one")

    class Choosy:
        async def choose(self, picky: Picky) -> None: ...

    with pytest.raises(shmrpc.InvalidArgument, match=r"^Choosy\.choose: .*not this one"):
        read(Choosy).methods["choose"].decode_arguments(msgspec.msgpack.encode([{"size": 1}]))


def test_an_argument_that_cannot_be_encoded_is_refused_by_name() -> None:
    for value in (object(), 1 << 64, "\ud800", nested_lists(10_000)):
        with pytest.raises(shmrpc.InvalidArgument, match=r"^Api\.first: parameter 'b' cannot be encoded: "):
            first.encode_arguments((1, value))


def nested_lists(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def test_a_mutable_default_is_not_encoded_and_arrives_as_the_contracts() -> None:
    class WithList:
        async def method(self, values: list[int] = [1, 2]) -> None: ...  # noqa: B006

    method = read(WithList).methods["method"]
    assert method.decode_arguments(method.encode_arguments(method.bind((), {}))) == ([1, 2],)


def test_keyword_only_arguments_are_passed_by_name() -> None:
    def handler(a: int, *rest: Any, **named: Any) -> tuple[Any, ...]:
        return a, rest, named

    assert first.call(handler, (1, "b", 2.0, True)) == (1, ("b",), {"c": 2.0, "d": True})


def test_a_result_that_does_not_fit_is_internal() -> None:
    assert read(Api).methods["look"].read_result(msgspec.msgpack.encode(3)) == 3
    with pytest.raises(
        shmrpc.Internal, match=r"Api\.look: the server's result does not fit the contract: Expected `int`"
    ):
        read(Api).methods["look"].read_result(msgspec.msgpack.encode("three"))


def test_a_result_can_be_encoded_as_json() -> None:
    assert read(Api).methods["plain"].encode_json(Point(1, 2)) == b'{"x":1,"y":2}'


# Two versions of a contract


class Call(Protocol):
    """Signatures are compared by what their methods say, so each version is one method of this."""

    async def base(self, a: int, b: str) -> int: ...
    async def more(self, a: int, b: str, c: int = 0) -> int: ...
    async def much_more(self, a: int, b: str, c: int) -> int: ...
    async def renamed(self, a: int, x: str) -> int: ...
    async def optional(self, a: int, b: str = "") -> int: ...
    async def wider(self, a: float, b: str | None) -> int: ...
    async def other_result(self, a: int, b: str) -> str: ...
    async def wider_result(self, a: int, b: str) -> int | None: ...
    async def literal(self, a: Literal[1, 2], b: str) -> int: ...
    async def silent(self, a: int, b: str) -> None: ...
    @shmrpc.oneway
    async def quiet(self, a: int, b: str) -> None: ...


@pytest.mark.parametrize(
    ("client", "server", "why"),
    [
        ("base", "base", None),
        ("base", "more", None),
        ("more", "base", None),
        ("base", "optional", None),
        ("base", "wider", None),
        ("literal", "base", None),
        ("wider_result", "base", None),
        ("optional", "base", "parameter 'b' may be left out by the client and has no default at the server"),
        ("base", "much_more", "parameter 'c' of the server has no default and the client does not send it"),
        ("much_more", "base", "parameter 'c' of the client is unknown to the server"),
        ("base", "renamed", "parameter 'b' of the client is 'x' at the server"),
        ("wider", "base", "parameter 'a' is sent as float and read as int"),
        ("base", "literal", "parameter 'a' is sent as int and read as Literal[1, 2]"),
        ("base", "other_result", "the result is sent as str and read as int"),
        ("base", "wider_result", "the result is sent as None and read as int"),
        ("silent", "quiet", "it is not one-way for the client, and the server differs"),
        ("quiet", "silent", "it is one-way for the client, and the server differs"),
    ],
)
def test_two_versions_of_a_method_fit_or_it_is_said_why_not(client: str, server: str, why: str | None) -> None:
    methods = read(Call).methods
    assert methods[client].signature.why_unfit(methods[server].signature) == why


def test_a_signature_survives_the_handshake() -> None:
    signatures = read(Api).signatures + read(Call).signatures
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(signatures), type=list[Signature]) == signatures


def test_a_signature_from_a_peer_with_a_malformed_type_is_refused() -> None:
    good = read(Call).methods["base"].signature
    for result, type_ in ((["list"], ["int"]), (["int"], ["list"])):
        travelling = {
            "name": good.name,
            "parameters": [{"name": "a", "type": type_, "has_default": False}],
            "result": result,
        }
        with pytest.raises(msgspec.ValidationError, match="does not describe a type"):
            msgspec.convert(travelling, Signature)


def test_a_parameter_describes_itself() -> None:
    assert str(Parameter("a", ["list", ["int"]], has_default=True)) == "a: list[int] = …"
