"""The Promela twin of the model, gone through by spin: the protocol as it is, and one mutant for each rule.

Spin makes a C program of the model, which then visits every state. Where spin or a C compiler is missing the tests are
skipped, but not in CI.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from figures import Figures

MODEL: Final = Path(__file__).with_name("doorbell.pml")
CC: Final = os.environ.get("CC", "cc")
MISSING: Final = [tool for tool in ("spin", CC) if shutil.which(tool) is None]

GOOD: Final = {
    "2 records, each may be announced": "-DN=2 -DRING=2 -DANNOUNCES",
    "2 records with the one block through a ring of one": "-DN=2 -DLENDS",
}
LARGER: Final = {
    "3 records": "-DN=3 -DRING=4",
    "3 records through a ring of one": "-DN=3",
    "the same with a pipe that is read in parts": "-DN=3 -DBELL=2",
    "4 records, taken 2 at a time": "-DN=4 -DRING=2 -DBUDGET=2",
    "3 records, each may be announced": "-DN=3 -DRING=4 -DANNOUNCES",
    "3 records with the one block": "-DN=3 -DRING=2 -DLENDS",
}
LOST: Final = "invalid end state"
WRONG: Final = "assertion violated"
MUTANTS: Final = {
    "NO_RINGER_FENCE": ("-DN=2", LOST),
    "NO_SLEEPER_FENCE": ("-DN=2", LOST),
    "FLAG": ("-DN=2 -DRING=2", LOST),
    "NO_SECOND_LOOK": ("-DN=1", LOST),
    "NO_SECOND_LOOK_FOR_ROOM": ("-DN=2", LOST),
    "NO_DISARM": ("-DN=2 -DRING=2", LOST),
    "CLEARS_LAST": ("-DN=3", LOST),
    "OLD_ROOM_EPOCH": ("-DN=3", LOST),
    "NEVER_RINGS_FOR_ROOM": ("-DN=2", LOST),
    "NEVER_RINGS_FOR_MEMORY": ("-DN=2 -DRING=2 -DLENDS", LOST),
    "ANNOUNCES_SILENTLY": ("-DN=1 -DANNOUNCES", LOST),
    "LOOKS_BEFORE_IT_PUBLISHES": ("-DN=1", LOST),
    "PUBLISHES_BEFORE_IT_WRITES": ("-DN=1", WRONG),
    "GIVES_ROOM_BEFORE_IT_COPIES": ("-DN=2", WRONG),
    "LENDS_WHAT_IS_LENT": ("-DN=2 -DRING=2 -DLENDS", WRONG),
}
IN_EVERY_RUN: Final = ("NO_RINGER_FENCE", "NO_SLEEPER_FENCE", "FLAG", "CLEARS_LAST", "GIVES_ROOM_BEFORE_IT_COPIES")
"""The others with --long: to compile the verifier takes a second or more each time."""
HARMLESS: Final = {
    "FORGETS": "-DN=2",
    "DISARMS_LAST": "-DN=2",
}


@pytest.fixture(autouse=True)
def _tools() -> None:
    if MISSING:
        missing = f"{' and '.join(MISSING)}, which the Promela model needs, is not here"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)


def only_long(figures: Figures) -> None:
    """Skips the test, unless the run may take long."""
    if not figures.long:
        pytest.skip("takes longer: --long")


class Verdict(NamedTuple):
    """What the verifier says."""

    states: int
    errors: int
    text: str


def verify(folder: Path, *macros: str) -> Verdict:
    """Goes through the model with these macros."""

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    run("spin", "-a", *(macro for macro in macros if macro != "-O2"), str(MODEL))
    run(CC, "-O2" if "-O2" in macros else "-O0", "-w", "-DSAFETY", "-DMEMLIM=4000", "-o", "pan", "pan.c")
    text = run("./pan", "-m1000000")
    states, errors = re.search(r"(\d+) states, stored", text), re.search(r"errors: (\d+)", text)
    assert states is not None, text
    assert errors is not None, text
    assert "max search depth too small" not in text, text
    if errors[1] == "0":
        assert "Search not completed" not in text, text
    return Verdict(int(states[1]), int(errors[1]), text)


@pytest.mark.parametrize("name", GOOD)
def test_spin_finds_nothing_in_the_protocol(name: str, tmp_path: Path, figures: Figures) -> None:
    verdict = verify(tmp_path, *GOOD[name].split())
    assert verdict.errors == 0, verdict.text
    figures.add("states explored", verdict.states)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LARGER)
def test_spin_finds_nothing_in_more_of_the_protocol(name: str, tmp_path: Path, figures: Figures) -> None:
    only_long(figures)
    verdict = verify(tmp_path, "-O2", *LARGER[name].split())
    assert verdict.errors == 0, verdict.text
    figures.add("states explored", verdict.states)


@pytest.mark.parametrize("macro", MUTANTS)
def test_spin_catches_each_rule_that_is_taken_out(macro: str, tmp_path: Path, figures: Figures) -> None:
    if macro not in IN_EVERY_RUN:
        only_long(figures)
    bounds, how = MUTANTS[macro]
    verdict = verify(tmp_path, f"-D{macro}", "-DKERNEL_FENCES", *bounds.split())
    assert verdict.errors == 1, verdict.text
    assert how in verdict.text


@pytest.mark.parametrize("macro", HARMLESS)
def test_spin_agrees_that_a_mutant_is_harmless(macro: str, tmp_path: Path, figures: Figures) -> None:
    only_long(figures)
    verdict = verify(tmp_path, f"-D{macro}", *HARMLESS[macro].split())
    assert verdict.errors == 0, verdict.text


def test_every_mutant_in_the_model_is_tried() -> None:
    macros = set(re.findall(r"#ifn?def (\w+)", MODEL.read_text()))
    bounds = {"N", "RING", "BUDGET", "BELL", "LENDS", "ANNOUNCES", "KERNEL_FENCES"}
    assert macros - bounds == MUTANTS.keys() | HARMLESS.keys()
