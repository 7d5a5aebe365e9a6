"""Whom a View tells of its death: any callable, a peer that waits; nobody when the peer lies or the process ends."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
from joined import SMALL, Ends, set_word, two_ends
from views import view_of

from shmrpc.shm import layout, ring
from shmrpc.shm.ring import View


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The right side reads blocks of the left one, and releases them."""
    with two_ends() as made:
        yield made


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What could not be raised, in the order in which it was written."""
    caught: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: caught.append(problem.exc_value))
    return caught


# Ends of other kinds


def test_a_callable_end_is_told_the_block_and_the_generation() -> None:
    ended: list[tuple[int, int]] = []
    view = View(b"abc", 0, 3, lambda *which: ended.append(which), 2**63, 2**64 - 1)
    assert ended == []
    del view
    assert ended == [(2**63, 2**64 - 1)]


def test_an_end_that_fails_disturbs_nobody(unraisable: list[BaseException | None]) -> None:
    def fail(block: int, generation: int) -> None:
        raise LookupError(block)

    with pytest.raises(ZeroDivisionError):  # it dies while this is on its way
        print(View(b"abc", 0, 3, fail, 5, 1), 1 / len(b""))
    [problem] = unraisable
    assert isinstance(problem, LookupError)
    assert problem.args == (5,)


def test_the_error_that_is_on_its_way_is_kept_from_an_end_that_runs_well() -> None:
    ended: list[int] = []
    with pytest.raises(ZeroDivisionError):
        print(View(b"abc", 0, 3, lambda block, generation: ended.append(block), 5, 1), 1 / len(b""))
    assert ended == [5]


# Whom it wakes


def test_a_peer_that_waits_for_room_is_rung_once(ends: Ends) -> None:
    rung: list[int] = []
    releaser = ring.open_releaser(*ends.right, lambda: rung.append(releaser.pushed))
    views = [view_of(ends, number, releaser=releaser) for number in range(5)]
    views.pop()
    assert rung == []
    ends.producer.want_room()
    views.pop()
    assert rung == [2]  # after the release was published
    views.pop()
    assert rung == [2]
    ends.producer.room_found()
    ends.producer.want_room()
    views.pop()
    views.pop()
    assert rung == [2, 4]
    releaser.close()


def test_where_nothing_rings_for_views_the_next_release_says_that_it_must(ends: Ends) -> None:
    view = view_of(ends)
    ends.producer.want_room()
    del view
    assert ends.releaser.release(2, 1)


def test_a_bell_that_fails_disturbs_nobody(ends: Ends, unraisable: list[BaseException | None]) -> None:
    def fail() -> None:
        raise OSError("no bell")

    releaser = ring.open_releaser(*ends.right, fail)
    ends.producer.want_room()
    with pytest.raises(ZeroDivisionError):
        print(view_of(ends, releaser=releaser), 1 / len(b""))
    assert [str(problem) for problem in unraisable] == ["no bell"]
    assert ends.reaper.take() == [(1, 7)]
    releaser.close()


def test_a_bell_may_close_the_releaser_and_drop_more_views(ends: Ends) -> None:
    others: list[View] = []

    def close() -> None:
        others.pop()
        releaser.close()
        others.clear()

    releaser = ring.open_releaser(*ends.right, close)
    others += [view_of(ends, number, releaser=releaser) for number in (2, 3, 4)]
    view = view_of(ends, releaser=releaser)
    ends.producer.want_room()
    del view
    assert ends.reaper.take() == [(1, 7), (4, 7)]
    assert others == []


class Owner:
    """Has a releaser that rings by a method of its own."""

    def __init__(self, ends: Ends) -> None:
        self.releaser = ring.open_releaser(*ends.right, self.ring)

    def ring(self) -> None:
        """Not reached: nobody waits."""


def test_a_releaser_that_was_forgotten_goes_with_its_last_view(ends: Ends) -> None:
    owner = Owner(ends)
    weak = weakref.ref(owner)
    view = view_of(ends, releaser=owner.releaser)
    del owner
    gc.collect()
    assert weak() is not None
    del view
    gc.collect()
    assert weak() is None
    assert ends.reaper.take() == [(1, 7)]


def test_a_releaser_that_is_closed_keeps_nothing_alive(ends: Ends) -> None:
    owner = Owner(ends)
    weak = weakref.ref(owner)
    releaser = owner.releaser
    releaser.close()
    del owner
    assert weak() is None


# Peers that lie


def test_a_release_ring_that_a_liar_keeps_full_is_noted_and_not_raised(
    ends: Ends, unraisable: list[BaseException | None]
) -> None:
    views = [view_of(ends, generation=number) for number in range(SMALL.release_entries + 1)]
    del views[1:]
    assert not ends.releaser.corrupt
    del views
    assert ends.releaser.corrupt
    assert ends.releaser.pushed == SMALL.release_entries
    assert unraisable == []


def test_an_impossible_position_of_the_peer_is_noted_and_not_raised(
    ends: Ends, unraisable: list[BaseException | None]
) -> None:
    set_word(ends.left.own, layout.CURSOR_RELEASE_HEAD, 5)
    view = view_of(ends)
    assert not ends.releaser.corrupt
    del view
    assert ends.releaser.corrupt
    assert ends.releaser.pushed == 0
    assert unraisable == []


# The end of a process


def test_a_forked_child_releases_nothing_that_is_its_parents(ends: Ends) -> None:
    views = [view_of(ends)]
    pid = os.fork()
    if not pid:  # what a session does in the child
        ends.releaser.close()
        right = bytes(views[0]) == bytes(range(1, 17))
        views.clear()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert ends.reaper.take() == []
    views.clear()
    assert ends.reaper.take() == [(1, 7)]


LEAVES_VIEWS = """
import asyncio, builtins, mmap, sys, threading
import numpy as np
from shmrpc.shm.ring import Releaser, View

own, peer = mmap.mmap(-1, 1 << 16), mmap.mmap(-1, 1 << 16)
releaser = Releaser(own, peer, 0x2000, 64, lambda: print("rung"))
peer[0x1280] = 1  # the peer waits for room
ends = (releaser, lambda *which: print("ended", which), None)
here = [np.frombuffer(View(peer, 0, 8, end, 1, 1), np.uint8) for end in ends]
sys.there = [View(peer, 0, 8, end, 1, 1) for end in ends]
builtins.there = [memoryview(View(peer, 0, 8, end, 1, 1)) for end in ends]
cycle = [View(peer, 0, 8, end, 1, 1) for end in ends]
cycle.append(cycle)
sys.modules["kept"] = cycle

class Late:
    def __init__(self):
        self.views = [View(peer, 0, 8, end, 1, 1) for end in ends]

    def __del__(self):
        self.views.clear()

sys.late = Late()
started, never = threading.Event(), threading.Event()

def hold(views):
    started.set()
    never.wait()

threading.Thread(target=hold, args=([View(peer, 0, 8, end, 1, 1) for end in ends],), daemon=True).start()
started.wait()
"""


def test_an_interpreter_may_end_with_views_that_live() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES_VIEWS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
