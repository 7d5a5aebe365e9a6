"""What a run with arrays found, as text for a terminal; the struct is the JSON."""

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.arrays.bars import (
    NAME,
    Finding,
    Metric,
    echo,
    echo_summed,
    findings,
    first,
    first_again,
    made_first,
    memcpy,
    size_words,
    small,
    verdicts,
)
from benchmarks.arrays.figures import QUICK, ArrayFigures, ArrayPlan, Footprint
from benchmarks.bars import Verdict
from benchmarks.layout import OUTCOME, table, verdicts_table

SECTIONS: Sequence[tuple[str, Metric]] = (
    (
        "FIRST WORD. The handler reads one word, the result is an int. shmrpc: array born shared; others: warm heap.",
        first,
    ),
    (
        "ECHO. The array is of the caller's heap. The handler touches nothing, the caller reads one word of the result.",
        echo,
    ),
    (
        "ECHO, BOTH READ ALL. The handler sums every word and returns the array, the caller sums the result.",
        echo_summed,
    ),
)
BESIDE_FIRST: Sequence[tuple[str, Metric]] = (
    ("the same, with empty()", made_first),
    ("the same array again", first_again),
    ("small call, no array", small),
)
BESIDE_ECHO: Sequence[tuple[str, Metric]] = (("memcpy of the array, warm", memcpy),)


class ArrayReport(msgspec.Struct, frozen=True):
    """Everything about the part of a run that carries arrays."""

    plan: ArrayPlan
    verdicts: list[Verdict]
    findings: list[Finding]
    footprint: Footprint | None
    rounds: dict[str, list[ArrayFigures]]


def report_of(
    plan: ArrayPlan, rounds: Mapping[str, list[ArrayFigures]], footprint: Footprint | None, *, one_cpu: bool
) -> ArrayReport:
    """Judge what was measured."""
    found = list(findings(footprint)) if footprint is not None else []
    return ArrayReport(plan, verdicts(rounds, one_cpu=one_cpu), found, footprint, dict(rounds))


def microseconds(value: float) -> str:
    """With a digit behind the point where that says something."""
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def line(title: str, rounds: Sequence[ArrayFigures], metric: Metric, sizes: Sequence[int]) -> list[str]:
    """The medians over the rounds, size by size."""
    return [title, *(microseconds(median(metric(one.at(nbytes)) for one in rounds)) for nbytes in sizes)]


def times_text(report: ArrayReport) -> list[str]:
    """One table for each kind of call; all have the same columns."""
    sizes = report.plan.sizes
    lines = []
    for title, metric in SECTIONS:
        cells = [["p50, us", *map(size_words, sizes)]]
        cells += [line(name, rounds, metric, sizes) for name, rounds in report.rounds.items()]
        if NAME in report.rounds:
            own = report.rounds[NAME]
            beside = BESIDE_FIRST if metric is first else BESIDE_ECHO
            cells += [line(words, own, other, sizes) for words, other in beside]
        lines += [title, table(cells), ""]
    return lines


def findings_table(found: Sequence[Finding]) -> str:
    """One line for each."""
    cells = [["memory and copies", "found", "bar", ""]]
    cells += [[one.what, one.found, one.bar, OUTCOME[one.reached]] for one in found]
    return table(cells)


def text(report: ArrayReport) -> list[str]:
    """The lines of this part."""
    rounds = len(next(iter(report.rounds.values())))
    lines = ["Arrays of 64-bit words. Who touches what is said above each table.", ""]
    if report.plan == QUICK:
        lines[:0] = ["QUICK: too few calls with arrays for figures to be trusted"]
    lines += times_text(report)
    lines.append(f"Medians; interleaved rounds: {rounds}. What shmrpc is compared with was measured in its own client.")
    if report.verdicts:
        lines += ["", verdicts_table(report.verdicts)]
    if report.findings:
        lines += ["", findings_table(report.findings)]
    return lines
