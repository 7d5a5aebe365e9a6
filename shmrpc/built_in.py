"""What every server answers by itself: the implementation of `Introspection`.

Reads what the dispatcher counts, what contracts say and what the health board knows. Changes nothing.
"""

import dataclasses
import inspect
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from shmrpc import json_schema, schema
from shmrpc.context import Lease
from shmrpc.contract import Contract
from shmrpc.errors import Code
from shmrpc.health import Health, HealthBoard
from shmrpc.introspection import (
    DescribedContract,
    DescribedField,
    DescribedMethod,
    DescribedType,
    Introspection,
    Kind,
    MethodStatistics,
    Statistics,
)
from shmrpc.methods import Method
from shmrpc.policy import Policy


class Counted(Protocol):
    """A served method with what is counted of it."""

    @property
    def full_name(self) -> str:
        """Like ``"Vision.classify"``."""
        ...

    @property
    def started(self) -> int:
        """Calls so far."""
        ...

    @property
    def failures(self) -> Mapping[Code, int]:
        """Calls that ended otherwise than well, by their status."""
        ...

    @property
    def waited_ns(self) -> int:
        """What handlers took from their first wait to their end, all together."""
        ...


class Carrier(Protocol):
    """What the server's end of a transport tells of itself."""

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        ...

    def in_flight(self) -> Iterable[Counted]:
        """The method of each call whose handler has not ended."""
        ...

    def leases(self) -> list[Lease]:
        """What is out of the server's memory."""
        ...


class BuiltIn(Introspection):
    """Answers for one server.

    Args:
        contracts: What it serves, by name.
        methods: What it counts.
        health: What it knows of its services.
    """

    def __init__(self, contracts: Mapping[str, Contract], methods: Sequence[Counted], health: HealthBoard) -> None:
        self.carrier: Carrier | None = None
        """What carries the calls; None before there is anything that could."""
        self._contracts: Final = contracts
        self._methods: Final = methods
        self._health: Final = health
        self._described: Final[dict[str, DescribedContract]] = {}
        self._started_at: Final = time.time()
        self._started: Final = time.monotonic()

    async def contracts(self, service: str = "") -> list[DescribedContract]:
        """See `Introspection`."""
        names = [service] if service else list(self._contracts)
        return [self._describe(self._contracts[name]) for name in names if name in self._contracts]

    def _describe(self, contract: Contract) -> DescribedContract:
        if contract.name not in self._described:
            self._described[contract.name] = describe(contract)
        return self._described[contract.name]

    async def health(self, service: str = "") -> Health:
        """See `Introspection`."""
        return self._health.state(service)

    def watch(self, service: str = "") -> AsyncIterator[Health]:
        """See `Introspection`."""
        return self._health.watch(service)

    async def statistics(self) -> Statistics:
        """See `Introspection`."""
        carrier = self.carrier
        running = Counter(counted.full_name for counted in carrier.in_flight()) if carrier is not None else Counter()
        lent: Counter[str] = Counter()
        for lease in carrier.leases() if carrier is not None else ():
            if lease.holder is not None:
                lent[lease.method] += lease.nbytes
        return Statistics(
            pid=os.getpid(),
            started_at=self._started_at,
            uptime=time.monotonic() - self._started,
            cpu_seconds=time.process_time(),
            connections=carrier.connections if carrier is not None else 0,
            methods=[
                _summed(counted, running[counted.full_name], lent[counted.full_name])
                for counted in self._methods
                if counted.started
            ],
        )


def _summed(counted: Counted, in_flight: int, lent_bytes: int) -> MethodStatistics:
    """Calls that ended well are not counted one by one, which would cost every call: they are what is left."""
    failed = sum(counted.failures.values())
    ended = {"OK": counted.started - failed - in_flight, **{c.name: n for c, n in counted.failures.items()}}
    return MethodStatistics(
        name=counted.full_name,
        started=counted.started,
        in_flight=in_flight,
        ended={name: count for name, count in ended.items() if count},
        seconds=counted.waited_ns / 1e9,
        lent_bytes=lent_bytes,
    )


# Contracts as data


def describe(contract: Contract) -> DescribedContract:
    """A contract as those see it who do not have it."""
    methods = [_describe_method(contract, method) for method in contract.methods.values()]
    types: dict[str, DescribedType] = {}
    for signature in contract.signatures:
        for description in (*(parameter.type for parameter in signature.parameters), signature.result):
            _add_types(description, types)
    return DescribedContract(contract.name, _doc_of(contract.cls), methods, list(types.values()))


def _add_types(description: schema.Description, types: dict[str, DescribedType]) -> None:
    """Adds what a description names."""
    kind, *parts = description
    match kind:
        case "list" | "dict" | "tuple" | "union" | "stream":
            for part in parts:
                _add_types(part, types)
        case "literal" if parts[0]:
            types.setdefault(parts[0], DescribedType(parts[0], [], parts[1]))
        case "object" | "array" if parts[0] not in types:
            name, _, fields, _ = parts
            described = [
                DescribedField(field, schema.render(part), has_default=not required) for field, part, required in fields
            ]
            types[name] = DescribedType(name, described)
            for _, part, _ in fields:
                _add_types(part, types)


def _describe_method(contract: Contract, method: Method) -> DescribedMethod:
    parameters, result = method.signature.parameters, method.signature.result
    stream = None if method.stream_index is None else parameters[method.stream_index]
    row = [parameter for parameter in parameters if parameter is not stream]
    return DescribedMethod(
        name=method.name,
        kind=_kind_of(method),
        doc=_doc_of(getattr(contract.cls, method.name)),
        parameters=[
            DescribedField(parameter.name, schema.render(parameter.type), parameter.has_default, kind)
            for parameter, kind in zip(parameters, method.kinds, strict=True)
        ],
        returns=schema.render(result),
        arguments=json_schema.of_arguments(
            [parameter.name for parameter in row],
            method.argument_types,
            [parameter.type for parameter in row],
            method.defaults,
        ),
        result=json_schema.of_value(
            method.result_type if method.result_items is None else method.result_items.type,
            result if method.result_items is None else result[1],
        ),
        items=None
        if stream is None or method.argument_items is None
        else json_schema.of_value(method.argument_items.type, stream.type[1]),
        policy=_policy_of(method.policy),
    )


def _kind_of(method: Method) -> Kind:
    if method.stream_index is not None:
        return "both" if method.streams_result else "client stream"
    return "server stream" if method.streams_result else "one-way" if method.oneway else "unary"


def _policy_of(policy: Policy) -> dict[str, Any]:
    """What is declared of a method and differs from the usual; what JSON has no words for, by its name."""
    usual = Policy()
    return {
        field.name: value if value is None or isinstance(value, (bool, int, float, str)) else _name_of(value)
        for field in dataclasses.fields(policy)
        if (value := getattr(policy, field.name)) != getattr(usual, field.name)
    }


def _name_of(value: object) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _doc_of(what: object) -> str:
    """An object's own docstring, not one that it inherits."""
    return inspect.cleandoc(what.__doc__ or "")
