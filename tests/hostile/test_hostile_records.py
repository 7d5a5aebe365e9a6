"""Records whose lengths and places are out of range: the connection is cut."""

import struct

import pytest
from hostile_stage import ADD, ECHO, Act, Open, Scene, against_server, case, record, sides
from life_waiting import until
from raw_channel import CANCEL, HEAD, PAD, REQUEST, RING, Geometry

pytestmark = pytest.mark.counted("bad inputs tried")


def _pad(length: int, published: int) -> Act:
    def act(scene: Scene) -> None:
        channel = scene.channel
        at = RING + channel.tail % channel.geometry.ring_bytes
        channel.own[at : at + 8] = struct.pack("<IBBH", length, PAD, 0, 0)
        channel.publish(channel.tail + published)

    return act


def _nothing_but_padding(scene: Scene) -> None:
    """Paddings of eight bytes, a whole ring of them."""
    channel = scene.channel
    size = channel.geometry.ring_bytes
    for at in range(RING, RING + size, 8):
        channel.own[at : at + 8] = struct.pack("<IBBH", 8, PAD, 0, 0)
    channel.publish(channel.tail + size)


_FIT = "a record of the peer does not fit in its ring"


@sides
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("longer than what was published", record(b"x" * 100, tail=24), _FIT),
        case("with half a header", record(tail=16), _FIT),
        case("with a length of four gigabytes", record(length=(1 << 32) - 1), _FIT),
        case("with a length that overflows when it is rounded up", record(length=(1 << 32) - 8), _FIT),
        case("with a length that overflows with the header", record(length=(1 << 32) - 24), _FIT),
        case("of the whole ring", record(length=128 * 1024), _FIT),
        case("over the inline limit", record(b"x" * (8 * 1024 + 1)), _FIT),
        case("of padding that is too short", _pad(length=8, published=64), _FIT),
        case("of padding that is too long", _pad(length=(1 << 32) - 8, published=64), _FIT),
        case("of padding without a length", _pad(length=0, published=64), _FIT),
        case("of padding alone", _nothing_but_padding, _FIT),
    ],
)
async def test_the_connection_is_cut_after_a_record(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


async def test_a_record_across_the_end_of_the_ring_is_not_read(path: str, caplog: pytest.LogCaptureFixture) -> None:
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=1024, inline_limit=1024)
    async with against_server(path, caplog, small) as scene:
        channel = scene.channel
        while channel.tail < 4096 - 48:
            channel.send(CANCEL, call_id=1)  # which means nothing any more
        await until(lambda: channel.far_word(HEAD) == channel.tail, "the server to have taken them all")
        at = RING + channel.tail
        assert 4096 - 48 <= channel.tail < 4096
        channel.own[at : at + 24] = struct.pack("<IBBHQQ", 1000, REQUEST, 0, ECHO, 2, 0)
        channel.publish(channel.tail + 1024)
        await scene.must_be_cut(_FIT)


async def test_what_came_before_a_bad_record_is_answered(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.request(2, ADD, 1)
        assert (await scene.channel.receive()).call_id == 2
        scene.call_id = 3
        record(length=(1 << 32) - 1)(scene)
        await scene.must_be_cut(_FIT)
