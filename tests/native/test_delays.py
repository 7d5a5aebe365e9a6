"""Two threads on one mapping, each late at numbered steps that are chosen by chance: the order of the core is what counts.

A run is repeated with ``SHMRPC_SEED``, as far as two threads repeat anything.
"""

import os
import re
from collections import Counter
from typing import Final

import pytest
from figures import Figures
from native_builds import HEADERS, STEPS, VARIANTS, Mistake, NativeBuilds, chosen_seed, run, skip_if_too_busy

LOST_WAKE_UP: Final = 3
SOME: Final = "10000"
SLEEPS: Final = "2000"
PROGRAMS: Final = {
    "stress_record_ring": SOME,
    "stress_release_ring": SOME,
    "stress_scribbler": SLEEPS,
    "stress_wake records": SLEEPS,
    "stress_wake announced": SLEEPS,
    "stress_wake room": SLEEPS,
    "stress_wake blocks": SLEEPS,
}
DATA: Final = ("stress_record_ring", "stress_release_ring")
"""Those that hand over data, for whose order the thread sanitizer is there."""
STEPS_OF: Final = {
    "stress_record_ring": r"publish_\w+|refresh_\w+|take_(?!back)\w+|commit_\w+",
    "stress_release_ring": r"release_\w+|reap_\w+",
    "stress_wake announced": r"ringer_\w+|announce_\w+|arm_\w+|disarm_\w+",
}
"""Where each program must have been late, of what `steps.h` lists."""


def late_at(output: str) -> Counter[str]:
    """How often the threads of a program were late at each step, as it printed it."""
    return Counter({name: int(count) for name, count in re.findall(r" (\w+):(\d+)", output)})


def start(native_builds: NativeBuilds, name: str, variant: str, seed: int) -> str:
    """Runs a program with delays; its output."""
    program, *arguments = name.split()
    built = native_builds(program, *VARIANTS[variant], *STEPS)
    done = run(built, *arguments, PROGRAMS[name], SHMRPC_SEED=str(seed))
    assert done.returncode == 0, f"with SHMRPC_SEED={seed}: {done.stdout}"
    return done.stdout


@pytest.mark.parametrize("variant", ["plain", "tsan"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_two_threads_agree_wherever_one_of_them_is_late(
    native_builds: NativeBuilds, figures: Figures, name: str, variant: str
) -> None:
    if variant == "tsan" and name not in DATA and not figures.long:
        pytest.skip("one of those that --long tries")
    seed = chosen_seed()
    for turn in range(10 if figures.long else 1):
        late = late_at(start(native_builds, name, variant, seed + turn))
        assert late.total() > 100, f"with SHMRPC_SEED={seed + turn}"


@pytest.mark.parametrize("name", STEPS_OF)
def test_each_step_is_one_of_those_at_which_a_thread_is_late(native_builds: NativeBuilds, name: str) -> None:
    late = late_at(start(native_builds, name, "plain", chosen_seed()))
    listed = re.findall(r"^    STEP\((\w+)\)", (HEADERS / "steps.h").read_text(), flags=re.MULTILINE)
    expected = {step for step in listed if re.fullmatch(STEPS_OF[name], step)}
    assert len(expected) >= 7
    assert expected <= set(late)


@pytest.mark.parametrize("name", DATA)
def test_a_relaxed_publish_is_a_data_race_with_delays_too(native_builds: NativeBuilds, name: str) -> None:
    mutant = native_builds(name, *VARIANTS["tsan"], *STEPS, "-DSHMRPC_MUTANT_RELAXED_PUBLISH")
    done = run(mutant, SOME)
    assert "WARNING: ThreadSanitizer: data race" in done.stdout
    assert done.returncode != 0


TOO_EARLY: Final = {
    "the tail is stored before the record": (
        "stress_record_ring",
        "    SHM_STEP(publish_begun);\n",
        "    shm_store_release(p->tail_word, p->tail + pad + need);\n    SHM_STEP(publish_begun);\n",
    ),
    "room is given back before the record is read": (
        "stress_record_ring",
        "        SHM_STEP(take_header_loaded);\n",
        "        shm_store_release(c->head_word, c->head);\n        SHM_STEP(take_header_loaded);\n",
    ),
    "a block goes home before its number is written": (
        "stress_release_ring",
        "    SHM_STEP(release_head_loaded);\n",
        "    shm_store_release(r->tail_word, r->tail + 1);\n    SHM_STEP(release_head_loaded);\n",
    ),
    "room for blocks is given back before the block is read": (
        "stress_release_ring",
        "    SHM_STEP(reap_tail_loaded);\n",
        "    if (tail != r->head)\n        shm_store_release(r->head_word, r->head + 1);\n    SHM_STEP(reap_tail_loaded);\n",
    ),
}


@pytest.mark.parametrize("mistake", TOO_EARLY)
def test_a_position_that_is_stored_too_early_is_found_without_a_sanitizer(
    native_builds: NativeBuilds, mistake: str
) -> None:
    name, old, new = TOO_EARLY[mistake]
    mutant = native_builds(name, *VARIANTS["plain"], *STEPS, mistake=Mistake("ring.h", old, new))
    done = run(mutant, "200000")
    assert done.returncode == 1
    assert "expected" in done.stdout


WRONG_SIDE: Final = {
    "the sleeper stores its epoch behind the fence": (
        "        s->epoch += 1;\n"
        "        shm_store_relaxed(s->word, s->epoch);\n"
        "        SHM_STEP(arm_epoch_stored);\n"
        "    }\n"
        "    shm_fence_sleeper();",
        "        s->epoch += 1;\n"
        "        shm_fence_sleeper();\n"
        "        shm_store_relaxed(s->word, s->epoch);\n"
        "        SHM_STEP(arm_epoch_stored);\n"
        "    }\n"
        "    ",
    ),
    "the ringer loads the epoch before the fence": (
        "    shm_fence_ringer(); /* [ringer] meets [sleeper] in shm_sleeper_arm */\n"
        "    SHM_STEP(ringer_fenced);\n"
        "    uint64_t epoch = shm_load_acquire(r->word);\n",
        "    uint64_t epoch = shm_load_acquire(r->word);\n    SHM_STEP(ringer_fenced);\n    shm_fence_ringer();\n",
    ),
}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two threads on one processor never meet in the window")
@pytest.mark.parametrize("mistake", WRONG_SIDE)
def test_a_fence_on_the_wrong_side_is_caught_as_a_lost_wake_up(native_builds: NativeBuilds, mistake: str) -> None:
    old, new = WRONG_SIDE[mistake]
    mutant = native_builds("stress_wake", *VARIANTS["plain"], *STEPS, mistake=Mistake("wake.h", old, new))
    done = run(mutant, "room", "2000000")
    skip_if_too_busy(done)
    assert done.returncode == LOST_WAKE_UP, done.stdout
