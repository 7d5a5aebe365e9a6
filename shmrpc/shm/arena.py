"""The memory that one side of a connection owns: its regions, the blocks in them, and who may read which until when.

A *region* is the slab of the base segment, or an extent. A *block* is a piece of one; it is free again when neither a
handle in this process (an array that was born in it) nor a lease of the peer is left. A *lease* is one sending of a block;
each has a number of its own, so that a release that is stale, doubled or forged is told from a true one.

All of it is private memory of the owner. No I/O, no clock but for ages, no loop.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any, Final, NamedTuple, Protocol

from shmrpc.shm import ring
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.segment import CLOSED
from shmrpc.shm.slab import Slab

EXTENT_SHIFT: Final = 32
"""A block's number is its extent, shifted by this, and its first granule. The base slab is extent 0."""


class ForgedRelease(ValueError):
    """A release that does not belong to a lease that is out."""


class Backing(Protocol):
    """What an extent's memory is: `segment.Extent`."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    @property
    def mapping(self) -> Any:
        """The memory, writable."""
        ...

    def close(self) -> None:
        """Lets go of it."""


class Region:
    """One slab of the owner's."""

    def __init__(
        self, number: int, mapping: Any, address: int, offset: int, nbytes: int, backing: Backing | None
    ) -> None:
        self.number: Final = number
        self.mapping = mapping
        self.address: Final = address
        """Where its first byte lies in this process."""
        self.offset: Final = offset
        """Where its first byte lies in the mapping."""
        self.nbytes: Final = nbytes
        self.backing: Final = backing
        """The extent; None: it is the slab of the base segment."""
        self.attached = backing is None
        """Whether the peer has it, so that its blocks may be lent."""
        self.lost = False
        """Whether it could not be attached, and never will be: it goes with its last block."""
        self.blocks: Final[dict[int, Block]] = {}
        """By first granule."""
        self.idle_since_ns = monotonic_ns()
        self._slab: Final = Slab(nbytes)

    def __repr__(self) -> str:
        return f"<Region {self.number} {'attached' if self.attached else 'fresh'}, {self._slab!r}>"

    @property
    def free_bytes(self) -> int:
        """How many bytes are free, perhaps not in a row."""
        return self.nbytes - self._slab.taken_bytes

    def take(self, nbytes: int) -> "Block | None":
        """A block, if there is room for it now."""
        first = None if self.lost else self._slab.take(nbytes)
        if first is None:
            return None
        block = self.blocks[first] = Block(self, first, nbytes)
        return block

    def give_back(self, block: "Block") -> None:
        """Frees a block."""
        del self.blocks[block.first]
        self._slab.give_back(block.first)
        self.idle_since_ns = monotonic_ns()


class Block(ring.Block):
    """A piece of a region."""

    __slots__ = ("first", "offset", "region", "since_ns")

    def __init__(self, region: Region, first: int, nbytes: int) -> None:
        self.region = region
        self.first = first
        self.nbytes = nbytes
        self.number = region.number << EXTENT_SHIFT | first
        """What it is called on the wire."""
        self.offset = first * GRANULE
        """Bytes from the beginning of its region."""
        self.address = region.address + self.offset
        """Where it lies in this process."""
        self.since_ns = 0
        """When the first handle was made; 0: there never was one."""

    def __repr__(self) -> str:
        return f"<Block {self.number:#x}, {self.nbytes} bytes, {self.handles} handles, {self.leases} leases>"

    def memory(self, nbytes: int) -> memoryview:
        """Its first bytes, writable."""
        at = self.region.offset + self.first * GRANULE
        return memoryview(self.region.mapping)[at : at + nbytes]


class Loan(NamedTuple):
    """One lease that is out."""

    block: Block
    offset: int
    nbytes: int
    method: str
    since_ns: int


class Usage(NamedTuple):
    """What is out because of one method: see `Arena.usage`."""

    method: str
    """The method's full name; empty: memory that this process itself keeps, through `shmrpc.empty` or `buffer`."""
    blocks: int
    nbytes: int
    since_ns: int
    """Since when, on the monotonic clock, the oldest of them."""


class Arena:
    """All memory that one side of a connection owns."""

    def __init__(self, base: Region, most_leases: int) -> None:
        self.most_leases: Final = most_leases
        self.base: Final = base
        self.extents: Final[list[Region]] = []
        """The one that something was freed in last comes first."""
        self.ledger: Final[ring.Ledger[Block, Loan]] = ring.Ledger(Loan)
        self.loans: Final[dict[int, Loan]] = self.ledger.loans
        """By lease number."""
        self._at: Final[dict[int, Block]] = self.ledger.blocks
        """Every block, by its address."""
        self._next_extent = 1
        self.lend: Final[Callable[[Block, int, int, str], int]] = self.ledger.lend
        """The number of a new lease on part of a block: block, offset, nbytes, method."""
        self._dropped: Final[deque[int]] = deque()
        """Blocks whose handles died, on any thread; `settle_drops` takes them in."""
        self.on_drop: Callable[[], None] | None = None
        """Called when a handle died, on any thread; set while somebody waits for memory."""
        self._closed = False

    def __repr__(self) -> str:
        return f"<Arena {len(self.loans)} leases, {len(self.extents)} extents of {self.extent_bytes} bytes>"

    @property
    def extent_bytes(self) -> int:
        """The size of all extents, bytes."""
        return sum(region.nbytes for region in self.extents)

    @property
    def regions(self) -> Iterator[Region]:
        """The base slab, then the extents, warmest first."""
        yield self.base
        yield from self.extents

    # ---- regions ----

    def add(self, backing: Backing, address: int) -> Region:
        """Takes in a fresh extent, as the warmest."""
        region = Region(self._next_extent, backing.mapping, address, 0, backing.nbytes, backing)
        self._next_extent += 1
        self.extents.insert(0, region)
        return region

    def remove(self, region: Region) -> None:
        """Forgets an extent and lets go of its memory."""
        self.extents.remove(region)
        if region.backing is not None:
            region.backing.close()

    def close(self) -> None:
        """Forgets all that is out, after the end: what is seen of it must go with its last view, and not wait for a garbage
        collection, nor for others who keep this: a context, say, that a timer has."""
        for region in self.regions:
            region.blocks.clear()
            region.mapping = CLOSED
        self.extents.clear()
        self.loans.clear()
        self._at.clear()
        self._dropped.clear()
        self._closed = True

    # ---- blocks ----

    def take(self, nbytes: int, *, attached: bool) -> Block | None:
        """A block, or None when there is no room now. It is the caller's to keep or lend, or to `give_back`.

        Args:
            nbytes: Its size.
            attached: Only in memory that the peer has already.
        """
        for region in self.regions:
            if (region.attached or not attached) and (block := self.take_in(region, nbytes)) is not None:
                return block
        return None

    def take_in(self, region: Region, nbytes: int) -> Block | None:
        """A block of one region."""
        block = region.take(nbytes)
        if block is not None:
            self._at[block.address] = block
        return block

    def give_back(self, block: Block) -> None:
        """Frees a block that nobody uses."""
        del self._at[block.address]
        region = block.region
        region.give_back(block)
        if region.backing is not None and self.extents[0] is not region:
            self.extents.remove(region)
            self.extents.insert(0, region)

    def _give_back_if_unused(self, block: Block) -> bool:
        if block.handles or block.leases:
            return False
        self.give_back(block)
        return True

    def find(self, address: int, nbytes: int) -> tuple[Block, int] | None:
        """The block that some memory of this process lies in, and the offset in it; None when it is other memory."""
        block = self._at.get(address)
        if block is None:
            block = self._around(address)
            if block is None:
                return None
        offset = address - block.address
        return (block, offset) if offset + nbytes <= block.nbytes else None

    def holds(self, address: int) -> bool:
        """Whether some memory of this process lies in a region."""
        return any(0 <= address - region.address < region.nbytes for region in self.regions)

    def _around(self, address: int) -> Block | None:
        for region in self.regions:
            if 0 <= address - region.address < region.nbytes:
                inside = (block for block in region.blocks.values() if 0 <= address - block.address < block.nbytes)
                return next(inside, None)
        return None

    # ---- handles ----

    def hold(self, block: Block) -> None:
        """One more object of this process keeps the block."""
        block.handles += 1
        if not block.since_ns:
            block.since_ns = monotonic_ns()

    def drop_soon(self, number: int, _: int) -> None:
        """A handle died. May be called on any thread, and within anything: it only notes it."""
        if self._closed:
            return
        self._dropped.append(number)
        if (on_drop := self.on_drop) is not None:
            on_drop()

    def settle_drops(self) -> bool:
        """Takes in the handles that died. Returns whether that freed a block."""
        freed = False
        while self._dropped:
            number = self._dropped.popleft()
            extent, first = number >> EXTENT_SHIFT, number & (1 << EXTENT_SHIFT) - 1
            region = self.base if not extent else next((each for each in self.extents if each.number == extent), None)
            if region is None:  # after the end
                continue
            block = region.blocks[first]
            block.handles -= 1
            freed |= self._give_back_if_unused(block)
        return freed

    # ---- leases ----

    def end_lease(self, lease: int) -> None:
        """Ends a lease that the peer never got."""
        block = self.loans.pop(lease).block
        block.leases -= 1
        self._give_back_if_unused(block)

    def take_home(self, entries: list[tuple[int, int]]) -> None:
        """Ends leases that the peer released: block and lease of each.

        Raises:
            ForgedRelease: one of them is not out; those before it are over.
        """
        unused: list[Block] = []
        done = self.ledger.take_back(entries, unused)
        for block in unused:
            self.give_back(block)
        if done < len(entries):
            self.take_back(*entries[done])

    def take_back(self, number: int, lease: int) -> None:
        """Ends a lease that the peer released.

        Raises:
            ForgedRelease: no such lease is out, or it is on another block.
        """
        loan = self.loans.get(lease)
        if loan is None or loan.block.number != number:
            state = "is not out" if loan is None else f"is on block {loan.block.number}"
            raise ForgedRelease(f"block {number} was released under lease {lease}, which {state}")
        self.end_lease(lease)

    def returned(self, number: int, lease: int, offset: int, nbytes: int) -> Block:
        """The block of this side that the peer, which holds a lease on it, sends back by reference.

        Raises:
            ForgedRelease: the peer holds no such lease, or none that covers these bytes.
        """
        loan = self.loans.get(lease)
        if loan is None or loan.block.number != number:
            raise ForgedRelease(f"the peer sent back block {number} under lease {lease}, which is not out")
        if offset < loan.offset or offset + nbytes > loan.offset + loan.nbytes:
            raise ForgedRelease(
                f"the peer sent back bytes {offset} to {offset + nbytes} of block {number}, and was lent "
                f"{loan.offset} to {loan.offset + loan.nbytes}"
            )
        return loan.block

    def usage(self) -> list[Usage]:
        """What is out, by method, the largest first."""
        blocks: Counter[str] = Counter()
        nbytes: Counter[str] = Counter()
        since: dict[str, int] = {}

        def count(method: str, size: int, since_ns: int) -> None:
            blocks[method] += 1
            nbytes[method] += size
            since[method] = min(since_ns, since.get(method, since_ns))

        for loan in self.loans.values():
            count(loan.method, loan.nbytes, loan.since_ns)
        for region in self.regions:
            for block in region.blocks.values():
                if block.handles:
                    count("", block.nbytes, block.since_ns)
        return [Usage(method, blocks[method], size, since[method]) for method, size in nbytes.most_common()]


def size_text(nbytes: int) -> str:
    """A size for people."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes} bytes"


def whole_granules(nbytes: int) -> int:
    """How many bytes a block of at least so many takes."""
    return -(-nbytes // GRANULE) * GRANULE
