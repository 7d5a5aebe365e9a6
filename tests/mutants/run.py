"""Removes the guards of `mutants.py` one by one, each in a copy of the tree, and sees the test that is named there fail.

    python tests/mutants/run.py [--figures FILE] [--every N] [WORD …]

Takes those whose guard, file or test contains one of the words, else all. Says which survived; exit status 1 if any did,
or if a test fails though no guard is missing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from mutant import Mutant
from mutants import MUTANTS

ROOT: Final = Path(__file__).parents[2]
NEEDED: Final = ("shmrpc", "tests", "examples", "docs", "pyproject.toml", "setup.py", "README.md", "CONTRIBUTING.md")
SECONDS: Final = 300
"""A test that hangs has failed: its guard was needed for it to end."""
TESTS_FAILED: Final = 1
"""The exit status of pytest; others say that it could not run them."""


class Copy:
    """A tree of its own to break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in NEEDED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
            else:
                shutil.copy(source, folder / name)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Runs a Python command in it."""
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )

    def test(self, *tests: str) -> tuple[int, str]:
        """Runs tests in it until one fails; the status of pytest, and what it printed."""
        try:
            done = self.run("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests)
        except subprocess.TimeoutExpired:
            return TESTS_FAILED, "did not end"
        return done.returncode, done.stdout

    @contextmanager
    def without(self, mutant: Mutant) -> Iterator[None]:
        """Without a guard, in the block."""
        file = self.folder / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.file} has {text.count(mutant.old)} places for {mutant.guard!r}, not one")
        extensions = (
            {path: path.read_bytes() for path in (self.folder / "shmrpc").glob("*.so")} if mutant.native else {}
        )
        try:
            file.write_text(text.replace(mutant.old, mutant.new))
            if mutant.native:
                built = self.run("setup.py", "-q", "build_ext", "--inplace", "--force")
                if built.returncode:
                    raise ValueError(f"the extension without {mutant.guard!r} cannot be built: {built.stdout}")
            yield
        finally:
            file.write_text(text)
            for path, contents in extensions.items():
                path.write_bytes(contents)


def judge(copy: Copy, mutant: Mutant) -> str:
    """What is wrong with a mutant; empty if its test fails as it must."""
    try:
        with copy.without(mutant):
            status, output = copy.test(mutant.test, "-k", mutant.words)
    except ValueError as error:
        return str(error)
    if status == TESTS_FAILED:
        return ""
    if status == 0:
        return f"survived: {mutant.test} passes"
    return f"{mutant.test} could not run: {output[-2000:]}"


def main(words: Iterable[str], every: int, figures: Path | None) -> int:
    """Runs them, two at a time."""
    chosen = [
        mutant
        for mutant in MUTANTS
        if not words or any(word in f"{mutant.guard} {mutant.file} {mutant.test}" for word in words)
    ][::every]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        workers = min(2, os.cpu_count() or 1)
        for number in range(workers):
            copies.put(Copy(Path(folder) / str(number)))

        def one(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                wrong = judge(copy, mutant)
            finally:
                copies.put(copy)
            print(f"{'SURVIVED' if wrong else 'killed':8}  {mutant.guard}", flush=True)
            return wrong

        copy = copies.get()
        status, output = copy.test(*sorted({mutant.test for mutant in chosen}))
        copies.put(copy)
        if status:
            print(output, "the tests fail though no guard is missing", sep="\n")
            return 1
        with ThreadPoolExecutor(workers) as threads:
            verdicts = list(threads.map(one, chosen))
    survivors = [f"{mutant.guard}: {wrong}" for mutant, wrong in zip(chosen, verdicts, strict=True) if wrong]
    print(*survivors, sep="\n")
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s")
    if figures is not None:
        counts = {"mutants made": len(chosen), "mutants killed": len(chosen) - len(survivors)}
        figures.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text(json.dumps(counts))
    return 1 if survivors else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Removes guards one by one and sees tests fail.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="take only those whose guard, file or test contains one"
    )
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write the counts to this file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one of N only")
    options = parser.parse_args()
    sys.exit(main(options.words, options.every, options.figures))
