"""Two joined memories in one process: both ends of a connection, without sessions, polling or calls."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from joined import SMALL, handlers_of, rung, two_channels
from life_waiting import until

from shmrpc.buffers import Packed, Piece
from shmrpc.context import Peer
from shmrpc.errors import ConnectionLost, ProtocolError
from shmrpc.shm import envelope, segment
from shmrpc.shm.arena import Block
from shmrpc.shm.borrowing import Parcel
from shmrpc.shm.channel import Channel, Record
from shmrpc.shm.extents import FREE, Charge
from shmrpc.shm.layout import Geometry
from shmrpc.shm.memory import Memory
from shmrpc.shm.placed import Placed
from shmrpc.shm.settings import Settings

METHOD: Final = "Service.method"
MIB: Final = 1 << 20
SLAB: Final = SMALL.slab_bytes
PEER: Final = Peer(4711, 1000, 1000)
Bytes = npt.NDArray[np.uint8]


def numbered(nbytes: int, first: int = 0) -> Bytes:
    """An array of the heap whose bytes differ from their neighbours."""
    return ((np.arange(nbytes) + first) % 251).astype(np.uint8)


def on(view: Any) -> Bytes:
    """An array that lies on a view. numpy's types do not know of exporters."""
    return np.frombuffer(view, np.uint8)


def is_ordinary(memory: object) -> bool:
    """Whether memory is that of this process alone."""
    return isinstance(memory, bytearray)


def packed(arrays: Sequence[Any] = (), payload: bytes = b"") -> Packed:
    """A message with some arrays, each of which can be read by the buffer protocol."""
    return Packed(payload, [Piece(array.nbytes, array) for array in arrays])


class Ledger:
    """What a peer is charged for extents, up to a limit."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.charged = 0
        self.charge = Charge(self._charge, self._refund)

    def _charge(self, nbytes: int) -> str | None:
        if self.charged + nbytes > self.limit:
            return "its uid has enough"
        self.charged += nbytes
        return None

    def _refund(self, nbytes: int) -> None:
        self.charged -= nbytes


class Gate:
    """Holds commits up, in their threads, until a test lets them go on; or fails them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.error: OSError | None = None
        self.threads: list[int] = []
        commit = segment.Extent.commit

        def wait_and_commit(extent: segment.Extent) -> None:
            self.threads.append(threading.get_ident())
            self.reached.set()
            assert self.opened.wait(20)
            if self.error is not None:
                raise self.error
            commit(extent)

        monkeypatch.setattr(segment.Extent, "commit", wait_and_commit)


async def reached(gate: Gate) -> None:
    """Returns when a commit has begun."""
    await until(gate.reached.is_set, "a commit")


class End:
    """One end of a connection, and what was said of it."""

    def __init__(
        self, channel: Channel, sock: socket.socket, settings: Settings, max_extent_bytes: int, charge: Charge
    ) -> None:
        self.channel = channel
        self.arena = channel.arena
        self.lost: list[str] = []
        self.broken: list[ProtocolError] = []
        sock.setblocking(False)
        self.memory = Memory(
            asyncio.get_running_loop(),
            channel,
            sock,
            PEER,
            settings,
            max_extent_bytes,
            self.lost.append,
            self.broken.append,
            charge,
        )
        self.lender = self.memory.lender
        self.borrowed = self.memory.borrowed
        self._extents = self.memory._extents
        self._call_id = 0

    def __repr__(self) -> str:
        return f"<End {self.memory!r}>"

    # ---- sending ----

    def send_placed(self, placed: Placed) -> int:
        """Sends what was placed; gives the call id."""
        self._call_id += 1
        self.channel.send(envelope.REPLY, placed.flags, 0, self._call_id, 0, placed.payload)
        self.channel.keep(envelope.REPLY, self._call_id, placed)
        return self._call_id

    def send(self, *arrays: Any, payload: bytes = b"") -> int:
        """Sends a message for which there is room; gives the call id."""
        placed = self.lender.try_place(packed(arrays, payload), METHOD)
        assert isinstance(placed, Placed), placed
        return self.send_placed(placed)

    async def send_when_possible(self, *arrays: Any, payload: bytes = b"", deadline_ns: int = 0) -> int:
        """Sends a message, waiting for memory."""
        return self.send_placed(await self.lender.place(packed(arrays, payload), METHOD, deadline_ns))

    def send_record(self, flags: int, payload: bytes) -> None:
        """Sends a record that says anything, as a peer that keeps no rules would."""
        self.channel.send(envelope.REPLY, flags, 0, 1, 0, payload)

    def allocate(self, nbytes: int) -> Bytes:
        """An array that is born in the connection's memory."""
        return on(self.memory.allocate(nbytes))

    # ---- receiving ----

    def receive(self, chunks: int = 1) -> list[Parcel]:
        """Takes the records that are there."""
        parcels: list[Parcel] = []

        def handle(record: Record) -> None:
            parcels.append(
                self.borrowed.open_buffers(record[5]) if record[1] & envelope.HAS_BUFFERS else Parcel(record[5], [])
            )

        self.borrowed.begin_dispatch(chunks)
        self.channel.dispatch(1000, handlers_of(handle, self.borrowed.open_block), {})
        self.channel.flush()
        return parcels

    def receive_arrays(self) -> list[Bytes]:
        """The arrays of the only record that is there."""
        [parcel] = self.receive()
        return [on(view) for view in parcel.views]

    def turn(self) -> None:
        """What a session does when its doorbell rings for room."""
        assert rung(self.channel)
        self.channel.doorbell.clear()
        self.channel.flush()

    # ---- looking ----

    @property
    def blocks(self) -> list[Block]:
        """Everything that is not free."""
        return [block for region in self.arena.regions for block in region.blocks.values()]

    @property
    def at_home(self) -> bool:
        """Whether nothing is out: neither leases nor blocks."""
        self.channel.collect()
        return not self.arena.loans and not self.blocks

    @property
    def extent_sizes(self) -> list[int]:
        """Of all extents, warmest first, bytes."""
        return [region.nbytes for region in self.arena.extents]

    @property
    def attached(self) -> set[int]:
        """The peer's extents that it knows."""
        self.memory.control.read()
        return set(self.borrowed._extents)

    def close(self) -> None:
        """Ends it, as a session does."""
        self.memory.close(ConnectionLost("the connection ended"))
        self.channel.close()


Pair = tuple[End, End]


@asynccontextmanager
async def two_ends(
    geometry: Geometry = SMALL,
    max_message: int = 1 << 30,
    max_extent_bytes: int = 64 * MIB,
    settings: Settings | None = None,
    charge: Charge = FREE,
) -> AsyncIterator[Pair]:
    """Both ends of a connection. Whoever closes one owns that; the others are closed at the end. `charge` is the left's."""
    settings = msgspec.structs.replace(settings or Settings(), geometry=geometry, max_extent_bytes=max_extent_bytes)
    with two_channels(geometry, max_message=max_message) as channels:
        socks = socket.socketpair()
        left = End(channels[0], socks[0], settings, max_extent_bytes, charge)
        right = End(channels[1], socks[1], settings, max_extent_bytes, FREE)
        for end in (left, right):
            end.memory.control.start()
        try:
            yield left, right
        finally:
            for end in (left, right):
                end.close()
            for end in (left, right):
                await end.memory.wait_closed()


async def with_extent(end: End, nbytes: int = 4 * MIB) -> None:
    """Gives an end a first extent, which the peer has."""
    assert not end.arena.extents
    del_soon = end.memory.allocate(nbytes)
    await until(lambda: end.arena.extents[0].attached, "the extent")
    del del_soon
    end.channel.collect()


def reference(*fields: object) -> bytes:
    """A `BlockReference` that says anything."""
    return msgspec.msgpack.encode(fields)
