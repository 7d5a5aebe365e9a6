"""What surrounds a call: the running call of a handler, the options of a caller, deadlines and metadata.

Times on the wire are absolute nanoseconds of CLOCK_MONOTONIC, one clock for the whole host; 0 means "no deadline".
Users see seconds.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import timedelta
from time import monotonic_ns
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from shmrpc.buffers import Buffer
from shmrpc.errors import ResourceExhausted
from shmrpc.retry import Retry

T = TypeVar("T")
Metadata = Mapping[str, str | bytes]

NO_DEADLINE: Final = 0
MAX_METADATA: Final = 64 * 1024
"""Bytes of the metadata that travels at once, encoded."""


class Peer(NamedTuple):
    """Who is on the other side, as the kernel told it."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid} (uid {self.uid}, gid {self.gid})"


class Lease(NamedTuple):
    """Memory of one connection that is out because of one method: see `shmrpc.leases`."""

    method: str
    """The method's full name; empty: arrays that this process made with `empty` or `buffer` and still has."""
    holder: Peer | None
    """The process that has not released it; None: this one."""
    blocks: int
    nbytes: int
    age: float
    """How long the oldest of it is out, seconds."""


class Endpoint(NamedTuple):
    """One connection of a stub: see `shmrpc.endpoints`."""

    address: str
    state: Literal["connected", "reconnecting", "closed"]
    """Reconnecting: it was lost, or never made, and gets no calls until it is there again."""
    peer: Peer | None
    """The server's process; None while there is no connection."""
    in_flight: int
    """Calls under way, those included that nobody waits for any more."""


class ServedCall(Protocol):
    """What a transport keeps of a call that it serves."""

    @property
    def method_name(self) -> str:
        """The method's full name."""
        ...

    @property
    def deadline_ns(self) -> int:
        """Absolute; 0: none."""
        ...

    @property
    def metadata(self) -> Metadata:
        """What the caller attached."""
        ...

    @property
    def peer(self) -> Peer:
        """The calling process."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory from which a result can be sent without a copy."""
        ...

    def back_to(self, contract: Any) -> Any:
        """The transport to the services that the caller exposes, for a contract that was read."""
        ...

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sends metadata ahead of the result, at once. On any thread."""

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Keeps metadata to go with the end of the call, whichever it is. On any thread."""


running: Final[ContextVar[ServedCall]] = ContextVar("shmrpc_running_call")
"""The call that the present context serves. Set by the dispatcher at the start of each handler."""


class Call:
    """The call that a handler is answering."""

    __slots__ = ("_served",)

    def __init__(self, served: ServedCall) -> None:
        self._served = served

    def __repr__(self) -> str:
        return f"<Call {self.method} of {self.peer}>"

    @property
    def method(self) -> str:
        """The method's full name, like ``"Vision.classify"``."""
        return self._served.method_name

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, in seconds on the clock of `time.monotonic`; None: never."""
        deadline_ns = self._served.deadline_ns
        return deadline_ns / 1e9 if deadline_ns else None

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline, not below zero; None when there is none."""
        deadline_ns = self._served.deadline_ns
        return max(0, deadline_ns - monotonic_ns()) / 1e9 if deadline_ns else None

    @property
    def metadata(self) -> Metadata:
        """What the caller attached through ``options(metadata=…)``."""
        return self._served.metadata

    def client(self, contract: Callable[..., T]) -> T:
        """A stub of a contract that the calling process exposes on this connection: ``connect(…, exposes=…)``.

        It may be kept, and used as long as the connection lasts. In the event loop's thread only.

        Raises:
            Unimplemented: the caller does not expose it.
            ContractMismatch: it does, in a form that cannot work.
        """
        stub: T = _stub_maker[0](contract, self._served.back_to)
        return stub

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sends metadata to the caller at once, ahead of the result, or of what comes next in a stream; once for each call.

        Raises:
            RuntimeError: some was sent already, or the call has ended.
            TypeError: it is not str to str or bytes.
            ResourceExhausted: it is larger than it may be.
        """
        self._served.send_initial_metadata(small(metadata))

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Metadata that goes to the caller with the result, or with the error; what was set before is replaced.

        Raises:
            TypeError: it is not str to str or bytes.
            ResourceExhausted: it is larger than it may be.
        """
        self._served.set_trailing_metadata(small(metadata))

    @property
    def peer(self) -> Peer:
        """The calling process: pid, uid and gid."""
        return self._served.peer

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone. A handler that runs in a thread looks at this; a task is cancelled."""
        return self._served.cancelled


def current_call() -> Call:
    """The call that is being handled here, also in tasks and threads that its handler started.

    Raises:
        RuntimeError: no handler is running in this context.
    """
    served = running.get(None)
    if served is None:
        raise RuntimeError("no call is being handled here; current_call() is for handlers and what they start")
    return Call(served)


_stub_maker: Final[list[Callable[[Any, Callable[[Any], Any]], Any]]] = []


def make_stubs_with(maker: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """For `client`, which knows what a stub is: how to make one of a contract, and of what gives its transport."""
    _stub_maker[:] = [maker]


class Reply:
    """What a server attached to its answer of one call. Pass it as ``options(stub, reply=reply)``, for one call at a time.

    ::

        reply = shmrpc.Reply()
        labels = await shmrpc.options(vision, reply=reply).classify(image)
        reply.trailing_metadata["model"]
    """

    __slots__ = ("__weakref__", "initial_metadata", "trailing_metadata")

    def __init__(self) -> None:
        self.initial_metadata: Metadata = {}
        """What came ahead of the result; empty until then."""
        self.trailing_metadata: Metadata = {}
        """What came with the end of the call, a failed one too; empty until then."""

    def __repr__(self) -> str:
        return f"<Reply with {dict(self.initial_metadata)} and {dict(self.trailing_metadata)}>"


class CallOptions(msgspec.Struct, frozen=True):
    """How calls are made through one stub."""

    timeout_ns: int = 0
    """Relative; 0: none."""
    metadata: dict[str, str | bytes] = msgspec.field(default_factory=dict)
    idle_timeout: float | None = None
    """Seconds for each item of a result that is a stream; None: no limit."""
    reply: Reply | None = None
    """Where to put the metadata of the answer."""
    retry: Retry | None = None
    """None: nothing is repeated but what the transport repeats by itself."""
    interceptors: tuple[Callable[..., Awaitable[Any]], ...] = ()
    """Outermost first; they are around the transport, which does not know them."""

    def merged(
        self,
        timeout: float | None,
        metadata: Metadata | None,
        interceptors: tuple[Callable[..., Awaitable[Any]], ...] = (),
        idle_timeout: float | None = None,
        reply: Reply | None = None,
        retry: Retry | None = None,
    ) -> "CallOptions":
        """These options with some replaced; metadata is added key by key, interceptors inside of those before.

        Raises:
            TypeError: one is of another type.
            ValueError: one cannot work.
        """
        if retry is not None and not isinstance(retry, Retry):
            raise TypeError(f"retry is a shmrpc.Retry, not {retry!r}; write shmrpc.Retry(attempts=…)")
        if reply is not None and not isinstance(reply, Reply):
            raise TypeError(f"reply is a shmrpc.Reply, not {reply!r}; write shmrpc.Reply()")
        if idle_timeout is not None:
            timeout_to_ns(idle_timeout)  # which refuses what is none
        return msgspec.structs.replace(
            self,
            timeout_ns=self.timeout_ns if timeout is None else timeout_to_ns(timeout),
            metadata={**self.metadata, **_checked(metadata)} if metadata else self.metadata,
            idle_timeout=self.idle_timeout if idle_timeout is None else idle_timeout,
            interceptors=self.interceptors + interceptors,
            reply=self.reply if reply is None else reply,
            retry=self.retry if retry is None else retry,
        )

    def within(self, timeout_ns: int) -> "CallOptions":
        """These options with another timeout, relative."""
        return msgspec.structs.replace(self, timeout_ns=timeout_ns)

    def replaced(self, timeout_ns: int, metadata: Metadata) -> "CallOptions":
        """These options with another timeout, and with other metadata altogether."""
        return msgspec.structs.replace(self, timeout_ns=timeout_ns, metadata=_checked(metadata))

    def deadline_ns(self) -> int:
        """The absolute deadline of a call made now: its own, or the sooner one that a running handler has."""
        own = monotonic_ns() + self.timeout_ns if self.timeout_ns else NO_DEADLINE
        served = running.get(None)
        inherited = served.deadline_ns if served is not None else NO_DEADLINE
        return min(own, inherited) if own and inherited else own or inherited


def timeout_to_ns(timeout: float) -> int:
    """A timeout in seconds as nanoseconds.

    Raises:
        TypeError: it is no number.
        ValueError: it is not a positive finite number.
    """
    try:
        if 0 < timeout < 1e9:
            return max(1, int(timeout * 1e9))
    except TypeError:
        hint = "; write its total_seconds()" if isinstance(timeout, timedelta) else ""
        raise TypeError(f"a timeout is a positive number of seconds, not {timeout!r}{hint}") from None
    raise ValueError(f"a timeout is a positive number of seconds, not {timeout!r}")


def check_seconds(name: str, seconds: float) -> None:
    """Refuses what is no time to wait, where that may be 0, or without an end.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative, or nan.
    """
    text = f"{name} is a number of seconds, from 0 to math.inf, not {seconds!r}"
    try:
        fits = seconds >= 0
    except TypeError:
        raise TypeError(text) from None
    if not fits:
        raise ValueError(text)


def small(metadata: Metadata) -> Metadata:
    """Metadata that can travel.

    Raises:
        TypeError: it is not str to str or bytes.
        ResourceExhausted: it is larger than it may be.
    """
    checked = _checked(metadata)
    if (nbytes := len(msgspec.msgpack.encode(checked))) > MAX_METADATA:
        raise ResourceExhausted(f"the metadata has {nbytes} bytes, the limit is {MAX_METADATA}")
    return checked


def _checked(metadata: Metadata) -> dict[str, str | bytes]:
    if not isinstance(metadata, (dict, Mapping)):  # the first one is the quicker question
        raise TypeError(f"metadata maps str to str or bytes, as a dict does, not {type(metadata).__name__}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, (str, bytes)):
            raise TypeError(f"metadata maps str to str or bytes, not {key!r} to {value!r}")
    return dict(metadata)


def remaining_seconds(deadline_ns: int) -> float:
    """Seconds until an absolute deadline; negative when it has passed."""
    return (deadline_ns - monotonic_ns()) / 1e9
