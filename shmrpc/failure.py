"""How an error travels: from an exception at the handler to data, and back to an exception at the caller.

Errors that the contract's module declares keep their class and fields. Other RpcErrors keep their code and text. Anything
else becomes INTERNAL under a correlation id; its text stays in the server's log, unless the server runs in debug mode.
"""

import dataclasses
import logging
import secrets
import sys
from functools import cache
from typing import Any, Final

import msgspec

from shmrpc.errors import Code, ContractMismatch, Internal, RpcError, Unavailable, error_for

log: Final = logging.getLogger("shmrpc.server")


class Failure(msgspec.Struct, array_like=True, frozen=True):
    """How a call failed, as data."""

    code: int
    message: str
    type: str = ""
    """The name of the error class in the contract's module, or empty."""
    fields: bytes = b""
    """Its dataclass fields, msgpack; empty for one that only has a text."""
    correlation_id: str = ""
    maybe_executed: bool = True
    """False where the call was refused before a handler saw it."""


@cache
def declared_errors(contract: type) -> dict[str, type[RpcError]]:
    """The error classes that can be seen in a contract's module or its bases', by name, without shmrpc's own."""
    modules = [sys.modules.get(base.__module__) for base in reversed(contract.__mro__)]
    return {
        cls.__name__: cls
        for module in modules
        for cls in list(vars(module or object).values())
        if isinstance(cls, type) and issubclass(cls, RpcError) and cls.__module__ != RpcError.__module__
    }


def failure_of(error: BaseException, contract: type, method: str, *, what: str = "failed", debug: bool) -> Failure:
    """What the caller is told of an exception that a handler raised; `what` says in public words what went wrong.

    Never raises, whatever the exception is: a call that failed must not be left without an end.
    """
    if not isinstance(error, RpcError):
        return _internal(error, method, what, debug=debug)
    declared = declared_errors(contract)
    for cls in type(error).__mro__:
        if declared.get(cls.__name__) is cls:
            try:
                fields = msgspec.msgpack.encode(error) if dataclasses.is_dataclass(cls) else b""
            except Exception as cause:  # a field may be anything, or missing
                log.error("%s: the fields of %s cannot be encoded: %s", method, cls.__name__, cause)
                return _internal(error, method, "its error cannot be encoded", debug=debug)
            return Failure(_code(error), _text(error), cls.__name__, fields)
    return Failure(_code(error), _text(error))


def _code(error: RpcError) -> Code:
    return error.code if isinstance(error.code, Code) else Code.UNKNOWN  # a subclass may have a field of that name


def _text(error: BaseException) -> str:
    """An exception's text; what UTF-8 cannot carry, like a path that is no text, is escaped."""
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception as cause:  # __str__ is arbitrary code
        return f"{type(error).__name__} (its text cannot be had: {type(cause).__name__})"


def _internal(error: BaseException, method: str, what: str, *, debug: bool) -> Failure:
    correlation_id = secrets.token_hex(6)
    log.error("%s: %s, correlation id %s", method, what, correlation_id, exc_info=error)
    text = f"{method}: {what}; the server's log has the reason under correlation id {correlation_id}"
    if debug:
        text += f": {type(error).__name__}: {_text(error)}"
    return Failure(Code.INTERNAL, text, correlation_id=correlation_id)


def error_of(failure: Failure, contract: type) -> RpcError:
    """The exception that the caller raises for a failure that came from the peer."""
    cls = declared_errors(contract).get(failure.type) if failure.type else None
    try:
        error = _rebuild(cls, failure) if cls is not None else error_for(failure.code, failure.message)
    except Exception as cause:  # the peer's bytes, and a constructor that is arbitrary code
        return ContractMismatch(f"{failure.message} (the fields of {failure.type} do not fit: {cause})")
    if isinstance(error, Internal):
        error.correlation_id = failure.correlation_id
    if isinstance(error, Unavailable):
        error.maybe_executed = failure.maybe_executed
    return error


def _rebuild(cls: type[RpcError], failure: Failure) -> RpcError:
    if not dataclasses.is_dataclass(cls):
        error = cls.__new__(cls)  # not through the constructor, which may take anything but the text
        error.args = (failure.message,)
    else:
        decoded: Any = msgspec.msgpack.decode(failure.fields, type=cls)
        # Through the constructor: what msgspec makes of an exception class has no args.
        error = cls(**{field.name: getattr(decoded, field.name) for field in dataclasses.fields(cls) if field.init})
    if isinstance(error.code, Code) and error.code != failure.code:
        error.code = Code(failure.code)  # the handler set another one than its class has
    return error
