"""How the array benchmark is run, and what its processes report. Nothing here runs."""

import msgspec

KIB = 1 << 10
MIB = 1 << 20


class ArrayPlan(msgspec.Struct, frozen=True):
    """Which sizes, and how long each is tried.

    The kinds of call take turns in `slices`, so that drift and the neighbours' noise meet all of them.
    """

    sizes: tuple[int, ...]
    slices: int
    slice_s: float
    """How long a slice lasts; a large size takes longer, for at least `least_calls`."""
    least_calls: int
    footprint_calls: int
    """How many calls carry 1 MiB arrays while the memory of the connection is watched."""


FULL = ArrayPlan(
    sizes=(4 * KIB, 64 * KIB, MIB, 16 * MIB, 128 * MIB),
    slices=2,
    slice_s=0.12,
    least_calls=2,
    footprint_calls=10_000,
)
QUICK = ArrayPlan(
    sizes=(4 * KIB, 64 * KIB, MIB, 16 * MIB), slices=2, slice_s=0.01, least_calls=2, footprint_calls=1_000
)


class Timed(msgspec.Struct, frozen=True):
    """The median of one kind of call, in microseconds."""

    p50_us: float
    samples: int


class AtSize(msgspec.Struct, frozen=True):
    """What one size costs, and beside it, in the same process and the same slices, what it is compared with."""

    nbytes: int
    small: Timed
    """The call of a small struct, without arrays."""
    first: Timed
    """`first`, from the call to its result; the array was made and one word of it written just before."""
    made_first: Timed
    """The same, and the making of the array."""
    first_again: Timed
    """`first` with the same array, born where `new` makes it, in every call."""
    echo: Timed
    """`echo` of an array of the heap; the caller reads one word of the result."""
    echo_summed: Timed
    """`echo_summed` of the same; the caller reads all of the result."""
    memcpy: Timed
    """Copying the same array into warm memory of the caller's heap."""


class ArrayFigures(msgspec.Struct, frozen=True):
    """One entrant in one round."""

    sizes: list[AtSize]

    def at(self, nbytes: int) -> AtSize:
        """The figures of one size."""
        return next(one for one in self.sizes if one.nbytes == nbytes)


class Memory(msgspec.Struct, frozen=True):
    """Shared memory of one connection, both sides together, during many calls with 1 MiB arrays. Bytes."""

    calls: int
    in_flight: int
    at_rest: int
    """Before the first call: the two base segments."""
    peak: int
    first_tenth: int
    """The most that there was in the first tenth of the calls."""
    last_tenth: int
    after: int
    """When the extents had been idle for long enough, and a little more."""
    extent_idle_s: float
    gone_after_s: float
    """From the last call until there was no more than at rest, or until that was given up."""
    heap_growth: int
    """Anonymous memory of both processes: after the last call, less after the first tenth."""


class Copies(msgspec.Struct, frozen=True):
    """Where a `bytes` object of `nbytes` lay on its way in one direction: each copy needs a place of its own."""

    sender_heap: int
    shared: int
    receiver_heap: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.sender_heap + self.shared + self.receiver_heap


class PlainBytes(msgspec.Struct, frozen=True):
    """`bytes` as argument and as result."""

    nbytes: int
    request: Copies
    reply: Copies
    echo: Timed
    request_only: Timed
    reply_only: Timed
    memcpy: Timed
    """One copy into warm memory."""
    new_bytes: Timed
    """One copy into a new `bytes` object, which is what a receiver of `bytes` must have."""


class Footprint(msgspec.Struct, frozen=True):
    """What shmrpc takes besides time."""

    memory: Memory
    plain_bytes: PlainBytes
