"""`Method.bind` is a faster `inspect.Signature.bind`: it must agree with it on every combination of arguments."""

import itertools
from typing import Any

import pytest

from shmrpc import contract
from shmrpc.errors import InvalidArgument
from shmrpc.methods import Method


class Everything:
    """Each kind of parameter that a contract may have."""

    async def mixed(self, a: int, b: int, /, c: int, d: int = 4, e: int = 5) -> None: ...

    async def keyword_only(self, a: int, *, d: int, e: int = 5) -> None: ...

    async def all_defaults(self, a: int = 1, b: int = 2) -> None: ...

    async def none(self) -> None: ...


def _all_arguments() -> list[tuple[tuple[int, ...], dict[str, str]]]:
    return [
        (tuple(range(positional)), {name: name for name in names})
        for positional in range(7)
        for count in range(4)
        for names in itertools.permutations("abcdex", count)
    ]


@pytest.mark.parametrize("method", contract.read(Everything).methods.values(), ids=lambda method: method.name)
def test_binding_agrees_with_inspect_on_every_combination_of_arguments(method: Method) -> None:
    for args, kwargs in _all_arguments():
        expected = _bind_by_inspect(method, args, kwargs)
        if expected is None:
            with pytest.raises(InvalidArgument, match=method.full_name):
                method.bind(args, kwargs)
            continue
        bound = method.bind(args, kwargs)
        assert bound == expected[: len(bound)]
        assert all(
            value == default for value, default in list(zip(expected, _defaults(method), strict=True))[len(bound) :]
        )


def _bind_by_inspect(method: Method, args: tuple[int, ...], kwargs: dict[str, str]) -> tuple[Any, ...] | None:
    try:
        bound = method._signature.bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return tuple(bound.arguments.values())


def _defaults(method: Method) -> list[Any]:
    return [parameter.default for parameter in method._parameters]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mixed", "mixed(a: int, b: int, /, c: int, d: int = …, e: int = …) -> None"),
        ("keyword_only", "keyword_only(a: int, *, d: int, e: int = …) -> None"),
        ("all_defaults", "all_defaults(a: int = …, b: int = …) -> None"),
        ("none", "none() -> None"),
    ],
)
def test_a_text_says_which_arguments_are_passed_one_way_only(name: str, text: str) -> None:
    method = contract.read(Everything).methods[name]
    with pytest.raises(InvalidArgument) as caught:
        method.bind(tuple(range(9)), {})
    assert str(caught.value) == f"Everything.{name}: too many positional arguments; it is {text}"
    assert repr(method) == f"<Method Everything.{text}>"


@pytest.mark.parametrize(
    ("name", "kwargs", "text"),
    [
        ("keyword_only", {"dd": 1, "a": 1}, "got an unexpected keyword argument 'dd'; did you mean 'd'?"),
        ("keyword_only", {"a": 1, "d": 1, "colour": 1}, "got an unexpected keyword argument 'colour';"),
        ("none", {"d": 1}, "got an unexpected keyword argument 'd';"),
    ],
)
def test_a_misspelt_keyword_is_named_and_not_what_is_missing_without_it(
    name: str, kwargs: dict[str, int], text: str
) -> None:
    method = contract.read(Everything).methods[name]
    with pytest.raises(InvalidArgument) as caught:
        method.bind((), kwargs)
    assert str(caught.value) == f"Everything.{name}: {text} it is {method.shown}"
