"""A client made from the specification alone, to be joined to a real server: it records all that the server says.

Like the decoder that reads what it recorded, it uses nothing of shmrpc.
"""

import array
import asyncio
import fcntl
import mmap
import os
import socket
import struct
import time
from contextlib import suppress
from typing import Any

import independent_decoder
from independent_decoder import DEFAULT_SIZES, GRANULE, RECORD_RING
from independent_msgpack import write

TAIL, HEAD, RELEASE_TAIL, RELEASE_HEAD = 0x1000, 0x1080, 0x1100, 0x1180
REQUEST, CANCEL, ARGUMENTS, END_OF_ARGUMENTS, RESULT_CREDIT = 1, 4, 6, 7, 10
HAS_METADATA = 2
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | 0x10  # linux/fcntl.h: F_SEAL_FUTURE_WRITE
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""


def new_segment() -> tuple[int, mmap.mmap]:
    """A sealed memfd with the default geometry, and its mapping."""
    offsets = independent_decoder.offsets(DEFAULT_SIZES)
    ring_bytes, entries, slab_bytes, limit = DEFAULT_SIZES.values()
    fd = os.memfd_create("independent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, offsets["segment"])
    os.posix_fallocate(fd, 0, offsets["segment"])
    mapping = mmap.mmap(fd, offsets["segment"])
    sizes = (RECORD_RING, ring_bytes, offsets["release ring"], entries, offsets["slab"], slab_bytes, limit)
    mapping[:80] = struct.pack("<8sII8Q", b"SHMRPC\r\n", 1, 0, offsets["segment"], *sizes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd, mapping


class Peer:
    """The client. Context manager: connects, and closes everything."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.segment_fd, self.own = new_segment()
        self.bell, self.bell_far = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.theirs: mmap.mmap
        self.their_bell = -1
        self.extents: dict[int, mmap.mmap] = {}
        self.tail = self.at = self.released = 0
        self.payload_bytes = 0
        """Of the last record."""

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()
        for mapping in (self.own, *self.extents.values()):
            mapping.close()
        for fd in (self.segment_fd, self.bell, self.bell_far):
            os.close(fd)
        if self.their_bell >= 0:
            os.close(self.their_bell)
            self.theirs.close()

    # ---- the socket ----

    def shake_hands(self, **changes: object) -> dict[str, Any]:
        """Sends a hello, and gives the answer."""
        hello = {
            "type": "hello",
            "versions": [1, 1],
            "features": [],
            "segment": "memfd",
            "doorbell": "pipe",
            "geometry": DEFAULT_SIZES,
            "wanted": [],
            "max_message": 1 << 30,
            "max_extent_bytes": 1 << 30,
            **changes,
        }
        body = write(hello)
        fds = array.array("i", [self.segment_fd, self.bell_far])
        packed = struct.pack("<4sI", b"SHMR", len(body)) + body
        assert self.sock.sendmsg([packed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]) == len(packed)
        answer, received = self.frame()
        if answer["type"] == "welcome":
            segment_fd, self.their_bell = received
            size = independent_decoder.offsets(DEFAULT_SIZES | answer["geometry"])["segment"]
            self.theirs = mmap.mmap(segment_fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
            os.close(segment_fd)
        return answer

    def frame(self) -> tuple[dict[str, Any], list[int]]:
        """The next frame, with its fds."""
        packed, fds = b"", array.array("i")
        while len(packed) < 8 or len(packed) < 8 + struct.unpack_from("<I", packed, 4)[0]:
            need = 8 - len(packed) if len(packed) < 8 else 8 + struct.unpack_from("<I", packed, 4)[0] - len(packed)
            chunk, ancillary, _, _ = self.sock.recvmsg(need, 256, socket.MSG_CMSG_CLOEXEC)
            assert chunk, "the server has hung up"
            packed += chunk
            for _, _, contents in ancillary:
                fds.frombytes(contents)
        return independent_decoder.frame(packed), list(fds)

    def attach(self) -> dict[str, Any]:
        """The next control message, which must be of an extent that comes."""
        message, fds = self.frame()
        self.extents[message["extent"]] = mmap.mmap(fds[0], message["nbytes"], mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fds[0])
        return message

    # ---- the rings ----

    def send(self, kind: int, call_id: int, payload: bytes = b"", *, method: int = 0, flags: int = 0) -> None:
        """Publishes one record, and rings."""
        at = RECORD_RING + self.tail
        self.own[at : at + 24 + len(payload)] = (
            struct.pack("<IBBHQQ", len(payload), kind, flags, method, call_id, 0) + payload
        )
        self.tail += 24 + -(-len(payload) // 8) * 8
        self.publish(TAIL, self.tail)

    def publish(self, word: int, value: int) -> None:
        """Stores a shared word, and rings whether the server sleeps or not."""
        self.own[word : word + 8] = struct.pack("<Q", value)
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.their_bell, struct.pack("<Q", 1))

    def release(self, reference: dict[str, Any]) -> None:
        """Sends a block home."""
        at = independent_decoder.offsets(DEFAULT_SIZES)["release ring"] + 16 * self.released
        number = reference["extent"] << 32 | reference["granule"]
        self.own[at : at + 16] = struct.pack("<QQ", number, reference["generation"])
        self.released += 1
        self.publish(RELEASE_TAIL, self.released)

    def block(self, extent: int, granule: int, nbytes: int) -> bytes:
        """Bytes of the server's memory."""
        base = independent_decoder.offsets(DEFAULT_SIZES)["slab"] if extent == 0 else 0
        at = base + GRANULE * granule
        return (self.extents[extent] if extent else self.theirs)[at : at + nbytes]

    def see(self, reference: dict[str, Any]) -> bytes:
        """The contents of a buffer."""
        end = reference["offset"] + reference["nbytes"]
        return self.block(reference["extent"], reference["granule"], end)[reference["offset"] :]

    async def record(self) -> dict[str, Any]:
        """The next record of the server's, decoded from an image of its segment; the event loop runs meanwhile."""
        deadline = time.monotonic() + PATIENCE
        while not (found := independent_decoder.Segment(self.theirs[:]).raw_records(self.at)):
            assert time.monotonic() < deadline, f"waited {PATIENCE} s for a record"
            await asyncio.sleep(0.001)
        at, packed = found[0]
        said = independent_decoder.record(packed, self.block)
        assert said["kind"] != "PAD", "a ring of 128 KiB is longer than these tests are"
        self.at = at + -(-len(packed) // 8) * 8
        self.payload_bytes = len(packed) - 24
        self.publish(HEAD, self.at)
        if "block" in said:
            self.release(said["block"])
        return said
