"""Builds the C programs of ``tests/native`` on the headers of the native core, right or with a mistake. A plugin of pytest.

The headers of ``shmrpc/_native`` know nothing of Python, so neither do their tests. One alone, by hand::

    cc -std=c11 -I shmrpc/_native tests/native/unit_wake.c -o unit_wake && ./unit_wake
"""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

import pytest

PROGRAMS: Final = Path(__file__).parent / "native"
HEADERS: Final = Path(__file__).parent.parent / "shmrpc" / "_native"
CC: Final = os.environ.get("CC", "cc")
SECONDS: Final = 110
"""How long a program may run; its own watchdog is faster."""

STRICT: Final = ("-std=c11", "-g", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror")
STEPS: Final = ("-DSHMRPC_STEPS", "-D_POSIX_C_SOURCE=200809L")
ASAN: Final = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
VARIANTS: Final = {
    "plain": ("-O2",),
    "asan": ASAN,
    # gcc's thread sanitizer ignores atomic_thread_fence and says so; the fences are the business of stress_wake.
    "tsan": ("-O1", "-fsanitize=thread", "-Wno-tsan", "-Wno-unknown-warning-option"),
}


class Mistake(NamedTuple):
    """A text of a header that stands there once, and what is put in its place."""

    header: str
    old: str
    new: str


class NativeBuilds:
    """Builds programs, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._probed: dict[tuple[str, ...], str] = {}

    def __call__(self, name: str, *flags: str, compiler: str = CC, mistake: Mistake | None = None) -> Path:
        """A program, built with flags. Skips the test where the compiler lacks a sanitizer's runtime."""
        sanitizers = (compiler, *(flag for flag in flags if flag.startswith("-fsanitize=")))
        if (problem := self.problem(*sanitizers)) is not None:
            pytest.skip(f"{' '.join(sanitizers)} does not work here: {problem}")
        headers = HEADERS if mistake is None else self._mistaken(mistake)
        program = self._folder / "-".join((name, compiler, *flags, headers.name)).replace("/", "_")
        if not program.exists():
            compiled = run(
                compiler, *STRICT, f"-I{headers}", *flags, PROGRAMS / f"{name}.c", "-o", program, "-lpthread"
            )
            assert compiled.returncode == 0, compiled.stdout
        return program

    def problem(self, compiler: str, *sanitizers: str) -> str | None:
        """Why a compiler cannot build and run a program with sanitizers; None: it can."""
        key = (compiler, *sanitizers)
        if key not in self._probed:
            self._probed[key] = self._probe(key)
        return self._probed[key] or None

    def _probe(self, command: tuple[str, ...]) -> str:
        if shutil.which(command[0]) is None:
            return f"there is no {command[0]}"
        source, fuzzes = self._folder / "probe.c", any("fuzzer" in flag for flag in command)
        source.write_text(
            "int LLVMFuzzerTestOneInput(const char *at, unsigned long n) { return at && n ? 0 : 0; }\n"
            if fuzzes
            else "int main(void) { return 0; }\n"
        )
        compiled = run(*command, source, "-o", self._folder / "probe")
        if compiled.returncode:
            return compiled.stdout
        ran = run(self._folder / "probe", *(["-runs=1"] if fuzzes else []))
        return ran.stdout if ran.returncode or not fuzzes else ""

    def _mistaken(self, mistake: Mistake) -> Path:
        folder = self._folder / f"headers-{abs(hash(mistake))}"
        if not folder.exists():
            folder.mkdir()
            for header in HEADERS.glob("*.h"):
                text = header.read_text()
                if header.name == mistake.header:
                    assert text.count(mistake.old) == 1, f"{mistake.header} has this not once: {mistake.old}"
                    text = text.replace(mistake.old, mistake.new)
                (folder / header.name).write_text(text)
        return folder


def run(
    *command: str | Path, folder: Path | None = None, seconds: float = SECONDS, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs a command; its errors are part of its output."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        check=False,
    )


def skip_if_too_busy(done: "subprocess.CompletedProcess[str]") -> None:
    """Skips the test of two threads that had to meet in a window, when they never did since others had the processors."""
    load = os.getloadavg()[0]
    if done.returncode == -signal.SIGALRM and load > 2 * len(os.sched_getaffinity(0)):
        pytest.skip(f"the machine is too busy, with a load of {load:.0f}: the two threads hardly ever ran at once")


def chosen_seed() -> int:
    """``SHMRPC_SEED`` in the environment, or another number in every run."""
    return int(os.environ.get("SHMRPC_SEED") or random.randrange(1 << 31))


@pytest.fixture(scope="session")
def native_builds(tmp_path_factory: pytest.TempPathFactory) -> NativeBuilds:
    """Builds the C programs of ``tests/native``."""
    if shutil.which(CC) is None:
        pytest.skip(f"no C compiler: {CC}")
    return NativeBuilds(tmp_path_factory.mktemp("native"))
