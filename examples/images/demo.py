"""The demo: photographs go to a worker and come back as other pictures, which are checked and written to files.

The worker behind shmrpc and the one behind the hand-rolled socket are processes of their own. When the pictures are
checked and written, both have ended: the results are still in the memory in which the worker computed them.
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
from examples.harness import START_S, Stages, run_demo, running, stages
from examples.images import rival
from examples.images.api import BadImage, Images
from examples.images.check import InProcess, difference
from examples.images.front import Developed, develop, write
from examples.images.load import OPERATIONS, Comparison, compare
from examples.images.pictures import GRAY, PHOTOGRAPHS, decode, path_of


@dataclass(frozen=True)
class Scale:
    """How much the demo does."""

    photographs: tuple[str, ...]
    """What to develop."""
    timed: tuple[str, ...]
    """What to time with."""
    calls: int
    """Calls of each operation on each of those, to each worker."""


FULL = Scale(PHOTOGRAPHS, (PHOTOGRAPHS[0], *PHOTOGRAPHS[-2:]), calls=30)
QUICK = Scale(PHOTOGRAPHS[:2], PHOTOGRAPHS[:1], calls=5)


@dataclass(frozen=True)
class Outcome:
    """What the workers gave."""

    developed: dict[str, Developed]
    """By the names of the photographs."""
    developing_s: float
    refusal: BadImage | None
    """What became of the picture that has no channels; None if it was taken."""
    comparisons: list[Comparison]
    differences: list[str]


@dataclass(frozen=True)
class Report:
    """What came out."""

    outcome: Outcome
    checked: int
    differences: list[str]
    written: list[Path]
    folder: Path


async def gather(address: Path, rival_address: Path, scale: Scale, stage: Stages) -> Outcome:
    """Have the photographs developed, then time both workers."""
    async with (
        shmrpc.connect(Images, str(address), wait=START_S) as images,
        rival.connect(rival_address, wait_s=START_S) as rival_images,
    ):
        patient = shmrpc.options(images, timeout=30.0)
        developed: dict[str, Developed] = {}
        advance = stage("Developing photographs", len(scale.photographs))
        started = perf_counter()
        for name in scale.photographs:
            developed[name] = await develop(patient, decode(path_of(name)))
            advance(1)
        developing_s = perf_counter() - started

        try:
            refusal = None
            await patient.histogram(decode(path_of(GRAY)))
        except BadImage as error:
            refusal = error

        comparisons: list[Comparison] = []
        differences: list[str] = []
        advance = stage("Timing the calls", len(scale.timed) * len(OPERATIONS))
        for operation in OPERATIONS:
            for name in scale.timed:
                pixels = decode(path_of(name))
                comparison, found = await compare(operation, pixels, patient, rival_images, calls=scale.calls)
                comparisons.append(comparison)
                differences += found
                advance(1)
    return Outcome(developed, developing_s, refusal, comparisons, differences)


async def differences_of(name: str, developed: Developed) -> list[str]:
    """How the results for a photograph differ from those of this process."""
    pixels, in_process = decode(path_of(name)), InProcess()
    rows, columns, _ = developed.resized.pixels.shape
    results = (
        (developed.resized, await in_process.resize(pixels, rows, columns)),
        (developed.histogram, await in_process.histogram(pixels)),
        (developed.edges, await in_process.edges(pixels)),
    )
    return [f"{name}: {told}" for result, expected in results if (told := difference(result, expected))]


async def check_and_write(outcome: Outcome, folder: Path, stage: Stages) -> Report:
    """Check every result, and write the pictures."""
    differences = list(outcome.differences)
    expected_refusal = decode(path_of(GRAY)).shape
    if outcome.refusal is None:
        differences.append(f"{GRAY} has no channels, and should have been a BadImage")
    elif outcome.refusal.shape != expected_refusal:
        differences.append(f"the BadImage says the shape {outcome.refusal.shape}, the picture has {expected_refusal}")
    advance = stage("Checking and writing pictures", len(outcome.developed))
    written: list[Path] = []
    for name, developed in outcome.developed.items():
        differences += await differences_of(name, developed)
        written += write(developed, folder, Path(name).stem)
        advance(1)
    timed = sum(comparison.shmrpc.calls + comparison.rival.calls for comparison in outcome.comparisons)
    checked = timed + len(OPERATIONS) * len(outcome.developed) + 1
    return Report(outcome, checked, differences, written, folder)


def show(report: Report, console: Console) -> None:
    """Print the report."""
    outcome = report.outcome
    console.print(
        f"\nDeveloped {len(outcome.developed)} photographs in {outcome.developing_s:.1f} s, decoding included."
        f"\nWrote {len(report.written)} pictures, with the worker gone, into {report.folder}"
        f"\nChecked {report.checked:,} answers against this process, bit for bit: {len(report.differences)} differ.\n",
        highlight=False,
        soft_wrap=True,
    )
    for told in report.differences[:10]:
        console.print(told, style="red", markup=False, highlight=False)

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = (
        "\nMedians. here: the computation alone, in this process. write: the copy of the decoded picture into shared\n"
        "memory, once for any number of calls. call: from there to the result. transport: the call without the\n"
        "computation, as the worker timed that; share: its part of all calls.\n"
        "socket: the same by hand over a Unix socket, on uvloop."
    )
    table.add_column("method")
    table.add_column("picture")
    for heading in (
        "MB",
        "calls",
        "here\nms",
        "write\nus",
        "call ms\nshmrpc",
        "\nsocket",
        "transport us\nshmrpc",
        "\nsocket",
    ):
        table.add_column(heading, justify="right")
    table.add_column("\nratio", justify="right", style="bold")
    for heading in ("share\nshmrpc", "\nsocket"):
        table.add_column(heading, justify="right")
    for comparison in outcome.comparisons:
        ours, theirs = comparison.shmrpc, comparison.rival
        rows, columns, _ = comparison.shape
        table.add_row(
            comparison.method,
            f"{rows} x {columns}",
            f"{comparison.nbytes / 1e6:.1f}",
            f"{ours.calls}",
            f"{comparison.compute_ms:.2f}",
            f"{comparison.share_us:,.0f}",
            *(f"{timing.call_ms:.2f}" for timing in (ours, theirs)),
            *(f"{timing.transport_us:,.0f}" for timing in (ours, theirs)),
            f"{theirs.transport_us / ours.transport_us:.1f}x",
            *(f"{timing.transport_share:.0%}" for timing in (ours, theirs)),
        )
    console.print(table)


def demonstrate(scale: Scale, folder: Path | None, console: Console) -> Report:
    """Start both workers, have the pictures made, stop the workers, and look at what they gave."""
    with stages(console) as stage:
        with tempfile.TemporaryDirectory(prefix="images-") as directory:
            address, rival_address = Path(directory, "images.sock"), Path(directory, "rival.sock")
            with (
                running("shmrpc", "serve", "examples.images.worker:Worker", "--at", str(address)),
                running("examples.images.rival", str(rival_address)),
            ):
                outcome = uvloop.run(gather(address, rival_address, scale, stage))
            left = [path.name for path in Path(directory).iterdir()]
        if left:
            raise RuntimeError(f"the workers left behind: {', '.join(left)}")
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="pictures-"))
        return uvloop.run(check_and_write(outcome, folder, stage))


def main() -> int:
    """The command line; the exit status is 0 if every answer was right."""
    parser = argparse.ArgumentParser(description="Have photographs developed by another process.")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: a new one, for you to remove)")
    parser.add_argument("--quick", action="store_true", help="few pictures and few calls, for tests")
    parser.add_argument("--plain", action="store_true", help="neither colours nor a progress bar")
    arguments = parser.parse_args()

    def demo(console: Console) -> int:
        report = demonstrate(QUICK if arguments.quick else FULL, arguments.out, console)
        show(report, console)
        return 1 if report.differences else 0

    return run_demo(demo, plain=arguments.plain)
