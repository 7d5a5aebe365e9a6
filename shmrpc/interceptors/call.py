"""What an interceptor sees of a call, at either side; and the form of interceptors.

Owns no running of anything: that is `chain` and `passage`. What is particular to a side is in `client` and `server`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from time import monotonic_ns
from typing import Any, Final, Literal, Protocol

from shmrpc.context import Peer
from shmrpc.errors import Code, RpcError
from shmrpc.methods import Method

Kind = Literal["unary", "server_stream", "client_stream", "both", "oneway"]
Side = Literal["client", "server"]


def kind_of(method: Method) -> Kind:
    """Which kind of call a method is for."""
    if method.oneway:
        return "oneway"
    if method.streams_result:
        return "server_stream" if method.stream_index is None else "both"
    return "unary" if method.stream_index is None else "client_stream"


class Intercepted(ABC):
    """A call, as its interceptors see it: at the client before it is sent, at the server before its handler runs."""

    side: Side
    """``"client"`` or ``"server"``."""

    def __init__(self, method: Method, arguments: Iterable[Any]) -> None:
        self.method: Final = method.full_name
        """The method's full name, like ``"Vision.classify"``."""
        self.kind: Final = kind_of(method)
        """``"unary"``, ``"server_stream"``, ``"client_stream"``, ``"both"`` or ``"oneway"``."""
        self.arguments: list[Any] = list(arguments)
        """The arguments in the order of the method's parameters. They may be replaced; what is here when `proceed` is
        called is what is sent, or what the handler gets. At the client, trailing ones that were not given are missing. A
        stream that is passed is one of them: an async iterable, which may be wrapped."""

    def __repr__(self) -> str:
        return f"<Intercepted {self.method}, {self.kind}, at the {self.side}>"

    @property
    @abstractmethod
    def deadline_ns(self) -> int:
        """The deadline in nanoseconds of CLOCK_MONOTONIC; 0: none."""

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, in seconds on the clock of `time.monotonic`; None: never."""
        return self.deadline_ns / 1e9 or None

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, not below zero; None when there is none."""
        deadline_ns = self.deadline_ns
        return max(0, deadline_ns - monotonic_ns()) / 1e9 if deadline_ns else None

    @property
    @abstractmethod
    def timeout(self) -> float | None:
        """Seconds that the stub's options give to the call; None: no limit. Setting it, which only the client can, gives
        the call so many seconds from then on, for all that is left of it, repeats included. None at the server, which has
        the `deadline`.

        Raises:
            ValueError: what is set is not a positive number.
            AttributeError: it is set at the server.
        """

    @timeout.setter
    @abstractmethod
    def timeout(self, timeout: float | None) -> None: ...

    @property
    @abstractmethod
    def metadata(self) -> MutableMapping[str, str | bytes]:
        """What travels beside the arguments. At the client a copy of this call's own: what is put into it is sent. At the
        server it is the caller's, and read-only."""

    @property
    @abstractmethod
    def peer(self) -> Peer | None:
        """The process on the other side; None at the client while there is no connection."""

    @property
    @abstractmethod
    def address(self) -> str | None:
        """Where the client connects to; None within one process, for calls back to a client, and at the server."""

    def code_of(self, error: BaseException | None) -> Code:
        """The status that a call ends with when `proceed` raises this; None: it returned.

        An exception that is no `RpcError` is INTERNAL at the server, as its caller sees it, and UNKNOWN at the client. A
        cancellation is CANCELLED, and DEADLINE_EXCEEDED at the server when that is why.
        """
        if error is None:
            return Code.OK
        if isinstance(error, RpcError):
            return error.code if isinstance(error.code, Code) else Code.UNKNOWN
        if isinstance(error, asyncio.CancelledError):
            return Code.DEADLINE_EXCEEDED if self.side == "server" and self.time_left == 0 else Code.CANCELLED
        return Code.INTERNAL if self.side == "server" else Code.UNKNOWN


class Proceed(Protocol):
    """What an interceptor awaits to let the call go on: the interceptors inside of it, and then the call itself."""

    def __call__(self, *, each: Callable[[Any], Any] | None = None) -> Awaitable[Any]:
        """Awaited, it makes the call, and gives its result, or None when a stream of results has ended.

        It may be called again, to repeat the call, as long as no item of a stream was delivered.

        Args:
            each: Called with each item of a stream of results; what it returns goes on to the reader. No use otherwise.

        Raises:
            BaseException: what the call ended with.
            RuntimeError: it is called again after items of a stream were delivered, or while the stream is under way.
        """
        ...


Interceptor = Callable[[Intercepted, Proceed], Awaitable[Any]]
"""An async callable around a call. What it returns is the result; for a stream of results that is None."""


def checked(interceptors: Iterable[Interceptor]) -> tuple[Interceptor, ...]:
    """Interceptors as a user gave them.

    Raises:
        TypeError: they are not several, or one of them cannot be called.
    """
    if callable(interceptors):
        raise TypeError(f"interceptors are a list, also when there is one: [{_name(interceptors)}]")
    listed = tuple(interceptors)
    for one in listed:
        if not callable(one):
            raise TypeError(f"an interceptor is an async callable that takes (call, proceed), not {one!r}")
        if isinstance(one, type):
            raise TypeError(f"an interceptor is an object of a class, not the class: {_name(one)}(…)")
    return listed


def too_many(method: Method, arguments: Sequence[Any]) -> str:
    """What is wrong where interceptors have added arguments that the method does not take."""
    return (
        f"{method.full_name}: interceptors have made its arguments {len(arguments)}, it takes {method.arity}; it is "
        f"{method.shown}"
    )


def _name(thing: object) -> str:
    return str(getattr(thing, "__name__", thing))
