"""Counts and times of calls for Prometheus. Needs the extra ``prometheus``."""

import asyncio
from time import perf_counter_ns
from typing import Any, Final
from weakref import WeakKeyDictionary

from shmrpc.interceptors.buckets import SECONDS
from shmrpc.interceptors.call import Intercepted, Proceed, Side

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError as error:
    raise ImportError(
        "shmrpc.interceptors.prometheus needs prometheus_client: pip install 'shmrpc[prometheus]'"
    ) from error

_METHOD: Final = ("method", "kind")


class _Metrics:
    """The metrics of one side in one registry."""

    def __init__(self, side: Side, registry: CollectorRegistry) -> None:
        name = f"shmrpc_{side}"
        calls = "Calls made" if side == "client" else "Calls served"
        self.started: Final = Counter(f"{name}_started", f"{calls}: begun.", _METHOD, registry=registry)
        self.handled: Final = Counter(
            f"{name}_handled", f"{calls}: ended, by status.", (*_METHOD, "code"), registry=registry
        )
        self.seconds: Final = Histogram(
            f"{name}_handling_seconds",
            f"{calls}: seconds from the beginning to the end, of a stream's last item too.",
            _METHOD,
            registry=registry,
            buckets=SECONDS,
        )
        self.in_flight: Final = Gauge(f"{name}_in_flight", f"{calls}: under way.", _METHOD, registry=registry)


class _Labelled:
    """The metrics of one method at one side."""

    def __init__(self, call: Intercepted, metrics: _Metrics) -> None:
        labels = self._labels = (call.method, call.kind)
        self.started: Final = metrics.started.labels(*labels)
        self.in_flight: Final = metrics.in_flight.labels(*labels)
        self.seconds: Final = metrics.seconds.labels(*labels)
        self._handled = metrics.handled
        self._by_code: dict[str, Counter] = {}

    def handled(self, code: str) -> Counter:
        """The counter of calls that ended with a status."""
        if code not in self._by_code:
            self._by_code[code] = self._handled.labels(*self._labels, code)
        return self._by_code[code]


_registered: Final[WeakKeyDictionary[CollectorRegistry, dict[Side, _Metrics]]] = WeakKeyDictionary()
"""A registry takes each name once."""


class Prometheus:
    """An interceptor for either side: counts calls, those under way, and their durations.

    The metrics are, with the labels ``method`` and ``kind``, and ``shmrpc_server_…`` the same at a server:

    - ``shmrpc_client_started_total``
    - ``shmrpc_client_handled_total``, by ``code`` too: ``OK``, ``NOT_FOUND``, …
    - ``shmrpc_client_handling_seconds``, a histogram with buckets from 10 us to 10 s
    - ``shmrpc_client_in_flight``, a gauge

    Args:
        registry: Where the metrics are registered, once for each side, when its first call comes. Several interceptors
            with one registry share them.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._registry = registry
        self._labelled: dict[tuple[str, Side], _Labelled] = {}

    def __repr__(self) -> str:
        return f"<Prometheus, {len(self._labelled)} methods seen>"

    async def __call__(self, call: Intercepted, proceed: Proceed) -> Any:
        """Counts a call."""
        labelled = self._labelled.get((call.method, call.side))
        if labelled is None:  # looking them up by their labels each time is dearer than all the rest
            labelled = self._labelled[call.method, call.side] = _Labelled(call, self._metrics(call.side))
        labelled.started.inc()
        labelled.in_flight.inc()
        began_ns = perf_counter_ns()
        code = "UNKNOWN"
        try:
            result = await proceed()
            code = "OK"
        except (Exception, asyncio.CancelledError) as error:
            code = call.code_of(error).name
            raise
        finally:
            labelled.seconds.observe((perf_counter_ns() - began_ns) / 1e9)
            labelled.in_flight.dec()
            labelled.handled(code).inc()
        return result

    def _metrics(self, side: Side) -> _Metrics:
        sides = _registered.setdefault(self._registry, {})
        if side not in sides:
            sides[side] = _Metrics(side, self._registry)
        return sides[side]
