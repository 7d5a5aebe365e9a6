"""Runs the C programs of this folder with every sanitizer; breaks the core on purpose and sees it caught."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
from native_builds import CC, HEADERS, PROGRAMS, STRICT, VARIANTS, NativeBuilds, run, skip_if_too_busy

LOST_WAKE_UP = 3
"""The exit status of stress_wake."""

pytestmark = pytest.mark.usefixtures("native_builds")

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

CROSS_CC, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
UNDER_EMULATION = "10000"


@pytest.mark.parametrize("variant", ["plain", "asan"])
@pytest.mark.parametrize("name", UNITS)
def test_the_core_does_what_its_headers_say(native_builds: NativeBuilds, name: str, variant: str) -> None:
    done = run(native_builds(name, *VARIANTS[variant]))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STRESSES)
def test_two_threads_agree_on_one_mapping(native_builds: NativeBuilds, name: str, variant: str) -> None:
    program, *arguments = name.split()
    count = UNDER_TSAN if variant == "tsan" else STRESSES[name]
    done = run(native_builds(program, *VARIANTS[variant]), *arguments, count)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [*UNITS, *STRESSES])
def test_the_core_does_the_same_on_aarch64(tmp_path: Path, name: str) -> None:
    """Emulated: its instructions and layouts, but not all that its weaker order allows."""
    for command in (CROSS_CC, EMULATOR):
        if shutil.which(command) is None:
            pytest.skip(f"there is no {command}")
    source, *arguments = name.split()
    program = tmp_path / source
    options = (*STRICT, "-O2", "-static", f"-I{HEADERS}", "-o", program)
    compiled = run(CROSS_CC, *options, PROGRAMS / f"{source}.c", "-lpthread")
    assert compiled.returncode == 0, compiled.stdout
    done = run(EMULATOR, program, *arguments, *([UNDER_EMULATION] if name in STRESSES else []))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["stress_record_ring", "stress_release_ring"])
def test_a_relaxed_publish_is_caught_as_a_data_race(native_builds: NativeBuilds, name: str) -> None:
    done = run(native_builds(name, *VARIANTS["tsan"], "-DSHMRPC_MUTANT_RELAXED_PUBLISH"), UNDER_TSAN)
    assert "WARNING: ThreadSanitizer: data race" in done.stdout
    assert done.returncode != 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two threads on one processor never meet in the window")
@pytest.mark.parametrize("what", ["records", "announced", "room", "blocks"])
@pytest.mark.parametrize("side", ["RINGER", "SLEEPER"])
def test_a_missing_fence_is_caught_as_a_lost_wake_up(native_builds: NativeBuilds, what: str, side: str) -> None:
    mutant = native_builds("stress_wake", *VARIANTS["plain"], f"-DSHMRPC_MUTANT_NO_{side}_FENCE")
    done = run(mutant, what, "5000000")  # it stops at the first loss, after some thousands of rounds
    skip_if_too_busy(done)
    assert done.returncode == LOST_WAKE_UP, done.stdout


def test_every_line_of_the_headers_is_reached(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Counts with gcov. To see the figures: ``pytest -s -k every_line tests/native``."""
    if shutil.which("gcov") is None or "clang" in run(CC, "--version").stdout:
        pytest.skip("gcov, which reads what gcc counted, is not here")
    for name in (*UNITS, "stress_wake"):
        options = (*STRICT, f"-I{HEADERS}", "-O0", "--coverage", "-o", name)
        compiled = run(CC, *options, PROGRAMS / f"{name}.c", "-lpthread", folder=tmp_path)
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
