"""Releases that are forged, doubled, or of memory that is not out: the connection is cut, and the memory stays lent."""

from collections.abc import Callable

import pytest
from buffer_stage import Open as OpenWithBuffers
from buffer_stage import stages
from hostile_stage import LONG, against_client, against_server, decode
from life_waiting import until
from raw_channel import DEFAULT, PEER_OWNED, RELEASE_TAIL, ROOM_EPOCH, RawChannel

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

LARGE = 300 * 1024
_FAR = 1 << 64
_NOT_OUT = "which is not out"
_TAIL = "the peer's write position went back, is unaligned or ran over"


async def _lent(channel: RawChannel) -> tuple[int, int]:
    """A reply in a block, which is not released."""
    channel.request(2, LONG, LARGE)
    block, contents = channel.open_block(await channel.receive())
    assert decode(contents) == "x" * LARGE
    return block


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
async def test_a_server_cuts_after_a_release_of(
    path: str,
    change: Callable[[int, int], list[tuple[int, int]]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with against_server(path, caplog, max_extent_bytes=0) as scene:
        for release in change(*await _lent(scene.channel)):
            scene.channel.release(*release)
        scene.channel.request(3, LONG, LARGE)
        await scene.must_be_cut(why)


async def test_a_lease_that_came_home_cannot_be_released_when_the_block_is_lent_again(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog, max_extent_bytes=0) as scene:
        channel = scene.channel
        first = await _lent(channel)
        channel.release(*first)
        channel.request(3, LONG, LARGE)
        second, _ = channel.open_block(await channel.receive())
        assert (second[0], second[1]) == (first[0], first[1] + 1)
        channel.release(*first)
        channel.request(4, LONG, LARGE)
        await scene.must_be_cut("block 0 was released under lease 1, which is not out")


@pytest.mark.parametrize("tail", [DEFAULT.release_entries + 1, _FAR - 1])
async def test_a_server_cuts_after_a_position_of_releases_that_jumps(
    path: str, tail: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        await _lent(scene.channel)
        scene.channel.set_word(RELEASE_TAIL, tail)
        scene.channel.request(3, LONG, LARGE)
        await scene.must_be_cut(_TAIL)


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
async def test_a_client_that_needs_room_cuts_after_a_release_of(
    path: str, forge: Callable[[RawChannel], None], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = "x" * LARGE
    async with against_client(path, caplog) as scene:
        call, _ = await scene.call(scene.life.repeat(text))
        forge(scene.channel)
        with pytest.raises((shmrpc.ProtocolError, shmrpc.Unavailable)):
            await scene.life.repeat(text)
        await scene.must_be_cut(why)
        with pytest.raises(shmrpc.ConnectionLost, match="was cut: "):
            await call


async def test_a_block_that_is_never_released_holds_only_its_own_client_up(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog, max_extent_bytes=0) as scene:
        channel = scene.channel
        block = await _lent(channel)
        channel.request(3, LONG, LARGE)
        await until(lambda: channel.far_word(ROOM_EPOCH) % 2, "the server to wait for memory")
        assert channel.take() is None
        channel.release(*block)
        answer = await channel.receive()
        assert answer.call_id == 3
        channel.give_back(answer)
        await scene.must_go_on()


# Of buffers


@stages
@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda block, lease: [(block + 1, lease)], "which is on block 0"),
        (lambda block, lease: [(block, lease + 1)], _NOT_OUT),
        (lambda block, lease: [(block, lease)] * 2, _NOT_OUT),
        (lambda block, lease: [(block | PEER_OWNED, lease)], "which is on block 0"),
        (lambda block, lease: [(block | 1 << 32, lease)], "which is on block 0"),
        (lambda block, lease: [(_FAR - 1, _FAR - 1)], _NOT_OUT),
    ],
    ids=["another block", "another lease", "twice", "a block of its own", "another extent", "anything"],
)
async def test_the_connection_is_cut_after_a_release_of_a_buffer_with(
    path: str,
    stage: OpenWithBuffers,
    forge: Callable[[int, int], list[tuple[int, int]]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage(path, caplog) as scene:
        for release in forge(scene.lease.block, scene.lease.lease):
            scene.channel.release(*release)
        scene.look()
        await scene.must_be_cut(why)


@stages
@pytest.mark.parametrize("tail", [1025, _FAR - 1])
async def test_a_position_of_releases_that_jumps_cuts_the_connection(
    path: str, stage: OpenWithBuffers, tail: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.channel.set_word(RELEASE_TAIL, tail)
        scene.look()
        await scene.must_be_cut(_TAIL)


@stages
async def test_a_release_ring_that_is_full_of_lies_cuts_the_connection(
    path: str, stage: OpenWithBuffers, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        for _ in range(DEFAULT.release_entries):
            scene.channel.release(7, 7)
        scene.look()
        await scene.must_be_cut("block 7 was released under lease 7, which is not out")
