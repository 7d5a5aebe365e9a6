"""Runs the interceptors of one call, first one outermost, around whatever makes the call."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from shmrpc.interceptors.call import Intercepted, Interceptor, Proceed

Each = Callable[[Any], Any]


class Chain:
    """The interceptors of one call.

    Args:
        call: What they see.
        interceptors: In order, outermost first.
        innermost: Called without arguments for what is inside of them all; its awaitable gives the result.
        changes: What interceptors do to the items of a stream, by their place in the list; filled in here.
    """

    __slots__ = ("_call", "_changes", "_innermost", "_interceptors")

    def __init__(
        self,
        call: Intercepted,
        interceptors: Sequence[Interceptor],
        innermost: Callable[[], Awaitable[Any]],
        changes: dict[int, Each] | None = None,
    ) -> None:
        self._call: Final = call
        self._interceptors: Final = interceptors
        self._innermost: Final = innermost
        self._changes: Final = {} if changes is None else changes

    def run(self, depth: int = 0) -> Awaitable[Any]:
        """All that is to be done from the interceptor at a depth inwards."""
        if depth == len(self._interceptors):
            return self._innermost()
        return self._interceptors[depth](self._call, self._proceed_from(depth))

    def _proceed_from(self, depth: int) -> Proceed:
        def proceed(*, each: Each | None = None) -> Awaitable[Any]:
            if each is None:
                self._changes.pop(depth, None)
            else:
                self._changes[depth] = each
            return self.run(depth + 1)

        return proceed
