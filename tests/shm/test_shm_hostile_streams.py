"""A peer that lies about streams: that one connection is cut, and nobody else notices. What merely crossed is tolerated."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from flow_api import FLOWS, Flow, Streamer, all_left, session_of, sessions_of
from hostile_acts import bystander
from life_api import METHODS
from life_waiting import until
from raw_channel import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    CANCEL,
    DEFAULT,
    END_OF_ARGUMENTS,
    FAILURE,
    HAS_BUFFERS,
    MANY,
    RELEASE_TAIL,
    REPLY,
    REQUEST,
    RESULT_CREDIT,
    RESULTS,
    ROOM_EPOCH,
    RawChannel,
    Record,
    many,
    table_of,
)
from raw_peer import RawClient, RawServer, hung_up, raw_listener

import shmrpc
from shmrpc.shm.layout import Geometry

_encode = msgspec.msgpack.encode

WINDOW = {"stream_items": 8, "stream_bytes": 1000}
"""What the other side accepts."""

ADD, HOLD, LONG = (METHODS.index(name) for name in ("add", "hold", "long"))
COUNT, TEXTS, KEEP, KEEP_ARRAYS, TOTAL, LONG_AFTER = (
    len(METHODS) + FLOWS.index(name) for name in ("count", "texts", "keep", "keep_arrays", "total", "long_after")
)


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]


Act = Callable[[RawChannel], None]


def _send(kind: int, payload: bytes = b"", *, call_id: int = 2, flags: int = 0, times: int = 1) -> Act:
    def act(channel: RawChannel) -> None:
        for _ in range(times):
            channel.send(kind, payload, call_id=call_id, flags=flags)

    return act


def _in_order(*acts: Act) -> Act:
    def act(channel: RawChannel) -> None:
        for one in acts:
            one(channel)

    return act


def _many(kind: int, *items: object, count: int | None = None) -> Act:
    return _send(kind, many(*items, count=count), flags=MANY)


def _credit(kind: int, *fields: object, call_id: int = 2) -> Act:
    return _send(kind, _encode(fields), call_id=call_id)


BROKEN_MANY = [
    ("no head", _send, b"", "0 bytes are no message of 0 items"),
    ("a head that is cut off", _send, b"\xdd\0\0", "bytes are no message of"),
    ("no items", _send, many(), "5 bytes are no message of 0 items"),
    ("no items and a body", _send, many("a", count=0), "7 bytes are no message of 0 items"),
    ("more items than bytes", _send, many("a", count=3), "7 bytes are no message of 3 items"),
    ("items without end", _send, many("a", count=(1 << 32) - 1), "are no message of 4294967295 items"),
    ("a short head", _send, b"\x93\1\1\1\1\1\1", "7 bytes are no message"),
    ("a middling head", _send, b"\xdc\0\1\1\1\1\1", "7 bytes are no message"),
]

BROKEN_CREDIT = [
    ("nothing", b""),
    ("noise", b"\xc1"),
    ("a tower", b"\x91" * 5000),
    ("one number", _encode((1,))),
    ("three numbers", _encode((1, 2, 3))),
    ("words", _encode(("a", "b"))),
    ("fractions", _encode((0.5, 1.5))),
    ("a map", _encode({"items": 0, "nbytes": 0})),
    ("negative items", _encode((-1, 0))),
    ("negative bytes", _encode((0, -1))),
]


def _impossible(kind: int) -> list[Any]:
    credits = [
        ("for more items than were sent", _credit(kind, 1000, 0)),
        ("for more bytes than were sent", _credit(kind, 0, 100_000)),
        ("without end", _credit(kind, (1 << 64) - 1, (1 << 64) - 1)),
        ("that goes back in items", _in_order(_credit(kind, 2, 1), _credit(kind, 1, 1))),
        ("that goes back in bytes", _in_order(_credit(kind, 1, 3), _credit(kind, 1, 2))),
    ]
    return [
        pytest.param(act, "is impossible: the peer says that it has read", id=f"credit {id_}") for id_, act in credits
    ]


# A hostile client


async def well_begun(peer: RawClient, **hello: Any) -> RawChannel:
    """A connection on which a call has been made, so that no position is zero."""
    channel = await peer.shake_hands(**hello)
    channel.request(1, ADD, 1)
    assert (await channel.receive()).kind == REPLY
    return channel


def _case(id_: str, act: Act, why: str) -> Any:
    return pytest.param(act, why, id=id_)


_TAKES_NO_STREAM = "of call 2, which takes no stream"
_NEVER_BEGUN = "of call 7, which it never began"

KEEPING: list[Any] = [
    _case("nine items at once", _many(ARGUMENTS, *"abcdefghi"), "9 items of 23 bytes came, and the credit was 8 items"),
    _case("nine items", _send(ARGUMENTS, b"\xa1a", times=9), "1 items of 2 bytes came, and the credit was 0 items"),
    _case(
        "items behind many bytes",
        _send(ARGUMENTS, _encode("x" * 1000), times=2),
        "1 items of 1003 bytes came, and the credit was 7 items of 0 bytes",
    ),
    _case(
        "items after the end",
        _in_order(_send(END_OF_ARGUMENTS), _send(ARGUMENTS, b"\xa1a")),
        "sent items of call 2 after their end",
    ),
    _case("two ends", _send(END_OF_ARGUMENTS, times=2), "sent the end of the items of call 2 after their end"),
    _case("items of no call", _send(ARGUMENTS, b"\xa1a", call_id=7), "sent items " + _NEVER_BEGUN),
    _case("an end of no call", _send(END_OF_ARGUMENTS, call_id=7), "sent the end of the items " + _NEVER_BEGUN),
    _case(
        "credit for no call", _credit(RESULT_CREDIT, 0, 0, call_id=7), "gave credit for call 7, which it never began"
    ),
    _case(
        "credit for a call without a stream", _credit(RESULT_CREDIT, 0, 0), "credit for call 2, which gives no stream"
    ),
    _case("items of a result", _send(RESULTS, b"\1"), "a kind that this side does not take"),
    _case("credit for a parameter", _credit(ARGUMENT_CREDIT, 0, 0), "a kind that this side does not take"),
    _case(
        "buffers that are none",
        _send(ARGUMENTS, b"\xff\xff\xff\xff\0\0\0\0", flags=HAS_BUFFERS),
        "references to buffers",
    ),
    *(_case(id_, how(ARGUMENTS, payload, flags=MANY), why) for id_, how, payload, why in BROKEN_MANY),
]
"""While a call takes a stream that it does not read."""

UNARY: list[Any] = [
    _case("items", _send(ARGUMENTS, b"\xa1a"), "sent items " + _TAKES_NO_STREAM),
    _case("many items", _many(ARGUMENTS, "a"), "sent items " + _TAKES_NO_STREAM),
    _case("an end", _send(END_OF_ARGUMENTS), "sent the end of the items " + _TAKES_NO_STREAM),
    _case("credit", _credit(RESULT_CREDIT, 0, 0), "gave credit for call 2, which gives no stream"),
]

GIVING: list[Any] = [
    _case("items", _send(ARGUMENTS, b"\xa1a"), "sent items " + _TAKES_NO_STREAM),
    _case("an end", _send(END_OF_ARGUMENTS), "sent the end of the items " + _TAKES_NO_STREAM),
    *_impossible(RESULT_CREDIT),
    *(
        _case(f"credit of {id_}", _send(RESULT_CREDIT, payload), "the credit for call 2 is impossible: ")
        for id_, payload in BROKEN_CREDIT
    ),
]


@asynccontextmanager
async def client_of(path: str, **settings: Any) -> AsyncIterator[tuple[shmrpc.Server, RawClient, Streamer]]:
    """A server with a bystander, and a client that may do anything."""
    streamer = Streamer()
    async with bystander(path, streamer, **{**WINDOW, **settings}) as server, RawClient(path) as peer:
        yield server, peer, streamer


async def must_be_cut(peer: RawClient, caplog: pytest.LogCaptureFixture, why: str) -> None:
    await hung_up(peer.sock)
    (text,) = cuts(caplog)
    assert why in text


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


CROSSED: list[Any] = [
    pytest.param(_send(ARGUMENTS, b"\xa1a", times=20), id="items"),
    pytest.param(_many(ARGUMENTS, *"abcdefghijklmn"), id="many items"),
    pytest.param(_in_order(_send(ARGUMENTS, b"\xa1a"), _send(END_OF_ARGUMENTS)), id="the end"),
    pytest.param(_credit(RESULT_CREDIT, 3, 12), id="credit"),
]


@pytest.mark.parametrize("act", CROSSED)
@pytest.mark.parametrize("ended", ["refused", "cancelled", "ended"])
async def test_what_crossed_the_end_of_its_call_means_nothing(path: str, act: Act, ended: str) -> None:
    async with client_of(path) as (server, peer, streamer):
        channel = await well_begun(peer)
        if ended == "refused":
            channel.request(2, KEEP, "five")
        elif ended == "cancelled":
            channel.request(2, KEEP, 5)
            await until(lambda: streamer.events["began 5"], "the call to begin")
            channel.send(CANCEL, call_id=2)
        else:
            channel.request(2, COUNT, 5, 0)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (REPLY if ended == "ended" else FAILURE, 2)
        act(channel)
        channel.request(3, ADD, 41)
        assert (await channel.receive()).call_id == 3
        assert [left for session in sessions_of(server) for left in all_left(session)] == ["call 1 running"]


async def test_buffers_in_items_that_crossed_the_end_of_their_call_go_home(path: str) -> None:
    async with client_of(path) as (_, peer, _):
        channel = await well_begun(peer)
        channel.request(2, KEEP_ARRAYS, "five")
        assert (await channel.receive()).kind == FAILURE
        channel.put(0, bytes(range(100)))
        channel.send(ARGUMENTS, table_of([(0, 1, 0, 100)]), call_id=2, flags=HAS_BUFFERS)
        await until(lambda: channel.far_word(RELEASE_TAIL) == 1, "the buffer to come home")
        channel.request(3, ADD, 1)
        assert (await channel.receive()).call_id == 3


async def test_items_may_come_while_the_answer_of_their_call_waits_for_memory(path: str) -> None:
    """Its handler has ended, and the client cannot know that."""
    async with client_of(path, max_extent_bytes=0) as (_, peer, streamer):
        channel = await well_begun(peer)
        channel.request(2, LONG, 300 * 1024)
        block, _ = channel.open_block(await channel.receive())
        channel.request(3, LONG_AFTER, 5, 300 * 1024)
        channel.send(ARGUMENTS, b"\xa1a", call_id=3)
        await until(lambda: streamer.events["ended 5"], "the handler to end")
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        channel.send(ARGUMENTS, b"\xa1b", call_id=3)
        channel.send(END_OF_ARGUMENTS, call_id=3)
        channel.request(4, ADD, 1)
        assert (await channel.receive()).call_id == 4
        channel.release(*block)
        answer = await channel.receive()
        assert (answer.kind, answer.call_id) == (REPLY, 3)
        channel.give_back(answer)


async def test_credit_may_come_while_the_failure_of_its_call_waits_for_memory(path: str) -> None:
    class Failing(Streamer):
        def texts(self, number: int, length: int) -> AsyncIterator[str]:
            async def items() -> AsyncIterator[str]:
                yield "x" * length
                await self.go.wait()
                raise shmrpc.InvalidArgument("y" * (300 * 1024))

            return self._watched(number, items())

    failing = Failing()
    async with bystander(path, failing, max_extent_bytes=0), RawClient(path) as peer:
        channel = await well_begun(peer)
        channel.request(2, LONG, 300 * 1024)
        block, _ = channel.open_block(await channel.receive())
        channel.request(3, TEXTS, 5, 10)
        items = await channel.receive()
        assert (items.kind, items.call_id) == (RESULTS, 3)
        failing.go.set()
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        channel.send(RESULT_CREDIT, _encode((1, len(items.payload))), call_id=3)
        channel.request(4, ADD, 1)
        assert (await channel.receive()).call_id == 4
        channel.release(*block)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (FAILURE, 3)
        channel.give_back(end)


async def test_items_that_wait_for_room_are_no_calls_in_flight(path: str) -> None:
    async with client_of(path, max_in_flight=8) as (server, peer, _):
        channel = await well_begun(peer, stream_window=[1000, 1 << 20])
        for call_id in range(2, 8):
            channel.request(call_id, TEXTS, call_id, 8000)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for room")
        await until(lambda: waiting_at(server) >= 2, "items to wait")
        channel.request(8, ADD, 41)  # the seventh that runs
        answer = await next_end(channel)
        assert (answer.kind, answer.call_id) == (REPLY, 8)


def waiting_at(server: shmrpc.Server) -> int:
    """How many records of one connection wait for room at a server."""
    return max(len(session.channel.outbox) for session in sessions_of(server))


async def next_end(channel: RawChannel) -> Record:
    """Passes over the items of streams."""
    while True:
        if (record := await channel.receive()).kind in (REPLY, FAILURE):
            return record


async def test_streams_of_a_client_that_takes_nothing_fill_no_memory(path: str) -> None:
    async with client_of(path) as (server, peer, streamer):
        channel = await well_begun(peer, stream_window=[1 << 40, 1 << 40])
        for call_id in range(2, 22):
            channel.request(call_id, TEXTS, call_id, 1000)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for room")
        before = -1
        while before != (now := streamer.events.total()):
            before = now
            await asyncio.sleep(0.02)
        assert waiting_at(server) <= 3 * 20


async def test_a_client_that_takes_no_credit_cannot_make_the_server_hoard_it(path: str) -> None:
    """It sends items that are read, without end, as if it had taken the credit for them."""
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=256)
    async with client_of(path, geometry=small) as (server, peer, streamer):
        channel = await well_begun(peer)
        channel.request(2, TOTAL, 5)
        for number in range(1, 500):
            channel.send(ARGUMENTS, many(*[1] * 8), call_id=2, flags=MANY)
            await until(lambda: streamer.events["gave 5"] == 8 * number, "the items to be read")  # noqa: B023
        assert waiting_at(server) == 1
        channel.send(END_OF_ARGUMENTS, call_id=2)
        records = [await channel.receive()]
        while records[-1].kind != REPLY:
            records.append(await channel.receive())
        *credits, reply = records
        assert msgspec.msgpack.decode(reply.payload) == 8 * 499
        assert msgspec.msgpack.decode(credits[-1].payload)[0] >= 8 * 498


@pytest.mark.parametrize(
    ("method", "payload", "flags"),
    [(TOTAL, b"\xa3one", 0), (TOTAL, many(1, "two"), MANY), (TOTAL, b"\xc1", 0), (KEEP_ARRAYS, many(1), MANY)],
    ids=["of another type", "some of another type", "noise", "many at once that can hold buffers"],
)
async def test_an_item_that_does_not_fit_fails_its_call_and_no_other(
    path: str, method: int, payload: bytes, flags: int
) -> None:
    async with client_of(path) as (_, peer, streamer):
        streamer.go.set()
        channel = await well_begun(peer)
        channel.request(2, method, 5)
        channel.send(ARGUMENTS, payload, call_id=2, flags=flags)
        end = await channel.receive()
        assert (end.kind, end.call_id) == (FAILURE, 2)
        assert "an item of parameter 'parts' does not fit" in msgspec.msgpack.decode(end.payload)[1]
        channel.request(3, ADD, 1)
        assert (await channel.receive()).call_id == 3


# A hostile server


class Play:
    """One connection between a raw server and a real client, whose first call has been answered."""

    def __init__(self, server: RawServer, channel: RawChannel, flow: Flow) -> None:
        self.server = server
        self.channel = channel
        self.flow = flow

    async def call(self, call: Awaitable[Any]) -> "asyncio.Future[Any]":
        """A call that the server has taken, which is call 2."""
        future = asyncio.ensure_future(call)
        record = await self.channel.receive()
        assert (record.kind, record.call_id) == (REQUEST, 2)
        return future

    async def must_lose(self, call: "asyncio.Future[Any]", why: str, caplog: pytest.LogCaptureFixture) -> None:
        """The call, which the server had taken, ends since the connection was cut."""
        await hung_up(self.server.sock)
        with pytest.raises(shmrpc.ConnectionLost, match=r"was cut: .*; Flow\.\w+ was under way there") as caught:
            await call
        assert why in str(caught.value)
        assert caught.value.maybe_executed
        (text,) = cuts(caplog)
        assert why in text


@asynccontextmanager
async def played(path: str, **settings: Any) -> AsyncIterator[Play]:
    """The two, beside a server and clients that nothing may disturb."""
    server: list[RawServer] = []
    over = asyncio.Event()

    async def play(raw: RawServer) -> None:
        channel = await raw.shake_hands(stream_window=[8, 1000])
        server.append(raw)
        request = await channel.receive()
        channel.send(REPLY, _encode(7), call_id=request.call_id)
        await over.wait()

    async with (
        bystander(f"{path}.other"),
        raw_listener(path, play, DEFAULT),
        shmrpc.connect(Flow, path, reconnect_timeout=0, **{**WINDOW, **settings}) as flow,
    ):
        assert await flow.plain(7) == 7
        try:
            yield Play(server[0], server[0].channel, flow)
        finally:
            over.set()


async def read_all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def nothing_yet() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


async def three() -> AsyncIterator[Any]:
    for item in ("a", "b", "c"):
        yield item
    await asyncio.Event().wait()


_NOT_UNDER_WAY = "which is not under way"

COUNTING: list[Any] = [
    _case("nine items at once", _many(RESULTS, *range(9)), "9 items of 14 bytes came, and the credit was 8 items"),
    _case(
        "items behind many bytes",
        _in_order(_send(RESULTS, _encode("x" * 1000), times=2)),
        "1 items of 1003 bytes came, and the credit was 7 items of 0 bytes",
    ),
    _case("items of no call", _send(RESULTS, b"\1", call_id=9), f"sent items of call 9, {_NOT_UNDER_WAY}"),
    _case(
        "items of a call that has ended", _send(RESULTS, b"\1", call_id=1), f"sent items of call 1, {_NOT_UNDER_WAY}"
    ),
    _case(
        "items after the end",
        _in_order(_send(REPLY, b"\xc0"), _send(RESULTS, b"\1")),
        f"sent items of call 2, {_NOT_UNDER_WAY}",
    ),
    _case("two ends", _send(REPLY, b"\xc0", times=2), "ended call 2, which is not under way"),
    _case("credit", _credit(ARGUMENT_CREDIT, 0, 0), "gave credit for call 2, which sends no stream"),
    _case("items of a parameter", _send(ARGUMENTS, b"\1"), "a kind that this side does not take"),
    _case("the end of a parameter", _send(END_OF_ARGUMENTS), "a kind that this side does not take"),
    _case("credit for a result", _credit(RESULT_CREDIT, 0, 0), "a kind that this side does not take"),
    *(_case(id_, how(RESULTS, payload, flags=MANY), why) for id_, how, payload, why in BROKEN_MANY),
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
        _in_order(_many(RESULTS, 0, 1, 2), _many(RESULTS, count=0))(play.channel)
        await play.must_lose(call, "are no message of 0 items", caplog)
        assert got == [0, 1, 2]


@pytest.mark.parametrize(
    ("act", "why"),
    [
        _case("items", _send(RESULTS, b"\1"), "sent items of call 2, whose result is no stream"),
        _case("many items", _many(RESULTS, 1), "sent items of call 2, whose result is no stream"),
        _case("credit", _credit(ARGUMENT_CREDIT, 0, 0), "gave credit for call 2, which sends no stream"),
        _case("credit for no call", _credit(ARGUMENT_CREDIT, 0, 0, call_id=3), f"credit for call 3, {_NOT_UNDER_WAY}"),
    ],
)
async def test_during_a_call_without_streams_a_server_is_cut_off_after(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        call = await play.call(play.flow.plain(1))
        act(play.channel)
        await play.must_lose(call, why, caplog)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        _case("items", _send(RESULTS, b"\1"), "sent items of call 2, whose result is no stream"),
        *_impossible(ARGUMENT_CREDIT),
        *(
            _case(f"credit of {id_}", _send(ARGUMENT_CREDIT, payload), "the credit for call 2 is impossible: ")
            for id_, payload in BROKEN_CREDIT
        ),
        _case(
            "credit after the end",
            _in_order(_send(REPLY, b"\1"), _credit(ARGUMENT_CREDIT, 0, 0)),
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
        play.channel.send(ARGUMENT_CREDIT, _encode((3, len(items.payload))), call_id=2)
        assert (await play.channel.receive()).payload == many(*["x"] * 3)
        play.channel.send(REPLY, b"\5", call_id=2)
        assert await call == 5


@pytest.mark.parametrize(
    "act",
    [
        _send(RESULTS, b"\1", times=20),
        _many(RESULTS, *range(20)),
        _credit(ARGUMENT_CREDIT, 0, 0),
    ],
    ids=["items", "many items", "credit"],
)
async def test_what_crossed_a_cancel_means_nothing(path: str, act: Act) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.echo(5, nothing_yet())))
        call.cancel()
        assert (await play.channel.receive()).kind == CANCEL
        act(play.channel)
        play.channel.send(FAILURE, _encode((1, "cancelled")), call_id=2)
        other = asyncio.ensure_future(play.flow.plain(1))
        record = await play.channel.receive()
        play.channel.send(REPLY, b"\1", call_id=record.call_id)
        assert await other == 1
        assert all_left(session_of(play.flow)) == []


async def test_buffers_in_items_that_crossed_a_cancel_go_home(path: str) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.arrays(5, 10, 100)))
        call.cancel()
        assert (await play.channel.receive()).kind == CANCEL
        play.channel.put(0, bytes(100))
        play.channel.send(RESULTS, table_of([(0, 1, 0, 100)]), call_id=2, flags=HAS_BUFFERS)
        await until(lambda: play.channel.far_word(RELEASE_TAIL) == 1, "the buffer to come home")
        play.channel.send(REPLY, b"\xc0", call_id=2)


@pytest.mark.parametrize(("payload", "flags"), [(b"\xa3one", 0), (many(1, "two"), MANY), (b"\xc1", 0), (b"", 0)])
async def test_an_item_of_the_server_that_does_not_fit_fails_its_call_and_no_other(
    path: str, payload: bytes, flags: int
) -> None:
    async with played(path) as play:
        call = await play.call(anext(play.flow.count(5, 10)))
        play.channel.send(RESULTS, payload, call_id=2, flags=flags)
        with pytest.raises(shmrpc.Internal, match=r"Flow\.count: an item of the server does not fit the contract"):
            await call
        assert (await play.channel.receive()).kind == CANCEL
        play.channel.send(REPLY, b"\xc0", call_id=2)
        other = asyncio.ensure_future(play.flow.plain(1))
        record = await play.channel.receive()
        play.channel.send(REPLY, b"\1", call_id=record.call_id)
        assert await other == 1
        assert all_left(session_of(play.flow)) == []
