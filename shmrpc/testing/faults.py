"""Faults that a service has on purpose: what do its callers do when it is slow, fails, has no memory, or dies in mid-call?

Owns which call meets which fault, and when. A service gets them by being wrapped, so that one without pays nothing, and
they work over every transport: nothing below the handlers knows of them.
"""

import asyncio
import copy
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from shmrpc.context import ServedCall, check_seconds, running
from shmrpc.dispatch import Dispatcher, ServedMethod, Service, service
from shmrpc.errors import Code, RpcError
from shmrpc.outlet import close_iterator
from shmrpc.testing import connections

Moment = Literal["start", "end"] | int
"""Before the handler's first line; after its last one, before the answer leaves; after so many items of its stream."""


class Fault:
    """One fault of a service, which calls meet until it is removed; what the methods of `Faults` give.

    Used with ``with``, it is removed at the end of the block.
    """

    def __init__(
        self,
        owner: "Faults",
        description: dict[str, Any],
        act: "Callable[[Fault, ServedCall], Awaitable[None]]",
        *,
        portable: bool = True,
    ) -> None:
        self.met = 0
        """How many calls have met it."""
        self.method: Final[str] = description["method"]
        self.at: Final[Moment] = description["at"]
        self.description: Final = description
        """Its kind and arguments, as JSON can say them."""
        self.portable: Final = portable
        """Whether the description is all of it, so that it can be made again in another process."""
        self.held: list[object] = []
        self._times: Final[int | None] = description["times"]
        self._owner = owner
        self._act = act
        self._released = asyncio.Event()
        self._watching: list[asyncio.Future[None]] = []
        if self._times is not None and self._times < 1:
            raise ValueError(f"times is {self._times}, it must be at least 1, or None for every call")
        if isinstance(self.at, int) and self.at < 1:
            raise ValueError(f"at is {self.at}, it is 'start', 'end', or a number of items from 1 on")
        if isinstance(self.at, str) and self.at not in ("start", "end"):
            raise ValueError(f"at is {self.at!r}, it is 'start', 'end', or a number of items from 1 on")

    def __repr__(self) -> str:
        return f"<Fault {self.description['kind']} of {self.method} at {self.at}, met {self.met} times>"

    def __enter__(self) -> "Fault":
        """Nothing: it is there since it was made."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Removes it."""
        self.remove()

    def remove(self) -> None:
        """No call meets it any more; those that it holds go on, memory that it took is given back. Idempotent."""
        self._owner.discard(self)
        self.release()

    def release(self) -> None:
        """Lets the calls go on that it holds, and all later ones; gives back the memory that it took."""
        self._released.set()
        self.held.clear()

    async def reached(self, calls: int = 1) -> None:
        """Returns when so many calls have met it. To be awaited where the service runs: not in another process.

        Args:
            calls: How many, counted from the beginning.
        """
        while self.met < calls:
            watching = asyncio.get_running_loop().create_future()
            self._watching.append(watching)
            await watching

    async def hold(self) -> None:
        """Returns when it is released."""
        await self._released.wait()

    def concerns(self, full_name: str, at: Moment) -> bool:
        """Whether a call of a method, now at that moment, is to meet it."""
        if at != self.at or (self._times is not None and self.met >= self._times):
            return False
        return fnmatchcase(full_name, self.method) or fnmatchcase(full_name.partition(".")[2], self.method)

    async def meet(self, served: ServedCall) -> None:
        """Does to a call what it is there for."""
        self.met += 1
        watching, self._watching = self._watching, []
        for future in watching:
            if not future.done():
                future.set_result(None)
        await self._act(self, served)


class Faults:
    """The faults of one or more services; made, added and removed while these run.

    ::

        faults = shmrpc.testing.Faults()
        async with shmrpc.testing.pair(Vision, Worker(), faults=faults) as vision:
            with faults.delay("classify", 0.5):
                ...

    ``pair(…, faults=faults)`` and ``process(…, faults=faults)`` put them into the services; for `shmrpc.local` and
    `shmrpc.Server` it is ``local(Vision, faults.wrap(Worker()))``. They belong to the event loop of the services.

    Each method that adds a fault takes

    - ``method``: a method's name, like ``"classify"`` or ``"Vision.classify"``, or a pattern, like ``"*"``;
    - ``at``: ``"start"``: the call was taken, and its handler has not begun; ``"end"``: the handler has done all it does,
      and its answer has not left; or a number: its result stream has given so many items;
    - ``times``: how many calls meet it; None: all.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._known: dict[str, bool] = {}
        """Full names of the methods that were wrapped; whether their result is a stream."""

    def __repr__(self) -> str:
        return f"<Faults {self._faults}>"

    # ---- kinds of faults ----

    def delay(self, method: str, seconds: float, *, at: Moment = "start", times: int | None = None) -> Fault:
        """The call takes so many seconds longer.

        Raises:
            TypeError, ValueError: these are no seconds.
        """
        check_seconds("seconds", seconds)

        async def act(fault: Fault, served: ServedCall) -> None:
            await asyncio.sleep(seconds)

        return self._add({"kind": "delay", "method": method, "seconds": seconds, "at": at, "times": times}, act)

    def hold(self, method: str, *, at: Moment = "start", times: int | None = None) -> Fault:
        """The call stands still until the fault is released or removed, or the caller gives up; see `Fault.reached`.

        Not in a process of its own, where nobody could release it.
        """

        async def act(fault: Fault, served: ServedCall) -> None:
            await fault.hold()

        description = {"kind": "hold", "method": method, "at": at, "times": times}
        return self._add(description, act, portable=False)

    def fail(self, method: str, error: Exception, *, at: Moment = "start", times: int | None = None) -> Fault:
        """The handler raises the error.

        Over a transport it arrives as what every handler's error does: as itself if the contract's module declares it,
        else as the shipped class of its code. In a process of its own it can be an `RpcError` that has only a text.

        Raises:
            TypeError: it is no exception.
        """
        if not isinstance(error, Exception):
            raise TypeError(f"error is an exception to be raised, like RpcError('…'), not {error!r}")

        async def act(fault: Fault, served: ServedCall) -> None:
            raise _fresh(error)

        description = {"kind": "fail", "method": method, "at": at, "times": times, "text": str(error)}
        portable = isinstance(error, RpcError) and type(error).__module__ == RpcError.__module__
        if portable and isinstance(error, RpcError):
            description["code"] = error.code.name
        return self._add(description, act, portable=portable)

    def drop(self, method: str, *, at: Moment = "start", times: int | None = 1) -> Fault:
        """The server goes in the middle of the call, which is never answered.

        In a process of its own the process kills itself (SIGKILL). In a pair, and in every other server, the connection
        breaks, and the client connects again. Over `shmrpc.local` the call ends as it would then. The caller gets
        `ConnectionLost` with ``maybe_executed=True``, and ``at="end"`` makes that true.
        """

        async def act(fault: Fault, served: ServedCall) -> None:
            await connections.drop(served)

        return self._add({"kind": "drop", "method": method, "at": at, "times": times}, act)

    def exhaust(self, method: str, *, at: Moment = "start", times: int | None = 1) -> Fault:
        """All memory that is left for answers to this client is taken, until the fault is released or removed.

        Answers of more than 8 KiB wait for memory then, until their deadline; `shmrpc.empty` gives ordinary memory. The
        connection's ``max_extent_bytes`` must be 256 MiB at the most, since so much is really taken. `shmrpc.local` has no
        limit to memory: there, use `fail` with `ResourceExhausted`.
        """

        async def act(fault: Fault, served: ServedCall) -> None:
            fault.held.extend(connections.exhaust(served))

        return self._add({"kind": "exhaust", "method": method, "at": at, "times": times}, act)

    def clear(self) -> None:
        """Removes all of them."""
        for fault in list(self._faults):
            fault.remove()

    def discard(self, fault: Fault) -> None:
        """Forgets one, if it is there."""
        if fault in self._faults:
            self._faults.remove(fault)

    def _add(
        self,
        description: dict[str, Any],
        act: Callable[[Fault, ServedCall], Awaitable[None]],
        *,
        portable: bool = True,
    ) -> Fault:
        fault = Fault(self, description, act, portable=portable)
        if self._known:
            self._check(fault)
        self._faults.append(fault)
        return fault

    def _check(self, fault: Fault) -> None:
        """Refuses one that no call could ever meet: it would let a test pass that tests nothing."""
        concerned = [name for name in self._known if fault.concerns(name, fault.at)]
        if not concerned:
            raise ValueError(f"no method matches {fault.method!r}; there are {', '.join(self._known)}")
        if isinstance(fault.at, int) and not any(self._known[name] for name in concerned):
            raise ValueError(f"{', '.join(concerned)} gives one result and no items; at is 'start' or 'end'")

    # ---- putting them into services ----

    def wrap(self, implementation: object, *contracts: type) -> Service:
        """The service with these faults, to be served in its place.

        Args:
            implementation: What answers, or what `shmrpc.service` made of it.
            *contracts: As which it is served; without any: those that it inherits from.

        Raises:
            ContractError: as `shmrpc.service`.
            ValueError: one of the faults is of a method that the service does not have.
        """
        (wrapped,) = self.wrap_all([service(implementation, *contracts)])
        return wrapped

    def wrap_all(self, services: Iterable[object]) -> list[Service]:
        """Several services that share these faults."""
        wrapped = [self._wrap(service(one)) for one in services]
        for fault in self._faults:
            self._check(fault)
        return wrapped

    def _wrap(self, plain: Service) -> Service:
        inner = Dispatcher((plain,))
        faulty = _Faulty(plain.implementation, inner)
        for served in inner.methods:
            if served.contract in {contract.cls for contract in plain.contracts}:
                self._known[served.full_name] = served.method.streams_result
                handler = getattr(plain.implementation, served.method.name)
                setattr(faulty, served.method.name, self._wrap_handler(served, handler))
        return Service(faulty, plain.contracts)

    def _wrap_handler(self, served: ServedMethod, handler: Callable[..., Any]) -> Callable[..., Any]:
        bind, invoke = served.method.bind, served.invoke

        async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
            await self._meet("start")
            number = 0
            items = invoke(*bind(args, kwargs))
            try:
                async for item in items:
                    yield item
                    number += 1
                    await self._meet(number)
            finally:
                await close_iterator(items)
            await self._meet("end")

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._meet("start")
            result = await invoke(*bind(args, kwargs))
            await self._meet("end")
            return result

        wrapper: Any = stream if served.method.streams_result else call
        wrapper.__name__ = wrapper.__qualname__ = served.method.name
        wrapper.__signature__ = inspect.signature(handler)
        return wrapper  # type: ignore[no-any-return]

    async def _meet(self, at: Moment) -> None:
        served = running.get()
        for fault in list(self._faults):
            if fault.concerns(served.method_name, at):
                await fault.meet(served)

    # ---- to another process ----

    def to_json(self) -> list[dict[str, Any]]:
        """The faults as data that `from_json` reads in another process.

        Raises:
            ValueError: one cannot be told; the text says why and what to do.
        """
        for fault in self._faults:
            if not fault.portable:
                raise ValueError(
                    f"{fault!r} cannot be put into another process; serve faults.wrap(…) of a module of yours there, or "
                    "use process.stall() and process.kill()"
                )
        return [fault.description for fault in self._faults]

    @classmethod
    def from_json(cls, descriptions: Sequence[dict[str, Any]]) -> "Faults":
        """The faults that `to_json` described."""
        faults = cls()
        for description in descriptions:
            arguments = {name: value for name, value in description.items() if name not in ("kind", "code", "text")}
            if description["kind"] == "fail":
                arguments["error"] = RpcError(description["text"], code=Code[description["code"]])
            getattr(faults, description["kind"])(**arguments)
        return faults


def _fresh(error: Exception) -> Exception:
    """The error again: one that is raised keeps the frames that it went through, and these the call's arguments."""
    try:
        return copy.copy(error)
    except TypeError:  # its constructor takes something else than what it was made with
        return error.with_traceback(None)


class _Faulty:
    """Stands for an implementation, and enters and leaves it; its handlers are set on the instance."""

    def __init__(self, implementation: object, inner: Dispatcher) -> None:
        self._implementation = implementation
        self._inner = inner

    def __repr__(self) -> str:
        return f"<{self._implementation!r} with faults>"

    async def __aenter__(self) -> None:
        await self._inner.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._inner.__aexit__(*exc_info)
