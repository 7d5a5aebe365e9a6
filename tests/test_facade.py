"""What a blocking stub may be typed as: the contract's methods, made plain, and no others."""

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

import pytest

from shmrpc import contract, facade
from shmrpc.errors import ContractError


class Vision(Protocol):
    async def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[str]: ...
    def tiles(self, image: bytes) -> AsyncIterator[bytes]: ...
    async def total(self, parts: AsyncIterator[bytes]) -> int: ...


class Whole(Protocol):
    def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[str]: ...
    def tiles(self, image: bytes) -> Iterator[bytes]: ...
    def total(self, parts: Iterable[bytes]) -> int: ...


class Other(Protocol):
    def tiles(self, image: bytes) -> Generator[bytes, None, None]: ...
    def total(self, parts: Iterator[bytes]) -> int: ...


class Lazy(Protocol):
    def tiles(self, image: bytes) -> Iterable[bytes]: ...


class AnotherDefault(Protocol):
    def classify(self, image: bytes, top: int = 5, *, exact: bool = True) -> list[str]: ...


class Heir(Whole, Protocol):
    """Its methods are inherited."""


class Unknown:
    def explain(self) -> None: ...


class Async:
    async def total(self, parts: Iterable[bytes]) -> int:
        return 0


class AnotherName:
    def classify(self, picture: bytes, top: int = 3, *, exact: bool = False) -> list[str]: ...  # type: ignore[empty-body]


class ByPosition:
    def classify(self, image: bytes, top: int = 3, exact: bool = False) -> list[str]: ...  # type: ignore[empty-body]


class NoDefault:
    def classify(self, image: bytes, top: int, *, exact: bool = False) -> list[str]: ...  # type: ignore[empty-body]


class AnotherType:
    def classify(self, image: str, top: int = 3, *, exact: bool = False) -> list[str]: ...  # type: ignore[empty-body]


class AnotherResult:
    def tiles(self, image: bytes) -> Iterator[str]: ...  # type: ignore[empty-body]


class AsyncStream:
    def total(self, parts: AsyncIterator[bytes]) -> int: ...  # type: ignore[empty-body]


class NoHints:
    def total(self, parts):  # type: ignore[no-untyped-def]
        return 0


def check(cls: Any) -> None:
    facade.check(cls, contract.read(Vision))


@pytest.mark.parametrize("fitting", [Whole, Other, Lazy, AnotherDefault, Heir])
def test_the_contract_made_plain_may_be_used_in_whole_or_in_part(fitting: type) -> None:
    check(fitting)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (Unknown, r"Unknown\.explain: the contract Vision has no such method"),
        (Async, r"Async\.total is async, and the methods of a blocking stub are plain"),
        (AnotherName, r"AnotherName\.classify has other parameters than the contract's"),
        (ByPosition, r"ByPosition\.classify has other parameters"),
        (
            NoDefault,
            r"NoDefault\.classify has a default for parameter 'top' where the contract's has not, or the other",
        ),
        (AnotherType, r"AnotherType\.classify has another type of parameter 'image'"),
        (AnotherResult, r"AnotherResult\.tiles has another result"),
        (AsyncStream, r"AsyncStream\.total has another type of parameter 'parts'"),
        (NoHints, r"NoHints\.total has another type of parameter 'parts'"),
    ],
)
def test_what_differs_is_refused_with_the_place(wrong: type, text: str) -> None:
    with pytest.raises(ContractError, match=text):
        check(wrong)


def test_the_error_says_what_it_should_be() -> None:
    with pytest.raises(ContractError) as caught:
        check(AnotherType)
    line = "def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[str]: ..."
    assert str(caught.value).endswith(f"; it should be: {line}")
    with pytest.raises(ContractError) as caught:
        check(AsyncStream)
    assert str(caught.value).endswith("def total(self, parts: collections.abc.Iterable[bytes]) -> int: ...")


@pytest.mark.parametrize("nothing", ["Whole", None, Whole.total])
def test_what_is_no_class_is_refused(nothing: str | Callable[..., Any] | None) -> None:
    with pytest.raises(ContractError, match="typed_as is a class, not"):
        check(nothing)
