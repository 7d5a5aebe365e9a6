"""`.ci/run` runs what failed once more: its own lines, on a project that has nothing but one test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")

ROOT = Path(__file__).parents[1]

CONFTEST = """
pytest_plugins = "figures"
"""
FAILS = """
import os, signal
from pathlib import Path

def test_that_fails():
    runs = Path(__file__).with_suffix(".runs")
    with runs.open("a") as file:
        file.write("x")
    assert len(runs.read_text()) > {times}

def test_that_passes():
    if {interrupts}:
        os.kill(os.getpid(), signal.SIGINT)
"""


def project(folder: Path, steps: list[str], *, times: int, interrupts: bool = False) -> Path:
    """A tree with the Makefile, these steps of `.ci/run`, and a test that fails some times. The script."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("step "))
    script = folder / ".ci" / "run"
    for name, text in {
        ".ci/run": "\n".join([*lines[:first], *steps]),
        ".ci/twice.sh": (ROOT / ".ci" / "twice.sh").read_text(),
        "Makefile": (ROOT / "Makefile").read_text(),
        "pyproject.toml": '[tool.pytest.ini_options]\ntestpaths = ["tests"]\n',
        "setup.py": "",
        "tests/conftest.py": CONFTEST,
        "tests/figures.py": (ROOT / "tests" / "figures.py").read_text(),
        "tests/test_some.py": FAILS.format(times=times, interrupts=interrupts),
        ".venv/bin/python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
        ".venv/.installed-test": "",  # the newest: make has nothing to install
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for program in (script, folder / ".venv" / "bin" / "python"):
        program.chmod(0o755)
    return script


def run(script: Path) -> "subprocess.CompletedProcess[str]":
    ours = ("PYTEST_", "MAKE", "MFLAGS")  # what the run that this test is part of has set
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60
    )


def step_of_tests() -> list[str]:
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith('step "tests"')]
    assert len(steps) == 1
    return steps


@pytest.mark.parametrize("times", [1, 2])
def test_what_failed_is_run_once_more_and_a_second_failure_counts(tmp_path: Path, times: int) -> None:
    done = run(project(tmp_path, step_of_tests(), times=times))
    runs = tmp_path / "tests" / "test_some.runs"
    assert runs.exists(), done.stdout
    assert runs.read_text() == "xx", done.stdout
    assert (done.returncode == 0) == (times == 1), done.stdout
    summary = "= 1 passed in" if times == 1 else "= 1 failed in"
    assert summary in done.stdout.partition("FAILED ONCE")[2], "what failed is run again, and it alone"


def test_a_run_that_was_interrupted_is_not_mended_by_running_what_failed(tmp_path: Path) -> None:
    step = step_of_tests()[0].replace("make_test", "make_test -n 0")
    done = run(project(tmp_path, [step], times=1, interrupts=True))
    assert "KeyboardInterrupt" in done.stdout
    assert "FAILED ONCE" not in done.stdout
    assert done.returncode == 2, done.stdout
