"""A method as data: what travels in the handshake, and the rule by which a client's method can call a server's."""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from typing import Any, Final, Literal, get_origin

import msgspec

from shmrpc import schema

_STREAMS: Final = (AsyncIterator, AsyncIterable, AsyncGenerator)

ParameterKind = Literal["", "positional", "keyword"]
"""How a parameter is passed: either way, by position only, or by keyword only."""


def is_stream(annotation: Any) -> bool:
    """Whether an annotation is that of a stream."""
    return get_origin(annotation) in _STREAMS or annotation in _STREAMS


def marked(parameters: Iterable[tuple[str, ParameterKind]]) -> list[str]:
    """Texts of parameters as Python lists them: a ``/`` after those by position only, a ``*`` before those by keyword."""
    listed: list[str] = []
    before: ParameterKind = ""
    for text, kind in parameters:
        if before == "positional" and kind != "positional":
            listed.append("/")
        if kind == "keyword" and before != "keyword":
            listed.append("*")
        listed.append(text)
        before = kind
    return [*listed, "/"] if before == "positional" else listed


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
        return self.render(map(str, self.parameters))

    def render(self, parameters: Iterable[str]) -> str:
        """The signature as Python writes it, with these texts of its parameters."""
        prefix = "oneway " if self.oneway else ""
        return f"{prefix}{self.name}({', '.join(parameters)}) -> {schema.render(self.result)}"

    def why_unfit(self, served: "Signature", caller: str = "client", other: str = "server") -> str | None:
        """Why a caller with this signature cannot call `served`, or None when it can. The text names the two sides so."""
        if self.oneway != served.oneway:
            return f"it is {'' if self.oneway else 'not '}one-way for the {caller}, and the {other} differs"
        for mine, theirs in zip(self.parameters, served.parameters, strict=False):
            if mine.name != theirs.name:
                return f"parameter {mine.name!r} of the {caller} is {theirs.name!r} at the {other}"
            if mine.has_default and not theirs.has_default:
                return f"parameter {mine.name!r} may be left out by the {caller} and has no default at the {other}"
            if (why := schema.why_unreadable(mine.type, theirs.type, f"parameter {mine.name!r}")) is not None:
                return why
        shared = min(len(self.parameters), len(served.parameters))
        for mine in self.parameters[shared:]:
            if not mine.has_default:
                return f"parameter {mine.name!r} of the {caller} is unknown to the {other}"
        for theirs in served.parameters[shared:]:
            if not theirs.has_default:
                return f"parameter {theirs.name!r} of the {other} has no default and the {caller} does not send it"
        return schema.why_unreadable(served.result, self.result, "the result")
