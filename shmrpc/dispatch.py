"""Services and their handlers: what a server serves, and how one call is handled, whatever transport it came by.

Owns the list of served methods, what is counted of each, the entering and leaving of services, and the running of
handlers. Knows nothing of records or sockets.
"""

import asyncio
import inspect
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar, cast

import anyio.to_thread

from shmrpc import contract as contracts
from shmrpc import policy as policies
from shmrpc.admission import Limits, Slot, admitting, holding_slot
from shmrpc.built_in import BuiltIn, Carrier
from shmrpc.contract import Contract
from shmrpc.errors import Code, ContractError, ResourceExhausted, Unimplemented
from shmrpc.health import HealthBoard
from shmrpc.interceptors.call import Interceptor, checked
from shmrpc.interceptors.server import intercepted
from shmrpc.introspection import RESERVED, Introspection
from shmrpc.methods import Method
from shmrpc.outlet import close_iterator, iterator_of

T = TypeVar("T")


class _Threads:
    """How many handlers may run in threads at once. What counts them is made on first use, inside the event loop.

    A thread counts until the function has ended, also when nobody waits for it any more: one that waits for a lock does not
    hear of its caller's deadline.
    """

    def __init__(self, most: int) -> None:
        self._most = most

    @cached_property
    def _places(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._most)

    @cached_property
    def _unlimited(self) -> anyio.CapacityLimiter:
        """For anyio, whose own count ends with the wait for a thread."""
        return anyio.CapacityLimiter(math.inf)

    async def run(self, name: str, function: Callable[..., T], *args: Any, abandon_on_cancel: bool = False) -> T:
        """Calls a function in a thread, when there is a free one.

        Raises:
            ResourceExhausted: the system gives no more threads. Else what the function raises.
        """
        await self._places.acquire()
        slot = Slot(self._places.release)
        try:
            return await self.run_at_once(name, slot.run, function, *args, abandon_on_cancel=abandon_on_cancel)
        finally:
            slot.end()

    async def run_at_once(
        self, name: str, function: Callable[..., T], *args: Any, abandon_on_cancel: bool = False
    ) -> T:
        """The same without waiting for others: for what ends soon, and lets a handler end."""

        def call() -> tuple[Exception | None, Any]:
            try:
                return None, function(*args)
            except Exception as error:  # of the function; passed on as a value, or anyio's frame and it keep each other
                return error, None

        try:
            outcome = anyio.to_thread.run_sync(call, abandon_on_cancel=abandon_on_cancel, limiter=self._unlimited)
            error, result = await outcome
        except RuntimeError as no_thread:
            raise ResourceExhausted(f"{name} needs a thread, and the server cannot start one: {no_thread}") from None
        try:
            if error is not None:
                raise error
            return cast(T, result)
        finally:
            del error, result


class ServedMethod:
    """One method of a service, ready to be called."""

    def __init__(
        self,
        contract: Contract,
        method: Method,
        implementation: object,
        threads: _Threads,
        limits: Limits,
        interceptors: tuple[Interceptor, ...] = (),
    ) -> None:
        self.contract: Final = contract.cls
        self.method: Final = method
        self.full_name: Final = method.full_name
        handler = getattr(implementation, method.name)
        if not callable(handler):
            raise ContractError(f"{method.full_name}: {type(implementation).__name__}.{method.name} is not callable")
        _check_parameters(method, handler, type(implementation).__name__)
        self.policy: Final = policies.of_handler(method.policy, handler, method.full_name)
        """What the contract declares, and the handler over it."""
        limit = limits.of(implementation, method.name, self.policy)
        make = _as_stream if method.streams_result else _as_async
        invoke: Callable[..., Any] = make(method, handler, threads, limited=limit is not None)
        if limit is not None or self.policy.guard is not None:
            invoke = admitting(method.full_name, invoke, self.policy.guard, limit, streams=method.streams_result)
        self.invoke: Final = intercepted(method, invoke, interceptors)
        """Called with the decoded arguments by position, and an async iterator for one that is a stream; gives an awaitable
        of the result, or an async iterator of its items."""
        self.streaming: Final = method.streams_result or method.stream_index is not None
        """Whether a parameter or the result is a stream."""
        self.decode: Final = method.decode
        self.decode_arguments: Final = method.decode_arguments
        self.encode: Final = method.encode
        self.buffered: Final = method.buffered_arguments
        self.buffered_result: Final = method.buffered_result
        self.unpack: Final = method.unpack_arguments
        self.started = 0
        """Calls of it so far. Calls that ended well are not counted: they are those that neither failed nor still run."""
        self.failures: Final[dict[Code, int]] = {}
        """Calls of it that ended otherwise than well, by their status."""
        self.waited_ns = 0
        """What its handlers took from their first wait to their end, all together."""

    def count_failure(self, code: int) -> None:
        """A call that was counted as started has ended otherwise than well."""
        known = code if isinstance(code, Code) else Code.UNKNOWN  # an application's error may have a field of that name
        self.failures[known] = self.failures.get(known, 0) + 1

    def __repr__(self) -> str:
        return f"<ServedMethod {self.full_name}>"


def _check_parameters(method: Method, handler: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(handler)
    except ValueError:  # one written in C may have none
        return
    try:
        method.call(signature.bind, (None,) * method.arity)
    except TypeError as error:
        raise ContractError(
            f"{method.full_name}: {name}.{method.name}{signature} does not take the arguments of {method.shown}: {error}"
        ) from None


def _as_async(
    method: Method, handler: Callable[..., Any], threads: _Threads, *, limited: bool
) -> Callable[..., Awaitable[Any]]:
    if inspect.iscoroutinefunction(inspect.unwrap(handler)):
        if method.plain:
            return handler
        return lambda *args: method.call(handler, args)
    if method.stream_index is not None:
        raise ContractError(
            f"{method.full_name}: its handler is a plain 'def', which runs in a thread, and cannot read a stream there; "
            "make it 'async def'"
        )
    if limited:
        handler = holding_slot(handler)

    async def in_thread(*args: Any) -> Any:
        # Abandoned on cancellation: the caller's wait ends, the thread runs on to its end and its result is dropped.
        result = await threads.run(method.full_name, method.call, handler, args, abandon_on_cancel=True)
        # A plain wrapper around a coroutine function gives a coroutine, which belongs into the loop.
        return await result if inspect.isawaitable(result) else result

    return in_thread


def _as_stream(
    method: Method, handler: Callable[..., Any], threads: _Threads, *, limited: bool
) -> Callable[..., AsyncIterator[Any]]:
    function = inspect.unwrap(handler)
    if inspect.isgeneratorfunction(function):
        step = holding_slot(next) if limited else next
        return lambda *args: _step_in_threads(method.call(handler, args), step, threads, method.full_name)
    if inspect.iscoroutinefunction(function):

        async def after_coroutine(*args: Any) -> AsyncIterator[Any]:
            items = iterator_of(await method.call(handler, args))
            try:
                async for item in items:
                    yield item
            finally:
                await close_iterator(items)

        return after_coroutine
    return handler if method.plain else lambda *args: method.call(handler, args)


async def _step_in_threads(
    generator: Generator[Any, Any, Any], step: Callable[..., Any], threads: _Threads, name: str
) -> AsyncIterator[Any]:
    """The items of a plain generator, which takes each of its steps in a thread.

    A step whose call is cancelled runs on in its thread, like any plain function, and closes the generator at its end.
    """
    end = object()
    running = threading.Lock()
    left = False

    def take_step() -> Any:
        try:
            with running:
                return step(generator, end)
        finally:
            if left and running.acquire(blocking=False):
                generator.close()

    try:
        while (item := await threads.run(name, take_step)) is not end:
            yield item
    finally:
        left = True  # before the lock is tried: whoever gets it then, this one or the step, closes
        if not running.acquire(blocking=False):
            pass  # the step closes it
        elif inspect.getgeneratorstate(generator) == inspect.GEN_CREATED:
            generator.close()  # which runs none of its code
        else:
            with anyio.CancelScope(shield=True):
                try:
                    await threads.run_at_once(name, generator.close)
                except ResourceExhausted:
                    generator.close()  # here, as its last reference would


class Service(NamedTuple):
    """An implementation, and the contracts that it is served as."""

    implementation: object
    contracts: tuple[Contract, ...]


def service(implementation: object, *contract: type) -> Service:
    """An implementation served as the given contracts, for one that does not inherit from them.

    What is a service already stays as it is.

    Raises:
        ContractError: it lacks a method of a contract, or a contract cannot work.
    """
    if isinstance(implementation, Service):
        if absent := [cls for cls in contract if cls not in {one.cls for one in implementation.contracts}]:
            raise ContractError(f"the service of {implementation.implementation!r} is not one of {absent[0].__name__}")
        return implementation
    if isinstance(implementation, type):
        raise ContractError(f"a service is an instance; write {implementation.__name__}(…)")
    read = tuple(contracts.read(cls) for cls in contract or contracts.contracts_of(type(implementation)))
    for one in read:
        for name in one.methods:
            owner = next((base for base in type(implementation).__mro__ if name in vars(base)), None)
            if owner is None or contracts.is_protocol(owner):
                raise ContractError(f"{type(implementation).__name__} does not implement {one.name}.{name}")
    return Service(implementation, read)


def exposed(services: object) -> "Dispatcher | None":
    """The dispatcher of what a client exposes: a service, or a list of them, and nothing else; None for nothing.

    Raises:
        ContractError: a contract cannot work, or a service does not implement it.
    """
    listed = (
        tuple(services) if isinstance(services, (list, tuple)) and not isinstance(services, Service) else (services,)
    )
    return None if services is None or not listed else Dispatcher(listed, tells_of_itself=False)


class Dispatcher:
    """Everything that one server serves. Async context manager: entering it enters the services.

    Args:
        services: What is served.
        max_threads: How many handlers may run in threads at once.
        tells_of_itself: Whether the built-in service is served too.
        interceptors: Around each handler, those of the built-in service too; outermost first.
    """

    def __init__(
        self,
        services: tuple[object, ...],
        *,
        max_threads: int = 40,
        tells_of_itself: bool = True,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        if not services:
            raise ContractError("a server needs at least one service")
        self._services = [service(one) for one in services]
        self._stack = AsyncExitStack()
        self.contracts: Final[dict[str, Contract]] = {}
        self.first_method: Final[dict[str, int]] = {}
        self.methods: Final[list[ServedMethod]] = []
        threads, limits = _Threads(max_threads), Limits()
        around = checked(interceptors)
        for one in self._services:
            for contract in one.contracts:
                if contract.name.startswith(RESERVED):
                    raise ContractError(f"{contract.name} is built in, and every server serves it by itself")
                self._add(contract, one.implementation, threads, limits, around)
        self.health: Final = HealthBoard(
            [(one.implementation, [contract.name for contract in one.contracts]) for one in self._services]
        )
        self._built_in: Final = BuiltIn(self.contracts, self.methods, self.health)
        if tells_of_itself:  # last, so that it is nothing to those who do not ask for it
            self._add(contracts.read(Introspection), self._built_in, threads, limits, around)

    def _add(
        self,
        contract: Contract,
        implementation: object,
        threads: _Threads,
        limits: Limits,
        around: tuple[Interceptor, ...],
    ) -> None:
        if contract.name in self.contracts:
            raise ContractError(f"two services are called {contract.name}; a server needs distinct names")
        self.contracts[contract.name] = contract
        self.first_method[contract.name] = len(self.methods)
        self.methods.extend(
            ServedMethod(contract, method, implementation, threads, limits, around)
            for method in contract.methods.values()
        )

    def __repr__(self) -> str:
        return f"<Dispatcher of {', '.join(self.names)}>"

    @property
    def names(self) -> list[str]:
        """Those of the services that were given, without what is built in."""
        return [name for name in self.contracts if not name.startswith(RESERVED)]

    def carried_by(self, carrier: Carrier) -> None:
        """Says what carries the calls, for those who ask the server about itself."""
        self._built_in.carrier = carrier

    async def __aenter__(self) -> "Dispatcher":
        """Enters the services that are async context managers, in order."""
        try:
            for one in self._services:
                if isinstance(one.implementation, AbstractAsyncContextManager):
                    await self._stack.enter_async_context(one.implementation)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Leaves the services, last entered first."""
        self.health.close()
        await self._stack.aclose()

    def find(self, full_name: str) -> ServedMethod:
        """The method with a full name like ``"Vision.classify"``.

        Raises:
            Unimplemented: there is none.
        """
        for served in self.methods:
            if served.full_name == full_name:
                return served
        there = [m.full_name for m in self.methods if not m.full_name.startswith(RESERVED)]
        raise Unimplemented(f"there is no method {full_name}; there are {', '.join(there)}")
