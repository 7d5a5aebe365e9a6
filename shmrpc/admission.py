"""Whether a call may be handled, and when: guards and limits, between a call's arrival and its handler.

Owns the slots of methods with a `max_concurrency`, and the order of those that wait for one. What is declared, and where, is
`policy`'s. A method without a guard and a limit is not wrapped at all.
"""

import asyncio
import contextlib
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Final

from shmrpc.context import Call, current_call, remaining_seconds, running
from shmrpc.errors import Cancelled, PermissionDenied, ResourceExhausted, RpcError
from shmrpc.outlet import close_iterator, iterator_of
from shmrpc.policy import Guard, Policy

MAX_WAITING: Final = 1024
"""How many calls of a method may wait for a slot: as many as one connection may have in flight, so that a client which
is alone is held back by its own credit, and refused nothing."""

EARLY_SHARE: Final = 0.1
EARLY_SECONDS: Final = 0.05
"""How long before its deadline a call stops to wait: that share of its time, and not more than that. Else the caller's own
timer would say first that it is late, and not what it waited for."""

_slot: ContextVar["Slot"] = ContextVar("shmrpc_slot")
"""That of the call whose handler is to run in a thread."""


class Slot:
    """A call's place, among those of its method that are handled, or among those that are in threads.

    It is given back once: when the call has ended, and its thread too. A thread cannot be cancelled, so the handler of a
    call that was given up runs on, and counts.

    Args:
        give_back: Called for that, in the event loop.
    """

    __slots__ = ("_ended", "_give_back", "_in_thread", "_lock", "_loop")

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._ended = False
        self._in_thread = False

    def end(self) -> None:
        """The call has ended."""
        with self._lock:
            self._ended = True
            left_behind = self._in_thread
        if not left_behind:
            self._give_back()

    def run(self, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a handler in this thread, unless its call has ended by now."""
        with self._lock:
            if self._ended:
                raise Cancelled("its call ended before a thread was free")
            self._in_thread = True
        try:
            return handler(*args, **kwargs)
        finally:
            with self._lock:
                self._in_thread = False
                ended = self._ended
            if ended:
                with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody counts any more
                    self._loop.call_soon_threadsafe(self._give_back)


class Limit:
    """How many calls are handled at once, and who waits: first come, first served."""

    def __init__(self, most: int, max_waiting: int) -> None:
        self.most: Final = most
        self.max_waiting: Final = max_waiting
        self.running = 0
        self.waiting: Final[deque[asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return f"<Limit, {self.running} of {self.most} running, {len(self.waiting)} of {self.max_waiting} waiting>"

    async def take(self, name: str, deadline_ns: int) -> Slot:
        """A slot for one call of a method; `Slot.end` gives it back.

        Raises:
            ResourceExhausted: too many wait already, or the deadline came near.
        """
        if self.running < self.most:  # and nobody waits: a slot that is given back goes to who waits
            self.running += 1
            return Slot(self.give_back)
        if len(self.waiting) >= self.max_waiting:
            raise ResourceExhausted(
                f"{name}: {self._usage()}, and {len(self.waiting)} wait, the limit is {self.max_waiting} (max_waiting)"
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            async with asyncio.timeout(_patience(deadline_ns)):
                await waiter
        except TimeoutError:
            self._leave(waiter)
        except BaseException:
            self._leave(waiter)
            raise
        else:
            return Slot(self.give_back)
        # Not raised up there: it would keep the timeout's error, and that the frames with the call's arguments.
        raise ResourceExhausted(
            f"{name}: {self._usage()}, {len(self.waiting)} more wait, and this one had waited until shortly before its "
            "deadline"
        )

    def _leave(self, waiter: "asyncio.Future[None]") -> None:
        if waiter.done() and not waiter.cancelled():
            self.give_back()  # it was given a slot in the very tick in which it gave up
        else:
            self.waiting.remove(waiter)

    def _usage(self) -> str:
        return f"{self.running} calls run, the limit is {self.most} (max_concurrency)"

    def give_back(self) -> None:
        """One call less is handled: its slot goes to the one that waits longest."""
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.running -= 1


def _patience(deadline_ns: int) -> float | None:
    if not deadline_ns:
        return None
    seconds = remaining_seconds(deadline_ns)
    return seconds - min(seconds * EARLY_SHARE, EARLY_SECONDS)


class Limits:
    """The limits of one server: one for each handler that has any, under whatever names its contracts serve it."""

    def __init__(self) -> None:
        self._limits: dict[tuple[int, str, int, int], Limit] = {}

    def of(self, implementation: object, name: str, policy: Policy) -> Limit | None:
        """The limit of one method of an implementation, which must be kept alive."""
        if policy.max_concurrency is None:
            return None
        max_waiting = MAX_WAITING if policy.max_waiting is None else policy.max_waiting
        key = (id(implementation), name, policy.max_concurrency, max_waiting)
        return self._limits.setdefault(key, Limit(policy.max_concurrency, max_waiting))


def holding_slot(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that runs in a thread, and holds its call's slot there."""

    def in_thread(*args: Any, **kwargs: Any) -> Any:
        return _slot.get().run(handler, *args, **kwargs)

    return in_thread


def admitting(
    name: str, invoke: Callable[..., Any], guard: Guard | None, limit: Limit | None, *, streams: bool
) -> Callable[..., Any]:
    """A `ServedMethod.invoke` behind a guard, a limit, or both: the guard comes first, so that nobody refused waits."""

    async def enter() -> Slot | None:
        if guard is not None:
            await check(name, guard, current_call())
        if limit is None:
            return None
        served = running.get(None)
        slot = await limit.take(name, served.deadline_ns if served is not None else 0)
        _slot.set(slot)
        return slot

    async def call(*args: Any) -> Any:
        slot = await enter()
        try:
            handled = invoke(*args)
            del args  # the handler alone says how long it keeps them
            return await handled
        finally:
            if slot is not None:
                slot.end()

    async def stream(*args: Any) -> AsyncIterator[Any]:
        slot = await enter()
        items: Any = None
        try:
            items = iterator_of(invoke(*args))
            del args
            while True:
                yield await items.__anext__()  # without a name, which would keep the item until the next one
        except StopAsyncIteration:
            return
        finally:
            try:
                await close_iterator(items)
            finally:
                if slot is not None:
                    slot.end()

    return stream if streams else call


async def check(name: str, guard: Guard, call: Call) -> None:
    """Asks a guard about a call.

    Raises:
        PermissionDenied: it says no.
        Exception: what it raises.
    """
    try:
        allowed = guard(call)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if allowed is not None and not isinstance(allowed, bool):
            raise TypeError(f"it gave {allowed!r}; a guard gives True, False or None, or raises an RpcError")
    except Exception as error:
        if not isinstance(error, RpcError):
            error.add_note(f"It was raised by the guard of {name}, so that the handler was not called.")
        raise
    if allowed is False:
        raise PermissionDenied(f"{name}: {call.peer} may not call it")
