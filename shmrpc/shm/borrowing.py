"""What this side of a connection reads of its peer's memory: the peer's slab and extents, and the views of blocks in them.

A payload that lies in a block is copied out, and the block released at once. A buffer becomes a native `View`: a read-only
exporter whose death, on any thread and at any time, releases the lease; it keeps the mapping, so that the contents can be
read after the connection has ended and the peer has died.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shmrpc.errors import ProtocolError
from shmrpc.shm import disposal, envelope, ring, segment
from shmrpc.shm.arena import EXTENT_SHIFT, Arena, Block, ForgedRelease
from shmrpc.shm.channel import Channel
from shmrpc.shm.control import MOST_EXTENTS, Attach, Control, Detach
from shmrpc.shm.extents import FREE, Charge
from shmrpc.shm.layout import GRANULE, PAGE
from shmrpc.shm.ring import View, address_of, open_references
from shmrpc.shm.segment import PeerExtent

PEER_OWNED: Final = 1 << 63
"""Bit of a block's number in a reference: the block is the receiver's own, on which the sender holds the lease."""
_GRANULES: Final = (1 << EXTENT_SHIFT) - 1


class Parcel(NamedTuple):
    """A payload that came with buffers."""

    payload: bytes
    views: list[View]


_parcel: Final[Callable[..., Parcel]] = tuple.__new__  # half the price of the class's own constructor


class Returned(NamedTuple):
    """Memory of the peer's that can go back to it by reference."""

    view: View
    offset: int
    """Bytes from the beginning of its block."""


class Borrowed:
    """The peer's memory, as far as this side sees it."""

    def __init__(self, channel: Channel, control: Control, max_extent_bytes: int, charge: Charge = FREE) -> None:
        self._channel = channel
        self._arena: Arena = channel.arena
        self._control = control
        self._limit = max_extent_bytes
        self._charge = charge
        self._releaser = channel.releaser
        self._most = channel.own.geometry.release_entries
        self._extents: dict[int, PeerExtent] = {}
        self._lingering: list[PeerExtent] = []
        """Detached, and still seen by somebody here, whose views keep the whole of it."""
        geometry = channel.peer.geometry
        self._slabs: dict[int, tuple[Any, int, int]] = {
            0: (channel.peer.mapping, geometry.slab_offset, geometry.slab_bytes)
        }
        """By extent: the mapping, where its blocks begin in it, and how many bytes they have."""
        self._addresses: dict[int, tuple[int, int]] = {
            0: (_address(channel.peer.mapping) + geometry.slab_offset, geometry.slab_bytes)
        }
        self._all_bytes = geometry.slab_bytes
        self._copied_bytes = 0
        self._chunks = 1
        """Copied out of blocks in this dispatch, and how many times all of the peer's memory there can be in it."""

    def __repr__(self) -> str:
        return f"<Borrowed {len(self._extents)} extents of {self._all_bytes} bytes with the slab>"

    # ---- extents of the peer ----

    def on_attach(self, message: Attach, fd: int) -> None:
        """The peer has one more extent. Takes over the fd.

        Raises:
            ProtocolError: it is not what it should be, or more than is accepted.
        """
        try:
            self._let_go()
            held = self._all_bytes - self._slabs[0][2] + sum(extent.nbytes for extent in self._lingering)
            if message.extent in self._slabs:
                raise ProtocolError(f"the peer attached extent {message.extent}, which is attached already")
            if len(self._extents) + len(self._lingering) >= MOST_EXTENTS:
                raise ProtocolError(f"the peer attached an extent beside {MOST_EXTENTS}, which is all that it may have")
            if not 0 < message.nbytes <= self._limit - held or message.nbytes % PAGE:
                raise ProtocolError(
                    f"the peer attached an extent of {message.nbytes} bytes to {held}; allowed are multiples of {PAGE} "
                    f"up to {self._limit} in all (max_extent_bytes)"
                )
            if (why := self._charge.charge(message.nbytes)) is not None:
                raise ProtocolError(f"the peer's extent was refused: {why}")
        except BaseException:
            disposal.put_away(fd)
            raise
        try:
            extent = segment.attach_extent(
                fd,
                message.nbytes,
                message.kind,
                allow_posix=self._channel.own.kind == "posix",
                max_bytes=self._limit,
            )
        except (segment.BadSegment, OSError) as error:
            self._charge.refund(message.nbytes)
            raise ProtocolError(f"the peer's extent {message.extent} cannot be used: {error}") from None
        self._extents[message.extent] = extent
        self._slabs[message.extent] = (extent.mapping, 0, message.nbytes)
        self._addresses[message.extent] = (_address(extent.mapping), message.nbytes)
        self._all_bytes += message.nbytes

    def on_detach(self, message: Detach) -> None:
        """The peer will not use an extent any more.

        Raises:
            ProtocolError: it has none of that number.
        """
        extent = self._extents.pop(message.extent, None)
        if extent is None:
            raise ProtocolError(f"the peer detached extent {message.extent}, which is not attached")
        del self._slabs[message.extent], self._addresses[message.extent]
        self._all_bytes -= extent.nbytes
        self._lingering.append(extent)
        self._let_go()

    def _let_go(self) -> None:
        """Unmaps the detached extents that nobody sees any more. One that is still seen counts on: else a peer that detaches
        what it has lent could make this side keep any amount of its memory."""
        still_seen = []
        for extent in self._lingering:
            extent.close()
            if extent.closed:
                self._charge.refund(extent.nbytes)
            else:
                still_seen.append(extent)
        self._lingering = still_seen

    # ---- what records refer to ----

    def begin_dispatch(self, chunks: int) -> None:
        """Records will be taken, in so many chunks: each block can come home, and be filled again, between two of them."""
        self._copied_bytes = 0
        self._chunks = chunks

    def open_buffers(self, payload: bytes) -> Parcel:
        """Makes views of a record's references. Every one of them is a lease from now on, whatever becomes of the record.

        Raises:
            ProtocolError: a reference is impossible.
        """
        releaser = self._releaser
        if releaser.corrupt:
            raise ProtocolError("the peer's position in the release ring is impossible: a buffer could not be released")
        room = self._most - releaser.out
        try:
            try:
                body, views = open_references(payload, self._slabs, releaser, room)
            except KeyError:  # an extent that was attached just now: its message is in the socket
                self._control.read()
                body, views = open_references(payload, self._slabs, releaser, room)
        except KeyError as error:
            raise ProtocolError(f"the peer refers to extent {error}, which it never attached") from None
        except (ring.RingCorrupt, ValueError) as error:
            raise ProtocolError(f"the peer's references to buffers are impossible: {error}") from None
        if (
            len(views) == 1
            and (only := views[0]).__class__ is View
            and len(body) + len(only) <= self._channel.max_message
        ):
            return _parcel(Parcel, (body, views))
        opened: list[View] = []
        nbytes = len(body)
        for view in views:
            if not isinstance(view, View):
                view = self._own_view(*view)
            nbytes += len(view)
            opened.append(view)
        if nbytes > self._channel.max_message:
            raise ProtocolError(f"the peer sent a message of {nbytes} bytes, the limit is {self._channel.max_message}")
        return _parcel(Parcel, (body, opened))

    def _own_view(self, number: int, lease: int, offset: int, nbytes: int) -> View:
        """Memory of this side, which comes back."""
        try:
            block = self._arena.returned(number & ~PEER_OWNED, lease, offset, nbytes)
        except ForgedRelease as error:
            raise ProtocolError(str(error)) from None
        return own_view(self._arena, block, offset, nbytes)

    def open_block(self, payload: bytes) -> bytes:
        """Copies a payload out of the peer's memory and sends the block home.

        Raises:
            ProtocolError: the reference does not lie in the peer's memory.
        """
        try:
            reference = envelope.decode_reference(payload)
        except envelope.DecodeError as error:
            raise ProtocolError(f"a block reference cannot be decoded: {error}") from None
        number, lease, nbytes = reference.number, reference.generation, reference.nbytes
        mapping, offset, available = (
            self._slab_of(number >> EXTENT_SHIFT) if number >= 0 else (None, 0, self._channel.peer.geometry.slab_bytes)
        )
        at = (number & _GRANULES) * GRANULE
        if mapping is None or not 0 <= nbytes <= self._channel.max_message or at + nbytes > available:
            raise ProtocolError(
                f"block {number} with {nbytes} bytes is outside of the peer's slab of {available} bytes"
            )
        self._copied_bytes += nbytes
        if self._copied_bytes > self._chunks * self._all_bytes:
            raise ProtocolError(
                f"the peer sent {self._copied_bytes} bytes in blocks at once, it has {self._all_bytes}: "
                "it names a block again before that has come home"
            )
        contents = bytes(mapping[offset + at : offset + at + nbytes])
        try:
            self._channel.release(number, lease)  # may ring
        except (ring.RingCorrupt, OverflowError) as error:
            raise ProtocolError(f"block {number} cannot be released: {error}") from None
        self._releaser.opened += 1
        return contents

    def _slab_of(self, extent: int) -> tuple[Any, int, int]:
        if extent not in self._slabs:
            self._control.read()
        slab: tuple[Any, int, int] | None = self._slabs.get(extent)
        if slab is None:
            raise ProtocolError(f"the peer refers to extent {extent}, which it never attached")
        return slab

    # ---- what goes back ----

    def find(self, address: int, exporter: object) -> Returned | None:
        """The lease that some memory is borrowed under, if it is the peer's."""
        for extent, (begin, nbytes) in self._addresses.items():
            if begin <= address < begin + nbytes:
                view = view_under(exporter)
                if view is None or view.block >> EXTENT_SHIFT != extent:
                    return None
                return Returned(view, address - begin - (view.block & _GRANULES) * GRANULE)
        return None

    def holds(self, address: int) -> bool:
        """Whether some memory of this process is the peer's."""
        return any(begin <= address < begin + nbytes for begin, nbytes in self._addresses.values())

    # ---- the end ----

    def close(self) -> None:
        """Lets go of all extents; what is seen of them goes with its last view. Idempotent."""
        self._slabs.clear()
        self._addresses.clear()
        for extent in self._extents.values():
            self._charge.refund(extent.nbytes)
            extent.close()
        self._extents.clear()
        for extent in self._lingering:
            self._charge.refund(extent.nbytes)
        self._lingering.clear()


def own_view(arena: Arena, block: Block, offset: int, nbytes: int, *, writable: bool = False) -> View:
    """Memory in a block of this side, as an object that keeps the block."""
    arena.hold(block)
    at = block.region.offset + block.offset + offset
    return View(block.region.mapping, at, nbytes, arena.drop_soon, block.number, 0, writable=writable)


def _address(mapping: Any) -> int:
    where = address_of(mapping)
    assert where is not None  # a mapping always has an address
    return where[0]


def view_under(exporter: object) -> View | None:
    """The view that an array or a memoryview was made of; None: there is none under it."""
    while exporter is not None and not isinstance(exporter, View):
        exporter = exporter.obj if isinstance(exporter, memoryview) else getattr(exporter, "base", None)
    return exporter
