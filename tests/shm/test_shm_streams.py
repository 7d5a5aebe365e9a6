"""Streams between real processes that die, stand still, drain and come back, and at the ends of memory and rings."""

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from flow_api import Bytes, Flow, Streamer, all_left, session_of, sessions_of
from life_api import recorded
from life_processes import client_process, inode, kill, serving, stop
from life_waiting import until, wait_until
from test_shm_misuse import FORKED, in_a_child, run, step

import shmrpc
from shmrpc.shm.layout import Geometry

SERVICE = "flow_api:Streamer"
MIB = 1 << 20
TINY = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=256)


@pytest.fixture
def record(path: str) -> str:
    return f"{path}.record"


@asynccontextmanager
async def pair(path: str, **settings: Any) -> AsyncIterator[tuple[shmrpc.Server, Streamer, Flow]]:
    """A server and a client in this process, of whose streams nothing may be left."""
    streamer = Streamer()
    async with (
        shmrpc.Server(streamer, at=path, **settings) as server,
        shmrpc.connect(Flow, path, **settings) as flow,
    ):
        yield server, streamer, flow
        if server.connections == 1 and shmrpc.peer(flow) is not None:
            await nothing_left(server, flow)


async def nothing_left(server: shmrpc.Server, flow: Flow) -> None:
    """Returns when neither side remembers a stream, or a lease."""
    (session,) = sessions_of(server)
    ours = session_of(flow)
    await until(lambda: not all_left(session, ours), "both sides to forget all streams")


class Source:
    """A stream of the caller's that says how far it came, and whether it was closed."""

    def __init__(self, items: Iterable[Any], *, endless: bool = False) -> None:
        self.taken = 0
        self.closed = False
        self._items = items
        self._endless = endless

    async def items(self) -> AsyncIterator[Any]:
        try:
            for item in self._items:
                self.taken += 1
                yield item
            if self._endless:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def stands_still(count: Callable[[], int]) -> int:
    """A count, once it does not change any more."""
    now, before = count(), -1
    while before != now:
        before = now
        await asyncio.sleep(0.05)
        now = count()
    return now


async def collect(stream: AsyncIterator[Any], into: list[Any]) -> None:
    async for item in stream:
        into.append(item)


# Death


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_what_a_server_gave_before_it_was_killed_arrives_and_then_the_loss(
    path: str, record: str, loop: str
) -> None:
    with serving(path, record, "--loop", loop, service=SERVICE) as server:
        async with shmrpc.connect(Flow, path, reconnect_timeout=0) as flow:
            stream = flow.hold_after(1, 100)
            got = [await anext(stream)]
            wait_until(lambda: recorded(record, "sent") == [1], "the server to send all items")
            kill(server)  # while this process has not looked
            with pytest.raises(
                shmrpc.ConnectionLost, match=rf"pid {server.pid} .*; Flow\.hold_after was under way there"
            ) as caught:
                await collect(stream, got)
            assert got == list(range(100))
            assert caught.value.maybe_executed
            assert [item async for item in stream] == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_stream_of_arguments_ends_with_the_server_and_its_source_is_closed(
    path: str, record: str, loop: str
) -> None:
    with serving(path, record, "--loop", loop, service=SERVICE) as server:
        async with shmrpc.connect(Flow, path, reconnect_timeout=0) as flow:
            sources = [Source(range(10), endless=True) for _ in range(2)]
            call = asyncio.ensure_future(flow.total(1, sources[0].items()))
            stream = flow.echo(2, sources[1].items())
            assert [await anext(stream) for _ in range(10)] == list(range(10))
            await until(lambda: len(recorded(record, "gave")) == 20, "the server to read all items")
            kill(server)
            for outcome in await asyncio.gather(call, anext(stream), return_exceptions=True):
                assert isinstance(outcome, shmrpc.ConnectionLost)
                assert outcome.maybe_executed
            assert all(source.closed for source in sources)


@pytest.mark.parametrize(
    ("command", "event"),
    [
        ("texts 1 100", "GeneratorExit 1"),
        ("arrays 1 1000000 50000", "GeneratorExit 1"),
        ("hold_after 1 3", "CancelledError 1"),
        ("total 1", "CancelledError 1"),
        ("keep 1", "cancelled 1"),
        ("echo 1", "1"),
        ("negate 1", "1"),
    ],
)
async def test_the_handler_of_a_client_that_was_killed_hears_so_and_its_leases_come_home(
    path: str, command: str, event: str
) -> None:
    streamer = Streamer()
    async with shmrpc.Server(streamer, at=path) as server, shmrpc.connect(Flow, path) as other:
        with client_process(path, script_name="flow_client.py") as client:
            assert await client.hear() == "connected"
            assert await client.ask(command) == "under way"
            (session,) = (session for session in sessions_of(server) if session.peer.pid == client.pid)
            kill(client.process)
            await until(lambda: server.connections == 1, "the connection to end")
        ends = ["GeneratorExit 1", "CancelledError 1"] if event == "1" else [event]
        await until(lambda: any(streamer.events[end] for end in ends), "the handler to hear")
        assert session.incoming is not None
        await until(lambda: not session.incoming.running, "the handler to end")  # type: ignore[union-attr]
        await until(lambda: not gc.collect() and not shmrpc.leases(server), "all leases to end")
        assert await other.plain(7) == 7


# Standing still


async def test_a_client_that_stands_still_stops_the_handler_within_its_window(path: str) -> None:
    streamer = Streamer()
    async with shmrpc.Server(streamer, at=path) as server:
        with client_process(path, script_name="flow_client.py") as client:
            assert await client.hear() == "connected"
            for number in (1, 2, 3):
                assert await client.ask(f"arrays {number} 1000000 100000") == "under way"
            stop(client.process)
            gave = await stands_still(lambda: streamer.events.total())
            lent = sum(lease.nbytes for lease in shmrpc.leases(server))
            # Beyond the window: the item that passes its end, one that waits for room, and two in the reader's hands.
            assert lent <= 3 * (4 * MIB + 4 * 100_000)
            client.process.send_signal(signal.SIGCONT)
            await until(lambda: streamer.events.total() > gave + 300, "the streams to go on")


async def test_a_server_that_stands_still_stops_the_callers_stream_within_its_window(path: str) -> None:
    with serving(path, service=SERVICE) as server:
        async with shmrpc.connect(Flow, path) as flow:
            assert await flow.plain(1) == 1
            stop(server)
            arrays = Source(np.zeros(100_000, np.uint8) for _ in range(1000))
            numbers = Source(range(100_000))
            calls = [
                asyncio.ensure_future(flow.keep_arrays(1, arrays.items())),
                asyncio.ensure_future(flow.total(2, numbers.items())),
            ]
            await stands_still(lambda: arrays.taken + numbers.taken)
            assert arrays.taken <= 4 * MIB // 100_000 + 2
            assert numbers.taken <= 256 + 1
            assert sum(lease.nbytes for lease in shmrpc.leases(flow)) <= 4 * MIB + 100_000
            server.send_signal(signal.SIGCONT)
            await flow.let_go()
            assert await asyncio.gather(*calls) == [1000 * 100_000, sum(range(100_000))]
            await until(lambda: not all_left(session_of(flow)), "all leases to end")


async def test_a_stream_to_a_server_that_stands_still_ends_at_its_deadline(path: str) -> None:
    with serving(path, service=SERVICE) as server:
        async with shmrpc.connect(Flow, path) as flow:
            assert await flow.plain(1) == 1
            stop(server)
            hasty = shmrpc.options(flow, timeout=0.1)
            source = Source(range(100_000))
            outcomes = await asyncio.gather(
                anext(hasty.count(1, 5)), hasty.total(2, source.items()), return_exceptions=True
            )
            assert [type(outcome) for outcome in outcomes] == [shmrpc.DeadlineExceeded] * 2
            assert source.closed
            server.send_signal(signal.SIGCONT)
            assert await flow.plain(2) == 2
            await until(lambda: not all_left(session_of(flow)), "the server to have ended them too")


# Draining


async def test_streams_that_are_under_way_end_well_while_a_server_drains(path: str) -> None:
    async with pair(path) as (server, streamer, flow):
        got: list[int] = []
        reader = asyncio.ensure_future(collect(flow.hold_after(1, 3), got))
        more = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 1
            await more.wait()
            for number in range(1000):
                yield number

        call = asyncio.ensure_future(flow.total(2, source()))
        await until(lambda: got == [0, 1, 2] and streamer.events["gave 2"] == 1, "both to be under way")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        more.set()
        assert await call == 1 + sum(range(1000))  # more than a window, after the server said goodbye
        assert not draining.done()
        streamer.go.set()
        await reader
        assert got == [0, 1, 2, 3]
        assert await draining is True


async def test_what_is_not_read_when_a_drained_connection_ends_can_be_read_all_the_same(path: str) -> None:
    async with pair(path) as (server, streamer, flow):
        stream = flow.arrays(1, 20, 10_000)
        first: Bytes = await anext(stream)
        await until(lambda: streamer.events["ended 1"], "the handler to end")
        assert await server.drain() is True
        await until(lambda: shmrpc.peer(flow) is None, "the connection to end")
        assert [int(array[-1]) for array in [first, *[array async for array in stream]]] == list(range(20))


async def test_streams_that_outlast_the_grace_time_are_unavailable_after_their_items(path: str) -> None:
    streamer = Streamer()
    async with (
        shmrpc.Server(streamer, at=path, grace=0.05) as server,
        shmrpc.connect(Flow, path, reconnect_timeout=0) as flow,
    ):
        got: list[int] = []
        source = Source(["a", "b"], endless=True)
        reader = asyncio.ensure_future(collect(flow.hold_after(1, 3), got))
        call = asyncio.ensure_future(flow.keep(2, source.items()))
        await until(lambda: streamer.events["gave 1"] == 3 and streamer.events["began 2"], "both to begin")
        assert await server.drain() is False
        for outcome in await asyncio.gather(reader, call, return_exceptions=True):
            assert type(outcome) is shmrpc.Unavailable
            assert "was cut off: the server stopped before it ended" in str(outcome)
            assert outcome.maybe_executed
        assert got == [0, 1, 2]
        assert source.closed
        assert streamer.events["CancelledError 1"] == streamer.events["cancelled 2"] == 1


async def test_a_stream_that_the_draining_server_did_not_take_goes_to_its_successor(path: str) -> None:
    old, new = Streamer(), Streamer()
    async with shmrpc.Server(old, at=path) as server, shmrpc.connect(Flow, path) as flow:
        assert await flow.plain(0) == 0
        readers: list[list[int]] = [[] for _ in range(20)]
        reading = [asyncio.ensure_future(collect(flow.count(n, 100), got)) for n, got in enumerate(readers)]
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        async with shmrpc.Server(new, at=path):
            await asyncio.gather(*reading)
            assert readers == [list(range(100))] * 20
            assert await draining
    assert sum(streamer.events[f"began {n}"] for n in range(20) for streamer in (old, new)) == 20


# No connection


async def test_a_stream_waits_for_a_server_to_come_back(path: str) -> None:
    async with shmrpc.Server(Streamer(), at=path) as server:
        connection = shmrpc.connect(Flow, path)
        flow = await connection.__aenter__()
        await server.drain()
    await until(lambda: shmrpc.peer(flow) is None, "the connection to end")
    stream = flow.count(1, 3)
    source = Source(range(10))
    reader = asyncio.ensure_future(anext(stream))
    call = asyncio.ensure_future(flow.total(2, source.items()))
    await asyncio.sleep(0.01)
    assert not reader.done()
    assert source.taken == 0
    async with shmrpc.Server(Streamer(), at=path):
        assert await reader == 0
        assert [item async for item in stream] == [1, 2]
        assert await call == 45
        await connection.__aexit__(None, None, None)


async def test_a_stream_does_not_wait_longer_than_it_may(path: str) -> None:
    async with shmrpc.Server(Streamer(), at=path) as server:
        async with shmrpc.connect(Flow, path, reconnect_timeout=60) as flow:
            await server.drain()
            await until(lambda: shmrpc.peer(flow) is None, "the connection to end")
            hasty = shmrpc.options(flow, timeout=0.05)
            source = Source(range(10))
            with pytest.raises(shmrpc.DeadlineExceeded, match=r"Flow\.count was not sent: no connection"):
                await anext(hasty.count(1, 3))
            with pytest.raises(shmrpc.DeadlineExceeded, match=r"Flow\.total was not sent: no connection"):
                await hasty.total(1, source.items())
            with pytest.raises(shmrpc.DeadlineExceeded, match="idle_timeout"):
                await anext(shmrpc.options(flow, idle_timeout=0.05).count(1, 3))
            assert source.taken == 0


async def test_a_stream_that_a_killed_server_never_took_begins_at_its_successor(path: str, record: str) -> None:
    with serving(path, record, service=SERVICE) as old:
        async with shmrpc.connect(Flow, path) as flow:
            assert await flow.plain(1) == 1
            stop(old)
            stream = flow.count(1, 3)
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            kill(old)
            with serving(path, record, service=SERVICE):
                assert await reader == 0
                assert [item async for item in stream] == [1, 2]
    assert recorded(record, "began") == [1]


async def test_a_stream_of_arguments_is_never_sent_twice_and_says_that_it_was_not_taken(path: str, record: str) -> None:
    """Also one whose first item has not come: whoever waits for it would be cut off, and the next one get nothing."""
    with serving(path, record, service=SERVICE) as old:
        async with shmrpc.connect(Flow, path) as flow:
            assert await flow.plain(1) == 1
            stop(old)
            sources = [Source(range(10), endless=True), Source([], endless=True)]
            calls = [asyncio.ensure_future(flow.total(n, source.items())) for n, source in enumerate(sources)]
            calls += [asyncio.ensure_future(anext(flow.echo(2, Source([], endless=True).items())))]
            for _ in range(5):
                await asyncio.sleep(0)
            kill(old)
            with serving(path, record, service=SERVICE):
                for outcome in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(outcome, shmrpc.ConnectionLost)
                    assert not outcome.maybe_executed
                assert all(source.closed for source in sources)
                assert await flow.plain(2) == 2
    assert recorded(record, "began") == []


async def test_the_deadline_of_a_stream_that_begins_again_is_that_of_its_first_beginning(path: str) -> None:
    def deadlines(flow: Flow) -> set[int]:
        session = session_of(flow)
        if session is None or session.outgoing is None:
            return set()
        return {call.deadline_ns for call in session.outgoing.pending.values()}

    with serving(path, service=SERVICE) as old:
        async with shmrpc.connect(Flow, path) as flow:
            assert await flow.plain(1) == 1
            stop(old)
            stream = shmrpc.options(flow, timeout=60).hold_after(1, 1)
            reader = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            before = deadlines(flow)
            assert len(before) == 1
            kill(old)
            with serving(path, service=SERVICE):
                assert await reader == 0
                assert deadlines(flow) == before
                await stream.aclose()  # type: ignore[attr-defined]


# A request that was never published


async def test_a_source_that_fails_while_the_request_waits_for_room_fails_the_call(path: str) -> None:
    with serving(path, service=SERVICE) as server:
        async with shmrpc.connect(Flow, path, geometry=TINY) as flow:
            assert await flow.plain(1) == 1
            stop(server)
            calls = [asyncio.ensure_future(flow.plain(n)) for n in range(200)]
            await asyncio.sleep(0)
            assert session_of(flow).channel.outbox

            async def failing() -> AsyncIterator[int]:
                raise KeyError("mine")
                yield 1

            with pytest.raises(KeyError, match="mine"):
                async with asyncio.timeout(10):
                    await flow.total(1, failing())
            with pytest.raises(KeyError, match="mine"):
                async with asyncio.timeout(10):
                    await anext(flow.echo(1, failing()))
            leaving = flow.count(1, 5)
            reader = asyncio.ensure_future(anext(leaving))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait((reader,))
            server.send_signal(signal.SIGCONT)
            assert await asyncio.gather(*calls) == list(range(200))
            await until(lambda: not all_left(session_of(flow)), "nothing to be left")


# Forks, loops, threads


async def test_a_forked_child_is_refused_in_the_middle_of_a_stream_and_its_parent_goes_on(path: str) -> None:
    async with pair(path) as (_, streamer, flow):
        more = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 7
            await more.wait()
            yield 8

        streams: list[Any] = [flow.hold_after(1, 3), flow.arrays(2, 10**9, 50_000), flow.echo(3, source())]
        reading, arrays, echoing = streams
        assert await anext(reading) == 0
        assert (await anext(arrays) == 0).all()
        assert await anext(echoing) == 7
        for how in (run, step):
            for stream in streams:
                error = in_a_child(how(lambda stream=stream: anext(stream)))  # type: ignore[misc]
                assert type(error) is shmrpc.ForkedError, error
                assert str(error) == FORKED
            error = in_a_child(how(lambda: flow.total(1, source())))
            assert type(error) is shmrpc.ForkedError, error
            error = in_a_child(how(lambda: anext(flow.count(1, 3))))
            assert type(error) is shmrpc.ForkedError, error
        for stream in streams:
            assert in_a_child(run(stream.aclose)) is None
        in_a_child(gc.collect)
        streamer.go.set()
        more.set()
        assert [item async for item in reading] == [1, 2, 3]
        assert [int((await anext(arrays))[0]) for _ in range(200)] == [number % 256 for number in range(1, 201)]
        await arrays.aclose()
        assert [item async for item in echoing] == [8]


async def test_another_thread_is_refused_at_the_beginning_and_in_the_middle_of_a_stream(path: str) -> None:
    async with pair(path) as (_, streamer, flow):
        stream = flow.hold_after(1, 3)
        assert await anext(stream) == 0
        ready = [await anext(stream) for _ in range(2)]
        for call in (lambda: anext(stream), stream.aclose):  # type: ignore[attr-defined]
            with pytest.raises(shmrpc.WrongLoop, match=r"the stream of Flow\.hold_after began in another event loop"):
                await asyncio.to_thread(run(call))
        source = Source(range(3))
        for call in (lambda: anext(flow.count(1, 3)), lambda: flow.total(1, source.items())):
            with pytest.raises(shmrpc.WrongLoop, match=r"Flow\.\w+ was called from another event loop"):
                await asyncio.to_thread(run(call))
        assert source.taken == 0
        streamer.go.set()
        assert [0, *ready, *[item async for item in stream]] == [0, 1, 2, 3]


async def test_a_stream_that_dies_in_another_thread_ends_its_handler_and_sends_its_arrays_home(path: str) -> None:
    async with pair(path) as (server, streamer, flow):
        streams = [flow.arrays(1, 10**9, 50_000)]
        kept = [await anext(streams[0])]
        assert (kept[0] == 0).all()
        dropping = threading.Thread(target=streams.clear)
        dropping.start()
        dropping.join()
        await until(lambda: streamer.events["GeneratorExit 1"], "the handler to be closed")
        await until(lambda: sum(lease.blocks for lease in shmrpc.leases(server)) == 1, "all but one to come home")
        assert (kept.pop() == 0).all()


async def test_an_error_of_a_stream_keeps_no_array_of_its_reader(path: str) -> None:
    async with pair(path) as (server, streamer, flow):

        async def read(lost: Any) -> None:
            async for array in lost:
                assert array.nbytes == 50_000

        class Failing(Exception):
            pass

        async def failing() -> AsyncIterator[Bytes]:
            yield np.zeros(50_000, np.uint8)
            await until(lambda: streamer.events["gave 1"], "the handler to read it")
            await asyncio.sleep(0.01)
            raise Failing

        gc.collect()
        gc.disable()
        try:
            with pytest.raises(shmrpc.DeadlineExceeded):
                await read(shmrpc.options(flow, timeout=0.05).arrays(2, 10**9, 50_000))
            with pytest.raises(Failing):
                await read(flow.negate(1, failing()))
            await until(lambda: not shmrpc.leases(server) and not shmrpc.leases(flow), "all arrays to go home")
        finally:
            gc.enable()


# Memory and rings


@pytest.mark.parametrize("nbytes", [10_000, 200_000, 350_000])
async def test_arrays_that_wait_for_memory_arrive_in_order_both_ways(path: str, nbytes: int) -> None:
    async with pair(path, max_extent_bytes=0) as (_, _, flow):

        async def arrays() -> AsyncIterator[Bytes]:
            for number in range(40):
                array: Bytes = np.full(nbytes, number, np.uint8)
                yield array

        number = 0
        async for array in flow.negate(1, arrays()):
            assert array[0] == array[-1] == 255 - number
            number += 1
            del array
        assert number == 40


async def test_many_streams_of_arrays_share_a_memory_that_holds_one_of_them(path: str) -> None:
    async with pair(path, max_extent_bytes=0) as (_, _, flow):

        async def read(number: int) -> list[int]:
            got = []
            async for array in flow.arrays(number, 15, 300_000):
                got.append(int(array[0]))
                del array
            return got

        assert await asyncio.gather(*map(read, range(8))) == [list(range(15))] * 8


async def test_an_array_that_can_never_be_sent_fails_its_stream_and_no_other(path: str) -> None:
    async with pair(path, max_extent_bytes=0) as (_, _, flow):
        with pytest.raises(shmrpc.ResourceExhausted, match=r"max_extent_bytes"):
            await anext(flow.arrays(1, 1, 400_000))
        source = Source([np.zeros(400_000, np.uint8)])
        with pytest.raises(shmrpc.ResourceExhausted, match=r"max_extent_bytes"):
            await flow.keep_arrays(2, source.items())
        assert source.closed
        assert await flow.plain(1) == 1


async def test_many_streams_through_a_full_ring_all_end_and_little_waits(path: str) -> None:
    streams = 30
    async with pair(path, geometry=TINY) as (server, _, flow):
        sessions = [session_of(flow), *sessions_of(server)]
        most = [0, 0]

        def look() -> None:
            for side, session in enumerate(sessions):
                most[side] = max(most[side], len(session.channel.outbox))

        async def read(number: int) -> int:
            total = 0
            async for item in flow.count(number, 1500):
                total += item
                look()
            return total

        async def send(number: int) -> int:
            return await flow.total(number, Source(range(1500)).items())

        async def both(number: int) -> int:
            items: list[int] = []
            await collect(flow.echo(number, Source(range(1500)).items()), items)
            return sum(items)

        sums: list[int] = await asyncio.gather(*(how(n) for n in range(streams) for how in (read, send, both)))
        assert sums == [sum(range(1500))] * 3 * streams
        assert max(most) <= 3 * 3 * streams


async def test_a_busy_stream_leaves_room_for_the_others_at_a_full_ring(path: str) -> None:
    """Streams that wait for room get it in turn."""
    many_items = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=1024)
    async with pair(path, geometry=many_items, stream_items=1 << 20, stream_bytes=1 << 30) as (_, _, flow):
        read = [0] * 5

        async def read_on(number: int) -> None:
            async for _ in flow.texts(number, 900):
                read[number] += 1
                if min(read) >= 50:
                    return

        await asyncio.gather(*map(read_on, range(5)))
        assert max(read) <= 3 * min(read)


async def test_a_process_is_left_with_the_fds_that_it_had(path: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with pair(path) as (_, _, flow):
        assert [item async for item in flow.count(1, 3)] == [0, 1, 2]
    assert len(os.listdir("/proc/self/fd")) == before
