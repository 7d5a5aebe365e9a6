"""A read position that is ahead, back or unaligned: found as soon as the ring is full, and the connection is cut."""

import asyncio
from typing import Any

import pytest
from hostile_stage import SIZED, AgainstClient, against_client, against_server, cuts
from life_waiting import until
from raw_channel import HEAD, ROOM_EPOCH, TAIL, RawChannel
from raw_peer import hung_up

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

_WHY = "the peer's read position is outside of what was published"
heads = pytest.mark.parametrize("head", [-8, +8, +3, 1 << 40], ids=["back", "ahead", "unaligned", "far ahead"])


async def _lie(channel: RawChannel, head: int) -> None:
    """Once the victim waits for room."""
    await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the victim to wait for room")
    channel.set_word(HEAD, (channel.far_word(TAIL) if head > 0 else channel.head) + head)
    channel.ring()


@heads
async def test_a_server_that_waits_for_room_cuts_after_a_head_that_is(
    path: str, head: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        for call_id in range(2, 40):
            scene.channel.request(call_id, SIZED, 8000)
        await _lie(scene.channel, head)
        await scene.must_be_cut(_WHY)


def _fill(scene: AgainstClient) -> list["asyncio.Future[Any]"]:
    return [asyncio.ensure_future(scene.life.echo(bytes(8000))) for _ in range(30)]


@heads
async def test_a_client_that_waits_for_room_cuts_after_a_head_that_is(
    path: str, head: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        calls = _fill(scene)
        await _lie(scene.channel, head)
        await hung_up(scene.sock)
        for call in calls:
            with pytest.raises(shmrpc.Unavailable):
                await call
        (text,) = cuts(caplog)
        assert _WHY in text


async def test_a_client_finds_it_by_the_call_that_fills_the_ring(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        scene.channel.set_word(HEAD, 1 << 40)
        outcomes = await asyncio.gather(*_fill(scene), return_exceptions=True)
        await scene.must_be_cut(_WHY)
        assert {type(outcome) for outcome in outcomes} <= {
            shmrpc.ProtocolError,
            shmrpc.ConnectionLost,
            shmrpc.Unavailable,
        }


async def test_a_server_finds_it_by_the_reply_that_fills_the_ring(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.set_word(HEAD, 1 << 40)
        for call_id in range(2, 40):
            scene.channel.request(call_id, SIZED, 8000)
        await scene.must_be_cut(_WHY)


async def test_a_cancelled_caller_sees_its_cancellation_whatever_the_server_wrote(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        held, _ = await scene.call(scene.life.hold(2))
        calls = [asyncio.ensure_future(scene.life.echo(bytes(8000))) for _ in range(15)]
        await asyncio.sleep(0)
        assert scene.channel.far_word(ROOM_EPOCH) % 2 == 0  # full, and nobody waits for room yet
        scene.channel.set_word(HEAD, 1 << 40)
        for call in calls:
            call.cancel()
        for _ in range(500):  # cancels fill the rest of the ring, so that one of them finds the lie
            held.cancel()
        outcomes = await asyncio.gather(held, *calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
