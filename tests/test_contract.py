"""Reading contracts: what is one, and what is refused, naming the method and the parameter."""

import abc
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import pytest

import shmrpc
from shmrpc import contract as contracts
from shmrpc.contract import read

T = TypeVar("T", covariant=True)


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Api(Protocol):
    async def first(self, a: int, b: str = "b", *, c: float = 1.0, d: bool = False) -> str: ...
    async def second(self) -> None: ...
    def plain(self, point: Point) -> Point: ...
    @shmrpc.oneway
    async def tell(self, word: str) -> None: ...
    @shmrpc.method(idempotent=True)
    async def look(self) -> int: ...
    async def _private(self, anything) -> None: ...  # type: ignore[no-untyped-def]


# What a contract is


def test_a_contract_has_the_public_methods_of_its_class_in_order() -> None:
    contract = read(Api)
    assert list(contract.methods) == ["first", "second", "plain", "tell", "look"]
    assert repr(contract) == "<Contract Api: first, second, plain, tell, look>"


def test_a_method_describes_itself() -> None:
    methods = read(Api).methods
    assert repr(methods["first"]) == "<Method Api.first(a: int, b: str = …, *, c: float = …, d: bool = …) -> str>"
    assert repr(methods["tell"]) == "<Method Api.oneway tell(word: str) -> None>"
    assert methods["first"].full_name == "Api.first"


def test_a_contract_is_read_once() -> None:
    assert read(Api) is read(Api)


def test_a_method_may_be_declared_one_way_or_idempotent() -> None:
    methods = read(Api).methods
    assert [name for name, method in methods.items() if method.oneway] == ["tell"]
    assert [name for name, method in methods.items() if method.policy.idempotent] == ["look"]


def test_an_abstract_class_is_a_contract() -> None:
    class Abstract(abc.ABC):
        @abc.abstractmethod
        async def method(self, a: int) -> int: ...

    assert list(read(Abstract).methods) == ["method"]


def test_the_implementing_class_is_a_contract() -> None:
    class Plain:
        limit = 3

        async def method(self, a: int) -> int:
            return a

        @property
        def size(self) -> int:
            return 0

        @staticmethod
        def static(a: int) -> int:
            return a

    assert list(read(Plain).methods) == ["method"]


def test_a_contract_has_the_methods_of_its_bases_first() -> None:
    class Base(Protocol):
        async def one(self) -> int: ...
        async def two(self) -> int: ...

    class Extended(Base, AbstractAsyncContextManager["Extended"], Protocol):
        async def three(self) -> int: ...
        async def one(self) -> int: ...

    contract = read(Extended)
    assert list(contract.methods) == ["one", "two", "three"]
    assert contract.methods["two"].full_name == "Extended.two"


def test_a_generic_contract_takes_anything_for_its_parameters() -> None:
    class Cache(Protocol[T]):
        async def get(self, key: str) -> T: ...

    assert str(read(Cache).methods["get"].signature) == "get(key: str) -> Any"


def test_annotations_may_be_text_that_names_what_the_class_defines() -> None:
    class Nested:
        class Inner(msgspec.Struct):
            size: int

        async def method(self, inner: "Inner") -> "list[Inner]":
            return [inner]

    assert str(read(Nested).methods["method"].signature) == "method(inner: Inner) -> list[Inner]"


def test_the_contracts_of_a_service_are_its_protocols_and_abstract_classes_else_its_own() -> None:
    class Abstract(abc.ABC):
        @abc.abstractmethod
        async def method(self) -> int: ...

    class Both(Api, Abstract, Generic[T]): ...

    class Neither:
        async def method(self) -> int:
            return 1

    class Child(Neither): ...

    assert contracts.contracts_of(Both) == [Api, Abstract]
    assert contracts.contracts_of(Neither) == [Neither]
    assert contracts.contracts_of(Child) == [Child]


# What a contract is not: refused when it is read, naming the method and the parameter


REFUSED: list[tuple[Callable[..., Any], str]] = []


def refused(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares a function that cannot be a method of a contract, and the text that says why."""

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        REFUSED.append((function, text))
        return function

    return note


@refused("parameter 'a' has no annotation")
async def without_annotation(self, a) -> int: ...  # type: ignore[no-untyped-def,empty-body]


@refused("the return annotation is missing; write '-> None'")
async def without_result(self, a: int): ...  # type: ignore[no-untyped-def]


@refused(r"\*args cannot be part of a contract; take a list or a dict")
async def with_args(self: object, *args: int) -> None: ...


@refused(r"\*\*kwargs cannot be part of a contract; take a list or a dict")
async def with_kwargs(self: object, **kwargs: int) -> None: ...


@refused("parameter 'a': complex cannot travel")
async def with_unsupported_type(self: object, a: complex) -> None: ...


@refused("the result: object cannot travel")
async def with_unsupported_result(self: object) -> list[object]: ...  # type: ignore[empty-body]


@refused("parameter 'a': Type unions may not contain more than one str-like type")
async def with_unsupported_union(self: object, a: str | bytes) -> None: ...


@refused("it gives a stream, and 'async def' without 'yield' would give a coroutine first; declare it with 'def method")
async def with_stream_after_a_coroutine(self: object) -> AsyncIterator[int]: ...  # type: ignore[empty-body]


@refused("the result is a stream of what")
def with_stream_of_nothing_said(self: object) -> AsyncIterator: ...  # type: ignore[type-arg,empty-body]


@refused("the result: complex cannot travel")
def with_stream_of_what_cannot_travel(self: object) -> AsyncIterator[complex]: ...  # type: ignore[empty-body]


@refused("parameters 'a' and 'b' are streams; a method can have one")
async def with_two_streams(self: object, a: AsyncIterator[int], b: AsyncIterable[int]) -> None: ...


@refused("parameter 'a' is a stream, and cannot have a default")
async def with_stream_by_default(self: object, a: AsyncIterator[int] = ...) -> None: ...


@refused("a one-way method cannot take a stream")
@shmrpc.oneway
async def with_stream_and_no_reply(self: object, a: AsyncIterator[int]) -> None: ...


@refused("parameter 'a': .*AsyncIterator")
async def with_stream_perhaps(self: object, a: AsyncIterator[int] | None) -> None: ...


@refused("a method takes self as its first parameter")
async def without_self() -> None: ...


@refused("a method takes self as its first parameter")
async def with_keyword_only_self(*, self: object) -> None: ...


@refused("an annotation cannot be evaluated: name 'Missing' is not defined")
async def with_unknown_name(self: object, a: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@refused("parameter 'a': its default Ellipsis does not fit its annotation")
async def with_placeholder_default(self: object, a: int = ...) -> None: ...


@refused("parameter 'a': its default None does not fit its annotation")
async def with_default_of_another_type(self: object, a: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013


@refused("parameter 'b' has no default and follows one that has")
async def with_default_before_none(self: object, *, a: int = 1, b: int) -> None: ...


@refused("a one-way method returns None, not int")
@shmrpc.oneway
async def one_way_with_result(self: object) -> int: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(("function", "text"), REFUSED, ids=[function.__name__ for function, _ in REFUSED])
def test_a_method_that_cannot_work_is_refused_by_name(function: Callable[..., Any], text: str) -> None:
    cls = type("Api", (), {"method": function})
    with pytest.raises(shmrpc.ContractError, match=rf"^Api\.method: {text}") as caught:
        read(cls)
    assert isinstance(caught.value, TypeError)


def test_a_class_without_public_methods_is_no_contract() -> None:
    class Empty:
        async def _private(self) -> None: ...

    with pytest.raises(shmrpc.ContractError, match="Empty has no public methods"):
        read(Empty)


def test_an_object_is_no_contract() -> None:
    with pytest.raises(shmrpc.ContractError, match="a contract is a class, not 3"):
        read(cast(type, 3))


def test_a_protocol_may_have_methods_only() -> None:
    class WithProperty(Protocol):
        @property
        def size(self) -> int: ...

    class WithStatic(Protocol):
        @staticmethod
        def static() -> int: ...

    class WithAttribute(Protocol):
        size: int

        async def method(self) -> int: ...

    class Inheriting(WithAttribute, Protocol):
        async def other(self) -> int: ...

    for cls, text in (
        (WithProperty, r"WithProperty\.size: .*this is a property"),
        (WithStatic, r"WithStatic\.static: .*this is a staticmethod"),
        (WithAttribute, r"WithAttribute\.size: .*this is an attribute"),
        (Inheriting, r"Inheriting\.size: .*this is an attribute"),
    ):
        with pytest.raises(shmrpc.ContractError, match=text):
            read(cls)
