"""Reads a contract: which methods a class has, what they take and give, and how both are encoded.

A contract is any class with public annotated methods: a `typing.Protocol`, an abstract class, or the implementing class
itself. Reading it once gives a `Contract`: everything that the two sides need to know about a call before it is made. A
contract that cannot work is refused here, naming the method and the parameter.
"""

import inspect
import typing
from abc import ABC
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from functools import cache
from types import FunctionType
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, get_origin

import msgspec

from shmrpc import codec, schema
from shmrpc.buffers import Buffer, Packed
from shmrpc.codec import RowCodec, ValueCodec
from shmrpc.errors import ContractError, Internal, InvalidArgument
from shmrpc.slots import NO_DEFAULT

P = ParamSpec("P")
R = TypeVar("R")

_ONEWAY: Final = "__shmrpc_oneway__"
_POLICY: Final = "__shmrpc_policy__"
_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)
_NOT_CONTRACTS: Final[tuple[Any, ...]] = (object, Protocol, Generic, ABC)


def oneway(method: Callable[P, R]) -> Callable[P, R]:
    """Declares a method whose callers do not wait for it: nothing comes back, no result and no error.

    The call returns when the request is on its way. The method must be annotated ``-> None``.
    """
    setattr(method, _ONEWAY, True)
    return method


class Policy(msgspec.Struct, frozen=True):
    """What a contract says of a method beyond its types."""

    idempotent: bool = False


def method(*, idempotent: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares how a method may be called.

    Args:
        idempotent: Executing it twice is as good as once, so that a call that was cut off in the middle, and may have
            been executed, is repeated over the next connection.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        setattr(function, _POLICY, Policy(idempotent))
        return function

    return declare


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a method, as both sides compare it."""

    name: str
    type: schema.Description
    has_default: bool

    def __post_init__(self) -> None:
        """Refuses a malformed type; msgspec calls this for what came from a peer, too."""
        schema.check(self.type)

    def __str__(self) -> str:
        return f"{self.name}: {schema.render(self.type)}" + (" = …" if self.has_default else "")


class Signature(msgspec.Struct, frozen=True):
    """One method as data: what travels in the handshake."""

    name: str
    parameters: list[Parameter]
    result: schema.Description
    oneway: bool = False

    def __post_init__(self) -> None:
        """Refuses a malformed type; msgspec calls this for what came from a peer, too."""
        schema.check(self.result)

    def __str__(self) -> str:
        prefix = "oneway " if self.oneway else ""
        parameters = ", ".join(map(str, self.parameters))
        return f"{prefix}{self.name}({parameters}) -> {schema.render(self.result)}"

    def why_unfit(self, served: "Signature") -> str | None:
        """Why a client with this signature cannot call `served`, or None when it can."""
        if self.oneway != served.oneway:
            return f"it is {'' if self.oneway else 'not '}one-way for the client, and the server differs"
        for mine, theirs in zip(self.parameters, served.parameters, strict=False):
            if mine.name != theirs.name:
                return f"parameter {mine.name!r} of the client is {theirs.name!r} at the server"
            if mine.has_default and not theirs.has_default:
                return f"parameter {mine.name!r} may be left out by the client and has no default at the server"
            if (why := schema.why_unreadable(mine.type, theirs.type, f"parameter {mine.name!r}")) is not None:
                return why
        shared = min(len(self.parameters), len(served.parameters))
        for mine in self.parameters[shared:]:
            if not mine.has_default:
                return f"parameter {mine.name!r} of the client is unknown to the server"
        for theirs in served.parameters[shared:]:
            if not theirs.has_default:
                return f"parameter {theirs.name!r} of the server has no default and the client does not send it"
        return schema.why_unreadable(served.result, self.result, "the result")


class Method:
    """One method of a contract, with its codecs. Made by `read`; immutable after that."""

    def __init__(self, contract: type, name: str, function: FunctionType, hints: dict[str, Any]) -> None:
        service = contract.__name__
        self.contract: Final = contract
        self.service: Final = service
        self.name: Final = name
        self.full_name: Final = f"{service}.{name}"
        self.oneway: Final = bool(getattr(function, _ONEWAY, False))
        self.policy: Final[Policy] = getattr(function, _POLICY, Policy())
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise ContractError(f"{self.full_name}: a method takes self as its first parameter")
        self._parameters: Final = parameters[1:]
        self._signature: Final = inspect.Signature(self._parameters)
        self.signature: Final = self._describe(hints)
        self.argument_types: Final = [hints[parameter.name] for parameter in self._parameters]
        self.result_type: Final = hints["return"]
        self.arity: Final = len(self._parameters)
        self.required: Final = sum(p.default is p.empty for p in self._parameters)
        self._by_name: Final = [
            (parameter.name if parameter.kind is not parameter.POSITIONAL_ONLY else "", parameter.default)
            for parameter in self._parameters
        ]
        self.plain: Final = all(p.kind is not p.KEYWORD_ONLY for p in self._parameters)
        """Whether every parameter may be passed by position, so that a call need not be bound by name."""

        self._check_order()
        defaults = [NO_DEFAULT if p.default is p.empty else p.default for p in self._parameters]
        self._row: Final = RowCodec(self.argument_types, defaults, f"{name}_arguments")
        self._result: Final = ValueCodec(self.result_type)
        self.buffered_arguments: Final = self._row.buffered
        """Whether an argument can hold a buffer, at any depth."""
        self.buffered_result: Final = self._result.buffered
        """Whether the result can."""
        self.encode: Final[Callable[[Any], bytes]] = codec.encode
        """Encodes a tuple of arguments, or a result, that can hold no buffer."""
        self.decode_result: Final[Callable[[bytes], Any]] = self._result.decode
        self.decode: Final[Callable[[bytes], tuple[Any, ...]]] = self._row.decode
        """The hot half of `decode_arguments` where there can be no buffers: with the decoder's own errors."""
        self.pack_result: Final[Callable[[Any], Packed]] = self._result.pack
        """Encodes a result, and says which buffers go with it. Raises whatever is wrong with the value."""
        self.describe: Final[Callable[[tuple[Any, ...]], bytes | None]] = self._row.describe
        """What `pack_arguments` makes of arguments that are one array, whose memory is the only piece, if that is known."""
        self.unpack_arguments: Final = self._row.unpack
        """The hot half of `decode_arguments`: of a payload and its views, with the decoder's own errors."""
        self._check_defaults()

    def __repr__(self) -> str:
        return f"<Method {self.service}.{self.signature}>"

    def _describe(self, hints: dict[str, Any]) -> Signature:
        if "return" not in hints:
            raise ContractError(f"{self.full_name}: the return annotation is missing; write '-> None' for no result")
        described = []
        for parameter in self._parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
                raise ContractError(
                    f"{self.full_name}: {stars}{parameter.name} cannot be part of a contract; take a list or a dict"
                )
            if parameter.name not in hints:
                raise ContractError(f"{self.full_name}: parameter {parameter.name!r} has no annotation")
            described.append(
                Parameter(
                    parameter.name,
                    self._describe_type(hints[parameter.name], f"parameter {parameter.name!r}"),
                    parameter.default is not parameter.empty,
                )
            )
        result = self._describe_type(hints["return"], "the result")
        if self.oneway and result != ["None"]:
            raise ContractError(f"{self.full_name}: a one-way method returns None, not {schema.render(result)}")
        return Signature(self.name, described, result, self.oneway)

    def _describe_type(self, type_: Any, where: str) -> schema.Description:
        if get_origin(type_) in _STREAMS or type_ in _STREAMS:
            raise ContractError(f"{self.full_name}: {where} is a stream, and this version carries unary calls only")
        try:
            return schema.describe(type_)
        except schema.UnsupportedType as error:
            raise ContractError(f"{self.full_name}: {where}: {error}") from error

    def _check_order(self) -> None:
        seen_default = False
        for parameter in self._parameters:
            if parameter.default is not parameter.empty:
                seen_default = True
            elif seen_default:
                raise ContractError(
                    f"{self.full_name}: parameter {parameter.name!r} has no default and follows one that has"
                )

    def _check_defaults(self) -> None:
        for parameter, type_ in zip(self._parameters, self.argument_types, strict=True):
            if parameter.default is parameter.empty:
                continue
            try:
                codec.travel(type_, parameter.default)
            except Exception as error:  # the encoder meets an arbitrary value
                raise ContractError(
                    f"{self.full_name}: parameter {parameter.name!r}: its default {parameter.default!r} does not fit its "
                    f"annotation: {error}"
                ) from error

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments of one call by position, without the trailing defaults that were not given.

        Raises:
            InvalidArgument: too many, too few or unknown arguments.
        """
        if self.plain and len(args) <= self.arity:
            # What inspect.Signature.bind does, for calls without a mistake, at a tenth of its price.
            values = list(args)
            left = len(kwargs)
            for name, default in self._by_name[len(args) :]:
                if not left:
                    break
                if name in kwargs:
                    left -= 1
                    values.append(kwargs[name])
                elif default is not inspect.Parameter.empty:
                    values.append(default)
                else:
                    break
            if not left and len(values) >= self.required:
                return tuple(values)
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgument(f"{self.full_name}: {error}; it is {self.signature}") from None
        given = bound.arguments
        last = max((i for i, p in enumerate(self._parameters) if p.name in given), default=-1)
        return tuple(given.get(p.name, p.default) for p in self._parameters[: last + 1])

    def encode_arguments(self, args: tuple[Any, ...]) -> bytes:
        """Encodes bound arguments that can hold no buffers.

        Raises:
            InvalidArgument: an argument is of a type that cannot travel; names the parameter.
        """
        return self.pack_arguments(args).payload

    def pack_arguments(self, args: tuple[Any, ...]) -> Packed:
        """Encodes bound arguments, and says which buffers go with them.

        Raises:
            InvalidArgument: an argument does not fit, or is of a type that cannot travel; names the parameter.
        """
        try:
            return self._row.pack(args)
        except codec.Misfit as error:
            where = f"parameter {self._parameters[error.index].name!r}" if error.index >= 0 else "the arguments"
            what = ":" if error.checked else " cannot be encoded:"
            raise InvalidArgument(f"{self.full_name}: {where}{what} {error}") from error.__cause__

    def decode_arguments(self, payload: bytes, views: Sequence[Buffer] = (), *, json: bool = False) -> tuple[Any, ...]:
        """Decodes and checks the arguments of a call, defaults filled in.

        Raises:
            InvalidArgument: they do not fit; names the parameter.
        """
        try:
            return self._row.unpack_json(payload) if json else self.unpack_arguments(payload, views)
        except Exception as error:  # a type's __post_init__ is arbitrary code
            raise InvalidArgument(f"{self.full_name}: {self._blame(str(error))}; it is {self.signature}") from None

    def unpack_result(self, payload: bytes, views: Sequence[Buffer]) -> Any:
        """Decodes and checks the result of a call, given its buffers.

        Raises:
            Internal: it does not fit.
        """
        try:
            return self._result.unpack(payload, views)
        except Exception as error:  # a type's __post_init__ is arbitrary code
            raise Internal(f"{self.full_name}: the server's result does not fit the contract: {error}") from None

    def read_result(self, payload: bytes) -> Any:
        """Decodes and checks the result of a call that can hold no buffers.

        Raises:
            Internal: it does not fit.
        """
        return self.unpack_result(payload, ())

    def _blame(self, text: str) -> str:
        """A decoder's text with the place as the parameter's name: ``at `$[1][0]` `` becomes parameter 'top' [0]."""
        reason, separator, place = text.partition(" - at `$[")
        index, _, rest = place.rstrip("`").partition("]")
        if not separator or not index.isdecimal() or int(index) >= self.arity:
            return text
        return f"parameter {self._parameters[int(index)].name!r}{rest}: {reason}"

    def call(self, handler: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Calls a handler with decoded arguments, by position except where a parameter is keyword-only."""
        if self.plain:
            return handler(*args)
        names = [p.name if p.kind is p.KEYWORD_ONLY else None for p in self._parameters]
        by_position = [value for name, value in zip(names, args, strict=True) if name is None]
        return handler(*by_position, **{name: value for name, value in zip(names, args, strict=True) if name})

    def encode_json(self, result: Any) -> bytes:
        """Encodes a result as JSON, for callers without the contract."""
        return codec.encode_json(result)


class Contract:
    """A contract that was read: its name and its methods, in the order of their definition."""

    def __init__(self, cls: type, methods: dict[str, Method]) -> None:
        self.cls: Final = cls
        self.name: Final = cls.__name__
        self.methods: Final = methods

    def __repr__(self) -> str:
        return f"<Contract {self.name}: {', '.join(self.methods) or 'no methods'}>"

    @property
    def signatures(self) -> list[Signature]:
        """Every method as data, in order."""
        return [method.signature for method in self.methods.values()]


@cache
def read(cls: type) -> Contract:
    """Reads a class as a contract.

    Raises:
        ContractError: it cannot work: an annotation is missing, a type cannot travel, there is no method at all.
    """
    if not isinstance(cls, type):
        raise ContractError(f"a contract is a class, not {cls!r}")
    methods: dict[str, Method] = {}
    for base in reversed(cls.__mro__):
        if base in _NOT_CONTRACTS or base.__module__ in ("typing", "abc", "contextlib", "collections.abc"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, FunctionType):
                methods[name] = Method(cls, name, member, _hints(cls, name, member))
            elif is_protocol(cls) and isinstance(member, (property, classmethod, staticmethod)):
                raise _not_a_method(cls, name, f"a {type(member).__name__}")
        for name in inspect.get_annotations(base) if is_protocol(cls) else ():
            if not name.startswith("_"):
                raise _not_a_method(cls, name, "an attribute")
    if not methods:
        raise ContractError(f"{cls.__name__} has no public methods, so it is no contract")
    return Contract(cls, methods)


def _not_a_method(cls: type, name: str, what: str) -> ContractError:
    return ContractError(f"{cls.__name__}.{name}: a contract has methods only, and this is {what}")


def _hints(cls: type, name: str, function: FunctionType) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(vars(cls)), include_extras=True)
    except Exception as error:  # annotations are arbitrary code
        if not isinstance(error, (NameError, TypeError, AttributeError, SyntaxError)):
            raise
        raise ContractError(
            f"{cls.__name__}.{name}: an annotation cannot be evaluated: {error}; "
            "import its names at run time, not under TYPE_CHECKING"
        ) from error


def is_protocol(cls: type) -> bool:
    """Whether a class is a `typing.Protocol` itself, not an implementation of one."""
    return bool(getattr(cls, "_is_protocol", False)) and cls is not Protocol


def contracts_of(cls: type) -> list[type]:
    """The contracts that a service's class implements: the protocols and abstract classes it derives from, else itself."""
    bases = [
        base
        for base in cls.__mro__[1:]
        if base not in _NOT_CONTRACTS
        and (is_protocol(base) or inspect.isabstract(base))
        and base.__module__ not in ("typing", "contextlib", "collections.abc", "abc")
    ]
    # A protocol that another one of the list extends is served through the other's methods too, under both names.
    return bases or [cls]
