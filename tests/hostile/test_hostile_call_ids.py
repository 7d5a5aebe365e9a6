"""Calls whose ids do not rise: the connection is cut, and no handler sees them."""

import pytest
from hostile_stage import ADD, HOLD, against_server
from raw_channel import REPLY, REQUEST

pytestmark = pytest.mark.counted("bad inputs tried")


@pytest.mark.parametrize("call_id", [1, 0], ids=["a call id twice", "a call id that falls"])
@pytest.mark.parametrize("method", [ADD, 60_000], ids=["of a method", "of no method"])
async def test_a_server_cuts_after(path: str, call_id: int, method: int, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, b"\x91\1", call_id=call_id, method=method)
        await scene.must_be_cut(f"began call {call_id} after call 1; ids must rise")


async def test_a_server_cuts_after_the_id_of_a_call_that_is_under_way(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.request(7, HOLD, 1)
        scene.channel.request(7, ADD, 1)
        await scene.must_be_cut("began call 7 after call 7; ids must rise")


async def test_ids_may_leave_gaps_up_to_the_last_one_and_then_no_more(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = (1 << 64) - 1
    async with against_server(path, caplog) as scene:
        for call_id in (1000, last):
            scene.channel.request(call_id, ADD, 1)
            answer = await scene.channel.receive()
            assert (answer.kind, answer.call_id) == (REPLY, call_id)
        scene.channel.request(2, ADD, 1)
        await scene.must_be_cut(f"began call 2 after call {last}; ids must rise")
