"""Fuzzes the two rings and the table of references: what no peer can bring about, whatever it writes and whenever.

In every run the seeds of `native_seeds.py` are replayed, and some thousand inputs made of them by chance, under the address
and the undefined-behaviour sanitizer. With ``--long`` libFuzzer has its time: ``SHMRPC_FUZZ_SECONDS`` for each target.
"""

import os
import re
from pathlib import Path
from typing import Final

import pytest
from figures import Figures
from native_builds import ASAN, STEPS, Mistake, NativeBuilds, chosen_seed, run
from native_seeds import SEEDS, write_seeds

ROUNDS: Final = 10_000
MUTANT_ROUNDS: Final = 100_000
FUZZ_SECONDS: Final = int(os.environ.get("SHMRPC_FUZZ_SECONDS", "25"))
FIND_SECONDS: Final = 60
"""How long libFuzzer may search for a mistake that it finds in one."""
STANDALONE: Final = "-DSHMRPC_STANDALONE"
LIBFUZZER: Final = ("-O2", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")

ANOTHER_LENGTH: Final = "        record->length = (uint32_t)shm_ring_word(c->ring + at);\n"
MISTAKES: Final = {
    "a record may end behind what was published": (
        "fuzz_record_ring",
        "ring.h",
        "need > available || need > to_end",
        "need > to_end",
    ),
    "a record may end behind the ring": (
        "fuzz_record_ring",
        "ring.h",
        "need > available || need > to_end",
        "need > available",
    ),
    "padding may end before the ring": (
        "fuzz_record_ring",
        "ring.h",
        "record->length != to_end || record->length > available",
        "record->length > available",
    ),
    "padding may end behind what was published": (
        "fuzz_record_ring",
        "ring.h",
        "record->length != to_end || record->length > available",
        "record->length != to_end",
    ),
    "a header is loaded twice": (
        "fuzz_record_ring",
        "ring.h",
        "        SHM_STEP(take_header_loaded);\n",
        "        SHM_STEP(take_header_loaded);\n" + ANOTHER_LENGTH,
    ),
    "a tail may go back": (
        "fuzz_record_ring",
        "ring.h",
        "tail < c->tail || tail - c->committed",
        "tail - c->committed",
    ),
    "a tail may run over": ("fuzz_record_ring", "ring.h", "tail - c->committed > c->size || ", ""),
    "a tail may lie between words": ("fuzz_record_ring", "ring.h", " || tail % SHM_RECORD_ALIGN", ""),
    "a head may go back": ("fuzz_record_ring", "ring.h", "head < p->head || ", ""),
    "a head may run over": ("fuzz_record_ring", "ring.h", "head > p->tail || ", ""),
    "a head may lie between words": ("fuzz_record_ring", "ring.h", " || head % SHM_RECORD_ALIGN", ""),
    "a full ring is written over": (
        "fuzz_record_ring",
        "ring.h",
        "            return SHM_FULL;\n    }\n    SHM_STEP(publish_begun);",
        "            p->head = p->tail;\n    }\n    SHM_STEP(publish_begun);",
    ),
    "the head of a release ring may run over": (
        "fuzz_release_ring",
        "ring.h",
        "    if (head > r->tail)\n        return SHM_BAD_HEAD;\n",
        "",
    ),
    "a full release ring is written over": (
        "fuzz_release_ring",
        "ring.h",
        "r->tail - head >= r->entries",
        "r->tail - head > r->entries",
    ),
    "the tail of a release ring may run over": ("fuzz_release_ring", "ring.h", " || tail - r->head > r->entries", ""),
    "a short payload is a table": (
        "fuzz_references",
        "references.h",
        "    if (length < sizeof words) {\n        *count = 0;\n        return SHM_REFERENCES_CUT;\n    }\n",
        "",
    ),
    "a table may be dirty": (
        "fuzz_references",
        "references.h",
        "    if (words[1])\n        return SHM_REFERENCES_DIRTY;\n",
        "",
    ),
    "a table may be as long as it likes": (
        "fuzz_references",
        "references.h",
        "    if (*count > most)\n        return SHM_REFERENCES_MANY;\n",
        "    (void)most;\n",
    ),
    "a table may end behind its payload": (
        "fuzz_references",
        "references.h",
        "shm_references_bytes(*count) > length ? SHM_REFERENCES_CUT : SHM_REFERENCES_OK",
        "SHM_REFERENCES_OK",
    ),
    "a block may begin behind the slab": ("fuzz_references", "references.h", "first > slab_bytes || ", ""),
    "an offset may lead out of the slab": (
        "fuzz_references",
        "references.h",
        " || reference->offset > slab_bytes - first",
        "",
    ),
    "a block may end behind the slab": (
        "fuzz_references",
        "references.h",
        "return reference->nbytes <= slab_bytes - *at",
        "return true",
    ),
}
"""By what each lets a peer do: the target that must find it, and the header's text with and without the guard."""
SHORT: Final = ("a record may end behind the ring", "a header is loaded twice", "a full release ring is written over")
"""Those that are tried in every run."""


@pytest.mark.timed("fuzz seconds")
@pytest.mark.parametrize("target", SEEDS)
def test_no_input_makes_the_core_leave_its_memory_or_its_rules(
    native_builds: NativeBuilds, tmp_path: Path, figures: Figures, target: str
) -> None:
    seed = chosen_seed()
    program = native_builds(target, *ASAN, *STEPS, STANDALONE)
    done = run(program, str(ROUNDS), str(seed), *write_seeds(tmp_path, target))
    assert done.returncode == 0, f"with SHMRPC_SEED={seed}: {done.stdout}"
    assert f"executions: {ROUNDS + len(SEEDS[target])}" in done.stdout
    figures.add("fuzz executions", ROUNDS + len(SEEDS[target]))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_guard_that_is_missing_is_found(
    native_builds: NativeBuilds, tmp_path: Path, figures: Figures, mistake: str
) -> None:
    if mistake not in SHORT and not figures.long:
        pytest.skip("one of those that --long tries")
    target, header, old, new = MISTAKES[mistake]
    mutant = native_builds(target, "-O0", *STEPS, STANDALONE, mistake=Mistake(header, old, new))
    done = run(mutant, str(MUTANT_ROUNDS), "1", *write_seeds(tmp_path, target))
    assert "must hold" in done.stdout, done.stdout
    assert "the input was" in done.stdout
    assert done.returncode < 0


def need_libfuzzer(native_builds: NativeBuilds, figures: Figures) -> None:
    """Skips the test where libFuzzer cannot be run, or has not the time; in CI it must be there."""
    if not figures.long:
        pytest.skip("libFuzzer takes the time that --long allows")
    problem = native_builds.problem("clang", LIBFUZZER[1])
    if problem is not None:
        assert os.environ.get("CI") != "true", f"libFuzzer does not work: {problem}"
        pytest.skip(f"libFuzzer does not work here: {problem}")


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(FUZZ_SECONDS + 200)
@pytest.mark.parametrize("target", SEEDS)
def test_libfuzzer_finds_nothing(native_builds: NativeBuilds, tmp_path: Path, figures: Figures, target: str) -> None:
    need_libfuzzer(native_builds, figures)
    fuzzer = native_builds(target, *LIBFUZZER, *STEPS, compiler="clang")
    found, seeds = tmp_path / "found", tmp_path / "seeds"
    found.mkdir()
    seeds.mkdir()
    write_seeds(seeds, target)
    options = (f"-max_total_time={FUZZ_SECONDS}", f"-seed={chosen_seed()}", "-max_len=1024", "-print_final_stats=1")
    done = run(fuzzer, *options, f"-artifact_prefix={found}/crash-", found, seeds, seconds=FUZZ_SECONDS + 100)
    assert done.returncode == 0, done.stdout
    executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stdout)
    assert executed is not None, done.stdout
    figures.add("fuzz executions", int(executed[1]))


@pytest.mark.timeout(FIND_SECONDS + 200)
@pytest.mark.parametrize(
    ("mistake", "harmless"),
    [
        ("a record may end behind what was published", "one record"),
        ("a full release ring is written over", "one block"),
        ("a block may end behind the slab", "one"),
    ],
)
def test_libfuzzer_finds_a_guard_that_is_missing_from_a_harmless_input(
    native_builds: NativeBuilds, tmp_path: Path, figures: Figures, mistake: str, harmless: str
) -> None:
    need_libfuzzer(native_builds, figures)
    target, header, old, new = MISTAKES[mistake]
    fuzzer = native_builds(target, *LIBFUZZER, *STEPS, compiler="clang", mistake=Mistake(header, old, new))
    begin = tmp_path / "begin"
    begin.mkdir()
    (begin / "harmless").write_bytes(SEEDS[target][harmless])
    options = (f"-max_total_time={FIND_SECONDS}", "-seed=1", "-max_len=512", f"-artifact_prefix={tmp_path}/crash-")
    replayed = run(fuzzer, begin / "harmless", seconds=FIND_SECONDS)
    assert replayed.returncode == 0, replayed.stdout
    done = run(fuzzer, *options, begin, seconds=FIND_SECONDS + 100)
    assert done.returncode != 0, done.stdout
    assert list(tmp_path.glob("crash-*")), done.stdout
