"""Extents that were never sent, come twice, are too many, or are used after their end: the connection is cut."""

import fcntl
import os
from collections.abc import Callable
from typing import Any

import pytest
from buffer_api import KIB, MIB, extents_mapped
from buffer_stage import MINE, Open, Stage, against_server, array_ext, attach, control, stages
from hostile_stage import case, encode
from raw_channel import SEALS, extent, table_of

Act = Callable[[Stage], None]

pytestmark = pytest.mark.counted("bad inputs tried")

_BODY = encode(array_ext(4 * KIB))


def _refer(reference: tuple[int, int, int, int]) -> Act:
    return lambda stage: stage.send(table_of([reference], _BODY))


def _attached(nbytes: int = 4 * MIB, number: int = 1, **how: Any) -> Act:
    size = how.pop("size", nbytes)
    return lambda stage: attach(stage, number, nbytes, extent(size), **how)


def _twice(stage: Stage) -> None:
    for _ in range(2):
        attach(stage, 1, MIB)


def _too_many(stage: Stage) -> None:
    for number in range(1, 66):
        attach(stage, number, 4096)


def _many(stage: Stage) -> None:
    for number in range(1, 6):
        attach(stage, number, 4 * MIB)


def _detached_twice(stage: Stage, *, attached: bool = False) -> None:
    if not attached:
        attach(stage, 1, MIB)
    for _ in range(2):
        control(stage, "detach", 1)


def _used_after_its_end(stage: Stage) -> None:
    attach(stage, 1, MIB)
    control(stage, "detach", 1)
    _refer((1 << 32, 1, 0, 4 * KIB))(stage)


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("posix for a memfd", _attached(kind="posix"), "is POSIX shared memory, which cannot be sealed"),
        case("half a page", _attached(nbytes=4 * MIB - 1), "allowed are multiples of 4096"),
        case("one over the limit", _attached(nbytes=20 * MIB), "up to 16777216 in all (max_extent_bytes)"),
        case("many over the limit", _many, "an extent of 4194304 bytes to 16777216; allowed are"),
        case("one more than there may be", _too_many, "attached an extent beside 64, which is all that it may have"),
        case("the same number again", _twice, "attached extent 1, which is attached already"),
        case("the base segment", _attached(number=0), "cannot be understood"),
        case("a number too high", _attached(number=1 << 31), "cannot be understood"),
        case("a size that is none", _attached(nbytes=-4096, size=4096), "cannot be understood"),
        case("no fd", lambda stage: control(stage, "attach", 1, nbytes=4096, kind="memfd"), "sent 0 fds"),
        case("an fd too many", lambda stage: control(stage, "detach", 1, extent(4096)), "sent 1 fds"),
        case("the end of what never was", lambda stage: control(stage, "detach", 1), "detached extent 1, which is not"),
        case("the end twice", _detached_twice, "detached extent 1, which is not attached"),
        case("use after its end", _used_after_its_end, "refers to extent 1, which it never attached"),
    ],
)
async def test_the_connection_is_cut_over_an_extent(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog, max_extent_bytes=16 * MIB) as scene:
        act(scene)
        await scene.must_be_cut(why)
        assert extents_mapped() == []


@stages
async def test_who_takes_no_extents_cuts_a_peer_that_attaches_one(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog, max_extent_bytes=0) as scene:
        attach(scene, 1, 4096)
        await scene.must_be_cut("up to 0 in all (max_extent_bytes)")


@stages
@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ((1 << 32 | 1024, 1, 0, 4 * KIB), "leads out of its slab of 1048576 bytes"),
        ((1 << 32 | 1023, 1, 0, 4 * KIB), "leads out of its slab of 1048576 bytes"),
        ((2 << 32, 1, 0, 4 * KIB), "refers to extent 2, which it never attached"),
    ],
    ids=["behind it", "across its end", "another one"],
)
async def test_a_reference_beyond_an_extent_cuts_the_connection(
    path: str, stage: Open, reference: tuple[int, int, int, int], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        attach(scene, 1, MIB)
        _refer(reference)(scene)
        await scene.must_be_cut(why)


@stages
async def test_an_extent_that_is_detached_while_it_is_seen_can_be_read_on(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        fd = extent(MIB, seals=0)
        os.pwrite(fd, b"z" * 4 * KIB, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        attach(scene, 1, MIB, fd)
        _refer((1 << 32, 1, 0, 4 * KIB))(scene)
        await scene.must_take(b"z" * 4 * KIB)
        _detached_twice(scene, attached=True)
        await scene.must_be_cut("detached extent 1, which is not attached")
        assert scene.seen.tobytes() == b"z" * 4 * KIB
        assert extents_mapped() == [MIB]


async def test_an_extent_that_comes_just_behind_what_refers_to_it_is_found(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Socket and ring are not ordered between them: the receiver looks into the socket before it calls that a lie."""
    async with against_server(path, caplog) as scene:
        fd = extent(MIB, seals=0)
        os.pwrite(fd, b"z" * 4 * KIB, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        attach(scene, 1, MIB, fd)
        _refer((1 << 32, 1, 0, 4 * KIB))(scene)
        await scene.must_take(b"z" * 4 * KIB)


async def test_a_flood_of_extents_that_come_and_go_holds_nobody_up(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        for turn in range(300):
            attach(scene, 1 + turn % 7, 4096)
            control(scene, "detach", 1 + turn % 7)
            if turn % 10 == 0:
                assert await scene.others.stub.small(turn) == turn
        scene.channel.put(0, b"x" * 4 * KIB)
        _refer(MINE)(scene)
        await scene.must_take(b"x" * 4 * KIB)
        assert not caplog.text
