"""How long extents stay: detached when they were idle, gone with the connection; and who is charged for them."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop
from life_waiting import until
from memories import METHOD, MIB, PEER, End, Gate, Ledger, Pair, is_ordinary, numbered, reached, two_ends, with_extent

from shmrpc.errors import ConnectionLost, ResourceExhausted
from shmrpc.shm import segment
from shmrpc.shm.settings import Settings
from shmrpc.testing.holdings import Held

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks

IMPATIENT = Settings(extent_idle=0.05)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def place(end: End, *arrays: Any, deadline_ns: int = 0) -> "asyncio.Task[int]":
    return asyncio.get_running_loop().create_task(end.send_when_possible(*arrays, deadline_ns=deadline_ns))


async def attached(end: End) -> None:
    await until(lambda: end.arena.extents and all(region.attached for region in end.arena.extents), "the extents")


# With the connection


async def test_memory_goes_with_its_last_view_whoever_keeps_what_is_left_of_the_connection(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    kept = [right.receive_arrays(), left.memory.allocate(5000)]
    left.close()
    right.close()
    assert len(Held.now().mappings) == 2, "each side's view of the left's segment"
    gc.disable()
    kept.clear()
    gc.enable()
    assert not Held.now().mappings


async def test_the_error_that_a_connection_ended_with_does_not_keep_what_was_on_its_way(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    sending = place(left, numbered(5 * MIB))
    await reached(gate)
    why = ConnectionLost("the peer died")
    left.memory.close(why)
    gate.opened.set()
    with pytest.raises(ConnectionLost, match="the peer died"):
        await sending
    await left.memory.wait_closed()
    assert why.__traceback__ is None


# Idle


async def test_an_idle_extent_is_detached_on_both_sides() -> None:
    async with two_ends(settings=IMPATIENT) as (left, right):
        await left.send_when_possible(numbered(5 * MIB))
        arrays = right.receive_arrays()
        assert right.attached == {1}
        del arrays
        await until(lambda: not left.arena.extents, "the detaching")
        await until(lambda: not right.attached, "the peer to hear of it")
        assert left.at_home
        assert left.broken == right.broken == []


async def test_an_extent_in_use_is_not_detached() -> None:
    async with two_ends(settings=IMPATIENT) as (left, right):
        await left.send_when_possible(numbered(5 * MIB))
        arrays = right.receive_arrays()
        region = left.arena.extents[0]
        left.memory._extents.detach_idle(region.idle_since_ns + 10**12)
        assert left.extent_sizes == [region.nbytes]
        assert (arrays[0] == numbered(5 * MIB)).all()


async def test_an_extent_is_kept_warm_until_it_was_idle_for_long_enough(pair: Pair) -> None:
    left, _ = pair
    await with_extent(left)
    [region] = left.arena.extents
    extents = left.memory._extents
    idle_ns = 10 * 10**9
    extents.detach_idle(region.idle_since_ns + idle_ns - 1)
    assert left.arena.extents == [region]
    assert extents.next_idle_ns(0) == [region.idle_since_ns + idle_ns]
    extents.detach_idle(region.idle_since_ns + idle_ns)
    assert left.arena.extents == []


async def test_idling_is_noticed_though_a_lease_is_to_be_looked_at_much_later() -> None:
    async with two_ends(settings=Settings(extent_idle=0.05, lease_warning=3600)) as (left, right):
        left.send(numbered(5000))  # its lease is what the timer is set for
        held = right.receive_arrays()
        await with_extent(left)
        await until(lambda: not left.arena.extents, "the detaching")
        assert held[0].nbytes == 5000


async def test_leases_are_looked_at_though_an_extent_is_to_be_kept_much_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two_ends(settings=Settings(extent_idle=3600, lease_warning=0.05)) as (left, right):
        await with_extent(left)
        left.send(numbered(5000))
        held = right.receive_arrays()
        await until(lambda: caplog.records, "the log")
        assert f"{PEER} has held 4.883 KiB of {METHOD} for 0." in caplog.text
        assert held[0].nbytes == 5000


async def test_a_lease_that_is_held_for_long_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with two_ends(settings=Settings(extent_idle=0.02, lease_warning=0.02)) as (left, right):
        left.send(numbered(5000))
        held = right.receive_arrays()
        await until(lambda: caplog.records, "the log")
        await with_extent(left)
        await until(lambda: not left.arena.extents, "some later turns of the timer")
        left.send(numbered(6000))
        held += right.receive_arrays()
        await until(lambda: len(caplog.records) > 1, "the log")
        texts = [record.getMessage() for record in caplog.records]
        assert ["4.883 KiB" in text for text in texts] == [True, False]
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


# The end


async def test_closing_while_a_thread_commits_waits_for_it(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    waiting = place(left, numbered(5 * MIB))
    await reached(gate)
    left.close()
    closed = asyncio.get_running_loop().create_task(left.memory.wait_closed())
    await asyncio.sleep(0)
    assert not closed.done()
    gate.opened.set()
    await closed
    with pytest.raises(ConnectionLost, match="the connection ended"):
        await waiting
    assert left.memory._extents._attaching == {}


async def test_closing_while_the_socket_is_full_ends_what_waits_with_the_connection(pair: Pair) -> None:
    left, right = pair
    asyncio.get_running_loop().remove_reader(right.memory.control._sock.fileno())
    sock = left.memory.control._sock
    try:
        while True:
            sock.send(bytes(1 << 12))
    except BlockingIOError:
        pass
    waiting = place(left, numbered(5 * MIB))
    await until(lambda: left.memory.control._unsent, "the message to wait")
    left.close()
    with pytest.raises(ConnectionLost, match="the connection ended"):
        await waiting


async def test_after_the_end_nothing_is_made(pair: Pair) -> None:
    left, _ = pair
    left.close()
    with pytest.raises(ConnectionLost):
        await left.send_when_possible(numbered(5 * MIB))
    assert is_ordinary(left.memory.allocate(5 * MIB))
    assert left.extent_sizes == []


async def test_arrays_can_be_written_after_the_end() -> None:
    async with two_ends() as (left, _):
        array = left.allocate(5 * MIB)
        await attached(left)
        left.close()
        array[:] = 9
        assert (array == 9).all()


# Charges


async def test_a_peer_is_charged_for_extents_and_what_it_was_given_stays_charged() -> None:
    ledger = Ledger()
    async with two_ends(settings=IMPATIENT, charge=ledger.charge, max_extent_bytes=12 * MIB) as (left, _):
        await with_extent(left)
        assert ledger.charged == 4 * MIB
        left.memory._extents.detach_idle(left.arena.extents[0].idle_since_ns + 10**12)
        assert left.extent_sizes == [4 * MIB], "it would only be charged again"
        left.allocate(10 * MIB)
        assert left.extent_sizes == [10 * MIB]
        assert ledger.charged == 14 * MIB


async def test_a_peer_that_may_have_no_more_is_told_why() -> None:
    ledger = Ledger(limit=4 * MIB)
    async with two_ends(charge=ledger.charge) as (left, _):
        with pytest.raises(ResourceExhausted, match="no memory for an extent of 5242880 bytes: its uid has enough"):
            await left.send_when_possible(numbered(5 * MIB))
        assert ledger.charged == 0


@pytest.mark.parametrize("step", ["create_extent", "commit"])
async def test_what_could_not_be_made_is_refunded(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner: Any = segment if step == "create_extent" else segment.Extent
    monkeypatch.setattr(owner, step, refuse)
    ledger = Ledger()
    async with two_ends(charge=ledger.charge) as (left, _):
        with pytest.raises(ResourceExhausted, match="No space left"):
            await left.send_when_possible(numbered(5 * MIB))
        assert ledger.charged == 0


async def test_an_end_says_how_many_extents_it_has(pair: Pair, gate: Gate) -> None:
    left, _ = pair
    left.allocate(5 * MIB)
    assert repr(left.memory._extents) == f"<Extents {5 * MIB} of {64 * MIB} bytes, 1 on their way>"
    gate.opened.set()
