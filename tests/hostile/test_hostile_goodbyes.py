"""Servers that say goodbye without end, or lie about what they took."""

import asyncio

import pytest
from hostile_stage import against_client, encode
from raw_channel import GOAWAY, REPLY, RING, Geometry
from raw_peer import hung_up

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


async def test_a_server_that_says_goodbye_without_end_ends_the_connection_once(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    huge = Geometry(ring_bytes=8 << 20)
    async with against_client(path, caplog, huge) as scene:
        channel = scene.channel
        channel.send(REPLY, encode(1), call_id=scene.call_id)
        begin, many = RING + channel.tail, huge.ring_bytes // 24 - 10
        channel.write(GOAWAY, call_id=2)
        channel.own[begin : begin + 24 * many] = channel.own[begin : begin + 24] * many
        channel.publish(channel.tail + 24 * many)
        await hung_up(scene.sock)
        with pytest.raises(shmrpc.Unavailable, match="no connection to"):
            await scene.life.add(1)
        assert caplog.text == ""


@pytest.mark.parametrize("last", [0, (1 << 64) - 1], ids=["no call", "every call"])
async def test_a_goodbye_that_names(path: str, last: int, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        call = asyncio.ensure_future(scene.life.note(1))
        call_id = (await scene.channel.receive()).call_id
        scene.channel.send(GOAWAY, call_id=last)
        if last:
            scene.channel.send(REPLY, encode(1), call_id=call_id)
            assert await call == 1
            scene.channel.send(REPLY, encode(1), call_id=scene.call_id)
        else:
            with pytest.raises(shmrpc.Unavailable) as caught:
                await call
            assert not caught.value.maybe_executed
        await hung_up(scene.sock)
        assert caplog.text == ""


async def test_a_goodbye_refuses_later_calls_and_the_rest_end_as_they_may(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        second, second_id = await scene.call(scene.life.hold(2))
        assert second_id == scene.call_id + 1
        scene.channel.send(GOAWAY, call_id=scene.call_id)
        with pytest.raises(shmrpc.Unavailable) as caught:
            await second
        assert not caught.value.maybe_executed
        scene.channel.send(REPLY, encode(1), call_id=scene.call_id)
        assert await scene.held == 1
        await hung_up(scene.sock)
