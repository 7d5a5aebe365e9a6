"""From the rounds of a run to one row for each entrant, and to the ratios between entrants.

A figure is the median over the rounds. A ratio is taken within each round, where both sides met the same
noise, and the median of these is what counts.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.jobs import Figures, Throughput

Rounds = Mapping[str, Sequence[Figures]]
Metric = Callable[[Figures], float]

IN_FLIGHT = 64
"""The level whose CPU time is shown, and at which throughputs are compared."""


class Row(msgspec.Struct, frozen=True):
    """One entrant in the table. CPU times, idle CPU and wake-ups are sums over client and server."""

    name: str
    p50_us: float
    p99_us: float
    p999_us: float
    calls_per_s: dict[int, float]
    wave_calls_per_s: float
    sequential_cpu_us: float
    in_flight_cpu_us: float
    idle_cpu_ms_per_s: float
    idle_wakeups_per_s: float


class Ratio(msgspec.Struct, frozen=True):
    """The median of a ratio over the rounds, and its extremes."""

    middle: float
    lowest: float
    highest: float


def p50(figures: Figures) -> float:
    """Median round trip, us."""
    return figures.calls.latency.p50_us


def at_level(figures: Figures, in_flight: int) -> Throughput:
    """The sustained throughput with that many calls in flight."""
    return next(one for one in figures.calls.throughput if one.in_flight == in_flight)


def sustained(figures: Figures) -> float:
    """Calls per second, 64 in flight all the time."""
    return at_level(figures, IN_FLIGHT).calls_per_s


def in_waves(figures: Figures) -> float:
    """Calls per second, 64 gathered at a time."""
    return figures.calls.wave.calls_per_s


def row(name: str, rounds: Sequence[Figures]) -> Row:
    """The medians of one entrant."""

    def middle(metric: Metric) -> float:
        return median(map(metric, rounds))

    levels = [one.in_flight for one in rounds[0].calls.throughput]
    return Row(
        name=name,
        p50_us=middle(p50),
        p99_us=middle(lambda f: f.calls.latency.p99_us),
        p999_us=middle(lambda f: f.calls.latency.p999_us),
        calls_per_s={n: median(at_level(f, n).calls_per_s for f in rounds) for n in levels},
        wave_calls_per_s=middle(in_waves),
        sequential_cpu_us=middle(lambda f: f.calls.latency.cpu.both_us),
        in_flight_cpu_us=middle(lambda f: at_level(f, IN_FLIGHT).cpu.both_us),
        idle_cpu_ms_per_s=middle(lambda f: f.idle.client_cpu_ms_per_s + f.idle.server_cpu_ms_per_s),
        idle_wakeups_per_s=middle(lambda f: f.idle.client_wakeups_per_s + f.idle.server_wakeups_per_s),
    )


def ratio(rounds: Rounds, above: str, below: str, metric: Metric) -> Ratio:
    """`above` divided by `below`, round by round."""
    each = [metric(one) / metric(other) for one, other in zip(rounds[above], rounds[below], strict=True)]
    return Ratio(median(each), min(each), max(each))
