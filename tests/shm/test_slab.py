"""The slab's allocator: blocks never overlap, the low end is used first, and neighbours coalesce."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmrpc.shm.layout import GRANULE
from shmrpc.shm.slab import Slab

GRANULES = 16


def take(slab: Slab, granules: int) -> int:
    first = slab.take(granules * GRANULE)
    assert first is not None
    return first


class Taking(RuleBasedStateMachine):
    """A slab against the plainest model of one: a list that says which granule belongs to which block."""

    def __init__(self) -> None:
        super().__init__()
        self.slab = Slab(GRANULES * GRANULE)
        self.owners: list[int | None] = [None] * GRANULES

    def taken(self) -> list[int]:
        return sorted({first for first in self.owners if first is not None})

    def free_runs(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for number, owner in enumerate(self.owners):
            if owner is None:
                if runs and sum(runs[-1]) == number:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((number, 1))
        return runs

    @rule(nbytes=st.integers(0, (GRANULES + 1) * GRANULE))
    def take(self, nbytes: int) -> None:
        """The lowest free run that is large enough is used, and nothing else."""
        need = max(1, -(-nbytes // GRANULE))
        lowest = next((first for first, length in self.free_runs() if length >= need), None)
        assert self.slab.take(nbytes) == lowest
        if lowest is not None:
            assert self.owners[lowest : lowest + need] == [None] * need
            self.owners[lowest : lowest + need] = [lowest] * need

    @precondition(lambda self: self.taken())
    @rule(choice=st.randoms(use_true_random=False))
    def give_back(self, choice: object) -> None:
        """Exactly the block that is given back becomes free."""
        first = choice.choice(self.taken())  # type: ignore[attr-defined]
        self.slab.give_back(first)
        self.owners = [None if owner == first else owner for owner in self.owners]

    @rule(number=st.integers(-2, GRANULES + 2))
    def give_back_none(self, number: int) -> None:
        """Where no block begins, nothing can be given back."""
        if number not in self.taken():
            with pytest.raises(KeyError):
                self.slab.give_back(number)

    @invariant()
    def figures_agree(self) -> None:
        """What the slab says of itself is true."""
        assert self.slab.taken_bytes == sum(owner is not None for owner in self.owners) * GRANULE
        assert self.slab.empty == (not self.taken())


TestTaking = Taking.TestCase


def test_the_low_end_is_used_first_whatever_was_freed_last() -> None:
    slab = Slab(GRANULES * GRANULE)
    firsts = [take(slab, 2) for _ in range(4)]
    slab.give_back(firsts[0])
    slab.give_back(firsts[2])
    assert take(slab, 1) == firsts[0]
    assert take(slab, 2) == firsts[2]


@given(st.permutations(range(8)))
def test_whatever_the_order_the_slab_is_whole_again(order: list[int]) -> None:
    slab = Slab(8 * GRANULE)
    firsts = [take(slab, 1) for _ in range(8)]
    assert slab.take(1) is None
    for number in order:
        slab.give_back(firsts[number])
    assert slab.empty
    assert take(slab, 8) == 0


def test_a_block_of_the_whole_slab_can_be_taken_and_no_larger_one() -> None:
    slab = Slab(8 * GRANULE)
    assert slab.capacity == 8 * GRANULE
    assert slab.take(slab.capacity + 1) is None
    assert take(slab, 8) == 0
    assert slab.take(0) is None


def test_a_slab_that_is_no_multiple_of_a_granule_leaves_the_rest_unused() -> None:
    slab = Slab(3 * GRANULE - 1)
    assert slab.capacity == 2 * GRANULE
    assert slab.take(2 * GRANULE + 1) is None


def test_a_slab_says_how_full_it_is() -> None:
    slab = Slab(8 * GRANULE)
    take(slab, 3)
    assert repr(slab) == "<Slab 3072 of 8192 bytes taken in 1 blocks>"
