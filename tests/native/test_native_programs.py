"""Builds the C programs of this folder with every sanitizer and runs them; breaks the core on purpose and sees it caught.

The headers of ``shmrpc/_native`` know nothing of Python, so neither do their tests. One alone, by hand::

    cc -std=c11 -I shmrpc/_native tests/native/unit_wake.c -o unit_wake && ./unit_wake
"""

import json
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parent.parent / "shmrpc" / "_native"
CC = os.environ.get("CC", "cc")
SECONDS = 110
"""How long a program may run; its own watchdog is faster."""
LOST_WAKE_UP = 3
"""The exit status of stress_wake."""

STRICT = ("-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{HEADERS}")
VARIANTS = {
    "plain": ("-O2",),
    "asan": ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # gcc's thread sanitizer ignores atomic_thread_fence and says so; the fences are the business of stress_wake.
    "tsan": ("-O1", "-fsanitize=thread", "-Wno-tsan", "-Wno-unknown-warning-option"),
}
UNITS = ("unit_record_ring", "unit_release_ring", "unit_references", "unit_wake", "unit_hostile")
STRESSES = {
    "stress_record_ring": "200000",
    "stress_release_ring": "500000",
    "stress_scribbler": "1000000",
    "stress_wake records": "30000",
    "stress_wake announced": "30000",
    "stress_wake room": "30000",
    "stress_wake blocks": "30000",
}
UNDER_TSAN = "20000"
"""Repetitions under the thread sanitizer, which finds a race by its missing order and not by its bad luck."""

Build = Callable[..., Path]

pytestmark = pytest.mark.skipif(shutil.which(CC) is None, reason=f"no C compiler: {CC}")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds a program with flags; skips the test where the compiler lacks a sanitizer's runtime."""
    folder = tmp_path_factory.mktemp("native")
    probed: dict[tuple[str, ...], str] = {}

    def probe(flags: tuple[str, ...]) -> str:
        source = folder / "probe.c"
        source.write_text("int main(void) { return 0; }\n")
        compiled = run(CC, *flags, source, "-o", folder / "probe")
        return compiled.stdout if compiled.returncode else run(folder / "probe").stdout

    def build_one(name: str, *flags: str) -> Path:
        sanitizers = tuple(flag for flag in flags if flag.startswith("-fsanitize="))
        if sanitizers not in probed:
            probed[sanitizers] = probe(sanitizers)
        if probed[sanitizers]:
            pytest.skip(f"{CC} {' '.join(sanitizers)} does not work here: {probed[sanitizers]}")
        program = folder / "-".join((name, *flags)).replace("/", "_")
        if not program.exists():
            compiled = run(CC, *STRICT, *flags, HERE / f"{name}.c", "-o", program, "-lpthread")
            assert compiled.returncode == 0, compiled.stdout
        return program

    return build_one


def run(*command: str | Path, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs a command; its errors are part of its output."""
    return subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False
    )


@pytest.mark.parametrize("variant", ["plain", "asan"])
@pytest.mark.parametrize("name", UNITS)
def test_the_core_does_what_its_headers_say(build: Build, name: str, variant: str) -> None:
    done = run(build(name, *VARIANTS[variant]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STRESSES)
def test_two_threads_agree_on_one_mapping(build: Build, name: str, variant: str) -> None:
    program, *arguments = name.split()
    count = UNDER_TSAN if variant == "tsan" else STRESSES[name]
    done = run(build(program, *VARIANTS[variant]), *arguments, count)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["stress_record_ring", "stress_release_ring"])
def test_a_relaxed_publish_is_caught_as_a_data_race(build: Build, name: str) -> None:
    done = run(build(name, *VARIANTS["tsan"], "-DSHMRPC_MUTANT_RELAXED_PUBLISH"), UNDER_TSAN)
    assert "WARNING: ThreadSanitizer: data race" in done.stdout
    assert done.returncode != 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two threads on one processor never meet in the window")
@pytest.mark.parametrize("what", ["records", "announced", "room", "blocks"])
@pytest.mark.parametrize("side", ["RINGER", "SLEEPER"])
def test_a_missing_fence_is_caught_as_a_lost_wake_up(build: Build, what: str, side: str) -> None:
    mutant = build("stress_wake", *VARIANTS["plain"], f"-DSHMRPC_MUTANT_NO_{side}_FENCE")
    done = run(mutant, what, "5000000")  # it stops at the first loss, after some thousands of rounds
    assert done.returncode == LOST_WAKE_UP, done.stdout


def test_every_line_of_the_headers_is_reached(
    tmp_path: Path, build: Build, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Counts with gcov. To see the figures: ``pytest -s -k every_line tests/native``."""
    if shutil.which("gcov") is None or "clang" in run(CC, "--version").stdout:
        pytest.skip("gcov, which reads what gcc counted, is not here")
    for name in (*UNITS, "stress_wake"):
        compiled = run(CC, *STRICT, "-O0", "--coverage", HERE / f"{name}.c", "-o", name, "-lpthread", folder=tmp_path)
        assert compiled.returncode == 0, compiled.stdout
        done = run(tmp_path / name, *(("records", "100") if name == "stress_wake" else ()), folder=tmp_path)
        assert done.returncode == 0, done.stdout
    reached: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for counts in tmp_path.glob("*.gcda"):
        for line in run("gcov", "--json-format", "--stdout", counts.name, folder=tmp_path).stdout.splitlines():
            for file in json.loads(line)["files"]:
                lines = reached[Path(file["file"]).name]
                for entry in file["lines"]:
                    number = entry["line_number"]
                    lines[number] = lines.get(number, 0) + entry["count"]
    missed = {}
    for name in ("atomics.h", "references.h", "ring.h", "wake.h"):
        lines = reached[name]
        percent = 100 * sum(map(bool, lines.values())) / len(lines)
        print(f"{name}: {percent:.1f} % of {len(lines)} lines")
        record_testsuite_property(f"coverage {name}", percent)
        missed[name] = [number for number, count in sorted(lines.items()) if not count]
    assert not any(missed.values()), missed
