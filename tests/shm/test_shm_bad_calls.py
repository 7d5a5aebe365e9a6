"""Calls that cannot be carried out: each gets its answer, and its connection lives on."""

from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest
from life_api import METHODS, Grumpy, Keeper, Life
from raw_channel import FAILURE, REPLY, REQUEST, RawChannel
from raw_peer import RawClient

import shmrpc
from shmrpc import Code
from shmrpc.shm.layout import Geometry

ADD, ECHO, CHEER, HOLD, NOTE = (METHODS.index(name) for name in ("add", "echo", "cheer", "hold", "note"))
KIB = 1024
SLAB = 360 * KIB


async def failure_of(channel: RawChannel, call_id: int) -> tuple[int, str, bool]:
    """How a call failed: its code, its text, and whether it may have been executed."""
    record = await channel.receive()
    assert (record.kind, record.call_id) == (FAILURE, call_id)
    code, message, *_, maybe_executed = msgspec.msgpack.decode(record.payload)
    return code, message, maybe_executed


async def still_answers(channel: RawChannel, call_id: int) -> None:
    channel.request(call_id, ADD, 40, 2)
    record = await channel.receive()
    assert (record.kind, record.call_id, msgspec.msgpack.decode(record.payload)) == (REPLY, call_id, 42)


# Requests that a stub would never send


def _pack(*arguments: object) -> bytes:
    return msgspec.msgpack.encode(arguments)


@pytest.mark.parametrize(
    ("method", "payload", "why"),
    [
        (ADD, _pack("one"), "Life.add: parameter 'left': Expected `int`, got `str`"),
        (ADD, _pack(1, None), "Life.add: parameter 'right': Expected `int`, got `None`"),
        (ADD, _pack(1, [2]), "Life.add: parameter 'right': Expected `int`, got `array`"),
        (ADD, _pack(), "Life.add: Expected `array` of at least length 1, got 0"),
        (ADD, _pack(1, 2, 3), "Life.add: Expected `array` of at most length 2, got 3"),
        (ECHO, _pack(), "Life.echo: Expected `array` of length 1, got 0"),
        (ECHO, _pack(b"", b""), "Life.echo: Expected `array` of length 1, got 2"),
        (ECHO, _pack(7), "Life.echo: parameter 'payload': Expected bytes, got int"),
        (CHEER, _pack({"mood": 7}), "Life.cheer: parameter 'who'.mood: Expected `str`, got `int`"),
        (CHEER, _pack({}), "Life.cheer: parameter 'who': Object missing required field `mood`"),
        (ADD, b"", "Life.add: Input data was truncated"),
        (ADD, b"\xc1", "Life.add: MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)"),
        (ADD, msgspec.msgpack.encode({"left": 1}), "Life.add: Expected `array`, got `object`"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_and_the_parameter_is_named(
    path: str, method: int, payload: bytes, why: str
) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path), RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.send(REQUEST, payload, method=method, call_id=1)
        code, message, maybe_executed = await failure_of(channel, 1)
        assert (code, maybe_executed) == (Code.INVALID_ARGUMENT, False)
        assert message.startswith(f"{why}; it is {METHODS[method]}(")
        await still_answers(channel, 2)


async def test_arguments_whose_own_check_fails_oddly_are_refused_too(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        good = Grumpy("good")
        assert await life.cheer(good) == "good is fine"
        good.mood = "bad"
        with pytest.raises(shmrpc.InvalidArgument, match="bad"):
            await life.cheer(good)
        assert await life.add(1) == 2


async def test_a_deadline_that_has_passed_on_arrival_begins_nothing(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path), RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.request(1, NOTE, 7, deadline_ns=1)
        code, message, maybe_executed = await failure_of(channel, 1)
        assert (code, message) == (Code.DEADLINE_EXCEEDED, "Life.note: the deadline had passed on arrival")
        assert not maybe_executed
        assert keeper.began == []
        await still_answers(channel, 2)


# Results that cannot travel


async def test_a_result_that_cannot_be_encoded_fails_its_call_with_the_reason_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        with pytest.raises(shmrpc.Internal) as caught:
            await life.odd()
        assert str(caught.value) == (
            "Life.odd: its result cannot be encoded; the server's log has the reason under correlation id "
            f"{caught.value.correlation_id}"
        )
        assert caught.value.correlation_id in caplog.text
        assert "object is unsupported" in caplog.text
        assert await life.add(1) == 2


# Messages over the limit


async def exceeds(call: Awaitable[object], text: str) -> None:
    with pytest.raises(shmrpc.ResourceExhausted) as caught:
        await call
    assert str(caught.value) == text


LIMIT = "message is {} KiB, the limit is 64 KiB (max_message)"
ALL_MEMORY = (
    "message is {} KiB, the memory of this connection may have 360 KiB "
    "(max_extent_bytes, the smaller one of both sides)"
)


@pytest.mark.parametrize("server_limits", [True, False])
async def test_a_message_over_the_limit_of_either_side_is_refused_by_its_sender(path: str, server_limits: bool) -> None:
    limits: list[dict[str, Any]] = [{}, {"max_message": 64 * KIB}]
    ours, theirs = limits if server_limits else reversed(limits)
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path, **theirs), shmrpc.connect(Life, path, **ours) as life:
        await exceeds(life.echo(bytes(65 * KIB - 9)), LIMIT.format(65))
        await exceeds(life.sized(65 * KIB - 8), LIMIT.format(65))
        await exceeds(life.repeat("x" * (65 * KIB - 6)), LIMIT.format(65))
        await exceeds(life.long(65 * KIB - 5), LIMIT.format(65))
        for length in (7 * KIB, 63 * KIB):
            assert len(await life.echo(bytes(length))) == len(await life.sized(length)) == length
            assert len(await life.repeat("x" * length)) == len(await life.long(length)) == length


async def test_the_limit_counts_the_encoded_message_to_the_byte(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path, max_message=100_000) as life:
        assert len(await life.long(100_000 - 5)) == 100_000 - 5  # five bytes say that it is so many characters
        assert len(await life.sized(100_000 - 8)) == 100_000 - 8  # and eight that there is a buffer
        for call in (life.long(100_000 - 4), life.sized(100_000 - 7)):
            with pytest.raises(shmrpc.ResourceExhausted, match="max_message"):
                await call


async def test_a_limit_below_the_inline_limit_holds_too(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path, max_message=1 * KIB) as life:
        await exceeds(life.echo(bytes(2 * KIB)), "message is 2.004 KiB, the limit is 1 KiB (max_message)")
        await exceeds(life.sized(2 * KIB), "message is 2.003 KiB, the limit is 1 KiB (max_message)")
        assert len(await life.echo(bytes(900))) == 900
        with pytest.raises(shmrpc.Internal, match="correlation id"):
            await life.odd()


async def test_the_smallest_limit_lets_the_longest_refusal_through(path: str) -> None:
    class Wordy:
        async def tell(self, what: dict[str, int]) -> None: ...

    Wordy.tell.__annotations__["what"] = msgspec.defstruct("What", [("ü" * 700, int)])
    small = Geometry(slab_bytes=KIB, inline_limit=64)
    async with shmrpc.Server(Wordy(), at=path, max_message=KIB, geometry=small), RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.send(REQUEST, _pack({}), call_id=1)
        code, message, maybe_executed = await failure_of(channel, 1)
        assert (code, maybe_executed) == (Code.INVALID_ARGUMENT, False)
        assert message.startswith("Wordy.tell: parameter 'what': Object missing requ")
        assert len(message) <= 64
        channel.send(REQUEST, _pack({"ü" * 700: 1}), call_id=2)
        assert (await channel.receive()).kind == REPLY


@pytest.mark.parametrize("inline_limit", range(500, 509))
async def test_a_long_refusal_is_cut_between_two_characters(path: str, inline_limit: int) -> None:
    class Wordy:
        async def tell(self, what: dict[str, int]) -> None: ...

    Wordy.tell.__annotations__["what"] = msgspec.defstruct("What", [("ü漢𠀀" * 300, int)])
    geometry = Geometry(inline_limit=inline_limit)
    async with shmrpc.Server(Wordy(), at=path, geometry=geometry), RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.send(REQUEST, _pack({}), call_id=1)
        record = await channel.receive()
        assert inline_limit - 8 <= len(record.payload) <= inline_limit
        assert msgspec.msgpack.decode(record.payload)[1].rstrip("ü漢𠀀").endswith("required field `")


def test_a_limit_that_no_error_would_fit_in_is_refused() -> None:
    with pytest.raises(ValueError, match="max_message is 1023, it must be at least 1024"):
        shmrpc.Server(Keeper(), at="x", max_message=1023)


@pytest.mark.parametrize("server_limits", [True, False])
async def test_without_extents_a_message_over_the_base_slab_is_refused_by_its_sender(
    path: str, server_limits: bool
) -> None:
    limits: list[dict[str, Any]] = [{}, {"max_extent_bytes": 0}]
    ours, theirs = limits if server_limits else reversed(limits)
    async with shmrpc.Server(Keeper(), at=path, **theirs), shmrpc.connect(Life, path, **ours) as life:
        await exceeds(life.echo(bytes(361 * KIB - 9)), ALL_MEMORY.format(361))
        await exceeds(life.sized(361 * KIB - 8), ALL_MEMORY.format(361))
        await exceeds(life.repeat("x" * (361 * KIB - 6)), ALL_MEMORY.format(361))
        await exceeds(life.long(361 * KIB - 5), ALL_MEMORY.format(361))
        for _ in range(3):
            assert len(await life.echo(bytes(SLAB - 9))) == SLAB - 9
            assert len(await life.repeat("x" * (SLAB - 6))) == SLAB - 6


async def test_with_extents_a_message_may_be_larger_than_the_base_slab(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
        for length in (SLAB, 5 << 20):
            assert len(await life.echo(bytes(length))) == len(await life.sized(length)) == length
            assert len(await life.repeat("x" * length)) == len(await life.long(length)) == length


async def test_the_base_slab_is_a_setting(path: str) -> None:
    large = Geometry(slab_bytes=1024 * KIB)
    async with shmrpc.Server(Keeper(), at=path, geometry=large), shmrpc.connect(Life, path, geometry=large) as life:
        assert len(await life.echo(bytes(1000 * KIB))) == 1000 * KIB


async def test_a_refused_request_was_not_executed_and_a_refused_reply_was(path: str) -> None:
    keeper = Keeper()
    async with shmrpc.Server(keeper, at=path), RawClient(path) as peer:
        channel = await peer.shake_hands(max_message=64 * KIB)
        channel.request(1, METHODS.index("sized"), 100 * KIB)
        code, _, maybe_executed = await failure_of(channel, 1)
        assert (code, maybe_executed) == (Code.RESOURCE_EXHAUSTED, True)
        await still_answers(channel, 2)


async def test_a_request_that_was_refused_for_its_size_takes_no_credit(path: str) -> None:
    small: dict[str, Any] = {"max_in_flight": 2, "max_message": 64 * KIB}
    async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path, **small) as life:
        for _ in range(5):
            for call in (life.echo(bytes(64 * KIB)), life.repeat("x" * (64 * KIB))):
                with pytest.raises(shmrpc.ResourceExhausted):
                    await call
        assert await life.add(1) == 2
