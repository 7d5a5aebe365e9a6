"""The tests' side of a `faulted_worker`: starts it, tells it what to do, and sees that nothing was lost.

Owns the building of the library that makes system calls fail.
"""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
CC: Final = os.environ.get("CC", "cc")
PATIENCE: Final = 100.0
"""Seconds in which a worker must answer; what hangs in it says so itself, earlier."""

needs_compiler: Final = pytest.mark.skipif(shutil.which(CC) is None, reason=f"no C compiler: {CC}")


def build_faults(folder: Path) -> Path:
    """The library for LD_PRELOAD."""
    library = folder / "faults.so"
    strict = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
    subprocess.run([CC, *strict, "-shared", "-fPIC", HERE / "faults.c", "-o", library, "-ldl"], check=True)
    return library


class WorkerProcess:
    """A running worker."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process: Final = process
        self.mortal = False
        """Whether it is going to be killed."""
        self._log = log
        self._rest = b""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def expect_death(self) -> None:
        """From now on it may be killed."""
        self.mortal = True

    def ask(self, do: str, **arguments: Any) -> Any:
        """Has it do something; gives the answer."""
        self.tell(do, **arguments)
        return self.answer(do)

    def tell(self, do: str, **arguments: Any) -> None:
        """Has it do something; `answer` waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, what: str) -> Any:
        """What it answered."""
        line = self._line(what)
        answer = json.loads(line)
        assert "failed" not in answer, f"{what}: {answer['failed']}"
        return answer["answer"]

    def _line(self, what: str) -> bytes:
        assert self.process.stdout is not None
        until = time.monotonic() + PATIENCE
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no answer to {what} within {PATIENCE} s; its log: {self._log.read_text()}"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, f"it ended at {what}, with status {self.process.wait()}; its log: {self._log.read_text()}"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def check_settled(self, when: str) -> list[str]:
        """Sees that nothing is left of what it did, and nothing in its log that nobody should read; gives its warnings."""
        settled = self.ask("settle")
        assert not settled["left"], f"{when}: left behind: {settled['left']}"
        assert not settled["complaints"], f"{when}: in the log: {settled['complaints']}"
        warned: list[str] = settled["warned"]
        return warned


@contextmanager
def worker(
    folder: Path,
    name: str,
    *,
    preload: Path | None = None,
    loop: str = "asyncio",
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """A worker in a process of its own, which is told to quit at the end, and killed if the test failed."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", **(environment or {})}
    if preload is not None:
        variables["LD_PRELOAD"] = str(preload)
    log = folder / f"{name}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-W", "always::ResourceWarning", HERE / "faulted_worker.py", loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
            preexec_fn=prepare,
        )
    running = WorkerProcess(process, log)
    try:
        yield running
        if not running.mortal:
            running.ask("quit")
            assert process.wait(PATIENCE) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
