"""The end of a server in good order: what runs is finished, what comes later goes to the successor."""

import asyncio
import os
import signal
import socket
from typing import Any

import pytest
from life_api import METHODS, Keeper, Life, recorded
from life_processes import client_process, inode, serving
from life_waiting import until
from raw_channel import CANCEL, GOAWAY, HEAD, REPLY
from raw_peer import RawClient, hung_up

import shmrpc


async def outcome_of(call: "asyncio.Future[Any]") -> object:
    try:
        return await call
    except Exception as error:
        return error


# Within the grace time


async def test_running_calls_end_and_later_ones_go_to_the_successor(path: str) -> None:
    old, new = Keeper(), Keeper()
    async with shmrpc.Server(old, at=path) as server, shmrpc.connect(Life, path) as life:
        held = [asyncio.ensure_future(life.hold(number)) for number in range(5)]
        await until(lambda: len(old.began) == 5, "the calls to begin")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        async with shmrpc.Server(new, at=path):
            later = [asyncio.ensure_future(life.note(number)) for number in range(5, 10)]
            assert await asyncio.gather(*later) == list(range(5, 10))
            assert new.began == list(range(5, 10))
            assert not draining.done()
            assert not any(call.done() for call in held)
            await old.let_go()
            assert await asyncio.gather(*held) == list(range(5))
            assert await draining is True
            assert server.connections == 0
            assert await life.add(1) == 2
    assert old.began == list(range(5))


async def test_calls_that_cross_the_goodbye_are_made_again_elsewhere(path: str) -> None:
    """They are in the ring when the server has decided already."""
    old, new = Keeper(), Keeper()
    async with shmrpc.Server(old, at=path) as server, shmrpc.connect(Life, path) as life:
        await life.note(0)
        calls = [asyncio.ensure_future(life.note(number)) for number in range(1, 50)]
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        async with shmrpc.Server(new, at=path):
            assert await asyncio.gather(*calls) == list(range(1, 50))
            assert await draining
    assert sorted(old.began + new.began) == list(range(50))


async def test_those_who_wait_for_credit_go_to_the_successor_too(path: str) -> None:
    old = Keeper()
    async with shmrpc.Server(old, at=path) as server, shmrpc.connect(Life, path, max_in_flight=1) as life:
        held = asyncio.ensure_future(life.hold(0))
        await until(lambda: old.began == [0], "the call to begin")
        waiting = [asyncio.ensure_future(life.add(number)) for number in range(3)]
        await asyncio.sleep(0)
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        async with shmrpc.Server(Keeper(), at=path):
            assert await asyncio.gather(*waiting) == [1, 2, 3]  # while the old server still holds the first
            assert not held.done()
            await old.let_go()
            assert await held == 0
            assert await draining


async def test_replies_that_wait_for_room_are_sent_before_the_end(path: str) -> None:
    """The handlers have ended, yet their callers have nothing so far."""
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        channel = await peer.shake_hands()
        for call_id in range(1, 101):
            channel.request(call_id, METHODS.index("sized"), 8000)
        assert (await channel.receive()).call_id == 1
        await until(lambda: channel.far_word(HEAD) == channel.tail, "the server to take all calls")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the server to drain")
        answers = [await channel.receive() for _ in range(100)]
        assert [answer.call_id for answer in answers if answer.kind == REPLY] == list(range(2, 101))
        assert [(answer.kind, answer.call_id) for answer in answers[-1:]] == [(GOAWAY, 100)]
        assert await draining is True
        await hung_up(peer.sock)


async def test_a_client_that_takes_nothing_is_not_waited_for_longer_than_the_grace_time(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        channel = await peer.shake_hands()
        for call_id in range(1, 101):
            channel.request(call_id, METHODS.index("sized"), 8000)
        await channel.receive()
        assert await server.drain(grace=0.05) is False
        await hung_up(peer.sock)


async def test_a_goodbye_names_the_last_call_that_counts(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.request(5, METHODS.index("hold"), 5)
        await until(lambda: keeper.began == [5], "the call to begin")
        draining = asyncio.ensure_future(server.drain())
        goodbye = await channel.receive()
        assert (goodbye.kind, goodbye.call_id) == (GOAWAY, 5)
        channel.request(6, METHODS.index("note"), 6)
        channel.send(CANCEL, call_id=6)  # which crosses the goodbye too
        await keeper.let_go()
        assert (await channel.receive()).call_id == 5
        assert await draining is True
        await hung_up(peer.sock)
    assert keeper.began == [5]


async def test_a_drained_server_takes_no_connections(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        with pytest.raises(shmrpc.ConnectFailed, match="No such file or directory"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        await keeper.let_go()
        assert await held == 1
        assert await draining


async def test_a_handshake_that_is_under_way_is_finished_and_sent_on(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        name = f"shmrpc handshake at {path}"
        await until(lambda: name in [task.get_name() for task in asyncio.all_tasks()], "the handshake to begin")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the path to be free")
        channel = await peer.shake_hands()
        goodbye = await channel.receive()
        assert (goodbye.kind, goodbye.call_id) == (GOAWAY, 0)
        assert await draining is True


async def test_who_has_connected_and_says_nothing_is_not_waited_for(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, handshake_timeout=600.0) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.connect(path)
            listener = server._listener
            await until(lambda: listener._greeting, "the server to accept it")
            assert await server.drain(grace=60.0) is True
            silent.setblocking(False)
            await hung_up(silent)


async def test_a_server_with_nothing_to_do_is_drained_at_once(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, shmrpc.connect(Life, path) as life:
        assert await life.add(1) == 2
        assert await server.drain() is True
        assert await server.drain() is True
        await server.wait_closed()
    assert await shmrpc.Server(Keeper(), at=path).drain() is True  # never entered


async def test_one_way_calls_are_waited_for_also_after_their_client_has_gone(path: str) -> None:
    class Slow(Keeper):
        async def drop(self, number: int) -> None:
            await self.hold(number)

    slow = Slow()
    async with shmrpc.Server(slow, at=path) as server:
        async with shmrpc.connect(Life, path) as life:
            await life.drop(1)
        await until(lambda: slow.began == [1] and server.connections == 0, "the client to be gone")
        draining = asyncio.ensure_future(server.drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        await slow.let_go()
        assert await draining is True
    assert slow.cancelled == []


async def test_connections_that_ended_are_not_remembered(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server:
        for number in range(5):
            async with shmrpc.connect(Life, path) as life:
                call = asyncio.ensure_future(life.hold(number))
                await until(lambda: len(keeper.began) == len(keeper.cancelled) + 1, "the call to begin")
            assert isinstance(await outcome_of(call), shmrpc.Closed)
            await until(lambda: len(keeper.began) == len(keeper.cancelled), "the handler to be told")
        await until(lambda: server.connections == 0, "the connections to end")
        assert len(server._listener._orphaned) <= 1


# After the grace time


async def test_what_has_not_ended_in_time_is_unavailable_and_may_have_been_executed(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path) as server, shmrpc.connect(Life, path, reconnect_timeout=0) as life:
        calls = [asyncio.ensure_future(life.hold(number)) for number in range(3)]
        await until(lambda: len(keeper.began) == 3, "the calls to begin")
        assert await server.drain(grace=0.02) is False
        for call in calls:
            with pytest.raises(shmrpc.Unavailable) as caught:
                await call
            assert str(caught.value) == "Life.hold was cut off: the server stopped before it ended"
            assert caught.value.maybe_executed
        assert sorted(keeper.cancelled) == [0, 1, 2]


async def test_the_grace_time_is_a_setting(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path, grace=0.02) as server, shmrpc.connect(Life, path) as life:
        call = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        assert await server.drain() is False
        assert isinstance(await outcome_of(call), shmrpc.Unavailable)


async def test_a_handler_that_does_not_listen_cannot_keep_the_server(path: str) -> None:
    released = asyncio.Event()

    class Stubborn(Keeper):
        async def hold(self, number: int) -> int:
            self.began.append(number)
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    self.cancelled.append(number)
            return number

    stubborn = Stubborn()
    async with shmrpc.Server(stubborn, at=path, grace=0) as server, shmrpc.connect(Life, path) as life:
        call = asyncio.ensure_future(life.hold(1))
        await until(lambda: stubborn.began == [1], "the call to begin")
        assert await server.drain() is False
        with pytest.raises(shmrpc.ConnectionLost, match=r"Life\.hold was under way there") as caught:
            await call
        assert caught.value.maybe_executed
        assert stubborn.cancelled[:1] == [1]
        released.set()
        for _ in range(5):
            await asyncio.sleep(0)


# The path


async def test_a_server_unlinks_only_its_own_socket(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as old:
        os.rename(path, f"{path}.old")
        async with shmrpc.Server(Keeper(), at=path):
            before = inode(path)
            await old.drain()
            assert inode(path) == before
            async with shmrpc.connect(Life, path) as life:
                assert await life.add(1) == 2
        assert inode(path) == 0
    os.unlink(f"{path}.old")


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_signal_drains_a_served_process(path: str, number: int, loop: str) -> None:
    record = f"{path}.record"
    with serving(path, record, "--loop", loop) as old:
        async with shmrpc.connect(Life, path) as life, shmrpc.connect(Life, path) as idle:
            held = asyncio.ensure_future(life.hold(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            old.send_signal(number)
            await until(lambda: inode(path) == 0, "the path to be free")
            with serving(path, record, "--loop", loop) as new:
                assert await life.where() == await idle.where() == new.pid
                assert not held.done()
                assert old.poll() is None
                old.send_signal(signal.SIGUSR1)  # nobody new can reach it
                assert await held == 1
                await until(lambda: old.poll() is not None, "the old process to end")
                assert old.returncode == 0
                assert await life.where() == new.pid


async def test_a_signal_cuts_off_what_exceeds_the_grace_time(path: str) -> None:
    record = f"{path}.record"
    with serving(path, record, "--grace", "0.05") as server:
        async with shmrpc.connect(Life, path) as life:
            held = asyncio.ensure_future(life.hold(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            server.send_signal(signal.SIGTERM)
            with pytest.raises(shmrpc.Unavailable, match=r"Life\.hold was cut off") as caught:
                await held
            assert caught.value.maybe_executed
            await until(lambda: server.poll() is not None, "the process to end")
            assert server.returncode == 0
    assert recorded(record, "cancelled") == [1]


async def test_a_second_signal_cuts_off_what_still_runs(path: str) -> None:
    record = f"{path}.record"
    with serving(path, record, "--grace", "60") as server:
        async with shmrpc.connect(Life, path) as life:
            held = asyncio.ensure_future(life.hold(1))
            await until(lambda: recorded(record) == [1], "the call to begin")
            server.send_signal(signal.SIGTERM)
            await until(lambda: inode(path) == 0, "the server to drain")
            assert not held.done()
            server.send_signal(signal.SIGTERM)
            with pytest.raises(shmrpc.Unavailable, match=r"Life\.hold was cut off"):
                await held
            await until(lambda: server.poll() is not None, "the process to end")
            assert server.returncode == 0


async def test_the_time_that_a_drain_has_left_can_be_shortened_and_not_lengthened(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path, grace=60) as server, shmrpc.connect(Life, path) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        draining = asyncio.ensure_future(server.drain())
        await until(lambda: inode(path) == 0, "the server to drain")
        hurried = asyncio.ensure_future(server.drain(grace=0.01))
        assert not any(await asyncio.gather(draining, hurried, server.drain(grace=60)))
        assert isinstance(await outcome_of(held), shmrpc.Unavailable)


async def test_serve_drains_when_its_task_is_cancelled(path: str) -> None:
    keeper = Keeper()
    serve = asyncio.ensure_future(shmrpc.serve(keeper, at=path, handle_signals=False))
    async with shmrpc.connect(Life, path, wait=20) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        serve.cancel()
        await until(lambda: inode(path) == 0, "the path to be free")
        assert not serve.done()
        await keeper.let_go()
        assert await held == 1
        with pytest.raises(asyncio.CancelledError):
            await serve


async def test_serve_ends_at_once_when_it_is_cancelled_twice(path: str) -> None:
    keeper = Keeper()
    serve = asyncio.ensure_future(shmrpc.serve(keeper, at=path, handle_signals=False))
    async with shmrpc.connect(Life, path, wait=20) as life:
        held = asyncio.ensure_future(life.hold(1))
        await until(lambda: keeper.began == [1], "the call to begin")
        serve.cancel()
        await until(lambda: inode(path) == 0, "the path to be free")
        serve.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serve
        assert isinstance(await outcome_of(held), shmrpc.Unavailable)
        assert keeper.cancelled == [1]


async def test_a_client_process_goes_on_with_the_successor(path: str) -> None:
    with client_process(path, "wait=20") as client:
        for _ in range(3):
            async with shmrpc.Server(Keeper(), at=path):
                if not (answer := await client.ask("where")).isdecimal():
                    assert answer == "connected"
                    answer = await client.hear()
                assert int(answer) == os.getpid()
