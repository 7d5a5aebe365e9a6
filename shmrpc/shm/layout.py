"""Every offset of a base segment, in one place.

A base segment is one shared mapping. Exactly one process, its owner, writes it; the peer maps it read-only. All words
are little-endian, all offsets are bytes::

    0x0000  ┌──────────────────────────────────────────────────────────────┐
            │ header       written once, before the fd is sent             │
    0x1000  ├──────────────────────────────────────────────────────────────┤
            │ cursor page  one u64 to a 128-byte line:                     │
            │   0x1000 tail            end of my record ring's records     │
            │   0x1080 head            my position in the peer's ring      │
            │   0x1100 release tail    end of my release ring's entries    │
            │   0x1180 release head    my position in the peer's releases  │
            │   0x1200 doorbell epoch  odd: ring me when you publish       │
            │   0x1280 room epoch      odd: ring me when you make room     │
    0x2000  ├──────────────────────────────────────────────────────────────┤
            │ record ring  ring_bytes, a power of two                      │
            ├──────────────────────────────────────────────────────────────┤
            │ release ring release_entries of 16 bytes, a power of two     │
            ├──────────────────────────────────────────────────────────────┤
            │ slab         slab_bytes, in granules of 1 KiB                │
            └──────────────────────────────────────────────────────────────┘

The header: 8 bytes magic, u32 layout version, u32 zero, then u64 each: segment bytes, ring offset, ring bytes, release
offset, release entries, slab offset, slab bytes, inline limit.

``_native/layout.h`` repeats the cursor and record numbers for C; a test compares the two.
"""

import struct
from typing import Final

import msgspec

MAGIC: Final = b"SHMRPC\r\n"
VERSION: Final = 1

PAGE: Final = 4096
CURSOR_TAIL: Final = 0x1000
CURSOR_HEAD: Final = 0x1080
CURSOR_RELEASE_TAIL: Final = 0x1100
CURSOR_RELEASE_HEAD: Final = 0x1180
CURSOR_DOORBELL_EPOCH: Final = 0x1200
CURSOR_ROOM_EPOCH: Final = 0x1280
CURSOR_END: Final = 0x1300
RING_OFFSET: Final = 0x2000

RECORD_HEADER: Final = 24
RECORD_ALIGN: Final = 8
RELEASE_ENTRY: Final = 16
KIND_PAD: Final = 0
GRANULE: Final = 1024
"""The slab's unit of allocation, bytes."""

LARGEST_SEGMENT: Final = 1 << 40

_HEADER: Final = struct.Struct("<8sII8Q")
HEADER_BYTES: Final = _HEADER.size


class BadGeometry(ValueError):
    """A geometry, or a header, that does not describe a usable segment."""


class Geometry(msgspec.Struct, frozen=True):
    """The sizes of a base segment; every offset follows from them."""

    ring_bytes: int = 128 * 1024
    release_entries: int = 1024
    slab_bytes: int = 360 * 1024
    inline_limit: int = 8 * 1024
    """The largest payload that travels in a record; larger ones travel in a block."""

    @property
    def release_offset(self) -> int:
        """Where the release ring begins."""
        return RING_OFFSET + self.ring_bytes

    @property
    def slab_offset(self) -> int:
        """Where the slab begins."""
        return self.release_offset + self.release_entries * RELEASE_ENTRY

    @property
    def segment_bytes(self) -> int:
        """The whole segment, in full pages."""
        return -(-(self.slab_offset + self.slab_bytes) // PAGE) * PAGE

    def check(self, max_segment_bytes: int = LARGEST_SEGMENT) -> None:
        """Refuses a geometry that cannot work, or that is larger than allowed.

        Raises:
            BadGeometry: says which size, and what is allowed.
        """
        for name, value, least in (
            ("ring_bytes", self.ring_bytes, PAGE),
            ("release_entries", self.release_entries, 8),
        ):
            if value < least or value & (value - 1):
                raise BadGeometry(f"{name} is {value}, it must be a power of two and at least {least}")
        if self.slab_bytes < GRANULE or self.slab_bytes % GRANULE:
            raise BadGeometry(f"slab_bytes is {self.slab_bytes}, it must be a positive multiple of {GRANULE}")
        if self.slab_bytes // GRANULE > self.release_entries:
            raise BadGeometry(
                f"the slab has {self.slab_bytes // GRANULE} blocks and the release ring {self.release_entries} "
                "entries; it must have at least as many"
            )
        if not 64 <= self.inline_limit <= self.ring_bytes // 4:
            raise BadGeometry(
                f"inline_limit is {self.inline_limit}, allowed are 64 to ring_bytes / 4 = {self.ring_bytes // 4}"
            )
        if self.segment_bytes > max_segment_bytes:
            raise BadGeometry(f"the segment has {self.segment_bytes} bytes, the limit is {max_segment_bytes}")

    def header(self) -> bytes:
        """The header page's contents."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            0,
            self.segment_bytes,
            RING_OFFSET,
            self.ring_bytes,
            self.release_offset,
            self.release_entries,
            self.slab_offset,
            self.slab_bytes,
            self.inline_limit,
        )

    def check_header(self, header: bytes) -> None:
        """Compares a private copy of a segment's header with what this geometry makes of it.

        Raises:
            BadGeometry: the magic, the version or an offset differs.
        """
        if header[: len(MAGIC)] != MAGIC:
            raise BadGeometry(f"the segment begins with {header[:8]!r}, not with {MAGIC!r}")
        fields = _HEADER.unpack(header)
        if fields[1] != VERSION:
            raise BadGeometry(f"the segment has layout version {fields[1]}, this process reads {VERSION}")
        if header != self.header():
            raise BadGeometry(f"the segment's header says {fields[3:]}, the handshake declared {self}")
