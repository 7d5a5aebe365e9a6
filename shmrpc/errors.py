"""Every error that shmrpc raises or carries, under one root.

::

    RpcError                       any status but OK; the root, and what applications subclass
    ├── InvalidArgument            the arguments do not fit the method; also a TypeError    INVALID_ARGUMENT
    ├── DeadlineExceeded           the call's time ran out; also a TimeoutError          DEADLINE_EXCEEDED
    ├── Cancelled                  the handler was cancelled by somebody else            CANCELLED
    ├── ResourceExhausted          a limit was met: size, calls in flight, memory        RESOURCE_EXHAUSTED
    ├── PermissionDenied           the peer may not do this                              PERMISSION_DENIED
    ├── Unimplemented              the server has no such service or method              UNIMPLEMENTED
    ├── Internal                   the handler failed; carries a correlation id          INTERNAL
    ├── Unavailable                the call could not be carried; see `maybe_executed`   UNAVAILABLE
    │   ├── ConnectFailed          no server answered at the address
    │   ├── ConnectionLost         the peer died, hung up or was cut off in mid-call
    │   ├── Closed                 used after close, or closed while the call ran
    │   └── ForkedError            used in a forked child, where the connection is not
    ├── HandshakeError             two endpoints met and did not agree                   FAILED_PRECONDITION
    │   └── ContractMismatch       their contracts cannot work together
    ├── ProtocolError              the peer broke the rules of the wire; its connection is closed    INTERNAL
    ├── BadAddress                 an address that cannot be served or connected to; also a ValueError    INVALID_ARGUMENT
    ├── ContractError              a contract cannot work; also a TypeError              FAILED_PRECONDITION
    ├── WrongLoop                  used from another event loop or thread; also a RuntimeError    FAILED_PRECONDITION
    └── UnsupportedPlatform        this machine lacks what shared memory needs           UNIMPLEMENTED

A subclass declared in a contract's module, with its fields as a dataclass, arrives at the caller as itself.
"""

import copy
import copyreg
from enum import IntEnum
from typing import Any, Final, TypeVar


class Code(IntEnum):
    """The outcome of a call: gRPC's status codes, by name and number (https://grpc.io/docs/guides/status-codes)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """A call that ended with a status other than OK.

    Raise it in a handler to send a status: ``raise RpcError("no such model", code=Code.NOT_FOUND)``. Or declare a
    subclass in the contract's module, with its code, and fields if it has any::

        @dataclass(eq=False)
        class BadImage(shmrpc.RpcError, code=shmrpc.Code.INVALID_ARGUMENT):
            shape: tuple[int, ...]
    """

    code: Code = Code.UNKNOWN

    def __init_subclass__(cls, *, code: Code | None = None, **kwargs: Any) -> None:
        """Sets the status code of the class; without one it inherits its base's."""
        super().__init_subclass__(**kwargs)
        if code is not None:
            if not isinstance(code, Code):
                raise ContractError(f"{cls.__name__}: {_no_code(code)}")
            if code is Code.OK:
                raise ContractError(f"{cls.__name__}: an error cannot have code OK")
            cls.code = code

    def __init__(self, message: str = "", *, code: Code | None = None) -> None:
        super().__init__(message)
        if code is not None:
            if not isinstance(code, Code):
                raise TypeError(_no_code(code))
            if code is Code.OK:
                raise ValueError("an RpcError cannot have code OK")
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through __init__: a dataclass takes its fields there, and `args` lacks those that were given by keyword.
        return copyreg.__newobj__, (type(self),), {**self.__dict__, "args": self.args}  # type: ignore[attr-defined]

    def __str__(self) -> str:
        if hasattr(self, "__dataclass_fields__"):
            return repr(self)
        return str(self.args[0] if self.args else "") or type(self).__name__


def _no_code(code: object) -> str:
    """What is wrong with a code that is none, and which one may have been meant: by number, by name, or gRPC's own."""
    name = code if isinstance(code, str) else getattr(code, "name", None)
    meant = next((one for one in Code if one.name == name or one == code), None)
    hint = f"; write Code.{meant.name}" if meant is not None else ""
    return f"code is a member of shmrpc.Code, not {code!r}{hint}"


class InvalidArgument(RpcError, TypeError, code=Code.INVALID_ARGUMENT):
    """The arguments do not fit the method: found at the caller where possible, else at the server."""


class DeadlineExceeded(RpcError, TimeoutError, code=Code.DEADLINE_EXCEEDED):
    """The deadline passed before the result came."""


class Cancelled(RpcError, code=Code.CANCELLED):
    """The handler ended by cancellation that the caller did not ask for."""


class ResourceExhausted(RpcError, code=Code.RESOURCE_EXHAUSTED):
    """A limit was met; the text names it."""


class PermissionDenied(RpcError, code=Code.PERMISSION_DENIED):
    """The peer is known and may not do this."""


class Unimplemented(RpcError, code=Code.UNIMPLEMENTED):
    """The server has no such service, or the service no such method."""


class Internal(RpcError, code=Code.INTERNAL):
    """The handler failed with something that is not an RpcError; the text is in the server's log, under the id."""

    correlation_id: str = ""


class Unavailable(RpcError, code=Code.UNAVAILABLE):
    """The call could not be carried to its end."""

    maybe_executed: bool = False
    """False: the handler certainly did not start, and the call may be repeated. True: it may have."""

    def __init__(self, message: str = "", *, maybe_executed: bool = False) -> None:
        super().__init__(message)
        self.maybe_executed = maybe_executed


class ConnectFailed(Unavailable):
    """No server answered at the address."""


class ConnectionLost(Unavailable):
    """The peer died, hung up or was cut off while the call was under way."""


class Closed(Unavailable):
    """The stub or server was closed, by its own side."""


class ForkedError(Unavailable):
    """A connection of the parent process was used in a forked child."""


class HandshakeError(RpcError, code=Code.FAILED_PRECONDITION):
    """Two endpoints met and did not agree: versions, features, credentials, segments or contracts."""

    unanswered: bool = False
    """True: the server accepted the connection and said nothing in time; it may yet. A stub that reconnects tries on."""

    def __init__(self, message: str = "", *, unanswered: bool = False) -> None:
        super().__init__(message)
        self.unanswered = unanswered


class ContractMismatch(HandshakeError):
    """The contract of the client and the service of the server cannot work together; the text says where."""


class ProtocolError(RpcError, code=Code.INTERNAL):
    """The peer broke the rules of the wire. Its connection is closed, and nothing else."""


class BadAddress(RpcError, ValueError, code=Code.INVALID_ARGUMENT):
    """An address that nobody can serve at or connect to; the text says why."""


class ContractError(RpcError, TypeError, code=Code.FAILED_PRECONDITION):
    """A contract that cannot work; the text names the method and the parameter."""


class WrongLoop(RpcError, RuntimeError, code=Code.FAILED_PRECONDITION):
    """A stub or server was used from another event loop, or another thread, than its own."""


class UnsupportedPlatform(RpcError, code=Code.UNIMPLEMENTED):
    """This machine lacks something that the shared-memory transport needs; the text names it."""


_BY_CODE: Final[dict[Code, type[RpcError]]] = {
    error.code: error
    for error in (
        InvalidArgument,
        DeadlineExceeded,
        Cancelled,
        ResourceExhausted,
        PermissionDenied,
        Unimplemented,
        Internal,
        Unavailable,
    )
}


_Error = TypeVar("_Error", bound=BaseException)


def anew(error: _Error) -> _Error:
    """The same error, made again: one that is kept, or raised more than once, must not keep the frames that it passed.

    They, and the callers of them, see the arguments of calls.
    """
    return copy.copy(error)


def error_for(code: int, message: str) -> RpcError:
    """The error that carries a status received from a peer: of the shipped class for its code, if there is one."""
    try:
        known = Code(code)
    except ValueError:
        return RpcError(f"{message} (unknown status code {code})")
    if (cls := _BY_CODE.get(known)) is not None:
        return cls(message)
    return RpcError(message, code=known if known is not Code.OK else Code.UNKNOWN)
