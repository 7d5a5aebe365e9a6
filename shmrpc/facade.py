"""Compares the class that a blocking stub is typed as with the contract, so that the two cannot drift apart.

A type checker cannot derive plain methods from a contract's async ones. So a user may write the second class; here it is
held against the contract when the stub is made.
"""

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from types import FunctionType
from typing import Any, Final, get_args, get_origin

from shmrpc.contract import Contract
from shmrpc.errors import ContractError

_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)


def check(facade: type, contract: Contract) -> None:
    """Refuses a class whose methods are not the contract's, made plain.

    A method must have the parameters of the contract's, by name, kind and type, a default where those have one, whichever it
    is, and its result. A stream of ``T``
    is an ``Iterator[T]``, ``Iterable[T]`` or ``Generator[T, None, None]`` as the result, and an ``Iterable[T]`` or
    ``Iterator[T]`` as a parameter. It need not have all methods of the contract.

    Raises:
        ContractError: a method differs; says what it should be.
    """
    if not isinstance(facade, type):
        raise ContractError(f"typed_as is a class, not {facade!r}")
    for name in dir(facade):
        function = inspect.getattr_static(facade, name)
        if name.startswith("_") or not isinstance(function, FunctionType):
            continue
        if name not in contract.methods:
            raise ContractError(f"{facade.__name__}.{name}: the contract {contract.name} has no such method")
        original = inspect.getattr_static(contract.cls, name)
        if (why := _why_different(function, original)) is not None:
            raise ContractError(f"{facade.__name__}.{name} {why}; it should be: {_made_plain(original)}")


def _why_different(plain: FunctionType, original: FunctionType) -> str | None:
    if inspect.iscoroutinefunction(plain) or inspect.isasyncgenfunction(plain):
        return "is async, and the methods of a blocking stub are plain"
    mine, theirs = (list(inspect.signature(function).parameters.values())[1:] for function in (plain, original))
    types, expected = typing.get_type_hints(plain), typing.get_type_hints(original)
    if [(one.name, one.kind) for one in mine] != [(one.name, one.kind) for one in theirs]:
        return "has other parameters than the contract's"
    for one, other in zip(mine, theirs, strict=True):
        if (one.default is one.empty) != (other.default is other.empty):
            return f"has a default for parameter {one.name!r} where the contract's has not, or the other way round"
        if types.get(one.name) not in _plain_types(expected[one.name], parameter=True):
            return f"has another type of parameter {one.name!r} than the contract's"
    if types.get("return") not in _plain_types(expected["return"], parameter=False):
        return "has another result than the contract's"
    return None


def _plain_types(annotation: Any, *, parameter: bool) -> list[Any]:
    """What may stand for a type of the contract; the best first."""
    if get_origin(annotation) not in _STREAMS:
        return [annotation]
    item = get_args(annotation)[0]
    if parameter:
        return [Iterable[item], Iterator[item]]  # type: ignore[valid-type]
    return [Iterator[item], Iterable[item], Generator[item, None, None]]  # type: ignore[valid-type]


def _made_plain(original: FunctionType) -> str:
    hints = typing.get_type_hints(original)
    signature = inspect.signature(original)
    parameters = [
        one.replace(annotation=_plain_types(hints[one.name], parameter=True)[0]) if one.name in hints else one
        for one in signature.parameters.values()
    ]
    result = _plain_types(hints["return"], parameter=False)[0]
    return f"def {original.__name__}{signature.replace(parameters=parameters, return_annotation=result)}: ..."
