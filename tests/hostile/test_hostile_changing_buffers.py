"""Memory that the peer changes while it is read: what is read changes, and nothing else."""

import pytest
from buffer_api import KIB
from buffer_stage import MINE, Open, Stage, array_ext, stages
from hostile_stage import encode
from raw_channel import table_of

pytestmark = pytest.mark.counted("bad inputs tried")

_BODY = encode(array_ext(4 * KIB))


async def _taken(stage: Stage, contents: bytes = b"x" * 4 * KIB) -> None:
    """The victim gets an array from the raw peer's slab, and keeps it."""
    stage.channel.put(0, contents)
    stage.send(table_of([MINE], _BODY))
    await stage.must_take(contents)


@stages
async def test_what_a_peer_writes_while_it_is_read_changes_what_is_read_and_nothing_else(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        await _taken(scene)
        scene.channel.put(0, b"y" * 4 * KIB)
        assert scene.seen.tobytes() == b"y" * 4 * KIB
        assert not scene.seen.flags.writeable
        assert not caplog.text
