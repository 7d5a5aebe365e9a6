"""Extents between processes: arrays larger than the base slab, the limit of their memory, and its return to the system."""

import asyncio
import gc
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from buffer_api import (
    KIB,
    MIB,
    Buffers,
    Bytes,
    Holder,
    Pair,
    client_playing,
    extents_mapped,
    numbered,
    pair,
    segment_fds,
    serving,
)
from life_processes import STRANGER, as_root, kill, stop
from life_waiting import PATIENCE, until
from raw_channel import DEFAULT

import shmrpc
from shmrpc.shm import segment

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind


@pytest.fixture
def open_path(folder: Path) -> str:
    """A path that a process under any uid can reach."""
    folder.chmod(0o1777)
    return str(folder / "test.sock")


def segments_mapped() -> int:
    """How many segments and extents this process has mapped. (Up to Python 3.12 each mapping keeps an fd, too.)"""
    return Path("/proc/self/maps").read_text().count("/memfd:shmrpc")


def crc(array: Any) -> int:
    return zlib.crc32(memoryview(array))


# Sizes


@pytest.mark.parametrize("nbytes", [361 * KIB, MIB, 16 * MIB, 128 * MIB])
async def test_arrays_of_any_size_come_and_go(path: str, nbytes: int) -> None:
    with serving(path):
        async with shmrpc.connect(Buffers, path) as stub:
            array = numbered(nbytes)
            assert await stub.checksum(array) == crc(array)
            echoed = await stub.echo(array)
            assert (echoed == array).all()
            del echoed
            born = shmrpc.empty(nbytes, np.uint8, to=stub)
            born[:] = array
            back = await stub.echo(born)
            assert np.shares_memory(back, born)
            assert (back == array).all()
            del back, born
            for result in (await stub.give(nbytes, 7), await stub.give_born(nbytes, 7)):
                assert (result == 7).all()
                assert not result.flags.writeable
            contents = array.tobytes()
            assert await stub.raw(contents) == contents


async def test_a_message_may_have_arrays_of_all_sizes(path: str) -> None:
    with serving(path):
        async with shmrpc.connect(Buffers, path) as stub:
            sizes = (0, 1, 7999, 8000, 8001, 100 * KIB, 361 * KIB, 3 * MIB, 9 * MIB)
            for one in sizes:
                arrays = [numbered(one, 1), numbered(sizes[-1] // (one + 1), 2)]
                echoes = await stub.both(*arrays)
                for echo, array in zip(echoes, (*arrays, arrays[0]), strict=True):
                    assert (echo == array).all()


# Back to the system


async def test_extents_that_idle_are_given_back_to_the_system(path: str) -> None:
    async with pair(path, {"extent_idle": 0.05}, extent_idle=0.05) as both:
        fds = segment_fds()
        result = await both.stub.give(5 * MIB, 1)
        await both.stub.keep(numbered(20 * MIB))
        assert sorted(extents_mapped()) == [5 * MIB] * 2 + [20 * MIB] * 2  # by both sides, which are one process here
        both.holder.arrays.clear()
        await until(lambda: sorted(extents_mapped()) == [5 * MIB] * 2, "what idles to go")
        assert (result == 1).all()
        del result
        await until(lambda: extents_mapped() == [], "the rest to go")
        assert segment_fds() == fds
        assert (await both.stub.echo(numbered(5 * MIB)) == numbered(5 * MIB)).all()  # and they come again
        await both.at_home()


async def test_an_extent_that_is_seen_stays_mapped_and_goes_with_its_last_view(path: str) -> None:
    async with pair(path, {"extent_idle": 0.05}, extent_idle=0.05) as both:
        result: Any = (await both.stub.give(5 * MIB, 1))[-1:]
        await both.stub.small(1)
    assert extents_mapped() == [5 * MIB]
    assert result[0] == 1
    del result
    assert extents_mapped() == []


@pytest.mark.parametrize("method", ["born", "given"])
async def test_what_dies_after_the_connection_takes_its_memory_along_at_once(path: str, method: str) -> None:
    """Not when garbage is collected: that may be much later, and Python does not see how much memory it is."""
    async with shmrpc.Server(Holder(), at=path):
        async with shmrpc.connect(Buffers, path) as stub:
            array = shmrpc.empty(5 * MIB, np.uint8, to=stub) if method == "born" else await stub.give(5 * MIB, 1)
            assert await stub.small(await stub.first(array)) == array[0]
        await until(lambda: extents_mapped() == [5 * MIB], "the other side to let go")
        gc.disable()
        try:
            array[:1].copy()
            del array
            assert extents_mapped(collect=False) == []
        finally:
            gc.enable()


async def test_so_does_an_array_whose_extent_was_still_on_its_way_when_the_connection_ended(path: str) -> None:
    async with shmrpc.Server(Holder(), at=path):
        async with shmrpc.connect(Buffers, path) as stub:
            array = shmrpc.empty(5 * MIB, np.uint8, to=stub)
            await asyncio.sleep(0)  # its thread begins
        assert extents_mapped() == [5 * MIB]
        gc.disable()
        try:
            array[:1].copy()
            del array
            await until(lambda: extents_mapped(collect=False) == [], "the thread to forget what it made")
        finally:
            gc.enable()


@pytest.mark.parametrize("method", ["born", "given", "kept"])
async def test_so_does_what_lies_in_a_base_segment(path: str, method: str) -> None:
    holder = Holder()
    mapped = segments_mapped()
    array: Any = None
    async with shmrpc.Server(holder, at=path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            if method == "kept":
                await stub.keep(numbered(100 * KIB))
            else:
                array = (
                    shmrpc.empty(100 * KIB, np.uint8, to=stub) if method == "born" else await stub.give(100 * KIB, 1)
                )
        await until(lambda: not server.connections, "the server to notice")
        assert segments_mapped() == mapped + 1
        gc.disable()
        try:
            del array
            holder.arrays.clear()
            assert segments_mapped() == mapped
        finally:
            gc.enable()


async def test_a_connection_that_ends_takes_its_extents_along_in_both_processes(path: str) -> None:
    with serving(path) as server:
        fds = segment_fds(server.pid)
        for _ in range(3):
            async with shmrpc.connect(Buffers, path) as stub:
                result = await stub.give(5 * MIB, 1)
                await stub.keep(numbered(5 * MIB))
                assert await stub.drop() == 1
                assert len(extents_mapped(server.pid)) == 2
                del result
            assert extents_mapped() == []
            await until(lambda: extents_mapped(server.pid) == [], "the server to let go of them")
            await until(lambda: segment_fds(server.pid) == fds, "the server to close its fds")


@pytest.mark.parametrize("method", ["copied", "born", "given", "given born"])
async def test_many_calls_need_no_more_memory_than_a_few(path: str, method: str) -> None:
    async with pair(path) as both:

        async def call(number: int) -> None:
            if method in ("given", "given born"):
                give = both.stub.give if method == "given" else both.stub.give_born
                assert (await give(MIB, number))[-1] == number
                return
            array = shmrpc.empty(MIB, np.uint8, to=both.stub) if method == "born" else np.empty(MIB, np.uint8)
            array[:] = number
            assert await both.stub.first(array) == number

        for number in range(300):
            await call(number % 256)
        assert sum(arena.extent_bytes for arena in both.arenas) <= 8 * MIB
        await both.at_home()


async def test_extents_are_used_again_last_freed_first(path: str) -> None:
    async with pair(path) as both:
        arrays = [shmrpc.empty(8 * MIB, np.uint8, to=both.stub) for _ in range(3)]
        addresses = [array.ctypes.data for array in arrays]
        assert len(set(addresses)) == 3
        for at in (0, 2, 1):
            arrays[at] = np.empty(0, np.uint8)
        again = [shmrpc.empty(8 * MIB, np.uint8, to=both.stub) for _ in range(3)]
        assert [array.ctypes.data for array in again] == [addresses[at] for at in (1, 2, 0)]


# In flight together


async def test_many_callers_get_their_own_arrays_back(path: str) -> None:
    with serving(path):
        async with shmrpc.connect(Buffers, path) as stub:

            async def call(caller: int) -> None:
                for turn in range(5):
                    array = np.full(MIB, caller, np.uint8)
                    array[::4096] = turn
                    echo = await (stub.echo(array) if turn % 2 else stub.hold(array))
                    assert crc(echo) == crc(array)
                    assert await stub.checksum(echo) == crc(array)
                    del echo

            callers = asyncio.gather(*map(call, range(64)))
            while not callers.done():
                await stub.let_go()
            await callers
            del callers
            gc.collect()
            await until(lambda: shmrpc.leases(stub) == [], "all leases to end")


async def test_the_event_loop_runs_on_while_memory_is_committed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = 0
    during: list[int] = []
    commit = segment.Extent.commit

    def counting(extent: segment.Extent) -> None:
        before = turns
        commit(extent)
        during.append(turns - before)

    monkeypatch.setattr(segment.Extent, "commit", counting)
    async with pair(path) as both:
        array = shmrpc.empty(256 * MIB, np.uint8, to=both.stub)
        call = asyncio.ensure_future(both.stub.first(array))
        while not call.done():
            turns += 1
            assert await both.stub.small(turns) == turns
        assert await call == 0
        (turns_during,) = during
        assert turns_during >= 10  # calls of another task; none if the commit held the loop up


# The limit


async def _wait_for_memory(both: Pair, *calls: "asyncio.Future[Any]") -> None:
    """Returns when the calls wait at the client."""
    for number in range(20):
        assert await both.stub.small(number) == number  # small ones pass all the time
    assert not any(call.done() for call in calls)


@pytest.mark.parametrize("lower", ["ours", "theirs"])
async def test_beyond_the_lower_limit_of_both_sides_calls_wait_until_the_receiver_lets_go(
    path: str, lower: str
) -> None:
    limits = {"ours": {"max_extent_bytes": 8 * MIB}, "theirs": {}}
    if lower == "theirs":
        limits = {"ours": {}, "theirs": {"max_extent_bytes": 8 * MIB}}
    async with pair(path, limits["ours"], **limits["theirs"]) as both:
        for number in range(2):
            await both.stub.keep(numbered(4 * MIB, number))
        calls = [asyncio.ensure_future(both.stub.keep(numbered(4 * MIB, number))) for number in (2, 3, 4)]
        await _wait_for_memory(both, *calls)
        assert sum(extents_mapped()) == 2 * 8 * MIB  # the two sides are one process here
        for number in range(3):
            del both.holder.arrays[0]
            await until(lambda: len(both.holder.arrays) == 2, "another one to come")
            assert await both.stub.kept() == [number + 1, number + 2]
        await asyncio.gather(*calls)
        both.holder.arrays.clear()
        await both.at_home()


async def test_results_wait_in_the_same_way(path: str) -> None:
    async with pair(path, max_extent_bytes=8 * MIB) as both:
        results = [await both.stub.give(4 * MIB, number) for number in range(2)]
        calls = [asyncio.ensure_future(both.stub.give(4 * MIB, number)) for number in (2, 3)]
        await _wait_for_memory(both, *calls)
        results.pop()
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        results.clear()
        done, _ = await asyncio.wait(calls)
        assert sorted(int(call.result()[0]) for call in done) == [2, 3]
        calls.clear()
        done.clear()
        await both.at_home()


async def test_no_memory_before_the_deadline_names_who_holds_it_since_when_and_of_which_method(path: str) -> None:
    async with pair(path, {"max_extent_bytes": 8 * MIB}) as both:
        await both.stub.keep(numbered(4 * MIB))
        born = shmrpc.empty(4 * MIB, np.uint8, to=both.stub)
        hasty = shmrpc.options(both.stub, timeout=0.1)
        with pytest.raises(shmrpc.ResourceExhausted) as caught:
            await hasty.first(numbered(3 * MIB))
        assert caught.value.code is shmrpc.Code.RESOURCE_EXHAUSTED
        text = str(caught.value)
        peer = shmrpc.peer(both.stub)
        assert text.startswith("Buffers.first was not sent: no room for 3 MiB before the deadline; ")
        assert "extents have 8 MiB of 8 MiB (max_extent_bytes), 1 of 1024 leases are out (release_entries)" in text
        assert f"{peer} holds 4 MiB in 1 block of Buffers.keep, the oldest for 0." in text
        assert "this process holds 4 MiB in 1 block in arrays of its own, the oldest for 0." in text
        assert await both.stub.small(1) == 1
        del born
        assert await hasty.first(numbered(3 * MIB)) == 0
        both.holder.arrays.clear()
        await both.at_home()


async def test_an_array_that_no_room_is_left_for_is_born_elsewhere_and_waits_when_it_is_sent(path: str) -> None:
    async with pair(path, {"max_extent_bytes": 8 * MIB}) as both:
        await both.stub.keep(numbered(8 * MIB - 9, 1))
        array = shmrpc.empty(4 * MIB, np.uint8, to=both.stub)  # at once
        array[:] = 7
        call = asyncio.ensure_future(both.stub.echo(array))
        await _wait_for_memory(both, call)
        both.holder.arrays.clear()
        result = await call
        assert (result == 7).all()
        assert not np.shares_memory(result, array)
        born = shmrpc.empty(4 * MIB, np.uint8, to=both.stub)
        assert np.shares_memory(await both.stub.echo(born), born)
        del result, call, born, array
        await both.at_home()


async def test_a_result_that_no_room_is_left_for_waits_when_it_is_sent(path: str) -> None:
    async with pair(path, max_extent_bytes=8 * MIB) as both:
        results = [await both.stub.give_born(4 * MIB, number) for number in range(2)]
        call = asyncio.ensure_future(both.stub.give_born(4 * MIB, 2))
        await _wait_for_memory(both, call)
        results.clear()
        assert (await call == 2).all()
        del call
        await both.at_home()


async def test_who_waits_for_memory_gets_that_of_an_array_that_dies_here_on_whatever_thread(path: str) -> None:
    patient = {"max_extent_bytes": 8 * MIB, "extent_idle": 1000.0, "lease_warning": 1000.0}  # no timer looks either
    async with pair(path, patient) as both:
        boxes = [[shmrpc.empty(4 * MIB, np.uint8, to=both.stub)] for _ in range(2)]
        for (array,) in boxes:
            await both.stub.checksum(array)  # so that the peer has its extent, whose coming would have all look again
        del array
        calls = [asyncio.ensure_future(both.stub.first(numbered(4 * MIB, number))) for number in (1, 2)]
        await _wait_for_memory(both, *calls)
        for _ in range(200):
            await asyncio.sleep(0)  # until the doorbell has rung for the last time, which has the client look too
        thread = threading.Thread(target=boxes[0].clear)
        thread.start()
        done, late = await asyncio.wait(calls, timeout=PATIENCE)
        thread.join()
        assert not late
        assert sorted(call.result() for call in done) == [1, 2]
        boxes.clear()
        await both.at_home()


async def test_an_array_that_could_never_be_sent_is_not_born(path: str) -> None:
    async with pair(path, {"max_extent_bytes": 8 * MIB}, max_message=16 * MIB) as both:
        with pytest.raises(shmrpc.ResourceExhausted, match=r"is 9 MiB, .* may have 8 MiB \(max_extent_bytes"):
            shmrpc.empty(9 * MIB, np.uint8, to=both.stub)
        with pytest.raises(shmrpc.ResourceExhausted, match=r"is 17 MiB, the limit is 16 MiB \(max_message\)"):
            shmrpc.buffer(17 * MIB, to=both.stub)


async def test_a_lease_that_is_held_for_long_is_logged_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with pair(path, {"lease_warning": 0.05}) as both:
        peer = shmrpc.peer(both.stub)
        for number in range(2):
            await both.stub.keep(numbered(5 * MIB, number))
        await until(lambda: len(caplog.records) == 2, "both to be logged")
        await asyncio.sleep(0.2)  # four times as long: nothing may come
        for record in caplog.records:
            text = record.getMessage()
            assert text.startswith(f"{peer} has held 5 MiB of Buffers.keep for 0.")
            assert text.endswith(" s (lease_warning)")
        assert len(caplog.records) == 2
        both.holder.arrays.clear()
        await both.at_home()


async def test_a_server_that_stands_still_holds_nobody_up(path: str) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Buffers, path) as stub:
            assert await stub.small(1) == 1
            stop(server)
            hasty = shmrpc.options(stub, timeout=0.1)
            outcomes = await asyncio.gather(*(hasty.first(numbered(5 * MIB)) for _ in range(3)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {shmrpc.DeadlineExceeded}
            server.send_signal(18)
            assert await stub.first(numbered(5 * MIB)) == 0
            await until(lambda: shmrpc.leases(stub) == [], "all leases to end")


async def test_callers_who_give_up_while_an_extent_is_on_its_way_leave_it_to_others(path: str) -> None:
    async with pair(path) as both:
        for turns in range(12):
            call = asyncio.ensure_future(both.stub.first(numbered(5 * MIB, turns)))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait((call,))
        assert await both.stub.first(numbered(5 * MIB, 7)) == 7
        await both.at_home()


async def test_a_connection_may_end_while_extents_are_on_their_way(path: str) -> None:

    async def connect_and_leave(turns: int) -> Bytes:
        async with pair(path) as both:
            calls = [asyncio.ensure_future(both.stub.first(numbered(number * 5 * MIB))) for number in range(1, 4)]
            born: Bytes = shmrpc.empty(5 * MIB, np.uint8, to=both.stub)
            for _ in range(turns):
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {shmrpc.Closed, shmrpc.ConnectionLost, int}
        return born

    for turns in range(8):
        born = await connect_and_leave(turns)
        await until(lambda: extents_mapped() == [5 * MIB], "the rest to go")
        born[:] = 1
        del born
        await until(lambda: extents_mapped() == [], "the last one to go")


# For each uid other than the server's


@as_root
async def test_results_for_another_uid_are_charged_to_it_until_its_process_is_gone(open_path: str) -> None:
    most = DEFAULT.nbytes + 16 * MIB  # of which the client's part begins with 4 MiB in each direction
    allowed: dict[str, Any] = {"allow_uids": {0, STRANGER}, "max_bytes_per_uid": most, "mode": 0o666}
    async with pair(open_path, **allowed) as both:
        with client_playing(open_path, "results", user=STRANGER) as stranger:
            assert await stranger.go_on() == "had"
            assert await stranger.go_on() == "had"
            refusal = await stranger.go_on()
            assert refusal.startswith(
                "ResourceExhausted: no memory for an extent of 4194304 bytes: uid 12345 is charged "
            )
            assert "(max_bytes_per_uid), until its processes end" in refusal
            assert len([await both.stub.give(4 * MIB, 1) for _ in range(4)]) == 4  # the own uid is not charged
            assert f"{most} bytes charged" in str(both.server._listener._quota)
            kill(stranger.process)
        await until(lambda: "0 bytes charged" in str(both.server._listener._quota), "the charge to end")


@as_root
async def test_another_uid_that_attaches_more_than_it_may_is_cut_off(
    open_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    most = DEFAULT.nbytes + 16 * MIB  # of which the client's part begins with 4 MiB in each direction
    allowed: dict[str, Any] = {"allow_uids": {0, STRANGER}, "max_bytes_per_uid": most, "mode": 0o666}
    async with pair(open_path, **allowed) as both:
        with client_playing(open_path, "arguments", user=STRANGER) as stranger:
            for _ in range(2):
                assert await stranger.go_on() == "had"
            assert caplog.text == ""
            await stranger.go_on()  # and is repeated over another connection, since it was not executed
            assert "was cut: the peer's extent was refused: uid 12345 is charged " in caplog.text
            kill(stranger.process)
        await until(lambda: "0 bytes charged" in str(both.server._listener._quota), "the charge to end")
        assert [int(array[-1]) for array in both.holder.arrays[:3]] == [8, 7, 7]
        both.holder.arrays.clear()
        await both.at_home()
