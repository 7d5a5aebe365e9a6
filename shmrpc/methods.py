"""One method of a contract, with its codecs: what both sides need to know about a call before it is made.

A method that cannot work is refused here, naming the parameter. How it is called is a transport's affair.
"""

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Final, get_args

from shmrpc import codec, schema
from shmrpc.buffers import Buffer, Packed
from shmrpc.codec import ItemCodec, RowCodec, ValueCodec
from shmrpc.errors import ContractError, Internal, InvalidArgument
from shmrpc.legible import meant
from shmrpc.policy import is_oneway, policy_of
from shmrpc.signature import Parameter, ParameterKind, Signature, is_stream, marked
from shmrpc.slots import NO_DEFAULT

_KINDS: Final[dict[Any, ParameterKind]] = {
    inspect.Parameter.POSITIONAL_ONLY: "positional",
    inspect.Parameter.KEYWORD_ONLY: "keyword",
}


class Method:
    """One method of a contract, with its codecs. Made by `read`; immutable after that."""

    def __init__(self, contract: type, name: str, function: FunctionType, hints: dict[str, Any]) -> None:
        service = contract.__name__
        self.contract: Final = contract
        self.service: Final = service
        self.name: Final = name
        self.full_name: Final = f"{service}.{name}"
        self.oneway: Final = is_oneway(function)
        self.policy: Final = policy_of(function)
        parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            raise ContractError(f"{self.full_name}: a method takes self as its first parameter")
        self._parameters: Final = parameters[1:]
        self._signature: Final = inspect.Signature(self._parameters)
        self.signature: Final = self._describe(hints)
        self.kinds: Final[list[ParameterKind]] = [_KINDS.get(parameter.kind, "") for parameter in self._parameters]
        """How each parameter is passed, which the signature does not say: the two sides need not agree on it."""
        self.shown: Final = self.signature.render(
            marked(zip(map(str, self.signature.parameters), self.kinds, strict=True))
        )
        """The signature as it is written in this process."""
        self.stream_index: Final = self._find_stream(hints)
        """The position of the parameter that is a stream; None: there is none."""
        self._row_parameters: Final = [p for i, p in enumerate(self._parameters) if i != self.stream_index]
        """Those that travel with the request."""
        self.argument_types: Final = [hints[parameter.name] for parameter in self._row_parameters]
        """Without that of a stream."""
        self.result_type: Final = hints["return"]
        self.streams_result: Final = is_stream(self.result_type)
        """Whether the result is a stream."""
        if self.streams_result and inspect.iscoroutinefunction(function):
            raise ContractError(
                f"{self.full_name}: it gives a stream, and 'async def' without 'yield' would give a coroutine first; "
                f"declare it with 'def {name}(…) -> AsyncIterator[…]'"
            )
        self.arity: Final = len(self._parameters)
        self.required: Final = sum(p.default is p.empty for p in self._parameters)
        self._by_name: Final = [
            (parameter.name if parameter.kind is not parameter.POSITIONAL_ONLY else "", parameter.default)
            for parameter in self._parameters
        ]
        self.plain: Final = all(p.kind is not p.KEYWORD_ONLY for p in self._parameters)
        """Whether every parameter may be passed by position, so that a call need not be bound by name."""

        self._check_order()
        self.defaults: Final = [NO_DEFAULT if p.default is p.empty else p.default for p in self._row_parameters]
        """Of the same, or `NO_DEFAULT`."""
        self._row: Final = RowCodec(self.argument_types, self.defaults, f"{name}_arguments")
        self._result: Final = ValueCodec(None if self.streams_result else self.result_type)
        self.argument_items: Final = self._items_of(None if self.stream_index is None else self._stream_type(hints))
        """How the items of a parameter that is a stream travel; None: there is none."""
        self.result_items: Final = self._items_of(self.result_type if self.streams_result else None)
        """How the items of the result travel; None: it is no stream."""
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
        return f"<Method {self.service}.{self.shown}>"

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
        try:
            if not is_stream(type_):
                return schema.describe(type_)
            if not get_args(type_):
                raise ContractError(f"{self.full_name}: {where} is a stream of what? Write AsyncIterator[…]")
            return ["stream", schema.describe(get_args(type_)[0])]
        except schema.UnsupportedType as error:
            raise ContractError(f"{self.full_name}: {where}: {error}") from error

    def _find_stream(self, hints: dict[str, Any]) -> int | None:
        found = [index for index, p in enumerate(self._parameters) if is_stream(hints[p.name])]
        if not found:
            return None
        parameter = self._parameters[found[0]]
        if len(found) > 1:
            raise ContractError(
                f"{self.full_name}: parameters {parameter.name!r} and {self._parameters[found[1]].name!r} are streams; a "
                "method can have one"
            )
        if parameter.default is not parameter.empty:
            raise ContractError(
                f"{self.full_name}: parameter {parameter.name!r} is a stream, and cannot have a default"
            )
        if self.oneway:
            raise ContractError(
                f"{self.full_name}: a one-way method cannot take a stream: nobody would hear how it ended"
            )
        return found[0]

    def _stream_type(self, hints: dict[str, Any]) -> Any:
        assert self.stream_index is not None
        return hints[self._parameters[self.stream_index].name]

    def _items_of(self, stream: Any) -> ItemCodec | None:
        return None if stream is None else ItemCodec(get_args(stream)[0])

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
        for parameter, type_ in zip(self._row_parameters, self.argument_types, strict=True):
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
            names = [parameter.name for parameter in self._parameters]
            unknown = next((name for name in kwargs if name not in names), None)
            what = f"{error};"
            if unknown is not None:  # which is why another one is missing
                what = f"got an unexpected keyword argument {unknown!r}{meant(unknown, names)}"
            raise InvalidArgument(f"{self.full_name}: {what} it is {self.shown}") from None
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
            where = f"parameter {self._row_parameters[error.index].name!r}" if error.index >= 0 else "the arguments"
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
            raise InvalidArgument(f"{self.full_name}: {self._blame(str(error))}; it is {self.shown}") from None

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
        if not separator or not index.isdecimal() or int(index) >= len(self._row_parameters):
            return text
        return f"parameter {self._row_parameters[int(index)].name!r}{rest}: {reason}"

    def call(self, handler: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Calls a handler with decoded arguments, by position except where a parameter is keyword-only."""
        if self.plain:
            return handler(*args)
        names = [p.name if p.kind is p.KEYWORD_ONLY else None for p in self._parameters[: len(args)]]
        by_position = [value for name, value in zip(names, args, strict=True) if name is None]
        return handler(*by_position, **{name: value for name, value in zip(names, args, strict=True) if name})

    def split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        """Bound arguments as those that travel with the request, and the stream; None when the method takes none.

        Raises:
            InvalidArgument: what is passed as a stream cannot be iterated.
        """
        index = self.stream_index
        if index is None:
            return args, None
        source = args[index]
        if not hasattr(source, "__aiter__") and not _is_iterable(source):
            raise InvalidArgument(f"{self._stream_got(source)}, expected an async iterator, or something to iterate")
        return args[:index] + args[index + 1 :], source

    def check_iterable(self, source: Any) -> None:
        """Refuses what a blocking stub cannot read as the parameter that is a stream.

        Raises:
            InvalidArgument: it cannot be iterated.
        """
        if not _is_iterable(source):
            hint = "; async iterators are for the stubs of connect()" if hasattr(source, "__aiter__") else ""
            raise InvalidArgument(f"{self._stream_got(source)}, expected something to iterate{hint}")

    def _stream_got(self, source: Any) -> str:
        assert self.stream_index is not None
        name = self._parameters[self.stream_index].name
        return f"{self.full_name}: parameter {name!r} is a stream; got {type(source).__name__}"

    def join(self, row: tuple[Any, ...], stream: Any) -> tuple[Any, ...]:
        """The opposite of `split`, for a handler."""
        index = self.stream_index
        return row if index is None else (*row[:index], stream, *row[index:])

    def read_argument_items(
        self, payload: bytes, views: Sequence[Buffer], *, many: bool, json: bool = False
    ) -> list[Any]:
        """Decodes and checks items of the parameter that is a stream; with `json`, one of JSON.

        Raises:
            InvalidArgument: they do not fit; names the parameter.
        """
        assert self.argument_items is not None
        try:
            if json:
                return self.argument_items.read_json(payload)
            return self.argument_items.read(payload, views, many=many)
        except Exception as error:  # a type's __post_init__ is arbitrary code
            raise self.item_misfit(error) from None

    def item_misfit(self, error: Exception) -> InvalidArgument:
        """What is wrong with an item of the parameter that is a stream, by the error of an encoder or decoder."""
        assert self.stream_index is not None
        name = self._parameters[self.stream_index].name
        return InvalidArgument(f"{self.full_name}: an item of parameter {name!r} does not fit: {error}")

    def read_result_items(self, payload: bytes, views: Sequence[Buffer], *, many: bool) -> list[Any]:
        """Decodes and checks items of the result.

        Raises:
            Internal: they do not fit.
        """
        assert self.result_items is not None
        try:
            return self.result_items.read(payload, views, many=many)
        except Exception as error:  # a type's __post_init__ is arbitrary code
            raise Internal(f"{self.full_name}: an item of the server does not fit the contract: {error}") from None

    def encode_json(self, result: Any) -> bytes:
        """Encodes a result as JSON, for callers without the contract."""
        return codec.encode_json(result)


def _is_iterable(source: Any) -> bool:
    """Whether it stands for the items of a stream: a text, or bytes, are rather one item by mistake."""
    return hasattr(source, "__iter__") and not isinstance(source, (str, bytes))
