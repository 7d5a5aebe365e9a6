"""The arena against the plainest model of one, whatever happens in whatever order."""

from collections import Counter

import pytest
from arenas import BASE, EXTENT, METHOD, add_extent, is_empty, lend, new_arena, take
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shmrpc.shm.arena import Block, ForgedRelease, Loan
from shmrpc.shm.borrowing import own_view
from shmrpc.shm.layout import GRANULE


class Lending(RuleBasedStateMachine):
    """An arena against a plain model: which leases are out on which block, and how many handles it has."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = new_arena()
        add_extent(self.arena)
        self.leases: dict[int, Block] = {}
        self.ended: list[tuple[int, int]] = []
        self.handles: list[tuple[Block, object]] = []

    def alive(self) -> set[Block]:
        return set(self.leases.values()) | {block for block, _ in self.handles}

    @rule(nbytes=st.integers(0, EXTENT), keep=st.booleans(), lend=st.booleans())
    def take(self, nbytes: int, keep: bool, lend: bool) -> None:
        """A block is made for a handle, for a lease, for both, or given up at once."""
        block = self.arena.take(nbytes, attached=True)
        if block is None:
            return
        assert block not in self.alive()
        if lend:
            self.leases[self.arena.lend(block, 0, nbytes, METHOD)] = block
        if keep:
            self.handles.append((block, own_view(self.arena, block, 0, nbytes)))
        if not keep and not lend:
            self.arena.give_back(block)

    @precondition(lambda self: self.alive())
    @rule(choice=st.randoms(use_true_random=False))
    def lend_again(self, choice: object) -> None:
        block = choice.choice(sorted(self.alive(), key=lambda block: block.number))  # type: ignore[attr-defined]
        lease = self.arena.lend(block, 0, block.nbytes, METHOD)
        assert lease not in self.leases
        self.leases[lease] = block

    @precondition(lambda self: self.leases)
    @rule(choice=st.randoms(use_true_random=False))
    def release(self, choice: object) -> None:
        lease = choice.choice(sorted(self.leases))  # type: ignore[attr-defined]
        number = self.leases.pop(lease).number
        self.arena.take_back(number, lease)
        self.ended.append((number, lease))

    @precondition(lambda self: self.handles)
    @rule(choice=st.randoms(use_true_random=False))
    def drop(self, choice: object) -> None:
        choice.shuffle(self.handles)  # type: ignore[attr-defined]
        self.handles.pop()
        self.arena.settle_drops()

    @rule(number=st.integers(-1, 20), lease=st.integers(-1, 20))
    def forge(self, number: int, lease: int) -> None:
        """Any other pair of numbers frees nothing."""
        if lease in self.leases and self.leases[lease].number == number:
            return
        with pytest.raises(ForgedRelease):
            self.arena.take_back(number, lease)

    @precondition(lambda self: self.ended)
    @rule(choice=st.randoms(use_true_random=False))
    def release_again(self, choice: object) -> None:
        """A release that came home already is stale, whoever has the block now."""
        number, lease = choice.choice(self.ended)  # type: ignore[attr-defined]
        with pytest.raises(ForgedRelease):
            self.arena.take_back(number, lease)

    @invariant()
    def figures_agree(self) -> None:
        """Exactly the blocks with a handle or a lease are taken."""
        blocks = {block for region in self.arena.regions for block in region.blocks.values()}
        assert blocks == self.alive()
        assert {lease: loan.block for lease, loan in self.arena.loans.items()} == self.leases
        leases, handles = Counter(self.leases.values()), Counter(block for block, _ in self.handles)
        assert all((block.leases, block.handles) == (leases[block], handles[block]) for block in blocks)


TestLending = Lending.TestCase


@given(st.permutations(range(8)))
def test_whatever_the_order_of_releases_everything_is_home(order: list[int]) -> None:
    arena = new_arena()
    add_extent(arena)
    blocks = [take(arena, 3 * GRANULE) for _ in range(5)]
    leases = [(block, lend(arena, block)) for block in blocks + blocks[:3]]
    assert all(isinstance(loan, Loan) for loan in arena.loans.values())
    for index in order:
        block, lease = leases[index]
        arena.take_back(block.number, lease)
    assert is_empty(arena)
    assert take(arena, BASE).number == 0
