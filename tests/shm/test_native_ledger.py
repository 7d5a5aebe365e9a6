"""Ledger: lending what begins a block, and ending leases, in the native core; and calls that lend while they begin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arenas import new_arena, take

from shmrpc.shm.arena import Arena, Block, ForgedRelease
from shmrpc.shm.ring import Block as NativeBlock
from shmrpc.shm.ring import Ledger, address_of, pack_references

METHOD = "Vision.first"
BODY = b"the body"


class Somewhere:
    """A region that is attached, and one block of it that lies in an array."""

    def __init__(self, nbytes: int = 4096) -> None:
        self.attached = True
        self.array = np.zeros(nbytes, np.uint8)
        where = address_of(self.array)
        assert where is not None
        self.ledger: Ledger[Any, Any] = new_arena().ledger
        self.block = type("Placed", (NativeBlock,), {})()
        self.block.number, self.block.address, self.block.nbytes = 7, where[0], nbytes
        self.block.region = self
        self.ledger.blocks[where[0]] = self.block
        self.ledger.mark, self.ledger.longest_body, self.ledger.largest_message = 4, 100, 5000


@pytest.fixture
def place() -> Somewhere:
    return Somewhere()


def test_what_begins_a_block_is_lent_as_one_reference(place: Somewhere) -> None:
    assert place.ledger.refer(place.array, METHOD, BODY) == (pack_references([(7, 1, 0, 4096)], BODY), 1)
    assert place.ledger.refer(place.array[:10], METHOD, b"") == (pack_references([(7, 2, 0, 10)], b""), 2)
    assert place.block.leases == 2
    assert [loan[:4] for loan in place.ledger.loans.values()] == [
        (place.block, 0, 4096, METHOD),
        (place.block, 0, 10, METHOD),
    ]


@pytest.mark.parametrize(
    "exporter",
    [
        lambda place: place.array[1:],
        lambda place: place.array[::2],
        lambda place: place.array[:0].copy(),
        lambda place: np.zeros(4096, np.uint8),
        lambda place: None,
        lambda place: np.array(["a"], np.object_),
    ],
)
def test_anything_else_is_left_to_the_slow_way(place: Somewhere, exporter: Callable[[Somewhere], object]) -> None:
    assert place.ledger.refer(exporter(place), METHOD, BODY) is None
    assert (place.ledger.loans, place.block.leases) == ({}, 0)


def test_more_bytes_than_the_block_has_are_not_lent(place: Somewhere) -> None:
    place.block.nbytes = 4095
    assert place.ledger.refer(place.array, METHOD, BODY) is None


def test_what_the_peer_does_not_have_yet_is_not_lent(place: Somewhere) -> None:
    place.attached = False
    assert place.ledger.refer(place.array, METHOD, BODY) is None
    assert place.ledger.loans == {}


def test_the_mark_bounds_how_many_leases_are_out(place: Somewhere) -> None:
    place.ledger.mark = 2
    assert [place.ledger.refer(place.array, METHOD, BODY) is None for _ in range(3)] == [False, False, True]


def test_a_body_and_a_message_have_their_limits(place: Somewhere) -> None:
    assert place.ledger.refer(place.array, METHOD, bytes(100)) is not None
    assert place.ledger.refer(place.array, METHOD, bytes(101)) is None
    place.ledger.largest_message = 4096 + 100
    assert place.ledger.refer(place.array, METHOD, bytes(100)) is not None
    place.ledger.largest_message -= 1
    assert place.ledger.refer(place.array, METHOD, bytes(100)) is None


def test_leases_end_in_their_order_up_to_the_first_that_is_not_out() -> None:
    arena = new_arena()
    block = take(arena)
    leases = [arena.lend(block, 0, 1, METHOD) for _ in range(3)]
    unused: list[Block] = []
    entries = [(block.number, leases[0]), (block.number, 99), (block.number, leases[1])]
    assert arena.ledger.take_back(entries, unused) == 1
    assert (list(arena.loans), unused, block.leases) == (leases[1:], [], 2)
    assert arena.ledger.take_back([(block.number + 1, leases[1])], unused) == 0
    assert arena.ledger.take_back([(block.number, lease) for lease in leases[1:]], unused) == 2
    assert (arena.loans, unused) == ({}, [block])


def test_a_forged_release_is_found_after_those_before_it_have_ended() -> None:
    arena = new_arena()
    one, other = take(arena), take(arena)
    lease, kept = arena.lend(one, 0, 1, METHOD), arena.lend(other, 0, 1, METHOD)
    with pytest.raises(ForgedRelease, match="which is not out"):
        arena.take_home([(one.number, lease), (one.number, lease), (other.number, kept)])
    assert list(arena.loans) == [kept]
    assert list(arena.base.blocks.values()) == [other]


def test_a_block_that_is_held_is_not_given_back_with_its_last_lease() -> None:
    arena = new_arena()
    block = take(arena)
    arena.hold(block)
    arena.take_home([(block.number, arena.lend(block, 0, 1, METHOD))])
    assert list(arena.base.blocks.values()) == [block]


WRONG: list[Callable[[Arena], object]] = [
    lambda arena: Ledger(int),  # type: ignore[type-var]
    lambda arena: Ledger(),  # type: ignore[call-arg]
    lambda arena: arena.ledger.lend(5, 0, 1, METHOD),  # type: ignore[arg-type]
    lambda arena: arena.ledger.lend(take(arena), 0, 1),  # type: ignore[call-arg]
    lambda arena: arena.ledger.lend(take(arena), "0", 1, METHOD),  # type: ignore[arg-type]
    lambda arena: arena.ledger.refer(b"", METHOD, "text"),  # type: ignore[arg-type]
    lambda arena: arena.ledger.take_back([(1, 2, 3)], []),  # type: ignore[list-item]
    lambda arena: arena.ledger.take_back([("1", 2)], []),  # type: ignore[list-item]
    lambda arena: arena.ledger.take_back([], ()),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("use", WRONG)
def test_what_is_misused_says_so(use: Callable[[Arena], object]) -> None:
    with pytest.raises(TypeError):
        use(new_arena())


def test_what_was_not_lent_is_not_taken_for_a_loan() -> None:
    arena = new_arena()
    arena.loans[1] = ("no", "loan")  # type: ignore[assignment]
    with pytest.raises(TypeError, match="did not lend"):
        arena.ledger.take_back([(1, 1)], [])
