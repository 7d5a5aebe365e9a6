"""Memfds that are shorter or longer than declared: their end would be a SIGBUS, or something unseen."""

import pytest
from buffer_api import MIB
from buffer_stage import Open, attach, stages
from hostile_halves import Refuse, doorbell, memfd, sends, victims
from raw_channel import DEFAULT, extent

pytestmark = pytest.mark.counted("bad inputs tried")


@victims
@pytest.mark.parametrize("size", [0, 4096, DEFAULT.nbytes - 4096, DEFAULT.nbytes - 1, DEFAULT.nbytes + 1, 1 << 30])
async def test_a_segment_is_refused_that_has(
    path: str, must_refuse: Refuse, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    spoil = sends(memfd(size=size, sparse=not size or size == 1 << 30), doorbell)
    real = max(size, len(DEFAULT.header()))  # which is written, and makes an empty one longer
    await must_refuse(path, caplog, spoil, f"the peer's segment has {real} bytes, it declared {DEFAULT.nbytes}")


@stages
@pytest.mark.parametrize("size", [4096, 4 * MIB - 4096, 4 * MIB + 4096])
async def test_the_connection_is_cut_after_an_extent_that_has(
    path: str, stage: Open, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        attach(scene, 1, 4 * MIB, extent(size))
        await scene.must_be_cut(f"has {size} bytes, it declared {4 * MIB}")
