"""Memfds that lack a seal, of the base segment or of an extent: the peer could change their size, or have them written."""

import os

import pytest
from buffer_api import MIB
from buffer_stage import Open, attach, stages
from hostile_halves import Refuse, Spoil, case, doorbell, memfd, sends, victims
from raw_channel import SEALS, extent

pytestmark = pytest.mark.counted("bad inputs tried")

SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE = 1, 2, 4, 8, 0x10
MISSING = {
    "F_SEAL_SEAL": SEALS - SEAL,
    "F_SEAL_SHRINK": SEALS - SHRINK,
    "F_SEAL_GROW": SEALS - GROW,
    "F_SEAL_FUTURE_WRITE": SEALS - FUTURE_WRITE,
}
lacking = pytest.mark.parametrize(("name", "seals"), MISSING.items(), ids=MISSING)


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("no seals", sends(memfd(seals=0), doorbell), "lacks the seals .*SHRINK.*GROW.*WRITE.*SEAL"),
        case("the last seal alone", sends(memfd(seals=SEAL), doorbell), "lacks the seals .*SHRINK.*GROW.*WRITE$"),
    ],
)
async def test_a_segment_is_refused_with(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


@victims
@lacking
async def test_a_segment_is_refused_without(
    path: str, must_refuse: Refuse, name: str, seals: int, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, sends(memfd(seals=seals), doorbell), f"the peer's segment lacks the seals {name}$")


@stages
@lacking
async def test_the_connection_is_cut_after_an_extent_without(
    path: str, stage: Open, name: str, seals: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        attach(scene, 1, 4 * MIB, extent(4 * MIB, seals=seals))
        await scene.must_be_cut(f"the peer's extent lacks the seals {name}")


def test_what_the_seals_forbid_the_kernel_refuses() -> None:
    fd = extent(MIB)
    try:
        for size in (MIB - 4096, MIB + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)
