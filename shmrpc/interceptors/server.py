"""Interceptors around the handlers of a server, below whatever transport brings the calls."""

from collections.abc import Callable, MutableMapping
from types import MappingProxyType
from typing import Any, cast

from shmrpc.context import Peer, running
from shmrpc.interceptors.call import Intercepted, Interceptor, too_many
from shmrpc.interceptors.chain import Chain
from shmrpc.interceptors.passage import passed
from shmrpc.methods import Method


class CallAtServer(Intercepted):
    """A call whose handler is about to run."""

    side = "server"

    def __init__(self, method: Method, handler: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__(method, arguments)
        self._method = method
        self._handler = handler
        self._served = running.get()

    @property
    def deadline_ns(self) -> int:
        """The caller's."""
        return self._served.deadline_ns

    @property
    def timeout(self) -> float | None:
        """None: the server has the deadline."""
        return None

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        raise AttributeError(
            f"{self.method}: at the server a call has the deadline of its caller, and no timeout to set"
        )

    @property
    def metadata(self) -> MutableMapping[str, str | bytes]:
        """The caller's, read-only."""
        return cast(MutableMapping[str, str | bytes], MappingProxyType(self._served.metadata))

    @property
    def peer(self) -> Peer:
        """The calling process."""
        return self._served.peer

    @property
    def address(self) -> None:
        """None: it is the client that connects to an address."""
        return None

    def begin(self) -> Any:
        """Calls the handler with what the arguments have become: what it gives is awaited, or iterated.

        Raises:
            TypeError: there are more arguments than the method takes, which the caller has nothing to do with.
        """
        if len(self.arguments) > self._method.arity:
            raise TypeError(too_many(self._method, self.arguments))
        return self._handler(*self.arguments)


def intercepted(
    method: Method, handler: Callable[..., Any], interceptors: tuple[Interceptor, ...]
) -> Callable[..., Any]:
    """A handler, which takes arguments by position, with interceptors around it; without any, just that."""
    if not interceptors:
        return handler

    async def invoke(*arguments: Any) -> Any:
        asked = CallAtServer(method, handler, arguments)
        del arguments
        return await Chain(asked, interceptors, asked.begin).run()

    def stream(*arguments: Any) -> Any:
        def ask() -> tuple[CallAtServer, Any]:
            asked = CallAtServer(method, handler, arguments)
            return asked, asked.begin

        return passed(ask, interceptors)

    return stream if method.streams_result else invoke
