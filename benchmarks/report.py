"""What a run found, as text for a terminal and as one JSON document."""

import msgspec

from benchmarks.accounting import MachineLoad
from benchmarks.arrays.report import ArrayReport
from benchmarks.arrays.report import text as array_text
from benchmarks.bars import RIVAL, Verdict
from benchmarks.jobs import QUICK, Figures, Plan
from benchmarks.layout import table, verdicts_table
from benchmarks.machine import Machine
from benchmarks.placement import Placement
from benchmarks.streams.report import StreamReport
from benchmarks.streams.report import text as stream_text
from benchmarks.summary import Row, p50, ratio, sustained

NOISY_PERCENT = 10.0


class Report(msgspec.Struct, frozen=True):
    """Everything about one run; written as it is with --json."""

    machine: Machine
    placement: Placement
    load: MachineLoad
    plan: Plan
    rows: list[Row]
    verdicts: list[Verdict]
    rounds: dict[str, list[Figures]]
    arrays: ArrayReport | None
    streams: StreamReport | None


def thousands(calls_per_s: float) -> str:
    """Calls per second in thousands."""
    return f"{calls_per_s / 1e3:.1f}"


def against_rival(report: Report, name: str) -> tuple[str, str]:
    """How many times lower the round trip and higher the throughput is than the hand-rolled rival's."""
    if RIVAL not in report.rounds:
        return "-", "-"
    lower = ratio(report.rounds, RIVAL, name, p50)
    higher = ratio(report.rounds, name, RIVAL, sustained)
    return f"{lower.middle:.2f}x", f"{higher.middle:.2f}x"


def figures_table(report: Report) -> str:
    """One line for each entrant."""
    levels = report.plan.in_flight
    groups = [
        ("round trip, us", 3),
        ("thousand calls/s, in flight", len(levels)),
        ("waves", 1),
        ("CPU us per call", 2),
        ("idle, per second", 2),
        ("p50", 1),
        ("64", 1),
    ]
    rates_head = [*map(str, levels), f"of {report.plan.wave}"]
    head = ["", "p50", "p99", "p99.9", *rates_head, "one", "64", "CPU ms", "wake-ups", "lower", "higher"]
    cells = [head]
    for row in report.rows:
        latencies = [f"{value:.1f}" for value in (row.p50_us, row.p99_us, row.p999_us)]
        rates = [thousands(row.calls_per_s[level]) for level in levels]
        cells.append(
            [
                row.name,
                *latencies,
                *rates,
                thousands(row.wave_calls_per_s),
                f"{row.sequential_cpu_us:.1f}",
                f"{row.in_flight_cpu_us:.1f}",
                f"{row.idle_cpu_ms_per_s:.2f}",
                f"{row.idle_wakeups_per_s:.1f}",
                *against_rival(report, row.name),
            ]
        )
    return table(cells, groups)


def calls_text(report: Report) -> list[str]:
    """The lines about small calls."""
    rounds = len(next(iter(report.rounds.values())))
    lines = []
    if report.plan == QUICK:
        lines.append("QUICK: phases too short for figures to be trusted; this shows that everything works")
    lines += [
        "",
        figures_table(report),
        "",
        f"Medians; interleaved rounds: {rounds}. CPU and wake-ups: client and server together.",
        f"The last two columns compare round trip p50 and 64 in flight with {RIVAL}.",
    ]
    if report.verdicts:
        lines += ["", verdicts_table(report.verdicts)]
    return lines


def text(report: Report) -> str:
    """The whole report for a terminal."""
    others, stolen = report.load.other_processes_percent, report.load.hypervisor_percent
    lines = [
        *report.machine.words,
        report.placement.words,
        f"CPU time of the machine that went elsewhere: {others:.0f} % other processes, {stolen:.0f} % stolen",
    ]
    if others + stolen > NOISY_PERCENT:
        lines.append("NOISY: the machine was shared; trust no absolute figure, and ratios with care")
    if report.rows:
        lines += calls_text(report)
    if report.arrays is not None:
        lines += ["", *array_text(report.arrays)]
    if report.streams is not None:
        lines += ["", *stream_text(report.streams)]
    return "\n".join(lines)
