"""The slab's allocator: blocks never overlap, neighbours coalesce, and only a true release ends a lease."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmrpc.shm.layout import GRANULE
from shmrpc.shm.slab import Block, ForgedRelease, Slab

GRANULES = 16


def lend(slab: Slab, granules: int) -> Block:
    block = slab.lend(granules * GRANULE)
    assert block is not None
    return block


class Lending(RuleBasedStateMachine):
    """A slab against the plainest model of one: a list that says which granule belongs to which block."""

    def __init__(self) -> None:
        super().__init__()
        self.slab = Slab(GRANULES * GRANULE)
        self.owners: list[Block | None] = [None] * GRANULES
        self.ended: list[Block] = []

    def lent(self) -> list[Block]:
        return sorted({block for block in self.owners if block is not None})

    def free_extents(self) -> list[tuple[int, int]]:
        extents: list[tuple[int, int]] = []
        for number, owner in enumerate(self.owners):
            if owner is None:
                if extents and sum(extents[-1]) == number:
                    extents[-1] = (extents[-1][0], extents[-1][1] + 1)
                else:
                    extents.append((number, 1))
        return extents

    @rule(nbytes=st.integers(0, (GRANULES + 1) * GRANULE))
    def lend(self, nbytes: int) -> None:
        """The lowest free extent that is large enough is used, and nothing else."""
        need = max(1, -(-nbytes // GRANULE))
        lowest = next((first for first, length in self.free_extents() if length >= need), None)
        block = self.slab.lend(nbytes)
        if lowest is None:
            assert block is None
            return
        assert block is not None
        assert (block.number, block.nbytes, block.offset) == (lowest, nbytes, lowest * GRANULE)
        assert block not in self.ended
        for number in range(lowest, lowest + need):
            assert self.owners[number] is None
            self.owners[number] = block

    @precondition(lambda self: self.slab.lent_blocks)
    @rule(choice=st.randoms(use_true_random=False))
    def take_back(self, choice: object) -> None:
        """A true release frees exactly its block."""
        block = choice.choice(self.lent())  # type: ignore[attr-defined]
        self.slab.take_back(block.number, block.generation)
        self.owners = [None if owner == block else owner for owner in self.owners]
        self.ended.append(block)

    @rule(number=st.integers(-2, GRANULES + 2), generation=st.integers(-1, 5))
    def forge(self, number: int, generation: int) -> None:
        """Any other pair of numbers frees nothing."""
        if any((block.number, block.generation) == (number, generation) for block in self.lent()):
            return
        with pytest.raises(ForgedRelease):
            self.slab.take_back(number, generation)

    @precondition(lambda self: self.ended)
    @rule(choice=st.randoms(use_true_random=False))
    def release_again(self, choice: object) -> None:
        """A release that came home already is stale, whoever has the granule now."""
        block = choice.choice(self.ended)  # type: ignore[attr-defined]
        with pytest.raises(ForgedRelease):
            self.slab.take_back(block.number, block.generation)

    @invariant()
    def figures_agree(self) -> None:
        """What the slab says of itself is true."""
        assert self.slab.lent_blocks == len(self.lent())
        assert self.slab.lent_bytes == sum(owner is not None for owner in self.owners) * GRANULE


TestLending = Lending.TestCase


def test_the_block_freed_last_at_the_low_end_is_used_first() -> None:
    slab = Slab(GRANULES * GRANULE)
    blocks = [lend(slab, 2) for _ in range(4)]
    slab.take_back(blocks[2].number, blocks[2].generation)
    slab.take_back(blocks[0].number, blocks[0].generation)
    assert lend(slab, 1).number == blocks[0].number
    assert lend(slab, 2).number == blocks[2].number


@given(st.permutations(range(8)))
def test_whatever_the_order_of_releases_the_slab_is_whole_again(order: list[int]) -> None:
    slab = Slab(8 * GRANULE)
    blocks = [lend(slab, 1) for _ in range(8)]
    assert slab.lend(1) is None
    for number in order:
        slab.take_back(blocks[number].number, blocks[number].generation)
    assert lend(slab, 8).number == 0


def test_a_block_of_the_whole_slab_can_be_lent_and_no_larger_one() -> None:
    slab = Slab(8 * GRANULE)
    assert slab.capacity == 8 * GRANULE
    assert slab.lend(slab.capacity + 1) is None
    assert lend(slab, 8) == Block(0, 1, 8 * GRANULE)
    assert slab.lend(0) is None


def test_a_release_that_is_refused_says_why() -> None:
    slab = Slab(8 * GRANULE)
    block = lend(slab, 1)
    with pytest.raises(ForgedRelease, match="block 0, generation 7 was released, but it is out as generation 1"):
        slab.take_back(0, 7)
    slab.take_back(block.number, block.generation)
    with pytest.raises(ForgedRelease, match="block 0, generation 1 was released, but it is not out"):
        slab.take_back(0, 1)


def test_a_slab_says_how_full_it_is() -> None:
    slab = Slab(8 * GRANULE)
    lend(slab, 3)
    assert repr(slab) == "<Slab 3072 of 8192 bytes lent in 1 blocks>"
