"""What a contract says of a method beyond its types: that nobody waits for it, how it may be called."""

from collections.abc import Callable
from types import FunctionType
from typing import Final, ParamSpec, TypeVar

import msgspec

P = ParamSpec("P")
R = TypeVar("R")

_ONEWAY: Final = "__shmrpc_oneway__"
_POLICY: Final = "__shmrpc_policy__"


def oneway(method: Callable[P, R]) -> Callable[P, R]:
    """Declares a method whose callers do not wait for it: nothing comes back, no result and no error.

    The call returns when the request is on its way. The method must be annotated ``-> None``.
    """
    setattr(method, _ONEWAY, True)
    return method


class Policy(msgspec.Struct, frozen=True):
    """What a contract says of a method beyond its types."""

    idempotent: bool = False


def method(*, idempotent: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares how a method may be called.

    Args:
        idempotent: Executing it twice is as good as once, so that a call that was cut off in the middle, and may have
            been executed, is repeated over the next connection.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        setattr(function, _POLICY, Policy(idempotent))
        return function

    return declare


def is_oneway(function: FunctionType) -> bool:
    """Whether a method was declared one-way."""
    return bool(getattr(function, _ONEWAY, False))


def policy_of(function: FunctionType) -> Policy:
    """What was declared of a method."""
    policy: Policy = getattr(function, _POLICY, Policy())
    return policy
