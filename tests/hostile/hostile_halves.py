"""What a peer can bring to a handshake that is not what it should be: the same list for clients and servers.

Each entry spoils a `Half` of the raw peer, and says what the other side must answer.
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest
from raw_channel import DEFAULT, SEALS, Geometry, make_memfd
from raw_peer import Half

Spoil = Callable[[Half], None]


def _sends(*fds: Callable[[Half], int]) -> Spoil:
    """Sends other fds, each made here or taken from the half."""

    def spoil(half: Half) -> None:
        sent = [make(half) for make in fds]
        half.spare += [fd for fd in sent if fd not in half.fds]
        half.fds = sent

    return spoil


def _segment(half: Half) -> int:
    return half.segment_fd


def _doorbell(half: Half) -> int:
    return half.far_end


def _memfd(**how: Any) -> Callable[[Half], int]:
    return lambda half: make_memfd(half.geometry, **how)


def _file(half: Half) -> int:
    fd = os.open("/tmp", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(fd, 0, half.geometry.nbytes)
    return fd


def _pipe_end(end: int) -> Callable[[Half], int]:
    def make(half: Half) -> int:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        half.spare.append(ends[1 - end])
        return ends[end]

    return make


def _socket(half: Half) -> int:
    return socket.socket(socket.AF_UNIX).detach()


def _open(path: str, flags: int) -> Callable[[Half], int]:
    return lambda half: os.open(path, flags | os.O_CLOEXEC)


def _eventfd(half: Half) -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _named_fifo(half: Half) -> int:
    path = f"/tmp/shmrpc-fifo-{os.getpid()}"
    os.mkfifo(path)
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.unlink(path)


def _declares(**declared: object) -> Spoil:
    return lambda half: half.declared.update(declared)


def _is(geometry: Geometry) -> Spoil:
    """Declares a geometry, and brings a segment that is truly of that size."""

    def spoil(half: Half) -> None:
        _declares(geometry=geometry._asdict())(half)
        half.geometry = geometry
        _sends(_memfd(), _doorbell)(half)

    return spoil


def _both(*spoils: Spoil) -> Spoil:
    def spoil_all(half: Half) -> None:
        for spoil in spoils:
            spoil(half)

    return spoil_all


def _header(**changes: Any) -> bytes:
    names = (
        "magic",
        "version",
        "zero",
        "size",
        "ring",
        "ring_bytes",
        "release",
        "entries",
        "slab",
        "slab_bytes",
        "limit",
    )
    fields = dict(zip(names, struct.unpack("<8sII8Q", DEFAULT.header()), strict=True))
    return struct.pack("<8sII8Q", *(fields | changes).values())


def _case(name: str, spoil: Spoil, why: str) -> Any:
    return pytest.param(spoil, why, id=name)


_SHRINK, _GROW, _SEAL, _FUTURE_WRITE = 2, 4, 1, 0x10

BAD: Final = [
    # How many fds
    _case("no fds", _sends(), "sent 0 fds with its handshake, expected are exactly 2"),
    _case("one fd", _sends(_segment), "sent 1 fds .* exactly 2"),
    _case("three fds", _sends(_segment, _doorbell, _eventfd), "sent 3 fds .* exactly 2"),
    _case("sixty fds", _sends(*[_eventfd] * 60), "sent [0-9]+ fds .* exactly 2"),
    # What a segment is
    _case("a segment without seals", _sends(_memfd(seals=0), _doorbell), "lacks the seals .*SHRINK.*GROW.*WRITE.*SEAL"),
    _case("one that can shrink", _sends(_memfd(seals=SEALS - _SHRINK), _doorbell), "lacks the seals F_SEAL_SHRINK$"),
    _case("one that can grow", _sends(_memfd(seals=SEALS - _GROW), _doorbell), "lacks the seals F_SEAL_GROW$"),
    _case("one without the last seal", _sends(_memfd(seals=SEALS - _SEAL), _doorbell), "lacks the seals F_SEAL_SEAL$"),
    _case(
        "one that others can write",
        _sends(_memfd(seals=SEALS - _FUTURE_WRITE), _doorbell),
        "lacks the seals F_SEAL_FUTURE_WRITE$",
    ),
    _case(
        "a short segment",
        _sends(_memfd(size=DEFAULT.nbytes - 4096), _doorbell),
        f"has {DEFAULT.nbytes - 4096} bytes, it declared {DEFAULT.nbytes}",
    ),
    _case("a long segment", _sends(_memfd(size=DEFAULT.nbytes + 4096), _doorbell), "bytes, it declared"),
    _case("a sparse segment", _sends(_memfd(sparse=True), _doorbell), "is sparse: 4096 of"),
    _case("a file as a segment", _sends(_file, _doorbell), "is '/tmp/.*', not shared memory"),
    _case("a pipe as a segment", _sends(_pipe_end(0), _doorbell), r"is 'pipe:\[\d+\]', not shared memory"),
    _case("a socket as a segment", _sends(_socket, _doorbell), r"is 'socket:\[\d+\]', not shared memory"),
    _case(
        "a device as a segment", _sends(_open("/dev/zero", os.O_RDWR), _doorbell), "is '/dev/zero', not shared memory"
    ),
    _case("a folder as a segment", _sends(_open("/tmp", os.O_RDONLY), _doorbell), "is '/tmp', not shared memory"),
    _case("an eventfd as a segment", _sends(_eventfd, _doorbell), "not shared memory"),
    _case("the fds the wrong way round", _sends(_doorbell, _segment), "the peer's doorbell is"),
    _case("posix for a memfd", _declares(segment="posix"), "POSIX shared memory, which cannot be sealed"),
    # What its header says
    _case("a segment of zeros", _sends(_memfd(header=bytes(80)), _doorbell), "begins with b'.x00"),
    _case(
        "another layout", _sends(_memfd(header=_header(version=2)), _doorbell), "layout version 2, this process reads 1"
    ),
    _case("a ring elsewhere", _sends(_memfd(header=_header(ring=0x1000)), _doorbell), "header says .* declared"),
    _case("a slab elsewhere", _sends(_memfd(header=_header(slab=0)), _doorbell), "header says .* declared"),
    _case("another size", _sends(_memfd(header=_header(size=1 << 40)), _doorbell), "header says .* declared"),
    # What it declares of its geometry
    _case("a crooked ring", _is(Geometry(ring_bytes=100_000)), "ring_bytes is 100000, it must be a power of two"),
    _case("a tiny ring", _is(Geometry(ring_bytes=2048, inline_limit=64)), "ring_bytes is 2048, .* at least 4096"),
    _case("a slab in bits", _is(Geometry(slab_bytes=1000)), "slab_bytes is 1000, .* multiple of 1024"),
    _case("few releases", _is(Geometry(release_entries=8)), "360 blocks and the release ring 8 entries"),
    _case(
        "fewer releases than the other side has blocks",
        _is(Geometry(release_entries=64, slab_bytes=64 * 1024)),
        "release ring has fewer entries than this side's slab has blocks",
    ),
    _case("large records", _is(Geometry(inline_limit=1 << 17)), "inline_limit is 131072, allowed are 64 to"),
    _case("a huge segment", _is(Geometry(ring_bytes=32 << 20)), "the segment has .* bytes, the limit is 16777216"),
    _case(
        "an impossible size",
        _declares(geometry=DEFAULT._replace(ring_bytes=1 << 62)._asdict()),
        "the segment has .* bytes, the limit is",
    ),
    _case("a negative size", _declares(geometry=DEFAULT._replace(ring_bytes=-4096)._asdict()), "ring_bytes is -4096"),
    _case("a size in words", _declares(geometry={"ring_bytes": "many"}), "cannot be understood: .*ring_bytes"),
    # What a doorbell is
    _case(
        "a pipe for an eventfd", _sends(_segment, _pipe_end(1)), r"doorbell is 'pipe:\[\d+\]', it declared an eventfd"
    ),
    _case("a memfd for an eventfd", _sends(_segment, _memfd()), "doorbell is .* it declared an eventfd"),
    _case("an eventfd for a pipe", _declares(doorbell="pipe"), "doorbell is .* it declared a pipe"),
    _case(
        "a file for a pipe",
        _both(_declares(doorbell="pipe"), _sends(_segment, _file)),
        "doorbell is .* it declared a pipe",
    ),
    _case(
        "the read end of a pipe",
        _both(_declares(doorbell="pipe"), _sends(_segment, _pipe_end(0))),
        "doorbell cannot be rung: it is not the writing end",
    ),
    _case(
        "a named pipe",
        _both(_declares(doorbell="pipe"), _sends(_segment, _named_fifo)),
        "doorbell is .* it declared a pipe",
    ),
    _case("a doorbell of no kind", _declares(doorbell="gong"), "cannot be understood: .*gong"),
    # What it says besides
    _case("a limit below zero", _declares(max_message=-1), "cannot be understood: .*max_message"),
    _case("a limit that no error fits in", _declares(max_message=1023), "cannot be understood: .*max_message"),
    _case("no limit at all", _declares(max_message=None), "cannot be understood: .*max_message"),
    _case("fewer extents than none", _declares(max_extent_bytes=-1), "cannot be understood: .*max_extent_bytes"),
    _case("no word on extents", _declares(max_extent_bytes=None), "cannot be understood: .*max_extent_bytes"),
    _case("features in a heap", _declares(features=7), "cannot be understood: .*features"),
]
