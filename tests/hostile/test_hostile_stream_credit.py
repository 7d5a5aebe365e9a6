"""Credit for what was never sent, that goes back, or is none: the connection is cut. And what credit is worth."""

import asyncio
import contextlib
from typing import Any

import pytest
from hostile_flows import (
    TEXTS,
    Act,
    client_of,
    credit,
    in_order,
    played,
    send,
    three,
)
from hostile_stage import (
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

BROKEN_CREDIT = [
    ("nothing", b""),
    ("noise", b"\xc1"),
    ("a tower", b"\x91" * 5000),
    ("one number", encode((1,))),
    ("three numbers", encode((1, 2, 3))),
    ("words", encode(("a", "b"))),
    ("fractions", encode((0.5, 1.5))),
    ("a map", encode({"items": 0, "nbytes": 0})),
    ("negative items", encode((-1, 0))),
    ("negative bytes", encode((0, -1))),
]


def impossible(kind: int) -> list[Any]:
    credits = [
        ("for more items than were sent", credit(kind, 1000, 0)),
        ("for more bytes than were sent", credit(kind, 0, 100_000)),
        ("without end", credit(kind, (1 << 64) - 1, (1 << 64) - 1)),
        ("that goes back in items", in_order(credit(kind, 2, 1), credit(kind, 1, 1))),
        ("that goes back in bytes", in_order(credit(kind, 1, 3), credit(kind, 1, 2))),
    ]
    return [
        pytest.param(act, "is impossible: the peer says that it has read", id=f"credit {id_}") for id_, act in credits
    ]


GIVING: list[Any] = [
    case("items", send(ARGUMENTS, b"\xa1a"), "sent items " + _TAKES_NO_STREAM),
    case("an end", send(END_OF_ARGUMENTS), "sent the end of the items " + _TAKES_NO_STREAM),
    *impossible(RESULT_CREDIT),
    *(
        case(f"credit of {id_}", send(RESULT_CREDIT, payload), "the credit for call 2 is impossible: ")
        for id_, payload in BROKEN_CREDIT
    ),
]


@pytest.mark.parametrize(("act", "why"), GIVING)
async def test_during_a_call_that_gives_a_stream_a_client_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(path) as (_, peer, streamer):
        channel = await well_begun(peer, stream_window=[3, 1000])
        channel.request(2, TEXTS, 5, 3)
        assert (await channel.receive()).kind == RESULTS
        act(channel)
        await must_be_cut(peer, caplog, why)
        await until(lambda: streamer.events["GeneratorExit 5"], "the handler to be closed")


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("items", send(RESULTS, b"\1"), "sent items of call 2, whose result is no stream"),
        *impossible(ARGUMENT_CREDIT),
        *(
            case(f"credit of {id_}", send(ARGUMENT_CREDIT, payload), "the credit for call 2 is impossible: ")
            for id_, payload in BROKEN_CREDIT
        ),
        case(
            "credit after the end",
            in_order(send(REPLY, b"\1"), credit(ARGUMENT_CREDIT, 0, 0)),
            f"gave credit for call 2, {_NOT_UNDER_WAY}",
        ),
    ],
)
async def test_while_a_stream_is_sent_a_server_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        call = await play.call(play.flow.keep(5, three()))
        items = await play.channel.receive()
        assert (items.kind, items.payload) == (ARGUMENTS, many("a", "b", "c"))
        held = asyncio.ensure_future(play.flow.plain(1))
        act(play.channel)
        await play.must_lose(held, why, caplog)
        with contextlib.suppress(shmrpc.ConnectionLost):
            await call


async def test_a_client_never_sends_more_than_a_servers_window(path: str) -> None:
    async with played(path) as play:
        call = await play.call(play.flow.keep(5, iter(lambda: "x", "y")))  # type: ignore[arg-type]
        items = await play.channel.receive()
        assert items.payload == many(*["x"] * 8)
        for _ in range(50):
            await asyncio.sleep(0)
        assert play.channel.take() is None
        play.channel.send(ARGUMENT_CREDIT, encode((3, len(items.payload))), call_id=2)
        assert (await play.channel.receive()).payload == many(*["x"] * 3)
        play.channel.send(REPLY, b"\5", call_id=2)
        assert await call == 5
