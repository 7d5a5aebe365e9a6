"""The memory of one connection: what this side lends, what it borrows, and the control socket that extents travel over."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from shmrpc.buffers import Buffer
from shmrpc.context import Lease, Peer
from shmrpc.errors import ProtocolError, Unavailable
from shmrpc.shm.borrowing import Borrowed
from shmrpc.shm.channel import Channel
from shmrpc.shm.control import Attach, Control, Detach
from shmrpc.shm.extents import FREE, Charge, Extents
from shmrpc.shm.lending import Lender
from shmrpc.shm.settings import Settings


class Memory:
    """Both directions of one connection. Takes over the socket."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        sock: socket.socket,
        peer: Peer,
        settings: Settings,
        max_extent_bytes: int,
        on_lost: Callable[[str], None],
        on_broken: Callable[[ProtocolError], None],
        charge: Charge = FREE,
    ) -> None:
        self.control: Final = Control(loop, sock, self._on_attach, self._on_detach, on_lost, on_broken)
        self.borrowed: Final = Borrowed(channel, self.control, settings.max_extent_bytes, charge)
        self._arena = channel.arena
        self._extents = Extents(
            loop,
            channel.arena,
            self.control,
            channel.own.kind,
            max_extent_bytes,
            int(settings.extent_idle * 1e9),
            charge,
            self._on_attached,
        )
        warning_ns = int(settings.lease_warning * 1e9)
        self.lender: Final = Lender(loop, channel, self.borrowed, self._extents, peer, warning_ns, on_broken)

    def __repr__(self) -> str:
        return f"<Memory {self.lender!r}, {self.borrowed!r}>"

    def _on_attach(self, message: Attach, fd: int) -> None:
        self.borrowed.on_attach(message, fd)

    def _on_detach(self, message: Detach) -> None:
        self.borrowed.on_detach(message)

    def _on_attached(self) -> None:
        self.lender.look_again()

    def allocate(self, nbytes: int) -> Buffer:
        """Writable memory that can be sent without a copy: see `Lender.allocate`."""
        return self.lender.allocate(nbytes)

    def holds(self, address: int) -> bool:
        """Whether what lies at an address can be sent without a copy: it is memory of this side, or the peer's."""
        return self._arena.holds(address) or self.borrowed.holds(address)

    def leases(self) -> list[Lease]:
        """What the peer and this process hold of this side's memory."""
        return self.lender.leases()

    def close(self, why: Unavailable) -> None:
        """Lets go of everything; what is seen of it goes with its last view. Idempotent."""
        self.lender.close(why)
        self._extents.close(why)
        self.borrowed.close()
        self.control.close()

    @property
    def settled(self) -> bool:
        """Whether no thread works for it."""
        return self._extents.settled

    async def wait_closed(self) -> None:
        """Returns when no thread works for it any more."""
        await self._extents.wait_closed()

    def forget(self) -> None:
        """In a forked child: lets go of its copies."""
        why = Unavailable("this connection belongs to the parent process")
        self.lender.forget(why)
        self._extents.forget(why)
        self.borrowed.close()
        self.control.forget()
