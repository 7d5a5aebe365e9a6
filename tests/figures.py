"""Counts what a test run has proven: bad inputs tried, kills survived, calls lost. A plugin of pytest, loaded by conftest.

A test adds to a count by the fixture ``figures``, or is counted itself by ``@pytest.mark.counted("bad inputs tried")``
once it has passed; ``@pytest.mark.timed("fuzz seconds")`` adds the time that it took. ``--figures FILE`` writes the counts
as JSON, ``--long`` asks tests for those that take minutes. A page of the documentation gets the table of several such files
by::

    python tests/figures.py PAGE FILE …
"""

import json
import os
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Final

import pytest

ROWS: Final = (
    "tests passed",
    "states explored",
    "bad inputs tried",
    "fuzz executions",
    "fuzz seconds",
    "crash points hit",
    "kills survived",
    "signals weathered",
    "syscalls failed",
    "stateful steps",
    "faults survived",
    "soak seconds",
    "calls checked",
    "streams checked",
    "bytes checked",
    "mutants made",
    "mutants killed",
    "calls lost",
    "blocks lost",
    "fds lost",
)
"""In the order of the table. A count of another name is a mistake."""


BEGIN: Final = "<!-- figures: made by a command, not by hand -->"
END: Final = "<!-- end of figures -->"


class Figures:
    """The counts of this run."""

    def __init__(self, *, long: bool) -> None:
        self.long = long
        """Whether to take the time that the full counts need."""
        self.counts: dict[str, float] = defaultdict(int)
        self.lost = False
        """Whether a process has died that counted too."""

    def add(self, what: str, count: float = 1) -> None:
        """Adds to a count; adding 0 says that it was looked at."""
        assert what in ROWS, f"there is no count {what!r}, but {', '.join(ROWS)}"
        self.counts[what] += count


def table(files: Iterable[Path]) -> str:
    """The counts of several files, added up, as a table in Markdown."""
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(json.loads(file.read_text()))
    rows = [f"| {what} | {round(counts[what]):,} |" for what in ROWS if what in counts]
    machine = f"{platform.machine()}, Linux {platform.release().split('-')[0]}, CPython {platform.python_version()}"
    return "\n".join(["| what | how many |", "|---|---:|", *rows, "", f"{os.cpu_count()} processors, {machine}."])


_figures: Final = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options."""
    group = parser.getgroup("shmrpc")
    group.addoption("--long", action="store_true", help="take the minutes that the full counts need")
    group.addoption(
        "--figures", metavar="FILE", type=Path, help="write the counts of what the run has proven to this file"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the counts, and the mark known."""
    config.addinivalue_line("markers", "counted(what): adds one to a count of figures.py when the test has passed")
    config.addinivalue_line("markers", "timed(what): adds the seconds that the test took, when it has passed")
    config.stash[_figures] = Figures(long=config.getoption("--long"))


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """The counts of this run, and whether it may take long."""
    return pytestconfig.stash[_figures]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Generator[None, Any, Any]:
    """Counts the tests that passed."""
    report = yield
    if report.when == "call" and report.passed:
        counts = item.config.stash[_figures]
        counts.add("tests passed")
        for mark in item.iter_markers("counted"):
            counts.add(*mark.args)
        for mark in item.iter_markers("timed"):
            counts.add(mark.args[0], call.duration)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the counts, if that was asked for; a process that runs a part of the tests hands them on."""
    counts = session.config.stash[_figures].counts
    if (output := getattr(session.config, "workeroutput", None)) is not None:  # of pytest-xdist
        output["figures"] = dict(counts)
    elif (file := session.config.getoption("--figures")) is not None and not session.config.stash[_figures].lost:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(counts))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds what such a process has counted; one that died has told nobody, and no sum is written."""
    counted = getattr(node, "workeroutput", {}).get("figures")
    node.config.stash[_figures].lost |= counted is None
    for what, count in (counted or {}).items():
        node.config.stash[_figures].add(what, count)


def put_into(page: Path, text: str) -> None:
    """Puts a table into a page, in place of the one that is there."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{page} has no place for the table, between {BEGIN} and {END}"
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    put_into(Path(sys.argv[1]), table(map(Path, sys.argv[2:])))
