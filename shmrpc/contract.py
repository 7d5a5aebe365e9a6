"""Reads a contract: which methods a class has.

A contract is any class with public annotated methods: a `typing.Protocol`, an abstract class, or the implementing class
itself. Reading it once gives a `Contract`: everything that the two sides need to know about a call before it is made. A
contract that cannot work is refused here, naming the method and the parameter.
"""

import inspect
import typing
from abc import ABC
from functools import cache
from types import FunctionType
from typing import Any, Final, Generic, Protocol

from shmrpc.errors import ContractError
from shmrpc.methods import Method
from shmrpc.signature import Signature

_NOT_CONTRACTS: Final[tuple[Any, ...]] = (object, Protocol, Generic, ABC)


class Contract:
    """A contract that was read: its name and its methods, in the order of their definition."""

    def __init__(self, cls: type, methods: dict[str, Method]) -> None:
        self.cls: Final = cls
        self.name: Final = cls.__name__
        self.methods: Final = methods

    def __repr__(self) -> str:
        return f"<Contract {self.name}: {', '.join(self.methods) or 'no methods'}>"

    @property
    def signatures(self) -> list[Signature]:
        """Every method as data, in order."""
        return [method.signature for method in self.methods.values()]


@cache
def read(cls: type) -> Contract:
    """Reads a class as a contract.

    Raises:
        ContractError: it cannot work: an annotation is missing, a type cannot travel, there is no method at all.
    """
    if not isinstance(cls, type):
        raise ContractError(f"a contract is a class, not {cls!r}")
    methods: dict[str, Method] = {}
    for base in reversed(cls.__mro__):
        if base in _NOT_CONTRACTS or base.__module__ in ("typing", "abc", "contextlib", "collections.abc"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, FunctionType):
                methods[name] = Method(cls, name, member, _hints(cls, name, member))
            elif is_protocol(cls) and isinstance(member, (property, classmethod, staticmethod)):
                raise _not_a_method(cls, name, f"a {type(member).__name__}")
        for name in inspect.get_annotations(base) if is_protocol(cls) else ():
            if not name.startswith("_"):
                raise _not_a_method(cls, name, "an attribute")
    if not methods:
        raise ContractError(f"{cls.__name__} has no public methods, so it is no contract")
    return Contract(cls, methods)


def _not_a_method(cls: type, name: str, what: str) -> ContractError:
    return ContractError(f"{cls.__name__}.{name}: a contract has methods only, and this is {what}")


def _hints(cls: type, name: str, function: FunctionType) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(vars(cls)), include_extras=True)
    except Exception as error:  # annotations are arbitrary code
        if not isinstance(error, (NameError, TypeError, AttributeError, SyntaxError)):
            raise
        raise ContractError(
            f"{cls.__name__}.{name}: an annotation cannot be evaluated: {error}; "
            "import its names at run time, not under TYPE_CHECKING"
        ) from error


def is_protocol(cls: type) -> bool:
    """Whether a class is a `typing.Protocol` itself, not an implementation of one."""
    return bool(getattr(cls, "_is_protocol", False)) and cls is not Protocol


def contracts_of(cls: type) -> list[type]:
    """The contracts that a service's class implements: the protocols and abstract classes it derives from, else itself."""
    bases = [
        base
        for base in cls.__mro__[1:]
        if base not in _NOT_CONTRACTS
        and (is_protocol(base) or inspect.isabstract(base))
        and base.__module__ not in ("typing", "contextlib", "collections.abc", "abc")
    ]
    # A protocol that another one of the list extends is served through the other's methods too, under both names.
    return bases or [cls]
