"""What is explored: pairs of endpoints, each pair small enough that all its interleavings can be gone through.

In each scene A sends to B, and both sleep and are woken as often as it comes about. The bounds are those of `Plan`, in the
table below. Times and windows are not modelled: a loop may look once more, or arm, whenever it looks.
"""

from typing import Final, NamedTuple

from interleavings import Explorer, Result
from model_endpoint import event_loop, releasing_thread
from model_plan import Plan
from model_steps import EVENTFD, LONG_PIPE, PIPE, Bell

BELLS: Final = {"eventfd": EVENTFD, "pipe": PIPE, "long pipe": LONG_PIPE}


class Scene(NamedTuple):
    """Two plans."""

    a: Plan
    b: Plan

    def explore(
        self,
        bell: Bell = EVENTFD,
        *,
        kernel_fences: bool = False,
        depth_first: bool = False,
        most_states: int = 12_000_000,
    ) -> Result:
        """All interleavings, or the first failure. Without `kernel_fences` there are more of them: nothing relies on what a
        system call does to the store buffer."""
        memory: dict[str, object] = {}
        for own in "AB":
            memory |= dict.fromkeys((f"{own}.{word}" for word in WORDS), 0)
            memory |= dict.fromkeys(
                (f"{own}.record{place}" for place in range(max(self.a.ring, self.b.ring))), (0, 0, 0)
            )
            memory |= dict.fromkeys((f"{own}.release{place}" for place in range(self.a.entries)), (0, 0))
        memory |= dict.fromkeys((f"block{block}" for block in range(self.a.blocks)), 0) | {"B.views": ()}
        processes = {"A": lambda: event_loop("A", "B", self.a), "B": lambda: event_loop("B", "A", self.b)}
        if self.b.returns == "thread":
            processes["T"] = lambda: releasing_thread("B", "A", self.b)
        bells = {"A.bell": bell, "B.bell": bell}
        return Explorer(
            processes, memory, bells, kernel_fences=kernel_fences, depth_first=depth_first, most_states=most_states
        ).run()


WORDS: Final = ("tail", "head", "release_tail", "release_head", "doorbell_epoch", "room_epoch")
"""The cursor page of a segment."""


def scene(
    records: int,
    *,
    ring: int,
    ring_back: int = 1,
    budget: int = 1,
    announces: bool = False,
    returns: str = "nothing",
    blocks: int = 1,
    wants_back: bool = True,
    collects: int = 0,
) -> Scene:
    """A sends so many records to B, which does with them what `returns` says."""
    lends, replies = returns != "nothing", returns == "reply"
    a = Plan(
        sends=records,
        gets=records * replies,
        lends=lends,
        blocks=blocks,
        announces=announces,
        ring=ring,
        ring_of_peer=ring_back,
        wants_back=lends and wants_back,
        collects=collects,
    )
    return Scene(a, Plan(gets=records, returns=returns, budget=budget, ring=ring_back, ring_of_peer=ring))


SCENES: Final = {
    "records": scene(3, ring=4, budget=2),
    "announced": scene(2, ring=2, announces=True),
    "room": scene(2, ring=1),
    "home": scene(1, ring=2, returns="home"),
    "thread": scene(1, ring=2, returns="thread"),
    "reply": scene(1, ring=1, returns="reply", wants_back=False, collects=1),
}
"""For every run of the suite."""

LARGER: Final = {
    "3 records through a ring of one": scene(3, ring=1),
    "4 records, taken 2 at a time": scene(4, ring=2, budget=2),
    "3 records, each may be announced": scene(3, ring=4, announces=True),
    "2 records, announced, with a ring of one": scene(2, ring=1, announces=True),
    "2 blocks for 2 records": scene(2, ring=2, returns="home", blocks=2),
    "1 block for 2 records": scene(2, ring=2, returns="home"),
    "both send": Scene(Plan(sends=2, gets=1), Plan(sends=1, gets=2)),
    "a reply, and memory wanted back": scene(1, ring=1, returns="reply"),
}
"""For the long run."""

FOR_MUTANTS: Final = {
    "room again": LARGER["3 records through a ring of one"],
    "both send": LARGER["both send"],
    "home again": LARGER["1 block for 2 records"],
    "home with 2 blocks": LARGER["2 blocks for 2 records"],
    "2 replies": scene(2, ring=2, budget=2, returns="reply", blocks=2),
}
"""In which mutants are caught that the small scenes do not show; the first failure ends them."""
