"""The command: arguments, the rounds, the report."""

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.accounting import watch_machine
from benchmarks.bars import verdicts
from benchmarks.entrants import ENTRANTS, Entrant, select
from benchmarks.jobs import FULL, QUICK, Figures, Plan
from benchmarks.machine import describe
from benchmarks.orchestrator import ROOT, BenchmarkError, measure_entrant
from benchmarks.placement import Placement, place
from benchmarks.plot import draw
from benchmarks.report import Report, text
from benchmarks.summary import p50, row, sustained

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure shmrpc and its rivals in one run. See benchmarks/README.md.",
        epilog=f"Entrants: {', '.join(entrant.name for entrant in ENTRANTS)}.",
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
    return options


def with_crowds(entrants: Sequence[Entrant], connections: int) -> list[Entrant]:
    """Each adaptive shmrpc entrant is followed by itself among idle connections."""
    result = []
    for entrant in entrants:
        result.append(entrant)
        if connections and entrant.family == "shmrpc" and entrant.variant == "adaptive":
            result.append(entrant.crowded(connections))
    return result


def require(entrants: Sequence[Entrant]) -> None:
    """Exit if something that is to be measured cannot be imported by a process such as will measure it."""
    reasons = {}
    for family, module in {entrant.family: entrant.module for entrant in entrants}.items():
        attempt = [sys.executable, "-c", f"import {module}"]
        outcome = subprocess.run(attempt, cwd=ROOT, capture_output=True, text=True, check=False)
        if outcome.returncode:
            reasons[family] = outcome.stderr.strip().splitlines()[-1]
    if reasons:
        for family, reason in reasons.items():
            print(f"{family} cannot be measured: {reason}", file=sys.stderr)
        sys.exit("install what is missing (the extra `bench` has the rivals), or choose others with --only")


async def run_rounds(
    entrants: Sequence[Entrant], rounds: int, plan: Plan, placement: Placement
) -> dict[str, list[Figures]]:
    """Measure every entrant in every round, forwards and backwards by turns, so that drift favours none."""
    results: dict[str, list[Figures]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            figures = await measure_entrant(entrant, plan, placement)
            results[entrant.name].append(figures)
            found = f"{p50(figures):7.1f} us {sustained(figures) / 1e3:8.1f} k/s"
            print(f"round {number + 1}/{rounds}  {entrant.name:32} {found}", file=sys.stderr, flush=True)
    return results


async def until_terminated(
    entrants: Sequence[Entrant], rounds: int, plan: Plan, placement: Placement
) -> dict[str, list[Figures]]:
    """The rounds, cancelled in good order by SIGTERM as by Ctrl-C."""
    task = asyncio.ensure_future(run_rounds(entrants, rounds, plan, placement))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> None:
    """Run, print, and write what was asked for."""
    options = parse()
    entrants = with_crowds(options.entrants, options.idle_connections)
    require(entrants)
    plan = QUICK if options.quick else FULL
    machine, load = describe(), watch_machine()
    try:
        rounds = asyncio.run(until_terminated(entrants, options.rounds, plan, options.placement))
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
        plan=plan,
        rows=[row(name, each) for name, each in rounds.items()],
        verdicts=verdicts(entrants, rounds, one_cpu=placement.one_cpu),
        rounds=rounds,
    )
    print(text(report))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    if options.svg:
        options.svg.write_text(draw(report.rows, f"{machine.processor}, {machine.python}, {placement.words}"))


if __name__ == "__main__":
    main()
