"""View: part of the peer's memory, read-only, whose death sends its block home exactly once, wherever it dies."""

import gc
import io
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import SMALL, Ends, two_ends, two_sides
from views import array_on, at, view_of

from shmrpc.shm import ring
from shmrpc.shm.layout import GRANULE, Geometry
from shmrpc.shm.ring import View

WHOLE = SMALL.segment_bytes


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The right side reads blocks of the left one, and releases them."""
    with two_ends() as made:
        yield made


# What it shows


def test_it_shows_the_owners_memory_as_bytes(ends: Ends) -> None:
    view = view_of(ends, nbytes=4)
    seen = memoryview(view)
    assert bytes(view) == bytes(seen) == b"\1\2\3\4"
    assert (seen.format, seen.shape, seen.strides, seen.contiguous, seen.obj) == ("B", (4,), (1,), True, view)
    ends.left.own.mapping[at(1)] = 99
    assert seen[0] == 99


def test_it_cannot_be_written(ends: Ends) -> None:
    view = view_of(ends)
    assert memoryview(view).readonly
    assert not array_on(view).flags.writeable
    with pytest.raises(TypeError):
        memoryview(view)[0] = 1
    with pytest.raises(TypeError, match="read-write"):
        io.BytesIO(b"other").readinto(view)


def test_a_writable_one_is_for_ones_own_memory(ends: Ends) -> None:
    view = View(ends.left.own.mapping, at(2), 8, None, 2, 0, writable=True)
    array_on(view)[:] = 5
    memoryview(view)[0] = 6
    assert ends.right.peer.mapping[at(2) : at(2) + 9] == b"\6" + 7 * b"\5" + b"\0"
    with pytest.raises(BufferError):
        View(ends.right.peer.mapping, at(2), 8, None, 2, 0, True)


@pytest.mark.parametrize("offset", [0, WHOLE])
def test_it_may_show_nothing(ends: Ends, offset: int) -> None:
    view = View(ends.right.peer.mapping, offset, 0, None, 0, 0)
    assert bytes(view) == b""
    assert np.ndarray((0, 3), np.uint8, cast(Any, view)).size == 0


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, WHOLE + 1), (WHOLE, 1), (WHOLE + 1, 0), (-1, 1), (0, -1), (1, WHOLE), (8, sys.maxsize)]
)
def test_what_does_not_lie_in_the_mapping_is_refused(ends: Ends, offset: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match=f"{nbytes} bytes at {offset} do not lie in a mapping of {WHOLE} bytes"):
        View(ends.right.peer.mapping, offset, nbytes, ends.releaser, 0, 0)
    assert ends.reaper.take() == []


def test_it_says_what_it_is(ends: Ends) -> None:
    view = view_of(ends, 3, 2**64 - 1, nbytes=20)
    assert (len(view), view.nbytes, view.block, view.generation) == (20, 20, 3, 2**64 - 1)
    assert repr(view) == "<View of 20 bytes, block 3, generation 18446744073709551615>"
    assert repr(View(b"abc", 0, 3, None, 1, 2)) == "<View of 3 bytes, block 1, generation 2>"
    assert repr(View(ends.left.own.mapping, 0, 3, None, 1, 2, writable=True)).endswith(", writable>")
    assert not hasattr(view, "__dict__")


Call = Callable[[Any], object]
WRONG_CALLS: list[tuple[type[Exception], Call]] = [
    (TypeError, lambda view: view()),
    (TypeError, lambda view: view(b"", 0, 0, None, 0)),
    (TypeError, lambda view: view(b"", 0, 0, None, 0, 0, False, 0)),
    (TypeError, lambda view: view(b"", 0, 0, None, 0, 0, readonly=True)),
    (TypeError, lambda view: view(b"", 0, 0, None, 0, writable=True)),
    (TypeError, lambda view: view(b"", 0, 0, None, 0, 0, False, writable=True)),
    (TypeError, lambda view: view(5, 0, 0, None, 0, 0)),
    (TypeError, lambda view: view(b"", "0", 0, None, 0, 0)),
    (TypeError, lambda view: view(b"", 0, 0, 5, 0, 0)),
    (TypeError, lambda view: view(b"", 0, 0, None, None, 0)),
    (OverflowError, lambda view: view(b"", 0, 0, None, -1, 0)),
    (OverflowError, lambda view: view(b"", 0, 0, None, 0, 2**64)),
    (OverflowError, lambda view: view(b"", 2**63, 0, None, 0, 0)),
    (BufferError, lambda view: view(b"", 0, 0, None, 0, 0, True)),
    (TypeError, lambda view: type("Sub", (view,), {})),
    (TypeError, lambda view: setattr(view, "block", 1)),
    (AttributeError, lambda view: setattr(view(b"", 0, 0, None, 0, 0), "block", 1)),
]


@pytest.mark.parametrize(("error", "call"), WRONG_CALLS)
def test_wrong_arguments_are_refused(error: type[Exception], call: Call) -> None:
    with pytest.raises(error):
        call(View)


@pytest.mark.parametrize("make", [View, lambda *args, **names: View.__new__(View, *args, **names)])
def test_every_way_of_making_one_is_the_same(make: Callable[..., View]) -> None:
    memory = bytearray(b"abc")
    assert bytes(make(memory, 1, 2, None, 3, 4)) == b"bc"
    assert memoryview(make(memory, 1, 2, None, 3, 4)).readonly
    for view in (make(memory, 1, 2, None, 3, 4, True), make(memory, 1, 2, None, 3, 4, writable=True)):
        assert not memoryview(view).readonly


# When its block goes home


def test_its_death_sends_the_block_home_once(ends: Ends) -> None:
    view = view_of(ends, 5, 2**64 - 1)
    assert ends.reaper.take() == []
    assert ends.releaser.pushed == 0
    del view
    assert ends.reaper.take() == [(5, 2**64 - 1)]
    assert ends.reaper.take() == []
    assert ends.releaser.pushed == 1


def of_a_slice(view: View) -> object:
    return memoryview(view)[3:9]


def of_a_slice_of_an_array(view: View) -> object:
    return array_on(view)[3:9]


def of_an_array_with_a_shape(view: View) -> object:
    return np.ndarray((2, 3), np.uint8, cast(Any, view), offset=3)


def of_an_array_of_a_slice(view: View) -> object:
    return np.asarray(memoryview(view)[3:9])


@pytest.mark.parametrize("top", [of_a_slice, of_a_slice_of_an_array, of_an_array_with_a_shape, of_an_array_of_a_slice])
def test_whatever_lies_on_top_keeps_it_alive(ends: Ends, top: Callable[[View], Any]) -> None:
    seen = top(view_of(ends))
    gc.collect()
    assert ends.reaper.take() == []
    assert bytes(seen) == bytes(range(4, 10))
    del seen
    assert ends.reaper.take() == [(1, 7)]


def test_it_lives_as_long_as_the_last_of_many_on_top(ends: Ends) -> None:
    view = view_of(ends)
    tops: list[object] = [top(view) for top in (of_a_slice, of_a_slice_of_an_array, of_an_array_with_a_shape)]
    del view
    while tops:
        assert ends.reaper.take() == []
        tops.pop()
    assert ends.reaper.take() == [(1, 7)]


def test_a_copy_is_no_longer_the_peers_memory(ends: Ends) -> None:
    copied = array_on(view_of(ends)).copy()
    assert ends.reaper.take() == [(1, 7)]
    copied[0] = 5


def test_it_may_die_on_another_thread(ends: Ends) -> None:
    views = [view_of(ends)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert ends.reaper.take() == [(1, 7)]


def test_views_that_die_on_many_threads_at_once_each_go_home_once() -> None:
    geometry = Geometry(ring_bytes=4096, release_entries=4096, slab_bytes=GRANULE, inline_limit=256)
    with two_sides(geometry) as (left, right):
        releaser, reaper = ring.open_releaser(*right), ring.open_reaper(*left)
        heaps = [
            [View(right.peer.mapping, 0, 0, releaser, number, thread) for number in range(1000)] for thread in range(4)
        ]
        together = threading.Barrier(4)

        def drop(views: list[View]) -> None:
            together.wait()
            while views:
                views.pop()

        threads = [threading.Thread(target=drop, args=(views,)) for views in heaps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(reaper.take()) == [(number, thread) for number in range(1000) for thread in range(4)]
        assert not releaser.corrupt
        releaser.close()
        reaper.close()


def test_it_may_die_in_a_garbage_cycle(ends: Ends) -> None:
    cycle: list[object] = [view_of(ends), array_on(view_of(ends, 2))]
    cycle.append(cycle)
    del cycle
    assert ends.reaper.take() == []
    gc.collect()
    assert sorted(ends.reaper.take()) == [(1, 7), (2, 7)]


def test_the_garbage_collector_leaves_it_alone(ends: Ends) -> None:
    assert not gc.is_tracked(view_of(ends))


@given(st.permutations(range(8)))
def test_views_may_die_in_any_order(order: list[int]) -> None:
    with two_ends() as ends:
        views = {number: view_of(ends, number, number + 100) for number in range(8)}
        for number in order:
            del views[number]
        assert ends.reaper.take() == [(number, number + 100) for number in order]


def test_weak_references_see_its_death(ends: Ends) -> None:
    view = view_of(ends)
    seen: list[object] = []
    weak = weakref.ref(view, lambda _: seen.append(ends.reaper.take()))
    assert weak() is view
    del view
    assert weak() is None
    assert seen == [[]]  # told first, then released
    assert ends.reaper.take() == [(1, 7)]


def test_what_is_read_stays_readable_after_the_end_of_the_connection(ends: Ends) -> None:
    array = array_on(view_of(ends, nbytes=64))
    ends.close()
    for side in (ends.left, ends.right):
        side.own.close()
        side.peer.close()
    assert array.tolist() == list(range(1, 65))
    del array  # and whoever runs this test sees that the mapping went with it


def test_nothing_is_released_through_a_releaser_that_is_closed(ends: Ends) -> None:
    view = view_of(ends)
    ends.releaser.close()
    del view
    assert ends.reaper.take() == []
    assert not ends.releaser.corrupt


def test_a_view_that_could_not_be_made_releases_nothing(ends: Ends) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="do not lie"):
            View(ends.right.peer.mapping, WHOLE, 1, ends.releaser, 1, 1)
    with pytest.raises(BufferError):
        View(ends.right.peer.mapping, 0, 1, ends.releaser, 1, 1, writable=True)
    assert ends.releaser.pushed == 0


def test_nothing_is_kept_that_the_dead_have_used(ends: Ends) -> None:
    def end(block: int, generation: int) -> None:
        ends.reaper.take()

    memory = bytearray(8)
    counted: list[object] = [memory, end, ends.releaser, View]
    before = [sys.getrefcount(each) for each in counted]
    for number in range(100):
        View(memory, 0, 8, end, number, 1)
        array_on(View(memory, 0, 8, ends.releaser, number, 1))
        ends.reaper.take()
        with pytest.raises(ValueError, match="do not lie"):
            View(memory, 0, 9, end, number, 1)
    gc.collect()
    assert [sys.getrefcount(each) for each in counted] == before
    memory.append(1)  # a buffer that is still exported cannot grow
