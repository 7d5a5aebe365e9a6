"""A client whose server lies in shared memory: that one connection is cut, its calls end, and nobody else notices."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hostile_acts import ACTS, Act, bystander
from life_api import Life
from life_waiting import until
from raw_channel import (
    CANCEL,
    DEFAULT,
    FAILURE,
    GOAWAY,
    HEAD,
    IN_BLOCK,
    RELEASE_TAIL,
    REPLY,
    REQUEST,
    RING,
    ROOM_EPOCH,
    Geometry,
    RawChannel,
)
from raw_peer import RawServer, hung_up, raw_listener

import shmrpc

LARGE = "x" * (300 * 1024)


class Play:
    """One connection between a raw server and a real client, whose first call has been answered."""

    def __init__(self, server: RawServer, channel: RawChannel, life: Life) -> None:
        self.server = server
        self.channel = channel
        self.life = life

    async def call(self, call: Awaitable[object]) -> tuple["asyncio.Future[object]", int]:
        """A call that the server has taken, and its call id."""
        future = asyncio.ensure_future(call)
        record = await self.channel.receive()
        assert record.kind == REQUEST
        return future, record.call_id

    async def must_lose(self, call: "asyncio.Future[object]", why: str) -> None:
        """The call, which the server had taken, ends since the connection was cut."""
        await hung_up(self.server.sock)
        with pytest.raises(shmrpc.ConnectionLost, match=r"was cut: .*; Life\..* was under way there") as caught:
            await call
        assert why in str(caught.value)
        assert caught.value.maybe_executed


@asynccontextmanager
async def played(path: str, geometry: Geometry = DEFAULT, **settings: Any) -> AsyncIterator[Play]:
    """The two, beside a server and clients that nothing may disturb."""
    server: list[RawServer] = []
    over = asyncio.Event()

    async def play(raw: RawServer) -> None:
        channel = await raw.shake_hands()
        server.append(raw)
        request = await channel.receive()
        channel.send(REPLY, msgspec.msgpack.encode(7), call_id=request.call_id)
        await over.wait()

    async with (
        bystander(f"{path}.other"),
        raw_listener(path, play, geometry),
        shmrpc.connect(Life, path, reconnect_timeout=0, **settings) as life,
    ):
        assert await life.add(3, 4) == 7
        try:
            yield Play(server[0], server[0].channel, life)
        finally:
            over.set()


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]


@pytest.mark.parametrize(("act", "why"), ACTS)
async def test_the_connection_is_cut_after(path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with played(path) as play:
        call, call_id = await play.call(play.life.hold(1))
        act(play.channel, REPLY, call_id)
        await play.must_lose(call, why)
        (text,) = cuts(caplog)
        assert why in text


# What only a server can do


def _send(kind: int, payload: bytes = b"", *, ahead: int = 0, **words: int) -> Act:
    return lambda channel, _, call_id: channel.send(kind, payload, call_id=call_id + ahead, **words)


_UNKNOWN = "of a kind that this side does not take"


@pytest.mark.parametrize(
    ("act", "why"),
    [
        pytest.param(_send(REPLY, ahead=1), "ended call 3, which is not under way", id="a reply to nothing"),
        pytest.param(_send(REPLY, ahead=-1), "ended call 1, which is not under way", id="a second reply"),
        pytest.param(
            _send(FAILURE, msgspec.msgpack.encode((2, "no")), ahead=1),
            "ended call 3, which is not under way",
            id="a failure of nothing",
        ),
        pytest.param(_send(FAILURE, b"\xc1"), "the failure of call 2 cannot be decoded", id="noise as a failure"),
        pytest.param(_send(FAILURE), "the failure of call 2 cannot be decoded", id="an empty failure"),
        pytest.param(
            _send(FAILURE, msgspec.msgpack.encode(("no", 2))),
            "the failure of call 2 cannot be",
            id="a failure in words",
        ),
        pytest.param(
            _send(FAILURE, b"\x91" * 5000), "the failure of call 2 cannot be decoded", id="a tower of failures"
        ),
        pytest.param(_send(REQUEST), _UNKNOWN, id="a request"),
        pytest.param(_send(CANCEL), _UNKNOWN, id="a cancel"),
    ],
)
async def test_the_connection_is_cut_after_a_server_sent(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        call, call_id = await play.call(play.life.hold(1))
        assert call_id == 2
        act(play.channel, REPLY, call_id)
        await play.must_lose(call, why)
        (text,) = cuts(caplog)
        assert why in text


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91" * 5000, msgspec.msgpack.encode("seven")])
async def test_a_result_that_does_not_fit_fails_its_call_and_no_other(path: str, payload: bytes) -> None:
    async with played(path) as play:
        held, held_id = await play.call(play.life.hold(1))
        call, call_id = await play.call(play.life.add(1))
        play.channel.send(REPLY, payload, call_id=call_id)
        with pytest.raises(shmrpc.Internal, match=r"Life\.add: the server's result does not fit the contract"):
            await call
        play.channel.send(REPLY, msgspec.msgpack.encode(1), call_id=held_id)
        assert await held == 1


@pytest.mark.parametrize("code", [0, 99, -1, 1 << 60])
async def test_a_failure_of_an_unknown_code_is_a_failure_all_the_same(path: str, code: int) -> None:
    async with played(path) as play:
        call, call_id = await play.call(play.life.hold(1))
        play.channel.send(FAILURE, msgspec.msgpack.encode((code, "who knows")), call_id=call_id)
        with pytest.raises(shmrpc.RpcError, match="who knows") as caught:
            await call
        assert caught.value.code == shmrpc.Code.UNKNOWN


# What is found only when the client sends


@pytest.mark.parametrize("head", [-8, +8, +3, 1 << 40], ids=["back", "ahead", "unaligned", "far ahead"])
async def test_a_read_position_that_is_impossible_is_found_when_the_ring_is_full(
    path: str, head: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        channel = play.channel
        calls = [asyncio.ensure_future(play.life.echo(bytes(8000))) for _ in range(30)]
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the client to wait for room")
        channel.set_word(HEAD, (channel.far_word(0x1000) if head > 0 else channel.head) + head)
        channel.ring()
        await hung_up(play.server.sock)
        for call in calls:
            with pytest.raises(shmrpc.Unavailable):
                await call
        (text,) = cuts(caplog)
        assert "the peer's read position is outside of what was published" in text


async def test_a_read_position_that_is_impossible_is_found_by_the_call_that_fills_the_ring(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        held, _ = await play.call(play.life.hold(1))
        play.channel.set_word(HEAD, 1 << 40)
        calls = [asyncio.ensure_future(play.life.echo(bytes(8000))) for _ in range(30)]
        await play.must_lose(held, "the peer's read position is outside of what was published")
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {
            shmrpc.ProtocolError,
            shmrpc.ConnectionLost,
            shmrpc.Unavailable,
        }
        assert len(cuts(caplog)) == 1


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda channel: channel.release(5, 1), "block 5 was released under lease 1, which is on block 0"),
        (lambda channel: channel.release(0, 9), "block 0 was released under lease 9, which is not out"),
        (lambda channel: channel.release(1 << 63, 1 << 63), "was released under lease"),
        (lambda channel: channel.set_word(RELEASE_TAIL, 5000), "the peer's write position went back"),
    ],
    ids=["another block", "another lease", "anything", "too many"],
)
async def test_a_forged_release_cuts_the_connection_when_the_client_needs_room(
    path: str, forge: Callable[[RawChannel], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with played(path) as play:
        call, _ = await play.call(play.life.repeat(LARGE))
        forge(play.channel)
        with pytest.raises((shmrpc.ProtocolError, shmrpc.Unavailable)):
            await play.life.repeat(LARGE)
        await play.must_lose(call, why)
        (text,) = cuts(caplog)
        assert why in text


async def test_a_cancelled_caller_sees_its_cancellation_whatever_the_server_wrote(path: str) -> None:
    async with played(path) as play:
        held, _ = await play.call(play.life.hold(1))
        calls = [asyncio.ensure_future(play.life.echo(bytes(8000))) for _ in range(15)]
        await asyncio.sleep(0)
        assert play.channel.far_word(ROOM_EPOCH) % 2 == 0  # full, and nobody waits for room yet
        play.channel.set_word(HEAD, 1 << 40)
        for call in calls:
            call.cancel()
        for _ in range(500):  # cancels fill the rest of the ring, so that one of them finds the lie
            held.cancel()
        outcomes = await asyncio.gather(held, *calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}


# Good-byes without end


async def test_a_server_that_says_goodbye_without_end_ends_the_connection_once(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    huge = Geometry(ring_bytes=8 << 20)
    async with played(path, huge) as play:
        channel = play.channel
        begin, many = RING + channel.tail, huge.ring_bytes // 24 - 10
        channel.write(GOAWAY, call_id=1)
        channel.own[begin : begin + 24 * many] = channel.own[begin : begin + 24] * many
        channel.publish(channel.tail + 24 * many)
        await hung_up(play.server.sock)
        with pytest.raises(shmrpc.Unavailable, match="no connection to"):
            await play.life.add(1)
        assert caplog.text == ""


async def test_a_goodbye_refuses_later_calls_and_the_rest_end_as_they_may(path: str) -> None:
    async with played(path) as play:
        first, first_id = await play.call(play.life.hold(1))
        second, second_id = await play.call(play.life.hold(2))
        play.channel.send(GOAWAY, call_id=first_id)
        with pytest.raises(shmrpc.Unavailable) as caught:
            await second
        assert not caught.value.maybe_executed
        play.channel.send(REPLY, msgspec.msgpack.encode(1), call_id=first_id)
        assert await first == 1
        await hung_up(play.server.sock)
        assert second_id == first_id + 1


async def test_a_reply_in_a_block_comes_home_when_it_was_read(path: str) -> None:
    async with played(path) as play:
        channel = play.channel
        payload = msgspec.msgpack.encode(LARGE)
        for generation in (1, 2):
            call, call_id = await play.call(play.life.long(len(LARGE)))
            channel.own[channel.geometry.slab_offset : channel.geometry.slab_offset + len(payload)] = payload
            channel.send(REPLY, msgspec.msgpack.encode((0, generation, len(payload))), call_id=call_id, flags=IN_BLOCK)
            assert await call == LARGE
            assert channel.far_word(RELEASE_TAIL) == generation
