"""open_references and pack_references: what a record says of its buffers, and what a peer can say that is not true."""

import contextlib
import gc
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import SMALL, Ends, two_ends

from shmrpc.shm.layout import GRANULE
from shmrpc.shm.ring import RingCorrupt, View, open_references, pack_references

OWN = 1 << 63
"""The bit of a block that belongs to the receiver."""
SLAB = SMALL.slab_bytes
Extents = dict[int, tuple[Any, int, int]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The right side reads blocks of the left one, and releases them."""
    with two_ends() as made:
        yield made


def extents_of(ends: Ends) -> Extents:
    """The base slab, and an extent with bytes that count from 0."""
    return {
        0: (ends.right.peer.mapping, SMALL.slab_offset, SLAB),
        7: (bytes(range(256)) * 16, 0, 4096),
    }


def opened(ends: Ends, *references: tuple[int, int, int, int], most: int = 9) -> tuple[bytes, list[Any]]:
    return open_references(pack_references(list(references), b"body"), extents_of(ends), ends.releaser, most)


# What is true


def test_a_table_has_the_layout_of_the_specification() -> None:
    references = [(1, 2, 3, 4), (OWN | 5, 6, 2**64 - 1, 0)]
    assert pack_references(references, b"body") == (
        struct.pack("<II", 2, 0) + struct.pack("<QQQQ", *references[0]) + struct.pack("<QQQQ", *references[1]) + b"body"
    )
    assert pack_references([], b"") == bytes(8)


def test_every_reference_becomes_a_view_that_goes_home(ends: Ends) -> None:
    at = SMALL.slab_offset + 3 * GRANULE
    ends.left.own.mapping[at : at + 8] = b"contents"
    body, views = opened(ends, (3, 11, 2, 4), (7 << 32 | 1, 12, 5, 3))
    assert body == b"body"
    assert [bytes(view) for view in views] == [b"nten", bytes([5, 6, 7])]
    assert [(view.block, view.generation, view.nbytes) for view in views] == [(3, 11, 4), (7 << 32 | 1, 12, 3)]
    assert all(type(view) is View and memoryview(view).readonly for view in views)
    assert ends.reaper.take() == []
    del views[0]
    assert ends.reaper.take() == [(3, 11)]
    del views
    assert ends.reaper.take() == [(7 << 32 | 1, 12)]


def test_a_block_of_this_side_is_given_as_its_numbers(ends: Ends) -> None:
    body, found = opened(ends, (OWN | 99 << 32 | 5, 2**64 - 1, 2**64 - 2, 2**64 - 3), (0, 1, 0, 1), (OWN, 0, 0, 0))
    assert body == b"body"
    assert found[0] == (99 << 32 | 5, 2**64 - 1, 2**64 - 2, 2**64 - 3)
    assert found[2] == (0, 0, 0, 0)
    del found
    assert ends.reaper.take() == [(0, 1)]


def test_a_record_may_have_no_references_and_no_body(ends: Ends) -> None:
    assert open_references(bytes(8), {}, ends.releaser, 0) == (b"", [])


def test_a_view_may_show_the_whole_slab_or_nothing_at_its_end(ends: Ends) -> None:
    _, views = opened(ends, (0, 1, 0, SLAB), (0, 2, SLAB, 0), (SLAB // GRANULE, 3, 0, 0))
    assert [len(view) for view in views] == [SLAB, 0, 0]


@given(
    st.lists(st.tuples(*4 * [st.integers(0, 2**64 - 1)]), max_size=20),
    st.binary(max_size=50),
)
def test_what_was_packed_is_opened(references: list[tuple[int, int, int, int]], body: bytes) -> None:
    returning = [(block | OWN, *rest) for block, *rest in references]
    with two_ends() as ends:
        payload = pack_references(returning, body)  # type: ignore[arg-type]
        found = open_references(payload, {}, ends.releaser, len(references))
    assert found == (body, [(block & ~OWN, *rest) for block, *rest in references])


# What is not


IMPOSSIBLE = [
    (0, 1, 0, SLAB + 1),
    (0, 1, 1, SLAB),
    (0, 1, SLAB + 1, 0),
    (SLAB // GRANULE, 1, 0, 1),
    (SLAB // GRANULE + 1, 1, 0, 0),
    (2**32 - 1, 1, 0, 0),
    (1, 1, 2**64 - GRANULE, 1),
    (0, 1, 8, 2**64 - 8),
    (0, 1, 2**63, 2**63),
    (7 << 32 | 4, 1, 0, 1),
    (7 << 32, 1, 0, 4097),
]


@pytest.mark.parametrize("lie", IMPOSSIBLE)
@pytest.mark.parametrize("before", [[], [(1, 5, 0, 10)]])
def test_what_does_not_lie_in_the_peers_memory_is_refused(
    ends: Ends, lie: tuple[int, int, int, int], before: list[tuple[int, int, int, int]]
) -> None:
    with pytest.raises(RingCorrupt, match=f"to {lie[3]} bytes at {lie[2]} of block {lie[0]}, leads out of its slab"):
        opened(ends, *before, lie)
    assert ends.releaser.pushed == 0


def test_more_references_than_allowed_are_refused(ends: Ends) -> None:
    three = [(0, number, 0, 1) for number in range(3)]
    for most in (2, 0, -1):
        with pytest.raises(RingCorrupt, match=f"the peer sent 3 references in one record, allowed are {most}"):
            opened(ends, *three, most=most)
    assert ends.releaser.pushed == 0
    assert len(opened(ends, *three, most=3)[1]) == 3


@pytest.mark.parametrize("length", range(72))
def test_a_payload_that_ends_in_its_table_is_refused(ends: Ends, length: int) -> None:
    payload = pack_references([(0, 1, 0, 1), (0, 2, 0, 1)], b"")[:length]
    text = f"a table of {2 if length >= 8 else 0} references, which does not fit in its payload of {length} bytes"
    with pytest.raises(RingCorrupt, match=text):
        open_references(payload, extents_of(ends), ends.releaser, 9)
    assert ends.releaser.pushed == 0


def test_a_count_beyond_all_memory_is_refused(ends: Ends) -> None:
    with pytest.raises(RingCorrupt, match="a table of 4294967295 references"):
        open_references(struct.pack("<II", 2**32 - 1, 0) + bytes(64), extents_of(ends), ends.releaser, sys.maxsize)


def test_the_word_that_must_be_zero_is_looked_at(ends: Ends) -> None:
    with pytest.raises(RingCorrupt, match="must be zero"):
        open_references(struct.pack("<II", 0, 1), extents_of(ends), ends.releaser, 9)


@given(st.binary(max_size=200))
def test_any_payload_is_opened_or_refused(payload: bytes) -> None:
    with two_ends() as ends:
        try:
            body, found = open_references(payload, extents_of(ends), ends.releaser, 9)
        except (RingCorrupt, KeyError):
            assert ends.releaser.pushed == 0
            return
        assert payload.endswith(body)
        assert len(payload) == len(body) + 8 + 32 * len(found)


# What is not there yet


def test_an_unknown_extent_is_named_and_nothing_is_opened(ends: Ends) -> None:
    payload = pack_references([(1, 5, 0, 10), (9 << 32 | 1, 6, 0, 10), (1, 7, 0, 10)], b"body")
    extents = extents_of(ends)
    with pytest.raises(KeyError) as caught:
        open_references(payload, extents, ends.releaser, 9)
    assert caught.value.args == (9,)
    assert ends.releaser.pushed == 0
    extents[9] = extents[7]
    body, views = open_references(payload, extents, ends.releaser, 9)
    assert body == b"body"
    del views
    assert sorted(ends.reaper.take()) == [(1, 5), (1, 7), (9 << 32 | 1, 6)]


def test_the_highest_extent_has_31_bits(ends: Ends) -> None:
    with pytest.raises(KeyError) as caught:
        opened(ends, (OWN - 1, 1, 0, 0))
    assert caught.value.args == (2**31 - 1,)


# Whoever calls


@pytest.mark.parametrize("extent", [(b"abc", 0, 4), (b"abc", -1, 3), (b"abc", 0, -1), (b"abc", sys.maxsize, 1)])
def test_an_extent_that_its_mapping_does_not_have_is_the_callers_fault(
    ends: Ends, extent: tuple[Any, int, int]
) -> None:
    payload = pack_references([(0, 1, 0, max(extent[2], 0))], b"")
    with pytest.raises(ValueError, match="bytes at") as caught:
        open_references(payload, {0: extent}, ends.releaser, 9)
    assert not isinstance(caught.value, RingCorrupt)
    assert ends.releaser.pushed == 0


ONE = pack_references([(0, 1, 0, 0)], b"")
Call = Callable[[Any], object]
WRONG_CALLS: list[tuple[type[Exception], Call]] = [
    (TypeError, lambda ends: open_references(ONE, {}, ends.releaser)),  # type: ignore[call-arg]
    (TypeError, lambda ends: open_references(bytearray(ONE), {}, ends.releaser, 1)),  # type: ignore[arg-type]
    (TypeError, lambda ends: open_references(ONE, [], ends.releaser, 1)),  # type: ignore[arg-type]
    (TypeError, lambda ends: open_references(ONE, {}, ends.reaper, 1)),
    (TypeError, lambda ends: open_references(ONE, {}, ends.releaser, "1")),  # type: ignore[arg-type]
    (TypeError, lambda ends: open_references(ONE, {0: (b"", 0)}, ends.releaser, 1)),  # type: ignore[dict-item]
    (TypeError, lambda ends: open_references(ONE, {0: [b"", 0, 0]}, ends.releaser, 1)),  # type: ignore[dict-item]
    (TypeError, lambda ends: open_references(ONE, {0: (b"", "0", 0)}, ends.releaser, 1)),  # type: ignore[dict-item]
    (TypeError, lambda ends: open_references(ONE, {0: (5, 0, 0)}, ends.releaser, 1)),  # type: ignore[dict-item]
    (TypeError, lambda ends: pack_references([], bytearray())),  # type: ignore[arg-type]
    (TypeError, lambda ends: pack_references((), b"")),  # type: ignore[arg-type]
    (TypeError, lambda ends: pack_references([(1, 2, 3)], b"")),  # type: ignore[list-item]
    (TypeError, lambda ends: pack_references([(1, 2, 3, "4")], b"")),  # type: ignore[list-item]
    (OverflowError, lambda ends: pack_references([(1, 2, 3, -1)], b"")),
    (OverflowError, lambda ends: pack_references([(1, 2, 3, 2**64)], b"")),
]


@pytest.mark.parametrize(("error", "call"), WRONG_CALLS)
def test_wrong_arguments_are_refused(ends: Ends, error: type[Exception], call: Call) -> None:
    with pytest.raises(error):
        call(ends)
    assert ends.releaser.pushed == 0


def test_nothing_is_kept_of_what_could_not_be_opened(ends: Ends) -> None:
    extents = extents_of(ends)
    counted: list[object] = [ends.right.peer.mapping, extents[7][0], ends.releaser, View]
    before = [sys.getrefcount(each) for each in counted]
    good, own = (1, 5, 0, 10), (OWN, 5, 0, 10)
    for last in (good, own, *IMPOSSIBLE, (9 << 32, 1, 0, 0)):
        with contextlib.suppress(RingCorrupt, KeyError):
            open_references(pack_references([good, (7 << 32, 1, 0, 0), own, last], b""), extents, ends.releaser, 4)
        ends.reaper.take()
    gc.collect()
    assert [sys.getrefcount(each) for each in counted] == before


def test_finalizers_that_run_in_between_do_no_harm(ends: Ends) -> None:
    """A garbage collection, which an allocation may begin, can let go of everything that is not held."""
    payload = pack_references([(7 << 32, 1, 0, 16), *(SMALL.release_entries - 2) * [(OWN, 1, 0, 0)]], b"body")
    thresholds = gc.get_threshold()
    for begin in range(1, 20):
        extents = extents_of(ends)

        def forget(phase: str, _: object, extents: Extents = extents) -> None:
            extents.clear()

        gc.collect()
        gc.callbacks.append(forget)
        gc.set_threshold(begin)
        try:
            _, found = open_references(payload, extents, ends.releaser, 64)
        except KeyError:
            found = []
        finally:
            gc.callbacks.remove(forget)
            gc.set_threshold(*thresholds)
        assert not found or bytes(found[0]) == bytes(range(16))
        del found
        ends.reaper.take()
