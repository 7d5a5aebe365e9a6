"""Memory that the peer changes, evicts or tries to take away while it is read: what is read may change, and nothing else."""

import asyncio
import ctypes
import errno
import mmap
import os
import threading

import pytest
from buffer_api import KIB, MIB
from buffer_stage import MINE, Open, Stage, array_ext, attach, stages
from hostile_stage import against_server, encode
from life_waiting import PATIENCE
from raw_channel import FAILURE, REPLY, RING, SEALS, extent, sealed, table_of

pytestmark = pytest.mark.counted("bad inputs tried")

_BODY = encode(array_ext(4 * KIB))
_MADV_REMOVE, _MADV_PAGEOUT = 9, 21  # asm-generic/mman-common.h
_PUNCH_HOLE = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h


async def _taken(stage: Stage, contents: bytes = b"x" * 4 * KIB) -> None:
    """The victim gets an array from the raw peer's slab, and keeps it."""
    stage.channel.put(0, contents)
    stage.send(table_of([MINE], _BODY))
    await stage.must_take(contents)


@stages
async def test_what_a_peer_writes_while_it_is_read_changes_what_is_read(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        await _taken(scene)
        scene.channel.put(0, b"y" * 4 * KIB)
        assert scene.seen.tobytes() == b"y" * 4 * KIB
        assert not scene.seen.flags.writeable
        assert not caplog.text


@stages
async def test_a_peer_that_writes_without_pause_ends_no_call_of_others(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The contents, the references and the description, while the victim reads them."""
    async with stage(path, caplog) as scene:
        await _taken(scene)
        stop = threading.Event()

        def scribble() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                scene.channel.put(0, number.to_bytes(8, "little") * 512)

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            for turn in range(20):
                assert await scene.others.stub.small(turn) == turn
                assert len(scene.seen.tobytes()) == 4 * KIB
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert not caplog.text


def _evict(half_mapping: mmap.mmap) -> None:
    half_mapping.madvise(_MADV_PAGEOUT)


def _refused_with(error: int, result: int) -> bool:
    return result == -1 and ctypes.get_errno() == error


def _take_away(fd: int, mapping: mmap.mmap) -> None:
    """Every way there is; the seals refuse them all."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_int64(os.fstat(fd).st_size)
    assert _refused_with(errno.EPERM, libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(0), size))
    with pytest.raises(PermissionError):
        mapping.madvise(_MADV_REMOVE)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_NOREUSE):
        os.posix_fadvise(fd, 0, 0, advice)
    mapping.madvise(mmap.MADV_DONTNEED)


@stages
async def test_pages_that_are_evicted_come_back_and_none_can_be_taken_away(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        await _taken(scene)
        _evict(scene.half.mapping)
        _take_away(scene.half.segment_fd, scene.half.mapping)
        assert scene.seen.tobytes() == b"x" * 4 * KIB
        assert not caplog.text


@stages
async def test_nor_can_those_of_an_extent(path: str, stage: Open, caplog: pytest.LogCaptureFixture) -> None:
    async with stage(path, caplog) as scene:
        fd = extent(MIB, seals=0)
        with mmap.mmap(fd, MIB) as mapping:
            mapping[: 4 * KIB] = b"z" * 4 * KIB
            sealed(fd, SEALS)
            attach(scene, 1, MIB, os.dup(fd))
            scene.send(table_of([(1 << 32, 1, 0, 4 * KIB)], _BODY))
            await scene.must_take(b"z" * 4 * KIB)
            _evict(mapping)
            _take_away(fd, mapping)
            assert scene.seen.tobytes() == b"z" * 4 * KIB
        os.close(fd)
        assert scene.seen.tobytes() == b"z" * 4 * KIB


async def test_a_record_that_changes_while_it_is_read_is_a_call_or_a_cut_and_nothing_else(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that writes over the whole ring, while the victim takes records from it."""
    async with against_server(path, caplog) as scene:
        channel = scene.channel
        stop = threading.Event()

        def scribble() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                at = RING + number * 8 % channel.geometry.ring_bytes
                channel.own[at : at + 8] = (number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(8, "little")

        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            call_id = 1
            while scene.server.connections == 3 and call_id < 2000:
                call_id += 1
                channel.request(call_id, 0, 1)
                await asyncio.sleep(0)
                while (record := channel.take()) is not None:
                    assert record.kind in (REPLY, FAILURE)
        finally:
            stop.set()
            thread.join(PATIENCE)
