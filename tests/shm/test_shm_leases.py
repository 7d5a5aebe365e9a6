"""Every lease ends once, whatever becomes of the call that it was for; and who holds what can be seen meanwhile."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import uvloop
from buffer_api import KIB, MIB, Buffers, Bytes, Pair, Parcel, numbered, pair, serving, session_of
from life_processes import kill, stop
from life_waiting import until

import shmrpc

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind

SIZES = [100 * KIB, 5 * MIB]


@pytest.fixture
async def both(path: str) -> AsyncIterator[Pair]:
    async with pair(path) as scene:
        yield scene


# Whatever becomes of the call


async def _held(both: Pair, calls: int = 1) -> None:
    await until(lambda: len(both.holder.held) == calls, "the calls to begin")


async def _answered(both: Pair, array: Bytes) -> None:
    assert await both.stub.first(array) == array[0]


async def _echoed(both: Pair, array: Bytes) -> None:
    assert (await both.stub.echo(array) == array).all()


async def _sent_twice(both: Pair, array: Bytes) -> None:
    one, other, again = await both.stub.both(array, array)
    assert (one == other).all()
    assert (again == other).all()


async def _given(both: Pair, array: Bytes) -> None:
    assert (await both.stub.give(array.nbytes, 3) == 3).all()


async def _given_born(both: Pair, array: Bytes) -> None:
    assert (await both.stub.give_born(array.nbytes, 3) == 3).all()


async def _bytes(both: Pair, array: Bytes) -> None:
    assert await both.stub.raw(array.tobytes()) == array.tobytes()


async def _oneway(both: Pair, array: Bytes) -> None:
    await both.stub.throw(array)


async def _cancelled(both: Pair, array: Bytes) -> None:
    call = asyncio.ensure_future(both.stub.hold(array))
    await _held(both)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await _held(both, 0)


async def _cancelled_at_once(both: Pair, array: Bytes) -> None:
    for method in (both.stub.echo, both.stub.hold, both.stub.nap):
        for turns in range(4):
            call = asyncio.ensure_future(method(array))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait((call,))
    await both.stub.small(1)
    await _held(both, 0)


async def _cancelled_with_its_reply(both: Pair, array: Bytes) -> None:
    """The reply of the second call has come when the first, which wakes before it, cancels it."""

    async def first() -> None:
        await both.stub.hold(array)
        second.cancel()

    one = asyncio.ensure_future(first())
    await _held(both)
    second = asyncio.ensure_future(both.stub.hold(array))
    await _held(both, 2)
    await both.stub.let_go()
    await one
    await asyncio.wait((second,))


async def _cancelled_and_answered_all_the_same(both: Pair, array: Bytes) -> None:
    """The cancel crosses the reply."""
    call = asyncio.ensure_future(both.stub.hold(array))
    await _held(both)
    both.holder.held[0].set_result(None)
    call.cancel()
    await asyncio.wait((call,))
    await _held(both, 0)


async def _late(both: Pair, array: Bytes) -> None:
    with pytest.raises(shmrpc.DeadlineExceeded):
        await shmrpc.options(both.stub, timeout=0.02).hold(array)
    await _held(both, 0)


async def _too_late_from_the_beginning(both: Pair, array: Bytes) -> None:
    with pytest.raises((shmrpc.DeadlineExceeded, shmrpc.ResourceExhausted)):
        await shmrpc.options(both.stub, timeout=1e-6).first(array)


async def _failed(both: Pair, array: Bytes) -> None:
    with pytest.raises(shmrpc.Internal):
        await both.stub.fail(array)


async def _refused_by_its_type(both: Pair, array: Bytes) -> None:
    parcel = Parcel(array)
    parcel.mood = "bad"
    with pytest.raises(shmrpc.InvalidArgument, match="bad mood"):
        await both.stub.open(parcel)


async def _result_cannot_be_encoded(both: Pair, array: Bytes) -> None:
    with pytest.raises(shmrpc.Internal, match="cannot be encoded"):
        await both.stub.give_odd(array)


async def _result_cannot_be_decoded(both: Pair, array: Bytes) -> None:
    with pytest.raises(shmrpc.Internal, match="bad mood"):
        await both.stub.give_bad(array.nbytes)


async def _argument_cannot_be_encoded(both: Pair, array: Bytes) -> None:
    wrong: Any = both.stub
    with pytest.raises(shmrpc.InvalidArgument, match="parameter 'other'"):
        await wrong.both(array, object())


async def _named_by_keyword(both: Pair, array: Bytes) -> None:
    assert await shmrpc.options(both.stub, metadata={"colour": "blue"}).first(array=array) == array[0]


ENDINGS = [
    _answered,
    _echoed,
    _sent_twice,
    _given,
    _given_born,
    _bytes,
    _oneway,
    _cancelled,
    _cancelled_at_once,
    _cancelled_with_its_reply,
    _cancelled_and_answered_all_the_same,
    _late,
    _too_late_from_the_beginning,
    _failed,
    _refused_by_its_type,
    _result_cannot_be_encoded,
    _result_cannot_be_decoded,
    _argument_cannot_be_encoded,
    _named_by_keyword,
]
Ending = Callable[[Pair, Bytes], Awaitable[None]]
endings = pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__.strip("_"))


@endings
@pytest.mark.parametrize("nbytes", SIZES)
@pytest.mark.parametrize("born", [False, True], ids=["copied", "born"])
async def test_every_lease_has_ended_when_a_call_has(
    both: Pair, ending: Ending, nbytes: int, born: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "shmrpc.server")  # else it keeps the frames of the handlers that fail
    for _ in range(3):
        array = shmrpc.empty(nbytes, np.uint8, to=both.stub) if born else np.empty(nbytes, np.uint8)
        array[:] = 5
        await ending(both, array)
        del array
    await both.at_home()
    assert " was cut: " not in caplog.text


async def test_every_lease_has_ended_when_many_calls_have_however_they_did(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With memory for two or three at a time, so that most of them wait for it."""
    caplog.set_level(logging.CRITICAL, "shmrpc.server")
    choose = random.Random(7)
    async with pair(path, {"max_extent_bytes": 0}, max_extent_bytes=0) as both:
        stub = both.stub

        async def call(number: int) -> None:
            array = numbered(choose.randint(30, 150) * KIB, number)
            callers: list[Any] = [stub.first, stub.echo, stub.fail, stub.checksum, stub.throw]
            called = choose.choice([*callers, lambda array: stub.give(array.nbytes, 1)])(array)
            timed = asyncio.wait_for(called, choose.choice([0.001, 0.01, None]))
            with suppress(TimeoutError, shmrpc.Internal):
                await timed

        for _ in range(4):
            await asyncio.gather(*map(call, range(60)))
        await both.at_home()
    assert " was cut: " not in caplog.text


async def test_a_caller_who_waits_for_memory_may_give_up(path: str) -> None:
    async with pair(path, {"max_extent_bytes": 0}) as both:
        await both.stub.keep(numbered(200 * KIB))
        waiting = [asyncio.ensure_future(both.stub.keep(numbered(200 * KIB, number))) for number in range(1, 6)]
        await asyncio.sleep(0)
        for call in waiting[:-1]:
            call.cancel()
        await asyncio.wait(waiting[:-1])
        assert await both.stub.small(1) == 1
        both.holder.arrays.clear()
        await waiting[-1]
        assert await both.stub.kept() == [5]
        both.holder.arrays.clear()
        await both.at_home()


async def test_a_handler_whose_result_waits_for_memory_may_be_cancelled(path: str) -> None:
    async with pair(path, max_extent_bytes=0) as both:
        result = await both.stub.give(200 * KIB, 1)
        waiting = [asyncio.ensure_future(both.stub.give(200 * KIB, number)) for number in range(2, 6)]
        assert await both.stub.small(1) == 1  # so that they have all begun
        for call in waiting[:-1]:
            call.cancel()
        await asyncio.wait(waiting[:-1])
        assert not waiting[-1].done()
        del result
        assert (await waiting[-1] == 5).all()
        waiting.clear()
        del call
        await both.at_home()


async def test_a_result_that_finds_no_memory_before_the_deadline_says_so(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair(path, max_extent_bytes=0) as both:
        result = await both.stub.give(200 * KIB, 1)
        with pytest.raises(shmrpc.DeadlineExceeded, match=r"Buffers\.give did not end before its deadline"):
            await shmrpc.options(both.stub, timeout=0.05).give(200 * KIB, 2)
        await until(lambda: "there was no room for its answer" in caplog.text, "the server to say why")
        assert "holds 200 KiB in 1 block of Buffers.give" in caplog.text
        assert (result == 1).all()
        del result
        await both.at_home()


# The end of a connection


@pytest.mark.parametrize("nbytes", SIZES)
async def test_a_server_that_is_killed_holds_nothing_any_more(path: str, nbytes: int) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            array = shmrpc.empty(nbytes, np.uint8, to=stub)
            array[:] = 3
            for _ in range(3):
                await stub.keep(array)
                await stub.keep(numbered(nbytes))
            stop(server)
            calls = [asyncio.ensure_future(stub.first(each)) for each in (array, numbered(nbytes))]
            await until(lambda: sum(lease.blocks for lease in shmrpc.leases(stub)) == 9, "them to be sent")
            session = session_of(stub)
            kill(server)
            outcomes = await asyncio.gather(*(asyncio.wait_for(call, 0.2) for call in calls), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {shmrpc.ConnectionLost, TimeoutError}
            assert shmrpc.leases(stub) == []
            assert session.ended
            with serving(path):
                assert await stub.first(array) == 3
                await stub.keep(array)
                assert [lease.nbytes for lease in shmrpc.leases(stub)] == [nbytes]
                assert await stub.drop() == 1
                await until(lambda: shmrpc.leases(stub) == [], "all leases to end")


async def test_a_client_that_closes_with_results_in_its_hands_holds_nothing_any_more(both: Pair, path: str) -> None:
    async with shmrpc.connect(Buffers, path) as other:
        results = [await other.give(5 * MIB, number) for number in range(3)]
        assert [lease.blocks for lease in shmrpc.leases(both.server)] == [3]
    await until(lambda: both.server.connections == 1, "the server to notice")
    assert shmrpc.leases(both.server) == []
    assert all((result == number).all() for number, result in enumerate(results))
    await both.at_home()


async def test_arrays_that_die_after_the_end_disturb_nobody(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with pair(path) as both:
        results = [await both.stub.give(5 * MIB, 1), shmrpc.empty(100 * KIB, np.uint8, to=both.stub)]
        await both.stub.keep(results[1])
        kept = list(both.holder.arrays)
    while results or kept:
        (results or kept).pop()[:1].copy()
    assert caplog.text == ""


# Who holds what


async def test_it_can_be_seen_who_holds_how_much_since_when_by_method(both: Pair) -> None:
    assert shmrpc.leases(both.stub) == shmrpc.leases(both.server) == []
    for number in range(3):
        await both.stub.keep(numbered(20 * KIB, number))
    held = asyncio.ensure_future(both.stub.hold(numbered(30 * KIB)))
    await _held(both)
    born = shmrpc.empty(10 * KIB, np.uint8, to=both.stub)
    result = await both.stub.give(50 * KIB, 1)
    ours, theirs = shmrpc.leases(both.stub), shmrpc.leases(both.server)
    seen = [(lease.method, lease.blocks, lease.nbytes) for lease in ours]
    assert seen == [("Buffers.keep", 3, 60 * KIB), ("Buffers.hold", 1, 30 * KIB), ("", 1, 10 * KIB)]
    assert [(lease.method, lease.blocks, lease.nbytes) for lease in theirs] == [("Buffers.give", 1, 50 * KIB)]
    assert ours[0].holder == ours[1].holder == theirs[0].holder == shmrpc.peer(both.stub)
    assert ours[2].holder is None
    assert 0 < ours[1].age <= ours[0].age < 20
    again = shmrpc.leases(both.stub)
    assert again[0].age > ours[0].age
    assert ours[0] == shmrpc.leases(both.stub)[0]._replace(age=ours[0].age)  # the first was a snapshot
    await both.stub.let_go()
    await held
    del born, result, held
    both.holder.arrays.clear()
    await both.at_home()


async def test_one_array_that_is_lent_often_counts_each_time(both: Pair) -> None:
    array = shmrpc.empty(100 * KIB, np.uint8, to=both.stub)
    array[:] = 1
    for _ in range(20):
        await both.stub.keep(array)
    seen = [(lease.method, lease.blocks, lease.nbytes) for lease in shmrpc.leases(both.stub)]
    assert seen == [("Buffers.keep", 20, 2000 * KIB), ("", 1, 100 * KIB)]
    assert both.arenas[1].base.free_bytes == 260 * KIB
    both.holder.arrays.clear()
    del array
    await both.at_home()


async def test_leases_are_limited_by_the_release_ring_and_those_beyond_wait(path: str) -> None:
    """Sixteen leases on one block, which costs no memory."""
    from shmrpc.shm.layout import Geometry

    few = Geometry(release_entries=16, slab_bytes=16 * KIB)
    async with pair(path, {"geometry": few}, geometry=few) as both:
        array = shmrpc.empty(9 * KIB, np.uint8, to=both.stub)
        array[:] = 1
        for _ in range(16):
            await both.stub.keep(array)
        waiting = asyncio.ensure_future(both.stub.keep(array))
        with pytest.raises(shmrpc.ResourceExhausted, match=r"16 of 16 leases are out \(release_entries\)"):
            await shmrpc.options(both.stub, timeout=0.05).keep(array)
        assert await both.stub.small(1) == 1
        assert not waiting.done()
        both.holder.arrays.pop()
        await waiting
        assert len(both.holder.arrays) == 16
        both.holder.arrays.clear()
        del array
        await both.at_home()


@pytest.mark.parametrize("wrong", [None, 7, "stub", Buffers])
def test_only_a_stub_or_a_server_has_leases(wrong: object) -> None:
    with pytest.raises(TypeError, match="expected a stub or a Server, not"):
        shmrpc.leases(wrong)
