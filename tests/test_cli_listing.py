"""`shmrpc list`: what a server serves, as Python."""

import ast
import json
from typing import Protocol

import msgspec
import pytest
from introspection_api import Vision
from test_cli import command, serving

from shmrpc import Health, Introspection, built_in, contract, schema
from shmrpc.cli import listing
from shmrpc.introspection import DescribedContract, DescribedField, DescribedMethod, DescribedType

GOLDEN = '''\
Mode = Literal['fast', 'good']


class Label:
    name: str
    score: float = ...
    mask: NDArray[uint8] | None = ...


class Vision:
    """Looks at images."""

    @method(idempotent=True)
    async def classify(self, image: NDArray[uint8], top: int = 3, mode: Mode = ...) -> list[Label]:
        """What can be seen, best first."""

    def count(self, to: int) -> AsyncIterator[int]:
        """The numbers from 0 up to `to`."""

    async def total(self, parts: AsyncIterator[list[int]], start: int = 0) -> int: ...

    def negate(self, parts: AsyncIterator[NDArray[uint8]]) -> AsyncIterator[NDArray[uint8]]: ...

    @oneway
    async def warm_up(self, model: str) -> None: ...

    async def teach(self, label: Label, at: tuple[int, str], where: dict[str, list[Label]]) -> None: ...

    def wait(self, started: str, ended: str) -> AsyncIterator[int]:
        """Says by files that it has begun and, when it is cancelled, that it has ended."""
'''

SERVICES = ("introspection_api:Worker", "cli_worker:Other")


# The command


def test_a_server_is_shown_as_python(path: str) -> None:
    with serving(path, services=("introspection_api:Worker",)):
        assert command("list", path) == (0, GOLDEN, "")


def test_one_of_several_services_can_be_chosen(path: str) -> None:
    other = "class Other:\n    async def add(self, left: int) -> int: ...\n    async def greet(self) -> str: ...\n"
    with serving(path, services=SERVICES):
        assert command("list", path) == (0, f"{GOLDEN}\n\n{other}", "")
        assert command("list", path, "Other") == (0, other, "")
        status, output, errors = command("list", path, "Another")
        assert (status, output) == (1, "")
        assert errors == "shmrpc: there is no service 'Another'; there is Vision, Other\n"


def test_what_is_built_in_is_shown_when_it_is_asked_for(path: str) -> None:
    with serving(path, services=("cli_worker:Other",)):
        status, output, _ = command("list", path, "--all")
        assert status == 0
        assert output.startswith("class Other:\n")
        assert "class Introspection:\n" in output
        assert "    def watch(self, service: str = '') -> AsyncIterator[Health]:\n" in output
        assert command("list", path, "shmrpc.Introspection")[1] in output


def test_everything_that_is_known_can_be_had_as_json(path: str) -> None:
    with serving(path, services=SERVICES):
        status, output, _ = command("list", path, "--json")
        assert status == 0
        vision, other = msgspec.json.decode(output, type=list[DescribedContract])
        assert vision == built_in.describe(contract.read(Vision))
        assert other.name == "Other"
        assert json.loads(output)[0]["methods"][1]["kind"] == "server stream"


def test_a_server_that_is_not_there_is_said_not_to_be(path: str) -> None:
    assert command("list", path) == (1, "", f"shmrpc: UNAVAILABLE: no server at {path}: No such file or directory\n")


def test_a_timeout_that_is_none_is_refused(path: str) -> None:
    assert command("list", path, "--timeout", "0")[::2] == (
        2,
        "shmrpc: --timeout: a timeout is a positive number of seconds, not 0.0\n",
    )


# As Python


def method(doc: str = "", kind: str = "unary", default: object = ..., width: int = 1) -> DescribedMethod:
    parameters = [DescribedField(f"parameter_{number}", "dict[str, int]", has_default=True) for number in range(width)]
    properties = {parameter.name: {} if default is ... else {"default": default} for parameter in parameters}
    return DescribedMethod("work", kind, doc, parameters, "int", {"properties": properties}, {})  # type: ignore[arg-type]


def rendered(described: DescribedMethod) -> str:
    text = listing.render(DescribedContract("Api", "", [described]))
    ast.parse(text)
    return text.removeprefix("class Api:\n")


@pytest.mark.parametrize("cls", [Vision, Introspection])
def test_what_is_shown_is_python(cls: type) -> None:
    ast.parse(listing.render(built_in.describe(contract.read(cls))))


@pytest.mark.parametrize(
    ("default", "text"),
    [(3, "3"), (None, "None"), (True, "True"), ("x", "'x'"), ([], "[]"), ({"a": 1}, "..."), ("x" * 40, "...")],
)
def test_a_default_is_shown_where_it_is_short(default: object, text: str) -> None:
    assert f"parameter_0: dict[str, int] = {text})" in rendered(method(default=default))


def test_a_default_that_is_not_known_is_shown_as_one() -> None:
    assert "parameter_0: dict[str, int] = ...)" in rendered(method())


def test_what_is_passed_one_way_only_is_shown_so() -> None:
    class Api(Protocol):
        async def both(self, a: int, /, b: int, *, c: int = 3) -> int: ...

        async def keyword(self, *, a: int, b: int = 1) -> int: ...

        async def position(self, a: int, b: int = 1, /) -> int: ...

    text = listing.render(built_in.describe(contract.read(Api)))
    ast.parse(text)
    assert text.splitlines()[1:] == [
        "    async def both(self, a: int, /, b: int, *, c: int = 3) -> int: ...",
        "    async def keyword(self, *, a: int, b: int = 1) -> int: ...",
        "    async def position(self, a: int, b: int = 1, /) -> int: ...",
    ]


class Older(msgspec.Struct, frozen=True):
    """`DescribedField` before it said how a parameter is passed."""

    name: str
    annotation: str
    has_default: bool


def test_a_server_that_does_not_say_how_a_parameter_is_passed_is_understood() -> None:
    older = msgspec.msgpack.encode(Older("a", "int", has_default=False))
    assert msgspec.msgpack.decode(older, type=DescribedField).kind == ""
    written, read = schema.describe(Older), schema.describe(DescribedField)
    assert schema.why_unreadable(written, read, "") is schema.why_unreadable(read, written, "") is None


def test_a_long_signature_is_broken_into_lines() -> None:
    lines = rendered(method(width=5)).splitlines()
    assert lines[0] == "    async def work("
    assert lines[1:3] == ["        self,", "        parameter_0: dict[str, int] = ...,"]
    assert lines[-1] == "    ) -> int: ..."


@pytest.mark.parametrize("doc", ['Ends in a "quote"', 'Has """ inside', "Has a \\ backslash", "\n\n  Late\nMore"])
def test_whatever_stands_in_a_docstring_what_is_shown_is_python(doc: str) -> None:
    text = rendered(method(doc))
    assert text.count('"""') == 2
    assert "More" not in text


def test_a_record_without_fields_is_shown_too() -> None:
    text = listing.render(DescribedContract("Api", "", [method()], [DescribedType("Nothing", [])]))
    ast.parse(text)
    assert text.startswith("class Nothing:\n    ...\n")


def test_an_enumeration_shows_its_values() -> None:
    values = [state.value for state in Health]
    text = listing.render(DescribedContract("Api", "", [method()], [DescribedType("Health", [], list(values))]))
    assert text.startswith("Health = Literal['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN']\n")
