"""A peer made from the specification alone: sockets, mmap, struct and msgpack, nothing of shmrpc's own.

It plays the client against a real server and the server against a real client. It behaves, until a test tells it not to:
every step is a method of its own, every declared value can be changed, every shared word can be written.
"""

import array
import asyncio
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

import anyio
import msgspec
from life_waiting import PATIENCE, until

# The segment, as shmrpc/shm/layout.py draws it.
TAIL, HEAD, RELEASE_TAIL, RELEASE_HEAD, DOORBELL_EPOCH, ROOM_EPOCH = range(0x1000, 0x1300, 0x80)
RING: Final = 0x2000
GRANULE: Final = 1024
PAD, REQUEST, REPLY, FAILURE, CANCEL, GOAWAY = range(6)
ARGUMENTS, END_OF_ARGUMENTS, RESULTS, ARGUMENT_CREDIT, RESULT_CREDIT = range(6, 11)
IN_BLOCK, HAS_METADATA, HAS_BUFFERS, MANY = 1, 2, 8, 16
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
    return fd if not seals else _sealed(fd, seals)


def _sealed(fd: int, seals: int) -> int:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


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


class Half:
    """What one side brings to a handshake, correct until a test changes it."""

    def __init__(self, geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd") -> None:
        self.geometry = geometry
        self.segment_fd = make_memfd(geometry, seals=0)
        self.mapping = mmap.mmap(self.segment_fd, geometry.nbytes)
        _sealed(self.segment_fd, SEALS)
        if doorbell == "eventfd":
            self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.far_end = os.dup(self.bell)
        else:
            self.bell, self.far_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.fds = [self.segment_fd, self.far_end]
        """What is sent; a test may send others instead."""
        self.spare: list[int] = []
        """Others, which are closed with the rest."""
        self.declared: dict[str, Any] = {
            "features": [],
            "segment": "memfd",
            "doorbell": doorbell,
            "geometry": geometry._asdict(),
            "max_message": 1 << 30,
            "max_extent_bytes": 1 << 30,
        }

    def close(self) -> None:
        self.mapping.close()
        for fd in (self.segment_fd, self.bell, self.far_end, *self.spare):
            os.close(fd)

    def join(self, theirs: dict[str, Any], fds: list[int]) -> RawChannel:
        """Takes over the other side's fds."""
        segment_fd, bell = fds
        far_geometry = Geometry(**theirs["geometry"])
        try:
            far = mmap.mmap(segment_fd, far_geometry.nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(segment_fd)
        return RawChannel(self.mapping, far, self.geometry, far_geometry, bell)


# ---- the handshake ----


def frame_of(message: dict[str, Any]) -> bytes:
    """One frame: magic, length, body."""
    body = msgspec.msgpack.encode(message)
    return struct.pack("<4sI", b"SHMR", len(body)) + body


def send_with_fds(sock: socket.socket, frame: bytes, fds: list[int]) -> None:
    """Sends bytes with fds on the first of them; small enough for the socket's buffer."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([frame], ancillary) == len(frame)


async def receive_frame(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next frame and the fds that came with it; ConnectionResetError when the other side hung up."""
    body = bytearray()
    fds = array.array("i")
    need = 8
    async with asyncio.timeout(PATIENCE):
        while len(body) < need:
            await anyio.wait_readable(sock)
            chunk, ancillary, _, _ = sock.recvmsg(need - len(body), 256, socket.MSG_CMSG_CLOEXEC)
            for level, kind, packed in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(packed)
            if not chunk:
                raise ConnectionResetError("the other side hung up")
            body += chunk
            if len(body) == 8:
                need += struct.unpack("<4sI", body)[1]
    message: dict[str, Any] = msgspec.msgpack.decode(body[8:])
    return message, list(fds)


async def hung_up(sock: socket.socket) -> None:
    """Returns when the other side has closed its socket."""
    async with asyncio.timeout(PATIENCE):
        while True:
            await anyio.wait_readable(sock)
            try:
                if not sock.recv(65536):
                    return
            except ConnectionResetError:
                return


class RawClient:
    """A client of a real server. Async context manager: connects, and closes everything."""

    def __init__(self, path: str, geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd") -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self.half = Half(geometry, doorbell=doorbell)
        self.channel: RawChannel

    async def __aenter__(self) -> "RawClient":
        self.sock.connect(self.path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.sock.close()
        if hasattr(self, "channel"):
            self.channel.close()
        self.half.close()

    def hello(self, **changes: object) -> dict[str, Any]:
        """A correct hello, with changes."""
        return {"type": "hello", "versions": [1, 1], "wanted": []} | self.half.declared | changes

    async def ask(self, **changes: object) -> dict[str, Any]:
        """Sends the hello and gives the answer, whatever it is; its fds become the channel or are closed."""
        send_with_fds(self.sock, frame_of(self.hello(**changes)), self.half.fds)
        answer, fds = await receive_frame(self.sock)
        if answer["type"] == "welcome":
            self.channel = self.half.join(answer, fds)
        return answer

    async def shake_hands(self, **changes: object) -> RawChannel:
        """The whole handshake, which must succeed."""
        answer = await self.ask(**changes)
        assert answer["type"] == "welcome", answer
        return self.channel


class RawServer:
    """One connection of a real client, accepted by a server that may be a hostile one."""

    def __init__(self, sock: socket.socket, half: Half) -> None:
        self.sock = sock
        self.half = half
        self.hello: dict[str, Any] = {}
        self.client_fds: list[int] = []
        self.channel: RawChannel

    async def receive_hello(self) -> dict[str, Any]:
        """The client's hello; its fds are kept."""
        self.hello, self.client_fds = await receive_frame(self.sock)
        return self.hello

    def welcome(self, **changes: object) -> dict[str, Any]:
        """A correct welcome, which says that every contract is known exactly, with changes."""
        offered = [
            {"name": want["name"], "digest": want["digest"], "first_method": 0, "signatures": []}
            for want in self.hello["wanted"]
        ]
        fixed = {"type": "welcome", "version": 1, "offered": offered, "max_in_flight": 1024}
        return fixed | self.half.declared | changes

    async def shake_hands(self, **changes: object) -> RawChannel:
        """The whole handshake."""
        await self.receive_hello()
        self.channel = self.half.join(self.hello, self.client_fds)
        self.client_fds = []
        self.answer(**changes)
        return self.channel

    def answer(self, **changes: object) -> None:
        """Sends the welcome."""
        send_with_fds(self.sock, frame_of(self.welcome(**changes)), self.half.fds)

    def close(self) -> None:
        self.sock.close()
        for fd in self.client_fds:
            os.close(fd)
        if hasattr(self, "channel"):
            self.channel.close()
        self.half.close()


@asynccontextmanager
async def raw_listener(
    path: str, play: Callable[[RawServer], Any], geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd"
) -> AsyncIterator[asyncio.Task[None]]:
    """Listens, and plays one part with the first client that comes; after that nobody listens any more.

    Leaving waits for the part to be played to its end, and raises what it raised.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen()

    async def serve_one() -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await anyio.wait_readable(listener)
                sock, _ = listener.accept()
        finally:
            os.unlink(path)
            listener.close()
        sock.setblocking(False)
        peer = RawServer(sock, Half(geometry, doorbell=doorbell))
        try:
            await play(peer)
        finally:
            peer.close()

    task = asyncio.create_task(serve_one())
    try:
        yield task
        async with asyncio.timeout(PATIENCE):
            await task
    finally:
        task.cancel()
        await asyncio.wait((task,))
