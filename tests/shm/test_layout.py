"""The offsets of a segment: the same for C and Python, free of overlaps, and checked in a peer's header."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrpc import _native
from shmrpc.shm import envelope, layout
from shmrpc.shm.layout import GRANULE, HEADER_BYTES, PAGE, BadGeometry, Geometry


def powers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).map(lambda exponent: 1 << exponent)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any geometry that can work."""
    ring_bytes = draw(powers(12, 24))
    release_entries = draw(powers(3, 16))
    blocks = draw(st.integers(1, release_entries))
    return Geometry(ring_bytes, release_entries, blocks * GRANULE, draw(st.integers(64, ring_bytes // 4)))


def test_c_and_python_read_the_same_numbers() -> None:
    of_c = {name: value for name, value in vars(_native).items() if name.isupper()}
    of_the_envelope = {
        "KIND_REQUEST": envelope.REQUEST,
        "KIND_REPLY": envelope.REPLY,
        "FLAG_IN_BLOCK": envelope.IN_BLOCK,
    }
    of_python = {name: getattr(layout, name) for name in of_c if name not in of_the_envelope} | of_the_envelope
    assert of_c == of_python
    assert {name for name in vars(layout) if name.startswith(("CURSOR", "RECORD", "RELEASE"))} <= set(of_c)


@given(geometries())
def test_nothing_overlaps_and_everything_is_aligned(geometry: Geometry) -> None:
    parts = [
        (0, HEADER_BYTES),
        (layout.CURSOR_TAIL, layout.CURSOR_END),
        (layout.RING_OFFSET, layout.RING_OFFSET + geometry.ring_bytes),
        (geometry.release_offset, geometry.release_offset + geometry.release_entries * layout.RELEASE_ENTRY),
        (geometry.slab_offset, geometry.slab_offset + geometry.slab_bytes),
        (geometry.segment_bytes, geometry.segment_bytes),
    ]
    for (_, end), (begin, _) in pairwise(parts):
        assert end <= begin
        assert begin % layout.RECORD_ALIGN == 0
    assert geometry.segment_bytes % PAGE == 0


@given(geometries())
def test_a_geometry_that_can_work_is_not_refused(geometry: Geometry) -> None:
    geometry.check()


def test_an_idle_connection_commits_half_a_mebibyte_for_each_side() -> None:
    geometry = Geometry()
    geometry.check(max_segment_bytes=512 * 1024)
    assert geometry.segment_bytes == 512 * 1024


@pytest.mark.parametrize(
    ("geometry", "text"),
    [
        (Geometry(ring_bytes=2048), "ring_bytes is 2048, it must be a power of two and at least 4096"),
        (Geometry(ring_bytes=5000), "ring_bytes is 5000, it must be a power of two"),
        (Geometry(ring_bytes=0), "ring_bytes is 0"),
        (Geometry(ring_bytes=-4096), "ring_bytes is -4096"),
        (Geometry(release_entries=4), "release_entries is 4, it must be a power of two and at least 8"),
        (Geometry(release_entries=1000), "release_entries is 1000, it must be a power of two"),
        (Geometry(slab_bytes=0), "slab_bytes is 0, it must be a positive multiple of 1024"),
        (Geometry(slab_bytes=-1024), "slab_bytes is -1024"),
        (Geometry(slab_bytes=1025), "slab_bytes is 1025"),
        (Geometry(release_entries=8, slab_bytes=9 * 1024), "the slab has 9 blocks and the release ring 8 entries"),
        (Geometry(inline_limit=63), "inline_limit is 63, allowed are 64 to ring_bytes / 4 = 32768"),
        (Geometry(inline_limit=32769), "inline_limit is 32769"),
        (Geometry(ring_bytes=1 << 41), "the limit is 1099511627776"),
    ],
)
def test_a_geometry_that_cannot_work_is_refused_with_its_size_and_what_is_allowed(
    geometry: Geometry, text: str
) -> None:
    with pytest.raises(BadGeometry, match=text):
        geometry.check()


def test_a_segment_larger_than_allowed_is_refused() -> None:
    with pytest.raises(BadGeometry, match="the segment has 524288 bytes, the limit is 524287"):
        Geometry().check(max_segment_bytes=524287)


def test_the_header_is_what_the_drawing_says() -> None:
    geometry = Geometry()
    header = geometry.header()
    assert header[:8] == b"SHMRPC\r\n"
    assert struct.unpack_from("<II", header, 8) == (1, 0)
    assert struct.unpack_from("<8Q", header, 16) == (
        geometry.segment_bytes,
        0x2000,
        geometry.ring_bytes,
        geometry.release_offset,
        geometry.release_entries,
        geometry.slab_offset,
        geometry.slab_bytes,
        geometry.inline_limit,
    )
    assert len(header) == HEADER_BYTES == 80


@given(geometries())
def test_a_header_is_the_one_of_its_own_geometry(geometry: Geometry) -> None:
    geometry.check_header(geometry.header())


@given(geometries(), geometries())
def test_a_header_of_another_geometry_is_refused(geometry: Geometry, other: Geometry) -> None:
    if geometry != other:
        with pytest.raises(BadGeometry, match="the handshake declared"):
            geometry.check_header(other.header())


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_header_with_one_wrong_byte_is_refused(at: int, difference: int) -> None:
    header = bytearray(Geometry().header())
    header[at] ^= difference
    with pytest.raises(BadGeometry):
        Geometry().check_header(bytes(header))


def test_a_file_that_is_no_segment_is_said_to_be_none() -> None:
    with pytest.raises(BadGeometry, match=r"begins with b'ELF.*', not with b'SHMRPC"):
        Geometry().check_header(b"ELF".ljust(HEADER_BYTES, b"\0"))


def test_a_later_layout_is_said_by_its_version() -> None:
    header = bytearray(Geometry().header())
    header[8] = 2
    with pytest.raises(BadGeometry, match="layout version 2, this process reads 1"):
        Geometry().check_header(bytes(header))
