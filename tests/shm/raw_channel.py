"""A channel made from the specification alone: segments, rings, references to blocks. Nothing of shmrpc's own.

Every shared word can be written, and every record be what it must not be. How the two sides meet is `raw_peer`'s.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from life_waiting import until

# The segment, as shmrpc/shm/layout.py draws it.
TAIL, HEAD, RELEASE_TAIL, RELEASE_HEAD, DOORBELL_EPOCH, ROOM_EPOCH = range(0x1000, 0x1300, 0x80)
RING: Final = 0x2000
GRANULE: Final = 1024
PAD, REQUEST, REPLY, FAILURE, CANCEL, GOAWAY = range(6)
ARGUMENTS, END_OF_ARGUMENTS, RESULTS, ARGUMENT_CREDIT, RESULT_CREDIT, INITIAL_METADATA = range(6, 12)
IN_BLOCK, HAS_METADATA, AS_JSON, HAS_BUFFERS, MANY = 1, 2, 4, 8, 16
PEER_OWNED: Final = 1 << 63
INLINE: Final = b"\xff\xff\xff\xff"
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | 0x10  # 0x10: F_SEAL_FUTURE_WRITE


class Geometry(NamedTuple):
    """The sizes that a segment is made of, and that a hello or a welcome declares."""

    ring_bytes: int = 128 * 1024
    release_entries: int = 1024
    slab_bytes: int = 360 * 1024
    inline_limit: int = 8 * 1024

    @property
    def release_offset(self) -> int:
        return RING + self.ring_bytes

    @property
    def slab_offset(self) -> int:
        return self.release_offset + 16 * self.release_entries

    @property
    def nbytes(self) -> int:
        return -(-(self.slab_offset + self.slab_bytes) // 4096) * 4096

    def header(self) -> bytes:
        """What stands at the beginning of the segment."""
        sizes = (self.ring_bytes, self.release_offset, self.release_entries, self.slab_offset, self.slab_bytes)
        return struct.pack("<8sII8Q", b"SHMRPC\r\n", 1, 0, self.nbytes, RING, *sizes, self.inline_limit)


DEFAULT: Final = Geometry()


def make_memfd(
    geometry: Geometry,
    *,
    seals: int = SEALS,
    size: int | None = None,
    sparse: bool = False,
    header: bytes | None = None,
) -> int:
    """A memfd that is a segment of this geometry, unless the arguments say otherwise."""
    size = geometry.nbytes if size is None else size
    fd = os.memfd_create("raw-peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if not sparse:
        os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, geometry.header() if header is None else header, 0)
    return fd if not seals else sealed(fd, seals)


def sealed(fd: int, seals: int) -> int:
    """The fd, once it has the seals."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def extent(nbytes: int, *, declared: int | None = None, seals: int = SEALS, sparse: bool = False) -> int:
    """The fd of a memfd that an extent could be."""
    return make_memfd(DEFAULT, size=nbytes, seals=seals, sparse=sparse, header=b"")


class Record(NamedTuple):
    """One record as it was read from a ring."""

    kind: int
    flags: int
    method: int
    call_id: int
    deadline_ns: int
    payload: bytes


class Reference(NamedTuple):
    """One reference to a buffer, as it stands in a table."""

    block: int
    lease: int
    offset: int
    nbytes: int


def table_of(references: Sequence[tuple[int, int, int, int]], body: bytes = b"", count: int | None = None) -> bytes:
    """A payload with buffers: the table of references, then the body."""
    head = struct.pack("<II", len(references) if count is None else count, 0)
    return head + b"".join(struct.pack("<QQQQ", *reference) for reference in references) + body


def many(*items: object, count: int | None = None) -> bytes:
    """A payload with several items of a stream."""
    head = struct.pack(">BI", 0xDD, len(items) if count is None else count)
    return head + b"".join(map(msgspec.msgpack.encode, items))


def references_of(payload: bytes) -> tuple[list[Reference], bytes]:
    """The references at the beginning of a payload, and the body behind them."""
    count, zero = struct.unpack_from("<II", payload)
    assert zero == 0
    end = 8 + 32 * count
    return [Reference(*fields) for fields in struct.iter_unpack("<QQQQ", payload[8:end])], payload[end:]


class RawChannel:
    """Both segments and both doorbells, with every word in reach. Never sleeps, so it never asks to be rung."""

    def __init__(self, own: mmap.mmap, far: mmap.mmap, geometry: Geometry, far_geometry: Geometry, bell: int) -> None:
        self.own = own
        self.far = far
        self.geometry = geometry
        self.far_geometry = far_geometry
        self.far_bell = bell
        self.tail = self.head = self.release_tail = 0

    def close(self) -> None:
        self.far.close()
        os.close(self.far_bell)

    def set_word(self, offset: int, value: int) -> None:
        """Writes one shared word of the own segment, at once."""
        self.own[offset : offset + 8] = struct.pack("<Q", value)

    def far_word(self, offset: int) -> int:
        """Reads one word of the other side's segment."""
        return int.from_bytes(self.far[offset : offset + 8], "little")

    def ring(self) -> None:
        """Rings the other side's doorbell, whether it sleeps or not. Eight bytes suit an eventfd and a pipe."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.far_bell, struct.pack("<Q", 1))

    # ---- sending ----

    def write(self, kind: int, payload: bytes = b"", *, length: int | None = None, **words: int) -> int:
        """Writes a record behind the tail without publishing it; gives the tail that would publish it."""
        size = self.geometry.ring_bytes
        need = 24 + -(-len(payload) // 8) * 8
        if (to_end := size - self.tail % size) < need:
            at = RING + self.tail % size
            self.own[at : at + 8] = struct.pack("<IBBH", to_end, PAD, 0, 0)
            self.tail += to_end
        at = RING + self.tail % size
        length = len(payload) if length is None else length
        flags, method, call_id, deadline_ns = (words.get(name, 0) for name in Record._fields[1:5])
        header = struct.pack("<IBBHQQ", length, kind, flags, method, call_id, deadline_ns)
        self.own[at : at + 24 + len(payload)] = header + payload
        return self.tail + need

    def publish(self, tail: int) -> None:
        """Sets the tail, whatever it is, and rings."""
        self.tail = tail
        self.set_word(TAIL, tail)
        self.ring()

    def send(self, kind: int, payload: bytes = b"", **words: int) -> None:
        """Sends one record as one should."""
        self.publish(self.write(kind, payload, **words))

    def request(self, call_id: int, method: int, *arguments: object, **words: int) -> None:
        """Sends a request with its arguments as one should."""
        self.send(REQUEST, msgspec.msgpack.encode(arguments), call_id=call_id, method=method, **words)

    def release(self, number: int, generation: int) -> None:
        """Sends a block home, whether it was ever received or not."""
        at = self.geometry.release_offset + self.release_tail % self.geometry.release_entries * 16
        self.own[at : at + 16] = struct.pack("<QQ", number, generation)
        self.release_tail += 1
        self.set_word(RELEASE_TAIL, self.release_tail)
        self.ring()

    # ---- receiving ----

    def take(self, *, commit: bool = True) -> Record | None:
        """The next record, if there is one; with `commit` its room is given back."""
        size = self.far_geometry.ring_bytes
        while self.head < self.far_word(TAIL):
            at = RING + self.head % size
            length, kind, flags, method, call_id, deadline_ns = struct.unpack(
                "<IBBHQQ", self.far[at : at + 24].ljust(24, b"\0")
            )
            if kind == PAD:
                self.head += size - self.head % size
                continue
            payload = self.far[at + 24 : at + 24 + length]
            self.head += 24 + -(-length // 8) * 8
            if commit:
                self.set_word(HEAD, self.head)
                self.ring()
            return Record(kind, flags, method, call_id, deadline_ns, payload)
        return None

    def give_back(self, record: Record) -> None:
        """Releases whatever a record lends, in the order in which it was lent."""
        payload = record.payload
        block = None
        if record.flags & IN_BLOCK:
            block, payload = self.open_block(record)
        if record.flags & HAS_BUFFERS:
            for reference in references_of(payload)[0]:
                if not reference.block & PEER_OWNED:
                    self.release(reference.block, reference.lease)
        if block is not None:
            self.release(*block)

    async def receive(self, *, commit: bool = True) -> Record:
        """Waits for the next record."""
        records: list[Record] = []

        def taken() -> bool:
            if (record := self.take(commit=commit)) is not None:
                records.append(record)
            return bool(records)

        await until(taken, "a record")
        return records[0]

    def see(self, reference: Reference) -> bytes:
        """The contents of a buffer in the other side's slab."""
        at = self.far_geometry.slab_offset + reference.block * GRANULE + reference.offset
        return self.far[at : at + reference.nbytes]

    def put(self, block: int, contents: bytes) -> None:
        """Writes into the own slab."""
        at = self.geometry.slab_offset + block * GRANULE
        self.own[at : at + len(contents)] = contents

    def open_block(self, record: Record) -> tuple[tuple[int, int], bytes]:
        """The (number, generation) and the contents of the block that a record refers to; it is not released."""
        assert record.flags & IN_BLOCK
        number, generation, nbytes = msgspec.msgpack.decode(record.payload)
        at = self.far_geometry.slab_offset + number * GRANULE
        return (number, generation), self.far[at : at + nbytes]
