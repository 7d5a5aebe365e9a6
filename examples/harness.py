"""What the demos share: workers as processes of their own, progress, and the manners of a command line.

Whatever ends a demo, its workers end first.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[1]
START_S = 10.0
STOP_S = 15.0

Stages = Callable[[str, int], Callable[[int], None]]
"""Announces a stage of so many steps; what it returns hears of steps that are done."""


def ignore_progress(_steps: int) -> None:
    """Take no notice of progress."""


@contextmanager
def running(*module: str) -> Generator[None, None, None]:
    """Run a Python module as a process of its own, and end it gracefully on the way out.

    It has a session of its own too, so that a Ctrl-C reaches the demo alone, which then ends its workers.
    """
    process = subprocess.Popen([sys.executable, "-m", *module], cwd=ROOT, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except BaseException:  # too slow, or a second Ctrl-C
            process.kill()
            raise
    if process.returncode != 0:
        raise RuntimeError(f"{module[0]} ended with status {process.returncode} instead of 0")


@contextmanager
def stages(console: Console) -> Generator[Stages, None, None]:
    """Show the progress of one stage after the other: as bars on a terminal, else by their names."""
    columns = TextColumn("{task.description:<33}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:

        def stage(name: str, steps: int) -> Callable[[int], None]:
            if progress.disable:
                console.print(f"{name} ...")
                return ignore_progress
            task = progress.add_task(name, total=steps)
            return lambda done: progress.update(task, advance=done, refresh=True)

        yield stage


def run_demo(demo: Callable[[Console], int], *, plain: bool) -> int:
    """Run a demo until it ends or is stopped, by Ctrl-C or SIGTERM.

    Args:
        demo: Prints on the console that it is given; returns the exit status.
        plain: Neither colours nor progress bars, as where there is no terminal.
    """
    console = Console()
    if plain or not console.is_terminal:
        console = Console(force_terminal=False, no_color=True, width=120)

    def terminate(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    try:
        return demo(console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 128 + signal.SIGINT
