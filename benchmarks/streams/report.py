"""What a run with streams found, as text for a terminal; the struct is the JSON."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.arrays.bars import Finding
from benchmarks.bars import Verdict
from benchmarks.layout import OUTCOME, table, verdicts_table
from benchmarks.streams.bars import (
    NAME,
    Metric,
    arrays,
    arrays_touched,
    findings,
    give,
    in_process,
    take,
    turn,
    verdicts,
)
from benchmarks.streams.figures import QUICK, Rate, StreamFigures, StreamPlan

IN_PROCESS = "async for in one process"
"""The line with what no transport could beat."""


class StreamReport(msgspec.Struct, frozen=True):
    """Everything about the part of a run that carries streams."""

    plan: StreamPlan
    verdicts: list[Verdict]
    findings: list[Finding]
    rounds: dict[str, list[StreamFigures]]


def report_of(plan: StreamPlan, rounds: Mapping[str, list[StreamFigures]], *, one_cpu: bool) -> StreamReport:
    """Judge what was measured."""
    return StreamReport(plan, verdicts(rounds, one_cpu=one_cpu), findings(rounds, one_cpu=one_cpu), dict(rounds))


def busy(rounds: Sequence[StreamFigures], rate_of: Callable[[StreamFigures], Rate]) -> str:
    """How busy client and server were, in percent of a CPU."""
    client = median(rate_of(one).client_busy for one in rounds)
    server = median(rate_of(one).server_busy for one in rounds)
    return f"{100 * client:.0f}/{100 * server:.0f}"


def line(name: str, rounds: Sequence[StreamFigures]) -> list[str]:
    """The medians of one entrant over the rounds."""

    def middle(metric: Metric) -> float:
        return median(map(metric, rounds))

    return [
        name,
        f"{middle(give) / 1e3:,.1f}",
        busy(rounds, lambda one: one.give),
        f"{middle(take) / 1e3:,.1f}",
        busy(rounds, lambda one: one.take),
        f"{middle(turn):.1f}",
        f"{middle(arrays):,.0f}",
        busy(rounds, lambda one: one.arrays),
        f"{middle(arrays_touched):,.0f}",
        busy(rounds, lambda one: one.arrays_touched),
    ]


def figures_table(report: StreamReport) -> str:
    """One line for each entrant."""
    groups = [("thousand small items/s", 4), ("turn, us", 1), ("1 MiB arrays/s", 4)]
    cells = [["", "to client", "busy", "to server", "busy", "p50", "word touched", "busy", "all touched", "busy"]]
    cells += [line(name, rounds) for name, rounds in report.rounds.items()]
    if NAME in report.rounds:
        alone = median(map(in_process, report.rounds[NAME]))
        cells.append([IN_PROCESS, f"{alone / 1e3:,.1f}", *[""] * (len(cells[0]) - 2)])
    return table(cells, groups)


def text(report: StreamReport) -> list[str]:
    """The lines of this part."""
    rounds = len(next(iter(report.rounds.values())))
    lines = ["Streams. Busy: CPU time of client/server in percent of the time that went by.", ""]
    if report.plan == QUICK:
        lines[:0] = ["QUICK: streams too short for figures to be trusted"]
    lines += [figures_table(report), "", f"Medians; interleaved rounds: {rounds}."]
    if report.verdicts:
        lines += ["", verdicts_table(report.verdicts)]
    if report.findings:
        cells = [["rates", "found", "bar", ""]]
        cells += [[one.what, one.found, one.bar, OUTCOME[one.reached]] for one in report.findings]
        lines += ["", table(cells)]
    return lines
