"""Back-pressure: calls wait for credit, for room in the ring and for room in the slab, in order, up to their deadlines."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from life_api import METHODS, Keeper, Life
from life_processes import serving, stop
from life_waiting import until
from raw_channel import ROOM_EPOCH
from raw_peer import RawClient

import shmrpc
from shmrpc.shm.layout import Geometry

KIB = 1024


class Queue(Keeper):
    """Ends held calls one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: dict[int, asyncio.Future[None]] = {}

    async def has_begun(self, calls: int) -> None:
        await until(lambda: len(self.began) == calls, f"{calls} calls to begin")

    def end_one(self, number: int) -> None:
        self.ends[number].set_result(None)

    async def hold(self, number: int) -> int:
        self.ends[number] = asyncio.get_running_loop().create_future()
        self.began.append(number)
        await self.ends[number]
        return number


@asynccontextmanager
async def queue(path: str, ours: int, theirs: int, **settings: Any) -> AsyncIterator[tuple[Queue, Life]]:
    service = Queue()
    async with (
        shmrpc.Server(service, at=path, max_in_flight=theirs, **settings),
        shmrpc.connect(Life, path, max_in_flight=ours) as life,
    ):
        yield service, life


# Credit


@pytest.mark.parametrize(("ours", "theirs"), [(3, 1024), (1024, 3), (3, 3)])
async def test_the_lower_limit_of_both_sides_holds_and_the_rest_wait_in_order(
    path: str, ours: int, theirs: int
) -> None:
    async with queue(path, ours, theirs) as (service, life):
        calls = [asyncio.ensure_future(life.hold(number)) for number in range(10)]
        await until(lambda: len(service.began) == 3, "three calls to begin")
        for number in range(10):
            assert service.began == list(range(min(10, number + 3)))
            service.end_one(number)
            assert await calls[number] == number
            await service.has_begun(min(10, number + 4))


async def test_those_who_come_later_do_not_overtake_those_who_wait(path: str) -> None:
    """Callers that call again as soon as they are answered take turns with one that waits."""
    async with queue(path, 2, 1024) as (service, life):
        first = [asyncio.ensure_future(life.hold(number)) for number in (0, 1)]
        await until(lambda: service.began == [0, 1], "both to begin")
        again: list[int] = []

        async def call_on_and_on(number: int) -> None:
            await first[number]
            while waiting.done() is False:
                again.append(await life.add(number))

        busy = [asyncio.ensure_future(call_on_and_on(number)) for number in (0, 1)]
        waiting = asyncio.ensure_future(life.add(40, 2))
        await asyncio.sleep(0)
        service.end_one(0)
        service.end_one(1)
        assert await waiting == 42
        await asyncio.gather(*busy)
        assert len(again) <= 2


async def test_no_credit_before_the_deadline_is_resource_exhausted(path: str) -> None:
    async with queue(path, 2, 1024) as (service, life):
        calls = [asyncio.ensure_future(life.hold(number)) for number in (0, 1)]
        await until(lambda: service.began == [0, 1], "both to begin")
        with pytest.raises(shmrpc.ResourceExhausted) as caught:
            await shmrpc.options(life, timeout=0.02).hold(2)
        assert str(caught.value) == (
            "Life.hold was not sent: 2 calls are in flight on this connection, the limit is 2 (max_in_flight), and none "
            "ended before the deadline"
        )
        for number in (0, 1):
            service.end_one(number)
            assert await calls[number] == number
        assert service.began == [0, 1]
        assert await life.add(1) == 2


async def test_who_gives_up_waiting_leaves_the_credit_to_the_next(path: str) -> None:
    async with queue(path, 1, 1024) as (service, life):
        calls = [asyncio.ensure_future(life.hold(number)) for number in range(4)]
        await until(lambda: service.began == [0], "the first to begin")
        calls[1].cancel()
        service.end_one(0)
        await calls[0]
        calls[2].cancel()  # perhaps when it had the credit already
        await until(lambda: 3 in service.began, "the last to begin")
        service.end_one(3)
        assert await calls[3] == 3
        assert calls[1].cancelled()
        assert calls[2].cancelled()


async def test_a_call_that_cannot_be_sent_leaves_its_credit_to_the_next(path: str) -> None:
    async with queue(path, 1, 1024, max_extent_bytes=0) as (service, life):
        first = asyncio.ensure_future(life.hold(0))
        await service.has_begun(1)
        calls = [asyncio.ensure_future(call) for call in (life.echo(bytes(400 * KIB)), life.add(1))]
        await asyncio.sleep(0)
        service.end_one(0)
        await first
        large, small = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(large, shmrpc.ResourceExhausted)
        assert small == 2


async def test_a_cancelled_call_gives_its_credit_back_when_its_handler_has_ended(path: str) -> None:
    async with queue(path, 1, 1024) as (service, life):
        for number in range(5):
            call = asyncio.ensure_future(life.hold(number))
            await service.has_begun(number + 1)
            call.cancel()
        assert await life.add(1) == 2


async def test_expired_calls_hold_their_credit_until_the_server_has_ended_them(path: str) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Life, path, max_in_flight=4) as life:
            await life.add(1)
            stop(server)
            hasty = shmrpc.options(life, timeout=0.02)
            outcomes = await asyncio.gather(*(hasty.add(number) for number in range(6)), return_exceptions=True)
            kinds = [type(outcome) for outcome in outcomes]
            assert kinds == [shmrpc.DeadlineExceeded] * 4 + [shmrpc.ResourceExhausted] * 2
            server.send_signal(18)
            assert await asyncio.gather(*(life.add(number) for number in range(8))) == list(range(1, 9))


# Room in the ring


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_more_calls_than_the_ring_has_room_for_are_all_answered(path: str, loop: str) -> None:
    with serving(path, "", "--loop", loop):
        async with shmrpc.connect(Life, path) as life:
            payloads = [bytes([number % 256]) * (number * 8) for number in range(1000)]
            assert await asyncio.gather(*map(life.echo, payloads)) == payloads


async def test_a_ring_that_is_full_is_waited_for_up_to_the_deadline(path: str) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Life, path) as life:
            await life.add(1)
            stop(server)
            hasty = shmrpc.options(life, timeout=0.05)
            outcomes = await asyncio.gather(*(hasty.echo(bytes(8000)) for _ in range(40)), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {shmrpc.DeadlineExceeded}
            unsent = [outcome for outcome in outcomes if "it was never sent" in str(outcome)]
            assert 20 <= len(unsent) <= 30  # sixteen fit in the ring of 128 KiB
            server.send_signal(18)
            assert await life.echo(bytes(8000)) == bytes(8000)


async def test_callers_who_are_cancelled_while_the_ring_is_full_leave_no_gap(path: str) -> None:
    with serving(path) as server:
        async with shmrpc.connect(Life, path) as life:
            await life.add(1)
            stop(server)
            calls = [asyncio.ensure_future(life.echo(bytes([number]) * 8000)) for number in range(60)]
            await asyncio.sleep(0)
            for call in calls[1::2]:
                call.cancel()
            server.send_signal(18)
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for number, outcome in enumerate(outcomes):
                if number % 2:
                    assert isinstance(outcome, asyncio.CancelledError)
                else:
                    assert outcome == bytes([number]) * 8000
            assert await life.add(1) == 2


# Room in the slab


def payloads_of(seed: int, count: int) -> list[bytes]:
    """Payloads of 8 KiB to 300 KiB, no two alike."""
    choose = random.Random(seed)
    return [choose.randbytes(16) * (choose.randint(8 * KIB, 300 * KIB) // 16) for _ in range(count)]


@pytest.mark.parametrize(("loop", "polling"), [("asyncio", "adaptive"), ("uvloop", "never"), ("uvloop", "adaptive")])
async def test_large_payloads_wait_for_room_and_arrive_as_they_were_sent(path: str, loop: str, polling: Any) -> None:
    with serving(path, "", "--loop", loop, "--polling", polling):
        async with shmrpc.connect(Life, path, polling=polling) as life:
            payloads = payloads_of(1, 120)
            echoes = await asyncio.gather(*map(life.echo, payloads))
            assert all(echo == payload for echo, payload in zip(echoes, payloads, strict=True))


async def test_the_slab_is_whole_again_after_much_use(path: str) -> None:
    async with (
        shmrpc.Server(Keeper(), at=path, max_extent_bytes=0) as server,
        shmrpc.connect(Life, path) as life,
    ):
        (session,) = server._listener.sessions
        for seed in range(3):
            payloads = payloads_of(seed, 20)
            assert await asyncio.gather(*map(life.echo, payloads)) == payloads
            for nbytes in (8 * KIB, 300 * KIB, 359 * KIB):  # the last one only fits when all else has come home
                assert len(await life.sized(nbytes)) == len(await life.echo(bytes(nbytes))) == nbytes
                assert len(await life.long(nbytes)) == len(await life.repeat("x" * nbytes)) == nbytes
        await until(lambda: shmrpc.leases(life) == shmrpc.leases(server) == [], "all blocks to come home")
        assert session.channel.arena.base.free_bytes == 360 * KIB
        assert not session.channel.arena.extents


@pytest.mark.parametrize("large", ["sized", "long"])
async def test_small_calls_pass_while_large_replies_wait_for_a_client_that_holds_its_blocks(
    path: str, large: str
) -> None:
    """What waits for memory holds up nothing that needs none, on this connection or on others."""
    async with (
        shmrpc.Server(Keeper(), at=path, max_extent_bytes=0),
        shmrpc.connect(Life, path) as life,
        RawClient(path) as peer,
    ):
        channel = await peer.shake_hands()
        for call_id in (1, 2, 3):
            channel.request(call_id, METHODS.index(large), 300 * KIB)
        channel.request(4, METHODS.index("add"), 1)
        first, small = await channel.receive(), await channel.receive()
        assert (first.call_id, small.call_id) == (1, 4)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        assert await life.add(1) == 2
        assert len(await life.sized(300 * KIB)) == 300 * KIB
        assert channel.take() is None
        channel.give_back(first)
        second = await channel.receive()
        assert second.call_id == 2
        channel.give_back(second)
        assert (await channel.receive()).call_id == 3


@pytest.mark.parametrize("small", [Geometry(ring_bytes=4096, release_entries=8, slab_bytes=8 * KIB, inline_limit=256)])
async def test_the_smallest_segments_carry_everything_just_as_well(path: str, small: Geometry) -> None:
    async with (
        shmrpc.Server(Keeper(), at=path, geometry=small),
        shmrpc.connect(Life, path, geometry=small) as life,
    ):
        payloads = [random.Random(number).randbytes(number * 37 % (8 * KIB - 6)) for number in range(300)]
        assert await asyncio.gather(*map(life.echo, payloads)) == payloads
