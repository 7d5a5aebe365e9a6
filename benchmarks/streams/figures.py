"""How the stream benchmark is run, and what its processes report. Nothing here runs."""

import msgspec

from benchmarks.arrays.figures import MIB, Timed

ARRAY_BYTES = MIB


class StreamPlan(msgspec.Struct, frozen=True):
    """How long each kind of stream is tried. The kinds take turns, so that drift and noise meet all of them."""

    slices: int
    slice_s: float
    """How long one stream lasts, about: its length is chosen by the rate of the one before."""


FULL = StreamPlan(slices=4, slice_s=0.25)
QUICK = StreamPlan(slices=1, slice_s=0.05)


class Rate(msgspec.Struct, frozen=True):
    """The median over streams of one kind."""

    per_s: float
    """Items, from the call to the end of the stream."""
    client_busy: float
    """CPU time of the client, divided by the time that went by: near 1 for the side that limits the rate."""
    server_busy: float
    streams: int
    """How many there were."""


class StreamFigures(msgspec.Struct, frozen=True):
    """One entrant in one round."""

    give: Rate
    take: Rate
    turn: Timed
    """A round trip over a stream in both directions: an item, and its return."""
    arrays: Rate
    arrays_touched: Rate
    in_process: Rate
    """`async for` over an async generator in the client alone: what no transport could beat."""
