"""How a stub's methods are bound to a transport: with their default timeout, and repeated as the stub's `Retry` says.

It stands above the transport, so the rule is one for all of them. A stub without a `Retry` has what the transport binds,
and pays nothing here. With one, the transport repeats only what was certainly not executed, and all else is decided here.

A call is repeated when all of this holds: its status code is one of the `Retry`'s; its method is idempotent, or it was
certainly not executed; it has attempts left; the connection's budget is above half; the pause ends before its deadline;
nothing was asked of the caller's stream, and nothing of the result's was delivered.

A lost connection is not charged to the budget, and there is no pause after it. It takes all its calls with it at once, of
which a budget would let most down, and says nothing of the load; and reconnecting has a back-off of its own.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from time import monotonic_ns
from typing import Any, Final
from weakref import WeakKeyDictionary

from shmrpc.context import CallOptions, timeout_to_ns
from shmrpc.errors import Closed, Code, ConnectionLost, ForkedError, RpcError, Unavailable
from shmrpc.methods import Method
from shmrpc.outlet import close_iterator, iterator_of
from shmrpc.retry import Budget, Retry
from shmrpc.transport import StubMethod, Transport

_budgets: Final[WeakKeyDictionary[Transport, Budget]] = WeakKeyDictionary()


def budget_of(transport: Transport) -> Budget:
    """The budget that all stubs over one connection share."""
    return _budgets.setdefault(transport, Budget())


def with_default_timeout(method: Method, options: CallOptions) -> CallOptions:
    """A stub's options for a method: its own timeout, else the one that is declared."""
    if method.policy.timeout is not None and not options.timeout_ns:
        return options.within(timeout_to_ns(method.policy.timeout))
    return options


def bind(transport: Transport, method: Method, options: CallOptions) -> StubMethod:
    """What a stub has as a method, without its interceptors: see `Transport.bind`."""
    return bind_exactly(transport, method, with_default_timeout(method, options))


def bind_exactly(transport: Transport, method: Method, options: CallOptions) -> StubMethod:
    """The same, for options whose timeout counts also where it is none."""
    bound = transport.bind(method, options)
    return bound if options.retry is None else _Repeating(transport, method, options, options.retry, bound).bind()


class _Repeating:
    """One method of a stub with a `Retry`."""

    def __init__(
        self, transport: Transport, method: Method, options: CallOptions, retry: Retry, bound: StubMethod
    ) -> None:
        self.transport: Final = transport
        self.method: Final = method
        self.options: Final = options
        self.retry: Final = retry
        self.budget: Final = budget_of(transport)
        self.bound: Final = bound
        """What the first attempt is made with."""

    def succeed(self) -> None:
        """A call ended well, or began to give results."""
        self.budget.succeed(self.retry)

    def bind(self) -> StubMethod:
        """See `Transport.bind`."""

        async def call(*args: Any, **kwargs: Any) -> Any:
            attempts = _Attempts(self, args, kwargs)
            attempts.start_clock()
            while True:
                try:
                    result = await attempts.begin()
                except RpcError as error:
                    if not await attempts.go_on(error):
                        raise
                else:
                    self.succeed()
                    return result

        def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return _Stream(_Attempts(self, args, kwargs))

        bound: Any = stream if self.method.streams_result else call
        bound.__name__, bound.__qualname__ = self.method.name, self.method.full_name
        method: StubMethod = bound
        return method


class _Attempts:
    """The attempts at one call."""

    def __init__(self, repeating: _Repeating, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.repeating: Final = repeating
        self._given: _Given | None = None
        if (index := repeating.method.stream_index) is not None:
            args, kwargs, self._given = _watch(args, kwargs, index, repeating.method)
        self._args, self._kwargs = args, kwargs
        self._deadline_ns = 0
        self._made = 0
        self._maybe_executed = False  # by this attempt or by one before
        self._earlier: list[str] = []

    def start_clock(self) -> None:
        """From now on the call's time runs. A stream's does from its first step, as without a `Retry`."""
        self._deadline_ns = self.repeating.options.deadline_ns()

    def begin(self) -> Any:
        """Makes an attempt: gives what the transport's method does."""
        repeating, bound = self.repeating, self.repeating.bound
        self._made += 1
        if self._made > 1 and repeating.options.timeout_ns:  # the deadline is that of the call, not of an attempt
            left_ns = max(1, self._deadline_ns - monotonic_ns())
            bound = repeating.transport.bind(repeating.method, repeating.options.within(left_ns))
        return bound(*self._args, **self._kwargs)

    async def go_on(self, error: RpcError) -> bool:
        """Whether there is to be another attempt after one that failed; when it is time for it."""
        pause = self._pause_after(error)
        if pause is None:
            if self._earlier:
                error.add_note(f"It was attempt {self._made}. Before it: {'; '.join(self._earlier)}")
            return False
        self._earlier.append(f"{type(error).__name__}: {error}")
        if pause:
            await asyncio.sleep(pause)
        return True

    def _pause_after(self, error: RpcError) -> float | None:
        """Seconds until another attempt; None: there is none."""
        retry = self.repeating.retry
        if isinstance(error, Unavailable):
            self._maybe_executed = error.maybe_executed = error.maybe_executed or self._maybe_executed
        else:
            self._maybe_executed = True
        code: object = error.code  # or whatever a subclass has as a field of that name
        if not isinstance(code, Code) or code not in retry.codes:
            return None
        if isinstance(error, (Closed, ForkedError)):  # this side's own doing
            return None
        lost = isinstance(error, ConnectionLost)
        affordable = lost or self.repeating.budget.fail(retry)
        safe = self.repeating.method.policy.idempotent or not self._maybe_executed
        untouched = self._given is None or not self._given.asked
        if not (affordable and safe and untouched and self._made < retry.attempts):
            return None
        pause = 0.0 if lost else retry.pause(self._made)
        if self._deadline_ns and monotonic_ns() + int(pause * 1e9) >= self._deadline_ns:
            return None
        return pause


class _Stream:
    """The results of a call, which is made again as long as none of them has come."""

    def __init__(self, attempts: _Attempts) -> None:
        self._attempts: _Attempts | None = attempts
        """None: something was delivered, or the call has ended."""
        self._items: Any = attempts.begin()  # which sends nothing, but looks at the arguments
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._items)

    def __aiter__(self) -> "_Stream":
        return self

    def __anext__(self) -> Awaitable[Any]:
        attempts, self._attempts = self._attempts, None
        item: Awaitable[Any] = self._items.__anext__() if attempts is None else self._first(attempts)
        return item

    async def _first(self, attempts: _Attempts) -> Any:
        attempts.start_clock()
        while True:
            try:
                item = await self._items.__anext__()
            except RpcError as error:
                if not await attempts.go_on(error) or self._closed:
                    raise
                self._items = attempts.begin()
            except StopAsyncIteration:
                attempts.repeating.succeed()
                raise
            else:
                attempts.repeating.succeed()
                return item

    async def aclose(self) -> None:
        """Ends the call."""
        self._attempts, self._closed = None, True
        await self._items.aclose()


class _Given:
    """A caller's stream, which knows whether anything was asked of it: what it gave cannot be given again."""

    def __init__(self, items: AsyncIterable[Any] | Iterable[Any]) -> None:
        self.asked = False
        self._items = items
        self._iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> "_Given":
        return self

    def __anext__(self) -> Awaitable[Any]:
        self.asked = True
        if self._iterator is None:
            self._iterator = iterator_of(self._items)
        return self._iterator.__anext__()

    async def aclose(self) -> None:
        """Closes the caller's stream, if it was begun: else a later attempt may need it."""
        await close_iterator(self._iterator)


def _watch(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, method: Method
) -> tuple[tuple[Any, ...], dict[str, Any], _Given | None]:
    """The arguments of a call with the stream among them watched, and that; None where the call lacks it."""
    name = method.signature.parameters[index].name
    items = args[index] if index < len(args) else kwargs.get(name)
    if not isinstance(items, (AsyncIterable, Iterable)):
        return args, kwargs, None  # which the transport refuses
    given = _Given(items)
    if index < len(args):
        return (*args[:index], given, *args[index + 1 :]), kwargs, given
    return args, {**kwargs, name: given}, given
