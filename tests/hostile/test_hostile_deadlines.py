"""Deadlines that have passed, or lie beyond the end of all clocks: one call's affair."""

import time

import pytest
from hostile_stage import ADD, HOLD, NOTE, against_server, decode, encode
from raw_channel import CANCEL, FAILURE, REPLY

from shmrpc import Code

pytestmark = pytest.mark.counted("bad inputs tried")

FAR = [(1 << 62), (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 1]


@pytest.mark.parametrize("deadline_ns", FAR)
async def test_a_deadline_in_the_far_future_is_none(
    path: str, deadline_ns: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.request(2, ADD, 1, deadline_ns=deadline_ns)
        assert (await scene.channel.receive()).kind == REPLY
        scene.channel.request(3, HOLD, 1, deadline_ns=deadline_ns)
        await scene.must_go_on()
        scene.channel.send(CANCEL, call_id=3)
        answer = await scene.channel.receive()
        assert (answer.kind, decode(answer.payload)[0]) == (FAILURE, Code.CANCELLED)


@pytest.mark.parametrize("deadline_ns", [1, 1000, "now"])
async def test_a_deadline_that_has_passed_begins_nothing(
    path: str, deadline_ns: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        at_ns = time.monotonic_ns() if isinstance(deadline_ns, str) else deadline_ns
        scene.channel.request(2, NOTE, 7, deadline_ns=at_ns)
        answer = await scene.channel.receive()
        code, text, *_, maybe_executed = decode(answer.payload)
        assert (code, text) == (Code.DEADLINE_EXCEEDED, "Life.note: the deadline had passed on arrival")
        assert not maybe_executed
        await scene.must_go_on()


async def test_a_thousand_deadlines_at_once_are_kept_one_by_one(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        begin = time.monotonic_ns() + 20_000_000
        for call_id in range(2, 502):
            scene.channel.request(call_id, HOLD, call_id, deadline_ns=begin + call_id * 1000)
        ended: set[int] = set()
        while len(ended) < 500:
            answer = await scene.channel.receive()
            assert decode(answer.payload)[0] == Code.DEADLINE_EXCEEDED
            ended.add(answer.call_id)
        assert ended == set(range(2, 502))
        await scene.must_go_on()


async def test_words_that_a_reply_has_no_use_for_mean_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(CANCEL, encode("nothing"), call_id=1, method=65_535, deadline_ns=(1 << 64) - 1)
        await scene.must_go_on()
