"""A server whose client lies in shared memory: that one connection is cut, and nobody else notices."""

import struct
from collections.abc import Callable

import msgspec
import pytest
from hostile_acts import ACTS, Act, bystander
from life_api import METHODS
from life_waiting import until
from raw_channel import (
    CANCEL,
    DEFAULT,
    FAILURE,
    GOAWAY,
    HAS_METADATA,
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
from raw_peer import RawClient, hung_up

ADD, ECHO, SIZED, LONG, HOLD = (METHODS.index(name) for name in ("add", "echo", "sized", "long", "hold"))
LARGE = 300 * 1024


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]


async def well_begun(peer: RawClient) -> RawChannel:
    """A connection on which a call has been made, so that no position is zero."""
    channel = await peer.shake_hands()
    channel.request(1, ADD, 1)
    assert (await channel.receive()).kind == REPLY
    return channel


async def must_be_cut(peer: RawClient, caplog: pytest.LogCaptureFixture, why: str) -> None:
    await hung_up(peer.sock)
    (text,) = cuts(caplog)
    assert why in text


@pytest.mark.parametrize(("act", "why"), ACTS)
async def test_the_connection_is_cut_after(path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        act(channel, REQUEST, 2)
        await must_be_cut(peer, caplog, why)


# What only a client can do


def _send(kind: int, payload: bytes = b"", **words: int) -> Callable[[RawChannel], None]:
    return lambda channel: channel.send(kind, payload, **words)


def _metadata(*values: object) -> Callable[[RawChannel], None]:
    payload = msgspec.msgpack.encode(values)
    return _send(REQUEST, payload, flags=HAS_METADATA, method=ADD, call_id=2)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        pytest.param(_send(REQUEST, call_id=1), "began call 1 after call 1; ids must rise", id="a call id twice"),
        pytest.param(_send(REQUEST, call_id=0), "began call 0 after call 1; ids must rise", id="a call id that falls"),
        pytest.param(_send(CANCEL, call_id=2), "cancelled call 2, which it never began", id="a cancel of nothing"),
        pytest.param(_send(REPLY, call_id=1), "a kind that this side does not take", id="a reply"),
        pytest.param(_send(FAILURE, call_id=1), "a kind that this side does not take", id="a failure"),
        pytest.param(_send(GOAWAY, call_id=1), "a kind that this side does not take", id="a goaway"),
        pytest.param(_metadata(), "the metadata of call 2 cannot be decoded", id="no metadata"),
        pytest.param(_metadata("a", b""), "the metadata of call 2 cannot be decoded", id="metadata in a word"),
        pytest.param(_metadata({1: "a"}, b""), "the metadata of call 2 cannot be decoded", id="metadata by number"),
        pytest.param(_metadata({"a": 1}, b""), "'a' is neither text nor bytes", id="metadata of numbers"),
        pytest.param(_metadata({}, 7), "the metadata of call 2 cannot be decoded", id="a payload that is none"),
    ],
)
async def test_the_connection_is_cut_after_a_client_sent(
    path: str, act: Callable[[RawChannel], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        act(channel)
        await must_be_cut(peer, caplog, why)


async def test_a_record_across_the_end_of_the_ring_is_not_read(path: str, caplog: pytest.LogCaptureFixture) -> None:
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=1024, inline_limit=1024)
    async with bystander(path), RawClient(path, small) as peer:
        channel = await well_begun(peer)
        while channel.tail < 4096 - 48:
            channel.send(CANCEL, call_id=1)  # which means nothing any more
        await until(lambda: channel.far_word(HEAD) == channel.tail, "the server to have taken them all")
        at = RING + channel.tail
        assert 4096 - 48 <= channel.tail < 4096
        channel.own[at : at + 24] = struct.pack("<IBBHQQ", 1000, REQUEST, 0, ECHO, 2, 0)
        channel.publish(channel.tail + 1024)
        await must_be_cut(peer, caplog, "a record of the peer does not fit in its ring")


@pytest.mark.parametrize("head", [-8, +8, +3, 1 << 40], ids=["back", "ahead", "unaligned", "far ahead"])
async def test_a_read_position_that_is_impossible_is_found_when_the_ring_is_full(
    path: str, head: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        for call_id in range(2, 40):
            channel.request(call_id, SIZED, 8000)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for room")
        first = channel.far_word(0x1000) if head > 0 else channel.head
        channel.set_word(HEAD, first + head)
        channel.ring()
        await must_be_cut(peer, caplog, "the peer's read position is outside of what was published")


async def _lent(channel: RawChannel) -> tuple[int, int]:
    """A reply in a block, which is not released."""
    channel.request(2, LONG, LARGE)
    block, contents = channel.open_block(await channel.receive())
    assert msgspec.msgpack.decode(contents) == "x" * LARGE
    return block


async def test_a_block_that_is_never_released_holds_only_its_own_client_up(path: str) -> None:
    async with bystander(path, max_extent_bytes=0), RawClient(path) as peer:
        channel = await well_begun(peer)
        block = await _lent(channel)
        channel.request(3, LONG, LARGE)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        assert channel.take() is None
        channel.release(*block)
        assert (await channel.receive()).call_id == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda number, lease: [(number + 1, lease)], "block 1 was released under lease 1, which is on block 0"),
        (lambda number, lease: [(number, lease + 1)], "block 0 was released under lease 2, which is not out"),
        (lambda number, lease: [(number, 0)], "block 0 was released under lease 0, which is not out"),
        (lambda number, lease: [(number, lease)] * 2, "block 0 was released under lease 1, which is not out"),
        (lambda number, lease: [(1 << 63, 1 << 63)], "under lease 9223372036854775808, which is not out"),
        (lambda number, lease: [(1 << 20, lease)], "block 1048576 was released under lease 1, which is on block 0"),
        (lambda number, lease: [(1 << 63 | number, lease)], "under lease 1, which is on block 0"),
    ],
    ids=[
        "another block",
        "another lease",
        "no lease",
        "twice",
        "anything",
        "a block behind the slab",
        "a block of its own",
    ],
)
async def test_a_forged_release_cuts_the_connection(
    path: str,
    change: Callable[[int, int], list[tuple[int, int]]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bystander(path, max_extent_bytes=0), RawClient(path) as peer:
        channel = await well_begun(peer)
        for release in change(*await _lent(channel)):
            channel.release(*release)
        channel.request(3, LONG, LARGE)
        await must_be_cut(peer, caplog, why)


@pytest.mark.parametrize("tail", [DEFAULT.release_entries + 1, (1 << 64) - 1])
async def test_a_release_position_that_jumps_cuts_the_connection(
    path: str, tail: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        await _lent(channel)
        channel.set_word(RELEASE_TAIL, tail)
        channel.request(3, LONG, LARGE)
        await must_be_cut(peer, caplog, "the peer's write position went back, is unaligned or ran over")


# Too much of what is allowed


async def test_a_call_beyond_those_that_may_be_in_flight_cuts_the_connection(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path, max_in_flight=8), RawClient(path) as peer:
        channel = await well_begun(peer)
        for call_id in range(2, 11):
            channel.request(call_id, HOLD, call_id)
        await must_be_cut(peer, caplog, "began a call beyond the 8 that may be in flight")


async def test_a_client_that_takes_no_replies_cannot_make_the_server_hoard_them(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path, max_in_flight=8), RawClient(path) as peer:
        channel = await well_begun(peer)
        for call_id in range(2, 60):
            channel.request(call_id, SIZED, 8000)  # each ends at once, and the ring has room for 16 replies
        await must_be_cut(peer, caplog, "began a call beyond the 8 that may be in flight")


async def test_a_storm_of_cancels_is_weathered(path: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        for _ in range(20):
            for _ in range(200):
                channel.send(CANCEL, call_id=1)
            await until(lambda: channel.far_word(HEAD) == channel.tail, "the server to take them")
        channel.request(2, ADD, 1)
        assert (await channel.receive()).call_id == 2


async def test_a_block_in_the_clients_slab_may_be_sent_twice(path: str) -> None:
    """The block is the client's own: that it comes home twice is for the client to mind."""
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        payload = msgspec.msgpack.encode((b"x" * 100,))
        channel.own[channel.geometry.slab_offset : channel.geometry.slab_offset + len(payload)] = payload
        reference = msgspec.msgpack.encode((0, 7, len(payload)))
        for call_id in (2, 3):
            channel.send(REQUEST, reference, flags=IN_BLOCK, method=ECHO, call_id=call_id)
            assert msgspec.msgpack.decode((await channel.receive()).payload) == b"x" * 100
        assert channel.far_word(RELEASE_TAIL) == 2
