"""Spans and durations of calls for OpenTelemetry, with its SDK and without."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from intercepted_api import Api, Service
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import shmrpc
from shmrpc.interceptors.buckets import SECONDS
from shmrpc.interceptors.otel import OpenTelemetry

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "tracestate": "vendor=value"}


class Traced(Service):
    """A service that looks at the span that it runs in."""

    async def mark(self) -> str:
        return str(trace.get_current_span().get_span_context().span_id)

    async def marks(self) -> AsyncIterator[str]:
        yield await self.mark()
        await asyncio.sleep(0)
        yield await self.mark()

    async def hang_after(self, count: int) -> AsyncIterator[int]:
        yield 1 // count


class Recording:
    """The SDK, with everything in memory."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._reader = InMemoryMetricReader()
        self._meters = MeterProvider([self._reader])
        self.interceptor = OpenTelemetry(tracers, self._meters)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    def points(self) -> dict[str, HistogramDataPoint]:
        """The histograms by name, each of one set of attributes."""
        read: Any = self._reader.get_metrics_data()
        metrics = read.resource_metrics[0].scope_metrics[0].metrics
        assert {metric.unit for metric in metrics} == {"s"}
        return {metric.name: point for metric in metrics for (point,) in (metric.data.data_points,)}

    def local(self, **options: Any) -> Any:
        around = [self.interceptor]
        return shmrpc.local(Api, Traced(), interceptors=around, server_interceptors=around, **options)


async def test_a_call_has_a_span_at_each_side_the_servers_below_the_clients() -> None:
    recording = Recording()
    async with recording.local() as api:
        await api.add(1)
    server, client = recording.spans
    assert (client.name, client.kind) == ("Api/add", SpanKind.CLIENT)
    assert (server.name, server.kind) == ("Api/add", SpanKind.SERVER)
    assert server.parent is not None
    assert client.context is not None
    assert (server.parent.span_id, server.parent.is_remote) == (client.context.span_id, True)
    expected = {"rpc.system.name": "shmrpc", "rpc.method": "Api/add", "rpc.response.status_code": "OK"}
    assert dict(client.attributes or {}) == dict(server.attributes or {}) == expected
    assert client.status.status_code is server.status.status_code is StatusCode.UNSET


async def test_the_clients_span_has_the_address_of_the_server(path: str) -> None:
    recording = Recording()
    async with shmrpc.Server(Service(), at=path):
        async with shmrpc.connect(Api, path, interceptors=[recording.interceptor]) as api:
            await api.add(1)
        async with shmrpc.connect(shmrpc.Introspection, path, interceptors=[recording.interceptor]) as introspection:
            await introspection.health("")
    assert [span.name for span in recording.spans] == ["Api/add", "shmrpc.Introspection/health"]
    assert [(span.attributes or {})["server.address"] for span in recording.spans] == [path, path]


async def test_the_handler_runs_in_the_servers_span_also_that_of_a_stream() -> None:
    recording = Recording()
    async with recording.local() as api:
        seen = [await api.mark(), *[item async for item in api.marks()]]
    first, _, second, _ = (span.context.span_id for span in recording.spans if span.context is not None)
    assert seen == [str(first), str(second), str(second)]


async def test_a_stream_is_one_span_to_its_last_item() -> None:
    recording = Recording()
    async with recording.local() as api:
        stream = api.count(3)
        await anext(stream)
        assert "Api/count" not in [span.name for span in recording.spans if span.kind is SpanKind.CLIENT]
        assert [item async for item in stream] == [1, 2]
    assert [(span.name, span.kind.name) for span in recording.spans] == [
        ("Api/count", "SERVER"),
        ("Api/count", "CLIENT"),
    ]


async def test_durations_are_histograms_in_seconds_from_ten_microseconds() -> None:
    recording = Recording()
    async with recording.local() as api:
        await api.add(1)
        await api.add(2)
    points = recording.points()
    assert set(points) == {"rpc.client.call.duration", "rpc.server.call.duration"}
    for point in points.values():
        assert tuple(point.explicit_bounds) == SECONDS
        assert (point.count, point.sum > 0) == (2, True)
        expected = {"rpc.system.name": "shmrpc", "rpc.method": "Api/add", "rpc.response.status_code": "OK"}
        assert dict(point.attributes or {}) == expected


async def test_a_status_that_is_the_callers_affair_is_an_error_at_the_client_only() -> None:
    recording = Recording()
    async with recording.local() as api:
        with pytest.raises(shmrpc.RpcError):
            await anext(api.count(1, fail_at=0))
    server, client = recording.spans
    assert (client.attributes or {})["rpc.response.status_code"] == "OUT_OF_RANGE"
    assert (client.attributes or {})["error.type"] == "OUT_OF_RANGE"
    assert (client.status.status_code, client.status.description) == (StatusCode.ERROR, "that far")
    assert (server.attributes or {})["rpc.response.status_code"] == "OUT_OF_RANGE"
    assert "error.type" not in (server.attributes or {})
    assert server.status.status_code is StatusCode.UNSET
    assert (recording.points()["rpc.client.call.duration"].attributes or {})["error.type"] == "OUT_OF_RANGE"


async def test_an_accident_of_a_handler_is_an_error_at_both_sides_and_recorded_at_the_server() -> None:
    recording = Recording()
    async with recording.local() as api:
        with pytest.raises(shmrpc.Internal):
            await anext(api.hang_after(0))
    server, client = recording.spans
    assert (server.attributes or {})["rpc.response.status_code"] == "INTERNAL"
    assert (server.attributes or {})["error.type"] == "builtins.ZeroDivisionError"
    assert server.status.status_code is client.status.status_code is StatusCode.ERROR
    assert [event.name for event in server.events] == ["exception"]
    assert (client.attributes or {})["error.type"] == "INTERNAL"
    assert client.events == ()


async def test_a_cancelled_call_says_so() -> None:
    recording, service = Recording(), Service()
    async with shmrpc.local(Api, service, interceptors=[recording.interceptor]) as api:
        task = asyncio.create_task(api.hang())
        await service.started.wait()
        task.cancel()
        await asyncio.wait((task,))
    (span,) = recording.spans
    assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"


async def test_trace_context_travels_as_the_w3c_says() -> None:
    recording = Recording()
    async with recording.local() as api:
        arrived, _ = await api.about()
    client = recording.spans[1].context
    assert client is not None
    expected = f"00-{client.trace_id:032x}-{client.span_id:016x}-{client.trace_flags:02x}"
    assert arrived == {"traceparent": expected}


async def test_a_server_takes_up_the_trace_that_comes_in_the_metadata() -> None:
    recording = Recording()
    async with shmrpc.local(Api, Service(), metadata=PARENT, server_interceptors=[recording.interceptor]) as api:
        await api.add(1)
    (span,) = recording.spans
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.context.trace_state.get("vendor") == "value"


async def test_without_the_sdk_trace_context_is_handed_on_all_the_same() -> None:
    tracing = OpenTelemetry(trace.NoOpTracerProvider())
    inner: list[dict[str, str]] = []

    class Relay(Service):
        async def mark(self) -> str:
            async with shmrpc.local(Api, Service(), interceptors=[tracing]) as api:
                inner.append((await api.about())[0])
            return "relayed"

        async def marks(self) -> AsyncIterator[str]:
            yield await self.mark()

    async with shmrpc.local(Api, Relay(), metadata=PARENT, server_interceptors=[tracing]) as api:
        await api.mark()
        assert [item async for item in api.marks()] == ["relayed"]
    assert inner == [PARENT, PARENT]


async def test_what_is_outside_of_the_interceptor_is_outside_of_its_context() -> None:
    valid: list[bool] = []

    async def see(call: shmrpc.Intercepted, proceed: shmrpc.Proceed) -> Any:
        result = await proceed()
        valid.append(trace.get_current_span().get_span_context().is_valid)
        return result

    recording = Recording()
    around: list[shmrpc.Interceptor] = [see, recording.interceptor]
    async with shmrpc.local(Api, Service(), metadata=PARENT, server_interceptors=around) as api:
        await api.add(1)
    assert valid == [False]


@pytest.mark.parametrize("value", [b"00-\xff", "nonsense", ""])
async def test_what_is_no_trace_context_is_passed_over(value: str | bytes) -> None:
    recording = Recording()
    around = [recording.interceptor]
    async with shmrpc.local(Api, Service(), metadata={"traceparent": value}, server_interceptors=around) as api:
        assert await api.add(1) == 2
    assert recording.spans[0].parent is None


def test_it_says_which_extra_it_needs() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import shmrpc.interceptors.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: shmrpc.interceptors.otel needs opentelemetry-api: pip install 'shmrpc[otel]'" in done.stderr
