"""Items beyond their credit, of calls that take none, behind their end, or that are none: the connection is cut."""

import asyncio
import contextlib
from typing import Any

import pytest
from hostile_flows import (
    KEEP,
    Act,
    client_of,
    credit,
    in_order,
    many_items,
    played,
    send,
)
from hostile_stage import (
    HOLD,
    case,
    encode,
    must_be_cut,
    well_begun,
)
from life_waiting import until
from raw_channel import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    END_OF_ARGUMENTS,
    HAS_BUFFERS,
    MANY,
    REPLY,
    RESULT_CREDIT,
    RESULTS,
    many,
)

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

_TAKES_NO_STREAM = "of call 2, which takes no stream"
_NEVER_BEGUN = "of call 7, which it never began"
_NOT_UNDER_WAY = "which is not under way"

BROKEN_MANY = [
    ("no head", send, b"", "0 bytes are no message of 0 items"),
    ("a head that is cut off", send, b"\xdd\0\0", "bytes are no message of"),
    ("no items", send, many(), "5 bytes are no message of 0 items"),
    ("no items and a body", send, many("a", count=0), "7 bytes are no message of 0 items"),
    ("more items than bytes", send, many("a", count=3), "7 bytes are no message of 3 items"),
    ("items without end", send, many("a", count=(1 << 32) - 1), "are no message of 4294967295 items"),
    ("a short head", send, b"\x93\1\1\1\1\1\1", "7 bytes are no message"),
    ("a middling head", send, b"\xdc\0\1\1\1\1\1", "7 bytes are no message"),
]

KEEPING: list[Any] = [
    case(
        "nine items at once",
        many_items(ARGUMENTS, *"abcdefghi"),
        "9 items of 23 bytes came, and the credit was 8 items",
    ),
    case("nine items", send(ARGUMENTS, b"\xa1a", times=9), "1 items of 2 bytes came, and the credit was 0 items"),
    case(
        "items behind many bytes",
        send(ARGUMENTS, encode("x" * 1000), times=2),
        "1 items of 1003 bytes came, and the credit was 7 items of 0 bytes",
    ),
    case(
        "items after the end",
        in_order(send(END_OF_ARGUMENTS), send(ARGUMENTS, b"\xa1a")),
        "sent items of call 2 after their end",
    ),
    case("two ends", send(END_OF_ARGUMENTS, times=2), "sent the end of the items of call 2 after their end"),
    case("items of no call", send(ARGUMENTS, b"\xa1a", call_id=7), "sent items " + _NEVER_BEGUN),
    case("an end of no call", send(END_OF_ARGUMENTS, call_id=7), "sent the end of the items " + _NEVER_BEGUN),
    case("credit for no call", credit(RESULT_CREDIT, 0, 0, call_id=7), "gave credit for call 7, which it never began"),
    case("credit for a call without a stream", credit(RESULT_CREDIT, 0, 0), "credit for call 2, which gives no stream"),
    case("items of a result", send(RESULTS, b"\1"), "a kind that this side does not take"),
    case("credit for a parameter", credit(ARGUMENT_CREDIT, 0, 0), "a kind that this side does not take"),
    case(
        "buffers that are none",
        send(ARGUMENTS, b"\xff\xff\xff\xff\0\0\0\0", flags=HAS_BUFFERS),
        "references to buffers",
    ),
    *(case(id_, how(ARGUMENTS, payload, flags=MANY), why) for id_, how, payload, why in BROKEN_MANY),
]
"""While a call takes a stream that it does not read."""

UNARY: list[Any] = [
    case("items", send(ARGUMENTS, b"\xa1a"), "sent items " + _TAKES_NO_STREAM),
    case("many items", many_items(ARGUMENTS, "a"), "sent items " + _TAKES_NO_STREAM),
    case("an end", send(END_OF_ARGUMENTS), "sent the end of the items " + _TAKES_NO_STREAM),
    case("credit", credit(RESULT_CREDIT, 0, 0), "gave credit for call 2, which gives no stream"),
]


@pytest.mark.parametrize(("act", "why"), KEEPING)
async def test_while_a_stream_is_kept_a_client_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(path) as (_, peer, streamer):
        channel = await well_begun(peer)
        channel.request(2, KEEP, 5)
        act(channel)
        await must_be_cut(peer, caplog, why)
        await until(lambda: streamer.events["cancelled 5"], "the handler to be told")


@pytest.mark.parametrize(("act", "why"), UNARY)
async def test_during_a_call_without_streams_a_client_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(path) as (_, peer, _):
        channel = await well_begun(peer)
        channel.request(2, HOLD, 5)
        act(channel)
        await must_be_cut(peer, caplog, why)


COUNTING: list[Any] = [
    case("nine items at once", many_items(RESULTS, *range(9)), "9 items of 14 bytes came, and the credit was 8 items"),
    case(
        "items behind many bytes",
        in_order(send(RESULTS, encode("x" * 1000), times=2)),
        "1 items of 1003 bytes came, and the credit was 7 items of 0 bytes",
    ),
    case("items of no call", send(RESULTS, b"\1", call_id=9), f"sent items of call 9, {_NOT_UNDER_WAY}"),
    case("items of a call that has ended", send(RESULTS, b"\1", call_id=1), f"sent items of call 1, {_NOT_UNDER_WAY}"),
    case(
        "items after the end",
        in_order(send(REPLY, b"\xc0"), send(RESULTS, b"\1")),
        f"sent items of call 2, {_NOT_UNDER_WAY}",
    ),
    case("two ends", send(REPLY, b"\xc0", times=2), "ended call 2, which is not under way"),
    case("credit", credit(ARGUMENT_CREDIT, 0, 0), "gave credit for call 2, which sends no stream"),
    case("items of a parameter", send(ARGUMENTS, b"\1"), "a kind that this side does not take"),
    case("the end of a parameter", send(END_OF_ARGUMENTS), "a kind that this side does not take"),
    case("credit for a result", credit(RESULT_CREDIT, 0, 0), "a kind that this side does not take"),
    *(case(id_, how(RESULTS, payload, flags=MANY), why) for id_, how, payload, why in BROKEN_MANY),
]


@pytest.mark.parametrize(("act", "why"), COUNTING)
async def test_while_a_stream_is_read_a_server_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        stream = play.flow.count(5, 100)
        call = await play.call(anext(stream))
        held = asyncio.ensure_future(play.flow.plain(1))
        act(play.channel)
        await play.must_lose(held, why, caplog)
        with contextlib.suppress(shmrpc.RpcError, StopAsyncIteration):
            await call
        await stream.aclose()  # type: ignore[attr-defined]


async def test_the_items_before_a_lie_arrive_and_then_the_loss(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with played(path) as play:
        got: list[int] = []

        async def read() -> None:
            async for item in play.flow.count(5, 100):
                got.append(item)

        call = await play.call(read())
        in_order(many_items(RESULTS, 0, 1, 2), many_items(RESULTS, count=0))(play.channel)
        await play.must_lose(call, "are no message of 0 items", caplog)
        assert got == [0, 1, 2]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("items", send(RESULTS, b"\1"), "sent items of call 2, whose result is no stream"),
        case("many items", many_items(RESULTS, 1), "sent items of call 2, whose result is no stream"),
        case("credit", credit(ARGUMENT_CREDIT, 0, 0), "gave credit for call 2, which sends no stream"),
        case("credit for no call", credit(ARGUMENT_CREDIT, 0, 0, call_id=3), f"credit for call 3, {_NOT_UNDER_WAY}"),
    ],
)
async def test_during_a_call_without_streams_a_server_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        call = await play.call(play.flow.plain(1))
        act(play.channel)
        await play.must_lose(call, why, caplog)
