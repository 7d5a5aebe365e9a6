"""A write position that jumps, goes back, or is no position: the connection is cut."""

from collections.abc import Callable

import pytest
from hostile_stage import Act, Open, Scene, case, sides
from raw_channel import TAIL, RawChannel

pytestmark = pytest.mark.counted("bad inputs tried")


def _tail(move: Callable[[RawChannel], int]) -> Act:
    return lambda scene: scene.channel.publish(move(scene.channel))


def _while_it_reads(scene: Scene) -> None:
    """A good position, and then a bad one before the victim looks again."""
    channel = scene.channel
    for jump in (24, channel.geometry.ring_bytes * 3, -8):
        channel.set_word(TAIL, channel.tail + jump)
    channel.ring()


_WHY = "the peer's write position went back, is unaligned or ran over"


@sides
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("a jump behind the ring", _tail(lambda channel: channel.tail + channel.geometry.ring_bytes + 8), _WHY),
        case("back by a word", _tail(lambda channel: channel.tail - 8), _WHY),
        case("back to zero", _tail(lambda channel: 0), _WHY),
        case("unaligned", _tail(lambda channel: channel.tail + 3), _WHY),
        case("the end of the world", _tail(lambda channel: (1 << 64) - 8), _WHY),
        case("the sign bit", _tail(lambda channel: channel.tail | 1 << 63), _WHY),
        case("here and there", _while_it_reads, _WHY),
    ],
)
async def test_the_connection_is_cut_after_a_tail(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)
