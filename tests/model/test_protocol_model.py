"""The doorbell protocol, its rings, want-room and releases, in every interleaving that total store order allows.

In each scene nobody sleeps for ever beside what it waits for; records come in order, each once, as they were written; each
lease ends once, and not before the records that refer to it. And the same is found to fail as soon as any one rule is taken
out: see `model_mutants.py`.
"""

import model_mutants_rings  # noqa: F401  # it enters its mutants
import model_mutants_wake  # noqa: F401
import pytest
from figures import Figures
from model_mutant import MUTANTS, Mutant
from model_scenes import BELLS, FOR_MUTANTS, LARGER, SCENES
from model_steps import EVENTFD


def mutant_called(what: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.what == what)


def titles(mutants: list[Mutant]) -> list[str]:
    return [mutant.what for mutant in mutants]


CAUGHT = [mutant for mutant in MUTANTS if mutant.caught]
HARMLESS = [mutant for mutant in MUTANTS if mutant.harmless]


@pytest.mark.parametrize("name", SCENES)
def test_nothing_is_lost_or_doubled_and_nobody_sleeps_for_ever(name: str, figures: Figures) -> None:
    result = SCENES[name].explore()
    assert result.failure is None, str(result.failure)
    figures.add("states explored", result.states)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bell", [name for name, bell in BELLS.items() if bell is not EVENTFD])
@pytest.mark.parametrize("name", ["records", "announced", "room", "3 records through a ring of one"])
def test_neither_with_a_pipe_for_a_doorbell(name: str, bell: str, figures: Figures) -> None:
    if name in LARGER and not figures.long:
        pytest.skip("takes longer: --long")
    result = (SCENES | LARGER)[name].explore(BELLS[bell])
    assert result.failure is None, str(result.failure)
    figures.add("states explored", result.states)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LARGER)
def test_neither_with_more_records_and_blocks(name: str, figures: Figures) -> None:
    if not figures.long:
        pytest.skip("takes longer: --long")
    result = LARGER[name].explore()
    assert result.failure is None, str(result.failure)
    figures.add("states explored", result.states)


@pytest.mark.parametrize("mutant", CAUGHT, ids=titles(CAUGHT))
def test_each_rule_is_needed(mutant: Mutant) -> None:
    for name in mutant.caught:
        with mutant.applied():
            result = (SCENES | FOR_MUTANTS)[name].explore(kernel_fences=True, depth_first=mutant.depth_first)
        assert result.failure is not None, f"{name}: nothing in {result.states} states"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", HARMLESS, ids=titles(HARMLESS))
def test_these_are_not_needed_for_that(mutant: Mutant) -> None:
    for name in mutant.harmless:
        with mutant.applied():
            result = SCENES[name].explore()
        assert result.failure is None, f"{name}: {result.failure}"


def test_a_mutant_is_gone_when_it_was_tried() -> None:
    with mutant_called("no fence between publishing and looking at the epoch").applied():
        assert SCENES["home"].explore(kernel_fences=True).failure is not None
    assert SCENES["home"].explore(kernel_fences=True).failure is None


def test_a_lost_wake_up_is_told_as_the_steps_that_lead_there() -> None:
    with mutant_called("no fence between arming and looking once more").applied():
        failure = SCENES["home"].explore(kernel_fences=True).failure
    assert failure is not None
    print(failure)
    assert failure.what == "nobody will ever wake A and B"
    told = str(failure)
    armed = told.index("stores B.doorbell_epoch = 1")
    looked = told.index("B: loads A.tail: 0", armed)
    published = told.index("A:     the store of A.tail = 1 reaches the memory")
    passed_by = told.index(
        "A: loads B.doorbell_epoch: 0   [one_turn > begin_next > send > producer_publish > shm_ringer_must_ring]"
    )
    too_late = told.index("B:     the store of B.doorbell_epoch = 1 reaches the memory")
    assert armed < looked < published < too_late
    assert passed_by < too_late
