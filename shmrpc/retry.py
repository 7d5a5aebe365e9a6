"""When a call that failed is made again: `Retry`, what a stub is told, and `Budget`, what a connection can afford.

Decides and counts only. What makes the calls is `repeating`.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from shmrpc.errors import Code

ATTEMPTS: Final = 3
"""How often an idempotent call is made in all, unless a stub has a `Retry` that says otherwise."""

JITTER: Final = 0.2
"""Share of a back-off by which it varies to both sides, so that callers that failed together do not come back together."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often, how soon and after which errors calls are made again: for `connect`, `local` and `options`.

    It is for methods that are declared idempotent. Other calls are repeated only if they were certainly not executed.

    Args:
        attempts: How often a call is made in all.
        backoff: Seconds before the first repetition, more or less a fifth.
        factor: By how much each further one is longer.
        max_backoff: Seconds that none exceeds, but for that fifth.
        codes: The status codes after which a call is repeated.
        budget: How many tokens each success gives back to the connection's budget.
        max_tokens: How many the budget holds. Each attempt that ends with one of the codes takes one, and at half and
            below nothing is repeated. It is gRPC's retry throttling
            (https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs).

    Raises:
        ValueError: a value cannot work.
    """

    attempts: int = ATTEMPTS
    backoff: float = 0.05
    factor: float = 2.0
    max_backoff: float = 1.0
    codes: Collection[Code] = frozenset({Code.UNAVAILABLE})
    budget: float = 0.1
    max_tokens: float = 100.0

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        if type(self.attempts) is not int or self.attempts < 1:
            raise ValueError(f"attempts is a whole number of 1 or more, not {self.attempts!r}")
        for name, least in (("backoff", 0.0), ("factor", 1.0), ("max_backoff", 0.0), ("budget", 0.0)):
            if not least <= getattr(self, name) < 1e9:
                raise ValueError(f"{name} is a number of {least} or more, not {getattr(self, name)!r}")
        if not 0 < self.max_tokens < 1e9:
            raise ValueError(f"max_tokens is a positive number, not {self.max_tokens!r}")
        codes = frozenset(self.codes)
        for code in codes:
            if not isinstance(code, Code) or code is Code.OK:
                raise ValueError(f"codes are members of shmrpc.Code other than OK, not {code!r}")
        object.__setattr__(self, "codes", codes)

    def pause(self, repetition: int) -> float:
        """Seconds to wait before a repetition; the first one is 1."""
        try:
            seconds = min(self.backoff * self.factor ** (repetition - 1), self.max_backoff)
        except OverflowError:
            seconds = self.max_backoff
        return seconds * random.uniform(1 - JITTER, 1 + JITTER)


class Budget:
    """What one connection can afford: a bucket of tokens, of which it counts those that are missing.

    So that stubs with different `Retry`s can share it: each compares with its own `max_tokens`.
    """

    __slots__ = ("missing",)

    def __init__(self) -> None:
        self.missing = 0.0

    def __repr__(self) -> str:
        return f"<Budget, {self.missing:g} tokens missing>"

    def succeed(self, retry: Retry) -> None:
        """A call ended well."""
        if self.missing:
            self.missing = max(0.0, self.missing - retry.budget)

    def fail(self, retry: Retry) -> bool:
        """A call ended with one of the codes. Says whether one may be repeated."""
        self.missing = max(self.missing, min(self.missing + 1.0, retry.max_tokens))
        return self.missing < retry.max_tokens / 2
