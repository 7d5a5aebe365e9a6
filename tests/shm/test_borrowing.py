"""Borrowing: what this side sees of its peer's memory and for how long, and that a peer that lies is found out."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from joined import SMALL, set_word
from memories import MIB, SLAB, Bytes, End, Pair, numbered, on, two_ends, with_extent

from shmrpc.errors import ProtocolError
from shmrpc.shm import envelope, layout
from shmrpc.shm.arena import EXTENT_SHIFT
from shmrpc.shm.borrowing import PEER_OWNED
from shmrpc.shm.control import Detach
from shmrpc.shm.layout import GRANULE
from shmrpc.shm.ring import pack_references

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

ENTRIES = SMALL.release_entries


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def say(end: End, *references: tuple[int, int, int, int]) -> None:
    """Sends a record with references that say anything."""
    end.send_record(envelope.HAS_BUFFERS, pack_references(list(references), b""))


# Views


async def test_a_view_is_read_only_and_its_death_releases_the_lease_once(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    [parcel] = right.receive()
    [view] = parcel.views
    assert memoryview(view).readonly
    assert (view.block, view.generation, view.nbytes) == (0, 1, 5000)
    parts = [on(view)[10:20], memoryview(view)[1:], on(view)[::2]]
    del view
    parcel.views.clear()
    for _ in range(3):
        assert not left.at_home
        parts.pop(0)
    assert left.at_home


async def test_views_of_one_record_are_released_in_any_order_on_any_thread(pair: Pair) -> None:
    left, right = pair
    left.send(*(numbered(900, number) for number in range(8)))
    [parcel] = right.receive()
    parcel.views.reverse()
    threads = [threading.Thread(target=parcel.views.pop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left.at_home


async def test_a_record_that_nobody_looks_at_releases_its_leases(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000), numbered(3000))
    right.receive()
    assert left.at_home


@pytest.mark.parametrize("nbytes", [5000, 5 * MIB])
async def test_views_can_be_read_after_the_end_of_the_connection(nbytes: int) -> None:
    async with two_ends() as (left, right):
        await left.send_when_possible(numbered(nbytes))
        arrived = right.receive_arrays()
        left.close()
        right.close()
        assert (arrived[0] == numbered(nbytes)).all()
        arrived.clear()  # which has nobody to tell


async def test_an_extent_can_be_read_after_it_was_detached() -> None:
    async with two_ends() as (left, right):
        await left.send_when_possible(numbered(5 * MIB))
        arrived = right.receive_arrays()
        right.borrowed.on_detach(Detach(1))  # as by a peer that keeps no rules
        assert right.attached == set()
        assert (arrived[0] == numbered(5 * MIB)).all()


async def test_an_extent_that_is_still_in_the_socket_is_met_in_time(pair: Pair) -> None:
    left, right = pair
    asyncio.get_running_loop().remove_reader(right.memory.control._sock.fileno())
    await left.send_when_possible(numbered(5 * MIB))
    assert not right.borrowed._extents
    [arrived] = right.receive_arrays()
    assert (arrived == numbered(5 * MIB)).all()
    await left.send_when_possible(payload=numbered(MIB).tobytes())
    assert len(right.receive()) == 1


async def test_a_payload_in_an_extent_that_is_still_in_the_socket_is_met_in_time(pair: Pair) -> None:
    left, right = pair
    asyncio.get_running_loop().remove_reader(right.memory.control._sock.fileno())
    payload = numbered(MIB).tobytes()
    await left.send_when_possible(payload=payload)
    assert [parcel.payload for parcel in right.receive()] == [payload]
    assert left.at_home


# Memory of the peer that goes back


async def test_memory_of_the_peer_is_found_with_its_place(pair: Pair) -> None:
    left, right = pair
    kept = left.allocate(GRANULE)
    array = left.allocate(5000)
    left.send(array[100:])
    [parcel] = right.receive()
    [view] = parcel.views

    def found(array: Bytes) -> tuple[object, int] | None:
        return right.borrowed.find(array.ctypes.data, array)

    assert found(on(view)) == (view, 100)
    assert found(on(view)[50:60]) == (view, 150)
    assert found(on(view).reshape(70, 70)[3:]) == (view, 310)
    assert found(numbered(100)) is None
    assert right.borrowed.find(on(view).ctypes.data, object()) is None, "nothing keeps it"
    assert kept.nbytes


async def test_memory_of_a_detached_extent_is_memory_like_any_other() -> None:
    async with two_ends() as (left, right):
        await left.send_when_possible(numbered(5 * MIB))
        [arrived] = right.receive_arrays()
        right.borrowed.on_detach(Detach(1))
        assert right.borrowed.find(arrived.ctypes.data, arrived) is None


@pytest.mark.parametrize(
    ("number", "lease", "offset", "nbytes", "text"),
    [
        (0, 2, 0, 1, "sent back block 0 under lease 2, which is not out"),
        (1, 1, 0, 1, "sent back block 1 under lease 1, which is not out"),
        (1 << EXTENT_SHIFT, 1, 0, 1, f"sent back block {1 << EXTENT_SHIFT} under lease 1, which is not out"),
        (0, 1, 0, 5001, "sent back bytes 0 to 5001 of block 0, and was lent 0 to 5000"),
        (0, 1, 2**64 - 1, 2, "sent back bytes"),
        (0, 1, 0, 2**64 - 1, "sent back bytes"),
    ],
)
async def test_a_peer_cannot_send_back_what_it_was_not_lent(
    pair: Pair, number: int, lease: int, offset: int, nbytes: int, text: str
) -> None:
    left, right = pair
    left.send(numbered(5000))
    held = right.receive()
    say(right, (number | PEER_OWNED, lease, offset, nbytes))
    with pytest.raises(ProtocolError, match=text):
        left.receive()
    assert len(left.arena.loans) == 1
    held.clear()
    assert left.at_home


async def test_a_peer_cannot_send_back_what_it_has_released(pair: Pair) -> None:
    left, right = pair
    kept = left.allocate(5000)
    left.send(kept)
    right.receive()
    assert left.channel.collect()
    say(right, (PEER_OWNED, 1, 0, 1))
    with pytest.raises(ProtocolError, match="under lease 1, which is not out"):
        left.receive()
    assert kept.nbytes


# References that lie


@pytest.mark.parametrize(
    "reference",
    [
        (16, 1, 0, 1),
        (15, 1, 0, GRANULE + 1),
        (15, 1, GRANULE, 1),
        (0, 1, 0, SLAB + 1),
        (0, 1, SLAB + 1, 0),
        (0, 1, 2**64 - 1, 2),
        (2**32 - 1, 1, 2**64 - 1, 2**64 - 1),
        (0, 1, 1, 2**64 - 1),
    ],
)
async def test_a_reference_outside_of_the_slab_is_refused(pair: Pair, reference: tuple[int, int, int, int]) -> None:
    left, right = pair
    say(left, (0, 7, 0, 10), reference)
    with pytest.raises(ProtocolError, match=r"references to buffers are impossible: .* leads out of its slab"):
        right.receive()
    assert right.channel.releaser.pushed == 0, "of a record that is refused nothing is released"


async def test_a_reference_outside_of_an_extent_is_refused(pair: Pair) -> None:
    left, right = pair
    await with_extent(left)
    last = 4 * MIB // GRANULE - 1
    say(left, (1 << EXTENT_SHIFT | last, 1, 0, GRANULE))
    assert len(right.receive()) == 1
    say(left, (1 << EXTENT_SHIFT | last, 1, 1, GRANULE))
    with pytest.raises(ProtocolError, match="leads out of its slab"):
        right.receive()


@pytest.mark.parametrize("extent", [1, 2**31 - 1])
async def test_an_extent_that_was_never_attached_is_refused(pair: Pair, extent: int) -> None:
    left, right = pair
    say(left, (extent << EXTENT_SHIFT, 1, 0, 1))
    with pytest.raises(ProtocolError, match=f"refers to extent {extent}, which it never attached"):
        right.receive()


async def test_an_extent_that_was_detached_is_refused(pair: Pair) -> None:
    left, right = pair
    await with_extent(left)
    assert right.attached == {1}
    left.memory.control.send_soon(Detach(1))
    assert right.attached == set()
    say(left, (1 << EXTENT_SHIFT, 1, 0, 1))
    with pytest.raises(ProtocolError, match="refers to extent 1, which it never attached"):
        right.receive()


@pytest.mark.parametrize("payload", [b"", bytes(7), b"\x01" + bytes(38), bytes(4) + b"\x01" + bytes(3)])
async def test_a_table_that_is_none_is_refused(pair: Pair, payload: bytes) -> None:
    left, right = pair
    left.send_record(envelope.HAS_BUFFERS, payload)
    with pytest.raises(ProtocolError, match="references to buffers are impossible"):
        right.receive()


async def test_more_leases_than_there_are_entries_are_refused(pair: Pair) -> None:
    left, right = pair
    say(left, *((0, lease, 0, 1) for lease in range(5)))
    held = right.receive()
    say(left, *((0, lease, 0, 1) for lease in range(5)))
    held += right.receive()
    say(left, *((0, lease, 0, 1) for lease in range(6)))
    held += right.receive()
    assert ENTRIES == 16
    say(left, (0, 99, 0, 1))
    with pytest.raises(ProtocolError, match="sent 1 references in one record, allowed are 0"):
        right.receive()
    held.pop()
    say(left, *((0, lease, 0, 1) for lease in range(7)))
    with pytest.raises(ProtocolError, match="sent 7 references in one record, allowed are 6"):
        right.receive()


async def test_leases_of_payloads_in_blocks_do_not_count_as_held(pair: Pair) -> None:
    left, right = pair
    for _ in range(3 * ENTRIES):
        left.send(payload=bytes(1000))
        right.receive()
    left.send(*(numbered(10) for _ in range(ENTRIES - 1)), payload=bytes(200))
    assert len(right.receive_arrays()) == ENTRIES - 1
    held = []
    for _ in range(2):
        say(left, *((0, lease, 0, 1) for lease in range(7)))
        held += right.receive()
    say(left, *((0, lease, 0, 1) for lease in range(3)))
    with pytest.raises(ProtocolError, match="sent 3 references in one record, allowed are 2"):
        right.receive()
    assert len(held) == 2


async def test_a_view_that_cannot_be_released_ends_the_connection_at_the_next_buffer(pair: Pair) -> None:
    left, right = pair
    say(left, (0, 1, 0, 1))
    held = right.receive()
    set_word(left.channel.own, layout.CURSOR_RELEASE_HEAD, 2**63)
    held.clear()
    say(left, (0, 2, 0, 1))
    with pytest.raises(ProtocolError, match="position in the release ring is impossible"):
        right.receive()


@given(st.binary(max_size=200))
def test_whatever_a_peer_says_of_buffers_is_a_parcel_or_a_protocol_error(payload: bytes) -> None:
    async def scene() -> None:
        async with two_ends() as (left, right):
            left.send_record(envelope.HAS_BUFFERS, payload)
            with contextlib.suppress(ProtocolError):
                right.receive()

    asyncio.run(scene())
