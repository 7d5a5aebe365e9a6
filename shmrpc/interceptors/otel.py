"""Spans and durations of calls for OpenTelemetry. Needs the extra ``otel``.

Names and attributes are those of the stable semantic conventions for RPC, version 1.45
(https://opentelemetry.io/docs/specs/semconv/rpc). Without OpenTelemetry's SDK nothing is recorded, but trace context is
still handed on.
"""

import asyncio
from collections.abc import Mapping, MutableMapping
from time import perf_counter_ns
from typing import Any, Final

from shmrpc.errors import Code, RpcError
from shmrpc.interceptors.buckets import SECONDS
from shmrpc.interceptors.call import Intercepted, Proceed

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.propagators.textmap import Getter, Setter, TextMapPropagator
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
except ImportError as error:
    raise ImportError("shmrpc.interceptors.otel needs opentelemetry-api: pip install 'shmrpc[otel]'") from error

SCHEMA: Final = "https://opentelemetry.io/schemas/1.45.0"

SYSTEM: Final = "shmrpc"
"""The value of ``rpc.system.name``."""

_SERVER_FAULTS: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""The statuses that are errors of a server; the others are its caller's affair. At the client all but OK are errors. So the
conventions say it for gRPC, whose codes these are."""


class _TextGetter(Getter[Mapping[str, str | bytes]]):
    """Reads propagated fields from metadata, which may also hold bytes; those are no fields."""

    def get(self, carrier: Mapping[str, str | bytes], key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if isinstance(value, str) else None

    def keys(self, carrier: Mapping[str, str | bytes]) -> list[str]:
        return list(carrier)


class _TextSetter(Setter[MutableMapping[str, str | bytes]]):
    """Writes propagated fields into metadata."""

    def set(self, carrier: MutableMapping[str, str | bytes], key: str, value: str) -> None:
        carrier[key] = value


_getter: Final = _TextGetter()
_setter: Final = _TextSetter()


class OpenTelemetry:
    """An interceptor for either side: a span and a duration for each call, and trace context from one to the other.

    - Spans are called like ``Vision/classify``, of kind CLIENT and SERVER. The server's is the child of the client's, and
      current while the handler runs.
    - ``rpc.client.call.duration`` and ``rpc.server.call.duration`` are histograms in seconds, with buckets from 10 us to
      10 s unless a view says otherwise. A stream lasts until its last item.
    - Context travels in the metadata as the propagators say, by default as W3C ``traceparent``, ``tracestate`` and
      ``baggage``.

    Args:
        tracer_provider: None: the global one.
        meter_provider: None: the global one.
        propagator: None: the global one, of ``OTEL_PROPAGATORS``.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("shmrpc", tracer_provider=tracer_provider, schema_url=SCHEMA)
        self._meter = metrics.get_meter("shmrpc", meter_provider=meter_provider, schema_url=SCHEMA)
        self._propagator = propagator
        self._durations: dict[str, Histogram] = {}

    async def __call__(self, call: Intercepted, proceed: Proceed) -> Any:
        """Traces a call."""
        service, _, method = call.method.rpartition(".")
        attributes: dict[str, str] = {"rpc.system.name": SYSTEM, "rpc.method": f"{service}/{method}"}
        if call.address is not None:
            attributes["server.address"] = call.address
        if call.side == "client":
            return await self._trace(call, proceed, attributes)
        propagator = self._propagator or propagate.get_global_textmap()
        token = contexts.attach(propagator.extract(call.metadata, getter=_getter))
        try:
            return await self._trace(call, proceed, attributes)
        finally:
            contexts.detach(token)

    async def _trace(self, call: Intercepted, proceed: Proceed, attributes: dict[str, str]) -> Any:
        at_client = call.side == "client"
        with self._tracer.start_as_current_span(
            attributes["rpc.method"],
            kind=SpanKind.CLIENT if at_client else SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            if at_client:
                (self._propagator or propagate.get_global_textmap()).inject(call.metadata, setter=_setter)
            began_ns = perf_counter_ns()
            try:
                result = await proceed()
            except (Exception, asyncio.CancelledError) as error:
                self._end(call, span, began_ns, attributes, error)
                raise
            self._end(call, span, began_ns, attributes, None)
            return result

    def _end(
        self, call: Intercepted, span: Span, began_ns: int, attributes: dict[str, str], error: BaseException | None
    ) -> None:
        seconds = (perf_counter_ns() - began_ns) / 1e9
        code = call.code_of(error)
        ended = {"rpc.response.status_code": code.name}
        if error is not None and (call.side == "client" or code in _SERVER_FAULTS):
            carried = isinstance(error, (RpcError, asyncio.CancelledError))
            ended["error.type"] = code.name if carried else f"{type(error).__module__}.{type(error).__qualname__}"
            span.set_status(Status(StatusCode.ERROR, str(error) or None))
            if not carried:
                span.record_exception(error)
        span.set_attributes(ended)
        self._duration(call.side).record(seconds, attributes | ended)

    def _duration(self, side: str) -> Histogram:
        if side not in self._durations:
            self._durations[side] = self._meter.create_histogram(
                f"rpc.{side}.call.duration",
                unit="s",
                description=f"Measures the duration of an {'outgoing' if side == 'client' else 'incoming'} Remote "
                "Procedure Call (RPC).",
                explicit_bucket_boundaries_advisory=SECONDS,
            )
        return self._durations[side]
