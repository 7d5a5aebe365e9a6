"""The command: arguments, the rounds, the report."""

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from benchmarks.accounting import watch_machine
from benchmarks.arrays import entrants as array_entrants
from benchmarks.arrays import figures as array_plans
from benchmarks.arrays.bars import echo
from benchmarks.arrays.figures import MIB, ArrayFigures, ArrayPlan
from benchmarks.arrays.report import ArrayReport, report_of
from benchmarks.bars import verdicts
from benchmarks.entrants import ENTRANTS, Entrant, select
from benchmarks.jobs import FULL, QUICK, Figures, Plan
from benchmarks.machine import describe
from benchmarks.orchestrator import (
    ROOT,
    BenchmarkError,
    measure_arrays,
    measure_entrant,
    measure_footprint,
    measure_streams,
)
from benchmarks.placement import Placement, place
from benchmarks.plot import draw
from benchmarks.report import Report, text
from benchmarks.streams import entrants as stream_entrants
from benchmarks.streams import figures as stream_plans
from benchmarks.streams.bars import give
from benchmarks.streams.figures import StreamFigures, StreamPlan
from benchmarks.streams.report import StreamReport
from benchmarks.streams.report import report_of as stream_report_of
from benchmarks.summary import p50, row, sustained

WORKLOADS = ("calls", "arrays", "streams", "all")
TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT

F = TypeVar("F")
CallRounds = dict[str, list[Figures]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure shmrpc and its rivals in one run. See benchmarks/README.md.",
        epilog=f"Entrants: {', '.join(entrant.name for entrant in ENTRANTS)}.",
    )
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="all",
        help="small calls, calls with arrays, streams, or all of them (default)",
    )
    parser.add_argument("--only", metavar="NAME,...", help="measure these entrants; a prefix stands for all below it")
    parser.add_argument("--rounds", type=int, metavar="R", help="interleaved rounds (default 3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="short phases: to see that it works, not how fast")
    parser.add_argument(
        "--pin",
        choices=("one", "two", "none"),
        help="CPUs for client and server (default: two if there are two)",
    )
    parser.add_argument(
        "--idle-connections",
        type=int,
        default=0,
        metavar="N",
        help="also measure adaptive shmrpc beside N idle connections of another process",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw round trips and throughputs")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, at least 1 is needed")
    try:
        options.entrants = select(options.only.split(",")) if options.only else list(ENTRANTS)
        options.placement = place(options.pin)
    except ValueError as error:
        parser.error(str(error))
    chosen, workload = options.entrants, options.workload
    options.array_entrants = array_entrants.among(chosen) if workload in ("arrays", "all") else []
    options.stream_entrants = stream_entrants.among(chosen) if workload in ("streams", "all") else []
    if workload in ("arrays", "streams"):
        options.entrants = []
        known = array_entrants.ENTRANTS if workload == "arrays" else stream_entrants.ENTRANTS
        if not options.array_entrants and not options.stream_entrants:
            parser.error(f"with {workload} there are {', '.join(one.name for one in known)}")
        if options.svg:
            parser.error(f"--svg draws small calls, --workload {workload} leaves them out")
    return options


def with_crowds(entrants: Sequence[Entrant], connections: int) -> list[Entrant]:
    """Each adaptive shmrpc entrant is followed by itself among idle connections."""
    result = []
    for entrant in entrants:
        result.append(entrant)
        if connections and entrant.family == "shmrpc" and entrant.variant == "adaptive":
            result.append(entrant.crowded(connections))
    return result


def require(modules: Iterable[str]) -> None:
    """Exit if something that is to be measured cannot be imported by a process such as will measure it."""
    reasons = {}
    for module in modules:
        attempt = [sys.executable, "-c", f"import {module}"]
        outcome = subprocess.run(attempt, cwd=ROOT, capture_output=True, text=True, check=False)
        if outcome.returncode:
            reasons[module] = outcome.stderr.strip().splitlines()[-1]
    if reasons:
        for module, reason in reasons.items():
            print(f"{module} cannot be measured: {reason}", file=sys.stderr)
        sys.exit("install what is missing (the extra `bench` has it all), or choose others with --only or --workload")


async def interleaved(
    entrants: Sequence[Entrant], rounds: int, measure: Callable[[Entrant], Awaitable[F]], words: Callable[[F], str]
) -> dict[str, list[F]]:
    """Measure every entrant in every round, forwards and backwards by turns, so that drift favours none."""
    results: dict[str, list[F]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            figures = await measure(entrant)
            results[entrant.name].append(figures)
            print(f"round {number + 1}/{rounds}  {entrant.name:32} {words(figures)}", file=sys.stderr, flush=True)
    return results


async def run_calls(entrants: Sequence[Entrant], rounds: int, plan: Plan, placement: Placement) -> CallRounds:
    """The rounds of small calls."""

    def words(figures: Figures) -> str:
        return f"{p50(figures):7.1f} us {sustained(figures) / 1e3:8.1f} k/s"

    return await interleaved(entrants, rounds, lambda entrant: measure_entrant(entrant, plan, placement), words)


async def run_arrays(
    entrants: Sequence[Entrant], rounds: int, plan: ArrayPlan, placement: Placement
) -> ArrayReport | None:
    """The rounds of calls with arrays, then memory and copies of shmrpc; None with nobody to measure."""
    if not entrants:
        return None

    def words(figures: ArrayFigures) -> str:
        return f"{echo(figures.at(MIB)):7.1f} us to echo 1 MiB"

    results = await interleaved(entrants, rounds, lambda entrant: measure_arrays(entrant, plan, placement), words)
    subject = array_entrants.SUBJECT
    footprint = await measure_footprint(subject, plan, placement) if subject in entrants else None
    return report_of(plan, results, footprint, one_cpu=placement.one_cpu)


async def run_streams(
    entrants: Sequence[Entrant], rounds: int, plan: StreamPlan, placement: Placement
) -> StreamReport | None:
    """The rounds of streams; None with nobody to measure."""
    if not entrants:
        return None

    def words(figures: StreamFigures) -> str:
        return f"{give(figures) / 1e3:8.1f} k items/s"

    results = await interleaved(entrants, rounds, lambda entrant: measure_streams(entrant, plan, placement), words)
    return stream_report_of(plan, results, one_cpu=placement.one_cpu)


async def run(
    options: argparse.Namespace, entrants: Sequence[Entrant]
) -> tuple[CallRounds, ArrayReport | None, StreamReport | None]:
    """All parts, cancelled in good order by SIGTERM as by Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    plan, array_plan = (QUICK, array_plans.QUICK) if options.quick else (FULL, array_plans.FULL)
    stream_plan = stream_plans.QUICK if options.quick else stream_plans.FULL
    calls = await run_calls(entrants, options.rounds, plan, options.placement)
    arrays = await run_arrays(options.array_entrants, options.rounds, array_plan, options.placement)
    return calls, arrays, await run_streams(options.stream_entrants, options.rounds, stream_plan, options.placement)


def main() -> None:
    """Run, print, and write what was asked for."""
    options = parse()
    entrants = with_crowds(options.entrants, options.idle_connections)
    modules = [one.module for one in entrants] + [array_entrants.module_of(one) for one in options.array_entrants]
    modules += [stream_entrants.module_of(one) for one in options.stream_entrants]
    require(dict.fromkeys(modules))
    machine, load = describe(), watch_machine()
    try:
        rounds, arrays, streams = asyncio.run(run(options, entrants))
    except BenchmarkError as error:
        sys.exit(f"benchmark failed: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except asyncio.CancelledError:
        sys.exit(TERMINATED)
    placement: Placement = options.placement
    report = Report(
        machine=machine,
        placement=placement,
        load=load(),
        plan=QUICK if options.quick else FULL,
        rows=[row(name, each) for name, each in rounds.items()],
        verdicts=verdicts(entrants, rounds, one_cpu=placement.one_cpu),
        rounds=rounds,
        arrays=arrays,
        streams=streams,
    )
    print(text(report))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    if options.svg:
        options.svg.write_text(draw(report.rows, f"{machine.processor}, {machine.python}, {placement.words}"))


if __name__ == "__main__":
    main()
