"""The contract that every server answers beside its own: what it serves, whether it can, and what it has done.

Owns the contract and its types, which both sides share. `built_in` implements it.
"""

from collections.abc import AsyncIterator
from typing import Any, Final, Literal, Protocol

import msgspec

from shmrpc.health import Health
from shmrpc.policy import method
from shmrpc.signature import ParameterKind

RESERVED: Final = "shmrpc."
"""What the names of built-in services begin with; no class's name can."""

Kind = Literal["unary", "one-way", "server stream", "client stream", "both"]


class DescribedField(msgspec.Struct, frozen=True):
    """A parameter of a method, or a field of a record."""

    name: str
    annotation: str
    """Its type, as Python writes it; of a stream, ``AsyncIterator[…]``."""
    has_default: bool
    kind: ParameterKind = ""
    """Of a parameter that is passed by position only, or by keyword only; a server that is older does not say so."""


class DescribedType(msgspec.Struct, frozen=True):
    """A type that a contract names: a record with its fields, or an enumeration with its values."""

    name: str
    fields: list[DescribedField]
    values: list[str | int | None] = []


class DescribedMethod(msgspec.Struct, frozen=True):
    """One method of a contract."""

    name: str
    kind: Kind
    doc: str
    """Its docstring, or nothing."""
    parameters: list[DescribedField]
    returns: str
    """The type of its result, as Python writes it; of a stream, ``AsyncIterator[…]``."""
    arguments: dict[str, Any]
    """JSON Schema of its arguments as an object by name, without a parameter that is a stream."""
    result: dict[str, Any]
    """JSON Schema of its result, or of each item of a stream."""
    items: dict[str, Any] | None = None
    """JSON Schema of each item of the parameter that is a stream, if there is one."""
    policy: dict[str, Any] = {}
    """What `shmrpc.method` declares of it, by name, without what is as usual."""


class DescribedContract(msgspec.Struct, frozen=True):
    """One service of a server."""

    name: str
    doc: str
    """The docstring of the contract's class, or nothing."""
    methods: list[DescribedMethod]
    types: list[DescribedType] = []
    """What the annotations name, in the order of their first use."""


class MethodStatistics(msgspec.Struct, frozen=True):
    """What became of the calls of one method. ``started`` is the sum of ``in_flight`` and all of ``ended``."""

    name: str
    """In full, like ``"Vision.classify"``."""
    started: int
    in_flight: int
    ended: dict[str, int]
    """How many by the name of their status, like ``"OK"``; those without any are left out."""
    seconds: float
    """How long handlers took from their first wait to their end, all together. One that never waits counts nothing here:
    reading the clock would cost as much as such a handler often does. See `Statistics.cpu_seconds`."""
    lent_bytes: int
    """Memory of the server that clients hold because of this method's results."""


class Statistics(msgspec.Struct, frozen=True):
    """What a server has done since it was made."""

    pid: int
    started_at: float
    """When the server was made, seconds since 1970."""
    uptime: float
    """Seconds since then."""
    cpu_seconds: float
    """Processor time of the server's process, whatever it was spent on."""
    connections: int
    methods: list[MethodStatistics]
    """Of every method that was called, in the order of the contracts."""


class Introspection(Protocol):
    """What every server answers about itself. It is served as ``shmrpc.Introspection``."""

    @method(idempotent=True)
    async def contracts(self, service: str = "") -> list[DescribedContract]:
        """What the server serves, this contract last; or one service only, or nothing when there is none of that name."""
        ...

    @method(idempotent=True)
    async def health(self, service: str = "") -> Health:
        """Whether a service can do its work; without a name, whether all of the server's can."""
        ...

    @method(idempotent=True)
    def watch(self, service: str = "") -> AsyncIterator[Health]:
        """The health of a service, or of the server: now, and after each change, until the server drains.

        Whoever reads slowly is not told of every change, but of the last one.
        """
        ...

    @method(idempotent=True)
    async def statistics(self) -> Statistics:
        """What the server has done so far."""
        ...


Introspection.__name__ = f"{RESERVED}Introspection"
