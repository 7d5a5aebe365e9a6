"""Memfds with holes, whose pages the reader would have to pay for, also when they are hidden: refused."""

import ctypes
import os
from collections.abc import Callable

import pytest
from buffer_api import MIB
from buffer_stage import Open, attach, stages
from hostile_halves import Refuse, Spoil, case, doorbell, memfd, sends, victims
from raw_channel import DEFAULT, SEALS, extent, sealed
from raw_peer import Half

pytestmark = pytest.mark.counted("bad inputs tried")

KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h


def _allocate_behind_the_end(fd: int, nbytes: int) -> None:
    """So that as many pages are allocated as there should be, all of them behind the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    at, count = ctypes.c_int64(-(-nbytes // 4096) * 4096), ctypes.c_int64(nbytes)
    assert libc.fallocate(fd, KEEP_SIZE, at, count) == 0, os.strerror(ctypes.get_errno())


def _hidden(half: Half) -> int:
    fd = memfd(sparse=True, seals=0)(half)
    _allocate_behind_the_end(fd, half.geometry.nbytes)
    assert os.fstat(fd).st_blocks * 512 >= half.geometry.nbytes
    return sealed(fd, SEALS)


def _all_but_one(half: Half) -> int:
    fd = memfd(sparse=True, seals=0)(half)
    os.posix_fallocate(fd, 0, half.geometry.nbytes - 4096)
    return sealed(fd, SEALS)


_SEGMENT = DEFAULT.nbytes


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("holes", sends(memfd(sparse=True), doorbell), f"is sparse: 4096 of {_SEGMENT} bytes are allocated"),
        case("a hole", sends(_all_but_one, doorbell), f"is sparse: {_SEGMENT - 4096} of {_SEGMENT} bytes"),
        case("hidden holes", sends(_hidden, doorbell), f"is sparse: 4096 of {_SEGMENT} bytes are allocated"),
    ],
)
async def test_a_segment_is_refused_with(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


def _extent_with_holes() -> int:
    return extent(4 * MIB, sparse=True)


def _extent_with_hidden_holes() -> int:
    fd = extent(4 * MIB, sparse=True, seals=0)
    _allocate_behind_the_end(fd, 4 * MIB)
    return sealed(fd, SEALS)


@stages
@pytest.mark.parametrize("make", [_extent_with_holes, _extent_with_hidden_holes], ids=["holes", "hidden holes"])
async def test_the_connection_is_cut_after_an_extent_with(
    path: str, stage: Open, make: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        attach(scene, 1, 4 * MIB, make())
        await scene.must_be_cut(f"is sparse: 0 of {4 * MIB} bytes are allocated")
