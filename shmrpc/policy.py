"""What is declared of a method beyond its types: `oneway`, and `method` with its `Policy`.

Owns the declarations, and which one counts where a contract and its implementation both have one. Keeps none of them:
timeouts and repeating are the client's (`repeating`), guards and limits the server's (`admission`).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar

from shmrpc.context import Call, timeout_to_ns
from shmrpc.errors import ContractError

P = ParamSpec("P")
R = TypeVar("R")

Guard = Callable[[Call], bool | Awaitable[bool | None] | None]
"""Says whether a call may be handled: False refuses it, True and None let it pass, an `RpcError` refuses it with that."""

_ONEWAY: Final = "__shmrpc_oneway__"
_POLICY: Final = "__shmrpc_policy__"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is declared of a method beyond its types. None: nothing is."""

    timeout: float | None = None
    """Seconds, of calls through stubs without a timeout of their own."""
    idempotent: bool = False
    max_concurrency: int | None = None
    """Calls that a server handles at once."""
    max_waiting: int | None = None
    """Further calls that may wait there."""
    guard: Guard | None = None

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        if self.timeout is not None:
            timeout_to_ns(self.timeout)
        for name, least in (("max_concurrency", 1), ("max_waiting", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} is a whole number of {least} or more, not {value!r}")
        if self.guard is not None and not callable(self.guard):
            raise ValueError(f"a guard is called with the call, and {self.guard!r} cannot be called")

    def overridden(self, by: "Policy") -> "Policy":
        """This policy with what another one declares in place of its own, field by field."""
        declared = {name: value for name, value in vars(by).items() if value is not None and value is not False}
        return replace(self, **declared) if declared else self


UNDECLARED: Final = Policy()


def oneway(method: Callable[P, R]) -> Callable[P, R]:
    """Declares a method whose callers do not wait for it: nothing comes back, no result and no error.

    The call returns when the request is on its way. The method must be annotated ``-> None``.
    """
    setattr(method, _ONEWAY, True)
    return method


def method(
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    max_concurrency: int | None = None,
    max_waiting: int | None = None,
    guard: Guard | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares how a method may be called.

    The first two are for the callers, and belong in the contract. The others are for the server: declare them on the
    handler, so that the clients need not import a guard, or in the contract. What a handler declares counts in place of
    what its contract does, field by field.

    Args:
        timeout: Seconds that a call may take through a stub that has no timeout of its own. As any timeout it becomes a
            deadline, and the sooner one counts where the caller runs in a handler that has one.
        idempotent: Executing it twice is as good as once, so that a call that was cut off in the middle, and may have
            been executed, is repeated: after a lost connection, and as the stub's `Retry` says.
        max_concurrency: How many calls of it one server handles at once, over all connections. Further ones wait in
            order, up to their deadline, then end with `ResourceExhausted`.
        max_waiting: How many may wait; the next one ends with `ResourceExhausted` at once. None: 1024.
        guard: Called with the `Call` at the server before the handler, and before the call waits. It may be a coroutine
            function. False: the caller gets `PermissionDenied`; an `RpcError`: the caller gets that; any other exception:
            the caller gets `Internal`, and the log the reason. None and True let the call pass.

    Raises:
        ContractError: a value cannot work; names the method.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        try:
            policy = Policy(
                timeout=timeout,
                idempotent=idempotent,
                max_concurrency=max_concurrency,
                max_waiting=max_waiting,
                guard=guard,
            )
        except (TypeError, ValueError) as error:
            raise ContractError(f"{getattr(function, '__qualname__', function)}: {error}") from None
        setattr(function, _POLICY, policy_of(function).overridden(policy))
        return function

    return declare


def is_oneway(function: object) -> bool:
    """Whether `oneway` was declared of a function."""
    return getattr(function, _ONEWAY, False) is True


def policy_of(function: object) -> Policy:
    """What `method` declared of a function, or of what it wraps with `functools.wraps`."""
    policy: Any = getattr(function, _POLICY, UNDECLARED)
    return policy if isinstance(policy, Policy) else UNDECLARED  # a mock has any attribute


def of_handler(contracted: Policy, handler: object, name: str) -> Policy:
    """What counts for a method at the server: the contract's policy, and the handler's own over it.

    Raises:
        ContractError: the handler declares what its callers would never learn, or a limit on waiting for nothing.
    """
    own = policy_of(handler)
    for field in ("timeout", "idempotent"):
        value = getattr(own, field)
        if value not in (None, False, getattr(contracted, field)):
            raise ContractError(
                f"{name}: its handler declares {field}={value!r}, which is for its callers; declare it in the contract"
            )
    policy = contracted.overridden(own)
    if policy.max_waiting is not None and policy.max_concurrency is None:
        raise ContractError(
            f"{name}: max_waiting is {policy.max_waiting} and max_concurrency is not set, so none waits"
        )
    return policy
