"""What the two ends of a channel do in a scene of the model, and how large everything is."""

from typing import NamedTuple


class Plan(NamedTuple):
    """What one end does, and how large everything is."""

    sends: int = 0
    """How many records it sends on its own."""
    gets: int = 0
    """How many records it gets."""
    returns: str = "nothing"
    """What it does with a lease that it gets: "home", it releases it at once; "thread", a thread of its own releases it at
    some time; "reply", it sends the block back by reference, and releases it when that is published."""
    lends: bool = False
    """Whether each record that it sends has a block."""
    blocks: int = 1
    announces: bool = False
    budget: int = 1
    ring: int = 1
    """Places in its record ring."""
    ring_of_peer: int = 1
    entries: int = 2
    """Places in each release ring."""
    wants_back: bool = False
    """Whether in the end it waits until all its blocks are free."""
    collects: int = 0
    """How often it takes home what came without need, at any time, as whoever allocates an array does."""
