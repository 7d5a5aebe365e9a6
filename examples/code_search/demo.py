"""The demo: a worker behind shmrpc, the same behind a hand-rolled socket, and the same questions to both.

Both are processes of their own. Whatever ends the demo, they end first, and leave no socket behind.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import uvloop
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import shmrpc
from examples.code_search import rival
from examples.code_search.api import CodeSearch, Statistics
from examples.code_search.check import Answers, Scan
from examples.code_search.front import index_files
from examples.code_search.load import IN_FLIGHT, Stopwatch, Timing, Workload, workloads
from examples.code_search.sources import library_files
from examples.harness import START_S, Stages, run_demo, running, stages


@dataclass(frozen=True)
class Scale:
    """How much the demo does."""

    files: int | None
    """Files to index, None for all there are."""
    subjects: int
    """Different words, phrases and prefixes to ask for."""
    calls: int
    """Cheap calls in a round."""
    rounds: int


FULL = Scale(files=None, subjects=60, calls=2000, rounds=5)
QUICK = Scale(files=150, subjects=15, calls=200, rounds=3)


@dataclass(frozen=True)
class Comparison:
    """The timings of one workload."""

    workload: Workload
    shmrpc: Timing
    rival: Timing


@dataclass(frozen=True)
class Report:
    """What came out."""

    indexed: Statistics
    indexing_s: float
    queries: int
    checked: int
    differences: list[str]
    comparisons: list[Comparison]


async def compare(address: Path, rival_address: Path, scale: Scale, stage: Stages) -> Report:
    """Index, check and time both workers."""
    paths = library_files(scale.files)
    async with (
        shmrpc.connect(CodeSearch, str(address), wait=START_S) as search,
        rival.connect(rival_address, wait_s=START_S) as rival_search,
    ):
        patient = shmrpc.options(search, timeout=30.0)
        started = perf_counter()
        indexed = await index_files(patient, paths, stage("Indexing, over shmrpc", len(paths)))
        indexing_s = perf_counter() - started
        await index_files(rival_search, paths, stage("Indexing, over the socket", len(paths)))

        scan = Scan()
        await scan.index([str(path) for path in paths])
        loads = workloads(scan.lines, subjects=scale.subjects, calls=scale.calls)
        subjects = sum(len(load.subjects) for load in loads)
        answers = await Answers.of(scan, loads, stage("Answering by reading the sources", subjects))
        differences = await answers.differences(search) + await answers.differences(rival_search)

        comparisons: list[Comparison] = []
        advance = stage("Timing the answers", scale.rounds * len(loads))
        for load in loads:
            ours, theirs = Stopwatch(load, search), Stopwatch(load, rival_search)
            for _ in range(scale.rounds):
                await ours.round()
                await theirs.round()
                advance(1)
            comparisons.append(Comparison(load, ours.timing(), theirs.timing()))

    queries = 2 * scale.rounds * sum(2 * load.calls for load in loads) + 2 * len(answers)
    return Report(indexed, indexing_s, queries, 2 * len(answers), differences, comparisons)


def show(report: Report, console: Console) -> None:
    """Print the report."""
    indexed = report.indexed
    console.print(
        f"\nIndexed {indexed.files:,} files, {indexed.lines:,} lines and {indexed.words:,} words"
        f" in {report.indexing_s:.1f} s.\nRan {report.queries:,} queries."
        f"\nChecked {report.checked:,} answers against the sources: {len(report.differences)} differ.\n",
        highlight=False,
    )
    for difference in report.differences[:10]:
        console.print(difference, style="red", markup=False, highlight=False)

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        f"\np50 and p99 of calls one after the other, calls/s with {IN_FLIGHT} in flight.\n"
        "socket: the same worker over a Unix socket, hand-rolled on uvloop and msgspec."
    )
    table.add_column("method")
    table.add_column("time\nis in")
    for measure in ("p50 us", "p99 us", "calls/s"):
        table.add_column(f"{measure}\nshmrpc", justify="right")
        table.add_column("\nsocket", justify="right")
        if measure != "p99 us":
            table.add_column("\nratio", justify="right", style="bold")
    for comparison in report.comparisons:
        ours, theirs = comparison.shmrpc, comparison.rival
        table.add_row(
            comparison.workload.method,
            comparison.workload.cost,
            *(f"{p50:,.1f}" for p50 in (ours.p50_us, theirs.p50_us)),
            f"{theirs.p50_us / ours.p50_us:.1f}x",
            *(f"{p99:,.0f}" for p99 in (ours.p99_us, theirs.p99_us)),
            *(f"{rate:,.0f}" for rate in (ours.calls_per_s, theirs.calls_per_s)),
            f"{ours.calls_per_s / theirs.calls_per_s:.1f}x",
        )
    console.print(table)


def demonstrate(scale: Scale, console: Console) -> Report:
    """Start both workers, compare them, and stop them."""
    with tempfile.TemporaryDirectory(prefix="code-search-") as directory, stages(console) as stage:
        address, rival_address = Path(directory, "search.sock"), Path(directory, "rival.sock")
        with (
            running("shmrpc", "serve", "examples.code_search.worker:Worker", "--at", str(address)),
            running("examples.code_search.rival", str(rival_address)),
        ):
            report = uvloop.run(compare(address, rival_address, scale, stage))
        left = [path.name for path in Path(directory).iterdir()]
        if left:
            raise RuntimeError(f"the workers left behind: {', '.join(left)}")
    return report


def main() -> int:
    """The command line; the exit status is 0 if every answer was right."""
    parser = argparse.ArgumentParser(description="Search the standard library from another process.")
    parser.add_argument("--quick", action="store_true", help="few files and few queries, for tests")
    parser.add_argument("--plain", action="store_true", help="neither colours nor a progress bar")
    arguments = parser.parse_args()

    def demo(console: Console) -> int:
        report = demonstrate(QUICK if arguments.quick else FULL, console)
        show(report, console)
        return 1 if report.differences else 0

    return run_demo(demo, plain=arguments.plain)
