"""Arenas for the tests: all of their memory is in this process alone."""

from shmrpc.shm.arena import Arena, Block, Region
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.ring import address_of

BASE = 16 * GRANULE
EXTENT = 8 * GRANULE
METHOD = "Service.method"


class Backing:
    """The memory of an extent, in this process alone."""

    def __init__(self, nbytes: int = EXTENT) -> None:
        self.nbytes = nbytes
        self.mapping = bytearray(nbytes)
        self.closed = False

    def close(self) -> None:
        self.closed = True


def begin_of(mapping: bytearray) -> int:
    where = address_of(mapping)
    assert where is not None
    return where[0]


def new_arena() -> Arena:
    mapping = bytearray(GRANULE + BASE)  # the slab does not begin where the mapping does
    return Arena(Region(0, mapping, begin_of(mapping) + GRANULE, GRANULE, BASE, None), 16)


def add_extent(arena: Arena, nbytes: int = EXTENT, *, attached: bool = True) -> Region:
    backing = Backing(nbytes)
    region = arena.add(backing, begin_of(backing.mapping))
    region.attached = attached
    return region


def take(arena: Arena, nbytes: int = GRANULE, *, attached: bool = True) -> Block:
    block = arena.take(nbytes, attached=attached)
    assert block is not None
    return block


def lend(arena: Arena, block: Block, offset: int = 0, nbytes: int | None = None, method: str = METHOD) -> int:
    return arena.lend(block, offset, block.nbytes if nbytes is None else nbytes, method)


def is_empty(arena: Arena) -> bool:
    return not arena.loans and not any(region.blocks for region in arena.regions)
