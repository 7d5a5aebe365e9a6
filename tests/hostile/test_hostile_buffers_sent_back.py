"""The victim's own memory, sent back under a lease that is not out, or more of it than was lent: the connection is cut."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from buffer_api import KIB
from buffer_stage import LENT, Open, Stage, array_ext, stages
from hostile_stage import case
from raw_channel import PEER_OWNED, table_of

pytestmark = pytest.mark.counted("bad inputs tried")

Act = Callable[[Stage], None]

_encode = msgspec.msgpack.encode
_BODY = _encode(array_ext(4 * KIB))
_FAR = 1 << 64


def _back(change: Callable[[Any], tuple[int, int, int, int]]) -> Act:
    """Sends the victim's own memory back, under a reference that was changed."""
    return lambda stage: stage.send(
        table_of([change(stage.lease._replace(block=stage.lease.block | PEER_OWNED))], _BODY)
    )


_NOT_OUT = "which is not out"


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("a lease that never was", _back(lambda lent: lent._replace(lease=99)), _NOT_OUT),
        case("no lease", _back(lambda lent: lent._replace(lease=0)), _NOT_OUT),
        case("a lease on another block", _back(lambda lent: lent._replace(block=lent.block + 1)), _NOT_OUT),
        case("a lease in an extent", _back(lambda lent: lent._replace(block=lent.block | 3 << 32)), _NOT_OUT),
        case("more than was lent", _back(lambda lent: lent._replace(nbytes=LENT + 1)), f"0 to {LENT + 1} of block"),
        case("what lies behind", _back(lambda lent: lent._replace(offset=LENT, nbytes=1)), f"{LENT} to {LENT + 1} of"),
        case("all there is", _back(lambda lent: lent._replace(nbytes=_FAR - 1)), "the peer sent back bytes 0 to"),
        case(
            "what leads back", _back(lambda lent: lent._replace(offset=_FAR - 1, nbytes=2)), "the peer sent back bytes"
        ),
    ],
)
async def test_the_connection_is_cut_after_memory_came_back_with(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


@stages
async def test_a_lease_that_was_released_cannot_be_sent_back(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.channel.release(scene.lease.block, scene.lease.lease)
        scene.look()
        _back(lambda lent: lent)(scene)
        await scene.must_be_cut(_NOT_OUT)


@stages
async def test_a_lease_may_be_sent_back_as_often_as_it_is_held(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        contents = scene.channel.see(scene.lease)
        body = _encode(array_ext(LENT))
        for _ in range(3):
            scene.send(table_of([scene.lease._replace(block=scene.lease.block | PEER_OWNED)], body))
            await scene.must_take(contents)
        scene.channel.release(scene.lease.block, scene.lease.lease)
        scene.look()
        assert scene.seen.tobytes() == contents  # which keeps the block
