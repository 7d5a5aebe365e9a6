"""Interceptors around the calls of a stub, above whatever transport carries them, and around their repeats."""

from collections.abc import MutableMapping
from time import monotonic_ns
from typing import Any

from shmrpc import repeating
from shmrpc.context import NO_DEADLINE, CallOptions, Peer, running, timeout_to_ns
from shmrpc.errors import InvalidArgument
from shmrpc.interceptors.call import Intercepted, too_many
from shmrpc.interceptors.chain import Chain
from shmrpc.interceptors.passage import passed
from shmrpc.methods import Method
from shmrpc.transport import StubMethod, Transport


class CallAtClient(Intercepted):
    """A call that a stub is about to make."""

    side = "client"

    def __init__(
        self,
        transport: Transport,
        method: Method,
        options: CallOptions,
        bound: StubMethod,
        arguments: tuple[Any, ...],
    ) -> None:
        super().__init__(method, arguments)
        self._transport = transport
        self._method = method
        self._options = options
        self._bound = bound
        self._metadata: dict[str, str | bytes] | None = None
        """A copy, once somebody has asked for it."""
        self._timeout_ns = options.timeout_ns
        self._until_ns = monotonic_ns() + options.timeout_ns if options.timeout_ns else NO_DEADLINE
        """The call's own deadline; that of a handler which it is made in may be sooner."""

    @property
    def deadline_ns(self) -> int:
        """Its own deadline, or the sooner one of the handler that the call is made in."""
        served = running.get(None)
        inherited = served.deadline_ns if served is not None else NO_DEADLINE
        own = self._until_ns
        return min(own, inherited) if own and inherited else own or inherited

    @property
    def timeout(self) -> float | None:
        """Seconds that the call may take."""
        return self._timeout_ns / 1e9 or None

    @timeout.setter
    def timeout(self, timeout: float | None) -> None:
        self._timeout_ns = 0 if timeout is None else timeout_to_ns(timeout)
        self._until_ns = monotonic_ns() + self._timeout_ns if timeout is not None else NO_DEADLINE

    @property
    def metadata(self) -> MutableMapping[str, str | bytes]:
        """A copy for this call."""
        if self._metadata is None:
            self._metadata = dict(self._options.metadata)
        return self._metadata

    @property
    def peer(self) -> Peer | None:
        """The server's process."""
        return self._transport.peer

    @property
    def address(self) -> str | None:
        """The server's address."""
        return self._transport.address

    def begin(self) -> Any:
        """Makes the call with what it has become: a coroutine, or a stream.

        Raises:
            InvalidArgument: there are more arguments than the method takes.
        """
        if len(self.arguments) > self._method.arity:
            raise InvalidArgument(too_many(self._method, self.arguments))
        return self._method.call(self._bind(), tuple(self.arguments))

    def _bind(self) -> StubMethod:
        options = self._options
        metadata = options.metadata if self._metadata is None else self._metadata
        if not self._until_ns and not options.timeout_ns and metadata == options.metadata:
            return self._bound
        timeout_ns = max(1, self._until_ns - monotonic_ns()) if self._until_ns else 0
        return repeating.bind_exactly(self._transport, self._method, options.replaced(timeout_ns, metadata))


def intercepted(transport: Transport, method: Method, options: CallOptions) -> StubMethod:
    """What a stub has as a method: what `repeating` binds, and around it the interceptors, if there are any."""
    options = repeating.with_default_timeout(method, options)
    bound = repeating.bind_exactly(transport, method, options)
    interceptors = options.interceptors
    if not interceptors:
        return bound

    async def call(*args: Any, **kwargs: Any) -> Any:
        asked = CallAtClient(transport, method, options, bound, method.bind(args, kwargs))
        return await Chain(asked, interceptors, asked.begin).run()

    def stream(*args: Any, **kwargs: Any) -> Any:
        arguments = method.bind(args, kwargs)

        def ask() -> tuple[CallAtClient, Any]:
            asked = CallAtClient(transport, method, options, bound, arguments)
            return asked, asked.begin

        return passed(ask, interceptors)

    wrapped: Any = stream if method.streams_result else call
    wrapped.__name__ = method.name
    wrapped.__qualname__ = method.full_name
    result: StubMethod = wrapped
    return result
