"""What every server answers by itself."""

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from introspection_api import Vision, Worker

import shmrpc
from shmrpc import built_in, contract
from shmrpc.context import Lease, Peer
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.introspection import DescribedField, DescribedType, MethodStatistics

DESCRIBED = built_in.describe(contract.read(Vision))
BY_NAME = {method.name: method for method in DESCRIBED.methods}


# Contracts as data


def test_a_contract_is_described_with_its_docstrings() -> None:
    assert (DESCRIBED.name, DESCRIBED.doc) == ("Vision", "Looks at images.\n\nSlowly.")
    assert BY_NAME["classify"].doc == "What can be seen, best first.\n\nAt most `top`."
    assert BY_NAME["total"].doc == ""


def test_a_contract_without_a_docstring_does_not_show_its_bases() -> None:
    class Quiet(Worker):
        pass

    assert built_in.describe(contract.read(Quiet)).doc == ""


def test_every_method_says_its_kind() -> None:
    assert {method.name: method.kind for method in DESCRIBED.methods} == {
        "classify": "unary",
        "count": "server stream",
        "total": "client stream",
        "negate": "both",
        "warm_up": "one-way",
        "teach": "unary",
        "wait": "server stream",
    }


def test_annotations_are_as_python_writes_them() -> None:
    assert BY_NAME["classify"].parameters == [
        DescribedField("image", "NDArray[uint8]", has_default=False),
        DescribedField("top", "int", has_default=True),
        DescribedField("mode", "Mode", has_default=True),
    ]
    assert BY_NAME["classify"].returns == "list[Label]"
    assert BY_NAME["negate"].parameters[0].annotation == "AsyncIterator[NDArray[uint8]]"
    assert BY_NAME["count"].returns == "AsyncIterator[int]"


def test_the_arguments_are_json_schema_without_the_stream() -> None:
    assert list(BY_NAME["classify"].arguments["properties"]) == ["image", "top", "mode"]
    assert list(BY_NAME["total"].arguments["properties"]) == ["start"]
    assert BY_NAME["total"].arguments["required"] == []
    assert BY_NAME["negate"].arguments["properties"] == {}


def test_the_items_of_a_stream_are_json_schema_of_one_item() -> None:
    assert without_dialect(BY_NAME["count"].result) == {"type": "integer"}
    assert BY_NAME["count"].items is None
    assert without_dialect(BY_NAME["total"].items) == {"type": "array", "items": {"type": "integer"}}
    assert without_dialect(BY_NAME["total"].result) == {"type": "integer"}
    for described in (BY_NAME["negate"].items, BY_NAME["negate"].result):
        assert without_dialect(described)["title"] == "NDArray[uint8]"


def without_dialect(described: dict[str, Any] | None) -> dict[str, Any]:
    assert described is not None
    return {key: value for key, value in described.items() if key != "$schema"}


def test_the_types_that_a_contract_names_are_described_once() -> None:
    assert DESCRIBED.types == [
        DescribedType("Mode", [], ["fast", "good"]),
        DescribedType(
            "Label",
            [
                DescribedField("name", "str", has_default=False),
                DescribedField("score", "float", has_default=True),
                DescribedField("mask", "NDArray[uint8] | None", has_default=True),
            ],
        ),
    ]


def test_a_policy_is_told_where_it_is_not_the_usual_one() -> None:
    assert {method.name: method.policy for method in DESCRIBED.methods if method.policy} == {
        "classify": {"idempotent": True}
    }


@dataclass(frozen=True)
class Guarded:
    """Stands for a policy of a later version."""

    idempotent: bool = False
    timeout: float | None = None
    guard: Any = None


def test_a_policy_that_json_has_no_words_for_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "Policy", Guarded)
    policy: Any = Guarded(timeout=0.5, guard=test_every_method_says_its_kind)
    assert built_in._policy_of(policy) == {"timeout": 0.5, "guard": "test_every_method_says_its_kind"}


def test_descriptions_travel() -> None:
    read = contract.read(shmrpc.Introspection)
    for method in ("contracts", "health", "statistics"):
        assert read.methods[method].full_name == f"shmrpc.Introspection.{method}"
    encoded = msgspec.msgpack.encode([DESCRIBED])
    assert read.methods["contracts"].read_result(encoded) == [DESCRIBED]


# One server


class Carried:
    """Stands for a transport with a call under way, and a block lent by another one."""

    connections = 3

    def __init__(self, running: ServedMethod) -> None:
        self._running = running

    def in_flight(self) -> list[ServedMethod]:
        return [self._running]

    def leases(self) -> list[Lease]:
        peer = Peer(1, 2, 3)
        return [
            Lease("Vision.classify", peer, 1, 1000, 0.5),
            Lease("Vision.classify", peer, 2, 200, 0.1),
            Lease("Vision.classify", None, 1, 50, 0.1),
        ]


async def test_statistics_add_up() -> None:
    dispatcher = Dispatcher((shmrpc.service(Worker(), Vision),))
    dispatcher.carried_by(Carried(dispatcher.find("Vision.classify")))
    dispatcher.find("Vision.classify").started = 10
    for code in (shmrpc.Code.ABORTED, shmrpc.Code.ABORTED, shmrpc.Code.INTERNAL):
        dispatcher.find("Vision.classify").count_failure(code)
    dispatcher.find("Vision.classify").waited_ns = 2_500_000_000
    dispatcher.find("Vision.count").started = 1
    statistics = await dispatcher._built_in.statistics()
    assert (statistics.pid, statistics.connections) == (os.getpid(), 3)
    assert abs(statistics.started_at + statistics.uptime - time.time()) < 60
    assert statistics.cpu_seconds > 0
    assert statistics.methods == [
        MethodStatistics("Vision.classify", 10, 1, {"OK": 6, "ABORTED": 2, "INTERNAL": 1}, 2.5, 1200),
        MethodStatistics("Vision.count", 1, 0, {"OK": 1}, 0.0, 0),
    ]


async def test_before_anything_carries_calls_there_is_nothing_under_way() -> None:
    dispatcher = Dispatcher((shmrpc.service(Worker(), Vision),))
    statistics = await dispatcher._built_in.statistics()
    assert (statistics.connections, statistics.methods) == (0, [])


def test_a_status_that_is_none_is_counted_as_unknown() -> None:
    served = Dispatcher((shmrpc.service(Worker(), Vision),)).find("Vision.count")
    served.count_failure(3)
    served.count_failure([])  # type: ignore[arg-type]
    assert served.failures == {shmrpc.Code.UNKNOWN: 2}


async def test_contracts_are_told_in_order_and_what_is_built_in_last() -> None:
    built = Dispatcher((shmrpc.service(Worker(), Vision),))._built_in
    assert [described.name for described in await built.contracts()] == ["Vision", "shmrpc.Introspection"]
    assert await built.contracts("Vision") == [DESCRIBED]
    assert await built.contracts("Taste") == []


async def test_the_health_is_that_of_the_board() -> None:
    dispatcher = Dispatcher((shmrpc.service(Worker(), Vision),))
    watch: AsyncIterator[shmrpc.Health] = dispatcher._built_in.watch("Vision")
    assert await anext(watch) is shmrpc.Health.SERVING
    dispatcher.health.set("Vision", shmrpc.Health.NOT_SERVING)
    assert await anext(watch) is await dispatcher._built_in.health() is shmrpc.Health.NOT_SERVING
    await watch.aclose()  # type: ignore[attr-defined]
    assert await dispatcher._built_in.health("Taste") is shmrpc.Health.SERVICE_UNKNOWN
