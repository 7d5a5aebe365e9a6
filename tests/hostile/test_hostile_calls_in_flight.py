"""More calls than may be in flight, ends that are never taken, cancels without end: nothing piles up at the server."""

import pytest
from hostile_stage import ADD, HOLD, SIZED, against_server
from life_waiting import until
from raw_channel import CANCEL, HEAD

pytestmark = pytest.mark.counted("bad inputs tried")

_BEYOND = "began a call beyond the 8 that may be in flight"


async def test_a_call_beyond_those_that_may_be_in_flight_cuts_the_connection(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog, max_in_flight=8) as scene:
        for call_id in range(2, 11):
            scene.channel.request(call_id, HOLD, call_id)
        await scene.must_be_cut(_BEYOND)


async def test_cancelled_calls_count_until_they_have_ended(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog, max_in_flight=8) as scene:
        for call_id in range(2, 11):
            scene.channel.request(call_id, HOLD, call_id)
            scene.channel.send(CANCEL, call_id=call_id)
        await scene.must_be_cut(_BEYOND)


async def test_a_client_that_takes_no_replies_cannot_make_the_server_hoard_them(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog, max_in_flight=8) as scene:
        for call_id in range(2, 60):
            scene.channel.request(call_id, SIZED, 8000)  # each ends at once, and the ring has room for 16 replies
        await scene.must_be_cut(_BEYOND)


async def test_a_client_that_takes_no_refusals_cannot_make_the_server_hoard_them(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog, max_in_flight=8) as scene:
        channel, call_id = scene.channel, 1
        while scene.server.connections != 2:
            for _ in range(64):
                call_id += 1
                channel.request(call_id, 65_535)
            await until(
                lambda: channel.far_word(HEAD) == channel.tail or scene.server.connections == 2,
                "the server to take them, or to cut the connection",
            )
        await scene.must_be_cut(_BEYOND)


async def test_a_storm_of_cancels_is_weathered(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        channel = scene.channel
        for _ in range(20):
            for _ in range(200):
                channel.send(CANCEL, call_id=1)
            await until(lambda: channel.far_word(HEAD) == channel.tail, "the server to take them")
        channel.request(2, ADD, 1)
        assert (await channel.receive()).call_id == 2
        await scene.must_go_on()
