"""Counts and times of calls for Prometheus."""

import asyncio
import subprocess
import sys

import pytest
from intercepted_api import Api, Service
from prometheus_client import CollectorRegistry, generate_latest

import shmrpc
from shmrpc.interceptors.buckets import SECONDS
from shmrpc.interceptors.prometheus import Prometheus


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


async def test_calls_are_counted_by_method_kind_and_status_at_both_sides() -> None:
    registry = CollectorRegistry()
    counting = Prometheus(registry)
    async with shmrpc.local(Api, Service(), interceptors=[counting], server_interceptors=[counting]) as api:
        await api.add(1)
        await api.add(2)
        assert [item async for item in api.count(2)] == [0, 1]
        with pytest.raises(shmrpc.RpcError):
            await anext(api.count(2, fail_at=0))
    for side in ("client", "server"):
        handled = f"shmrpc_{side}_handled_total"
        assert sample(registry, f"shmrpc_{side}_started_total", method="Api.add", kind="unary") == 2
        assert sample(registry, handled, method="Api.add", kind="unary", code="OK") == 2
        assert sample(registry, f"shmrpc_{side}_started_total", method="Api.count", kind="server_stream") == 2
        assert sample(registry, handled, method="Api.count", kind="server_stream", code="OK") == 1
        assert sample(registry, handled, method="Api.count", kind="server_stream", code="OUT_OF_RANGE") == 1
        assert sample(registry, f"shmrpc_{side}_in_flight", method="Api.add", kind="unary") == 0


async def test_calls_under_way_are_in_the_gauge_and_cancelled_ones_are_counted_as_that() -> None:
    registry, service = CollectorRegistry(), Service()
    async with shmrpc.local(Api, service, interceptors=[Prometheus(registry)]) as api:
        task = asyncio.create_task(api.hang())
        await service.started.wait()
        labels = {"method": "Api.hang", "kind": "unary"}
        assert sample(registry, "shmrpc_client_in_flight", **labels) == 1
        assert sample(registry, "shmrpc_client_handled_total", **labels, code="CANCELLED") is None
        task.cancel()
        await asyncio.wait((task,))
        assert sample(registry, "shmrpc_client_in_flight", **labels) == 0
        assert sample(registry, "shmrpc_client_handled_total", **labels, code="CANCELLED") == 1


async def test_durations_are_in_buckets_from_ten_microseconds() -> None:
    registry = CollectorRegistry()
    async with shmrpc.local(Api, Service(), server_interceptors=[Prometheus(registry)]) as api:
        await api.add(1)
    bounds = [
        sample.labels["le"]
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "shmrpc_server_handling_seconds_bucket"
    ]
    assert [float(bound) for bound in bounds] == [*SECONDS, float("inf")]
    labels = {"method": "Api.add", "kind": "unary"}
    assert sample(registry, "shmrpc_server_handling_seconds_count", **labels) == 1
    total = sample(registry, "shmrpc_server_handling_seconds_sum", **labels)
    assert total is not None
    assert total > 0


async def test_several_interceptors_share_the_metrics_of_a_registry() -> None:
    registry = CollectorRegistry()
    for _ in range(2):
        async with shmrpc.local(Api, Service(), interceptors=[Prometheus(registry)]) as api:
            await api.add(1)
    assert sample(registry, "shmrpc_client_started_total", method="Api.add", kind="unary") == 2
    text = generate_latest(registry).decode()
    assert "# HELP shmrpc_client_started_total Calls made: begun." in text
    assert "shmrpc_server" not in text


def test_it_says_which_extra_it_needs() -> None:
    code = "import sys; sys.modules['prometheus_client'] = None; import shmrpc.interceptors.prometheus"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: shmrpc.interceptors.prometheus needs prometheus_client: pip install 'shmrpc[prometheus]'" in (
        done.stderr
    )
