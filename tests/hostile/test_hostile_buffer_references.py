"""References to buffers that lead out of the peer's memory, or are no table: the connection is cut."""

from collections.abc import Callable

import msgspec
import pytest
from buffer_api import KIB
from buffer_stage import MINE, Open, Stage, array_ext, stages
from hostile_stage import case
from raw_channel import GRANULE, HAS_BUFFERS, IN_BLOCK, table_of

pytestmark = pytest.mark.counted("bad inputs tried")

Act = Callable[[Stage], None]

_encode = msgspec.msgpack.encode
_BODY = _encode(array_ext(4 * KIB))
_FAR = 1 << 64


def _refer(*references: tuple[int, int, int, int], count: int | None = None) -> Act:
    return lambda stage: stage.send(table_of(references, _BODY, count))


def _payload(payload: bytes) -> Act:
    return lambda stage: stage.send(payload)


def _many_in_a_block(count: int) -> Act:
    def act(stage: Stage) -> None:
        payload = table_of([MINE] * count, _BODY)
        stage.channel.put(100, payload)
        stage.send(_encode((100, 9, len(payload))), HAS_BUFFERS | IN_BLOCK)

    return act


_OUT = "leads out of its slab of 368640 bytes"
_SHORT = "does not fit in its payload"


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        # The table
        case("no table", _payload(b""), _SHORT),
        case("half a table", _payload(b"\1\0\0\0"), _SHORT),
        case("a table of nothing", _refer(MINE, count=1000), _SHORT),
        case("a table without an end", _refer(MINE, count=(1 << 32) - 1), "references"),
        case("a word that must be zero", _payload(b"\0\0\0\0\1\0\0\0" + _BODY), "must be zero, and is not"),
        case("more than can be released", _many_in_a_block(1025), "sent 1025 references in one record, allowed are 10"),
        # Where it leads
        case("a block behind the slab", _refer((360, 1, 0, 1)), _OUT),
        case("the last block of all", _refer(((1 << 32) - 1, 1, 0, 1)), _OUT),
        case("an end behind the slab", _refer((359, 1, 0, GRANULE + 1)), _OUT),
        case("an offset behind the slab", _refer((359, 1, GRANULE, 1)), _OUT),
        case("an offset without an end", _refer((0, 1, _FAR - 1, 2)), _OUT),
        case("an offset that leads back", _refer((1, 1, _FAR - GRANULE, GRANULE)), _OUT),
        case("a size without an end", _refer((0, 1, 0, _FAR - 1)), _OUT),
        case("a size that leads back", _refer((0, 1, 1, _FAR - 1)), _OUT),
        case("a message over the limit", _refer((0, 1, 0, 1 << 40)), _OUT),
        case("a second one that is wrong", _refer(MINE, (360, 1, 0, 1)), _OUT),
        case("an extent that never was", _refer((5 << 32, 1, 0, 1)), "refers to extent 5, which it never attached"),
        case("the last extent", _refer(((1 << 31) - 1 << 32, 1, 0, 1)), "refers to extent 2147483647, which it never"),
    ],
)
async def test_the_connection_is_cut_after(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)
