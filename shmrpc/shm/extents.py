"""The extents of this side of a connection: sealed memfds beside the base segment, for what is too large for its slab.

Made when memory is short, committed in a thread and attached to the peer over the control socket, so that the event loop
never waits for the kernel to find pages; kept warm, detached when nothing used them for a while. Owns their number and
size limits. Which block lies where is the arena's.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import cached_property
from time import monotonic_ns
from typing import Final, NamedTuple

import anyio
import anyio.to_thread

from shmrpc.errors import ResourceExhausted, RpcError, Unavailable, anew
from shmrpc.shm import segment
from shmrpc.shm.arena import Arena, Region
from shmrpc.shm.control import MOST_EXTENTS, Attach, Control, Detach
from shmrpc.shm.layout import GRANULE, PAGE
from shmrpc.shm.ring import address_of

log: Final = logging.getLogger("shmrpc")

MIN_EXTENT: Final = 4 << 20
"""The smallest extent, bytes: small arrays share one, so that few of them are made."""

_COMMITS: Final = 2
"""Threads that make extents of one side of a connection at once."""


class Charge(NamedTuple):
    """Where extents are charged, beside the connection's own limit."""

    charge: Callable[[int], str | None]
    """Takes bytes; says why they are too many, if they are."""
    refund: Callable[[int], None]


FREE: Final = Charge(lambda _: None, lambda _: None)


def extent_bytes(nbytes: int) -> int:
    """The size of the extent that is made for a block, bytes: the next size class.

    There are four in each power of two, so that at most a fifth is wasted and an extent is likely to fit again.
    """
    step = max(PAGE, 1 << max(0, (nbytes - 1).bit_length() - 3))
    return max(MIN_EXTENT, -(-nbytes // step) * step)


class Extents:
    """All extents of one side of a connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arena: Arena,
        control: Control,
        kind: segment.Kind,
        limit: int,
        idle_ns: int,
        charge: Charge,
        on_attached: Callable[[], None],
    ) -> None:
        self.limit: Final = limit
        """Bytes of all of them."""
        self._loop = loop
        self._arena = arena
        self._control = control
        self._kind: Final[segment.Kind] = kind
        self.idle_ns: Final = idle_ns
        """How long one is kept that nothing uses."""
        self._charge = charge
        self._on_attached = on_attached
        self._for_good = charge is not FREE
        """A peer that is charged may keep what it was given once: it is neither refunded, nor made anew without need."""
        self._attaching: dict[int, asyncio.Task[None]] = {}
        """By number: those that the peer does not have yet."""
        self._promised: dict[int, int] = {}
        """Of those, the bytes that somebody waits for."""
        self._ended: Unavailable | None = None
        self._end: Final[asyncio.Future[None]] = loop.create_future()
        """Done when the connection has ended."""

    def __repr__(self) -> str:
        return f"<Extents {self._arena.extent_bytes} of {self.limit} bytes, {len(self._attaching)} on their way>"

    @cached_property
    def _threads(self) -> anyio.CapacityLimiter:
        """Not anyio's own: all its threads may wait for calls that wait for this."""
        return anyio.CapacityLimiter(_COMMITS)

    def promise(self, nbytes: int) -> Region | None:
        """An extent on its way to the peer, with room for somebody who waits for a block; None when there can be none now.

        It may have been made for others, who wait as well, if it has room for all of them. Raises what `grow` raises.
        """
        need = -(-nbytes // GRANULE) * GRANULE
        for region in self._arena.extents:
            if region.number in self._promised and self._promised[region.number] + need <= region.free_bytes:
                self._promised[region.number] += need
                return region
        if (made := self.grow(nbytes)) is not None:
            self._promised[made.number] = need
        return made

    def grow(self, nbytes: int) -> Region | None:
        """A new extent with room for a block, on its way to the peer; None when the limit does not allow one now.

        Raises:
            ResourceExhausted: the system, or the quota of the peer's uid, does not allow it.
        """
        room = self.limit - self._arena.extent_bytes
        exact = -(-nbytes // PAGE) * PAGE
        idle = [region for region in reversed(self._arena.extents) if self._is_idle(region)]  # coldest first
        extents = self._arena.extents
        if exact > room + sum(region.nbytes for region in idle) or len(extents) - len(idle) >= MOST_EXTENTS:
            return None
        # At least an eighth of what there is, so that small blocks reach the limit of bytes before that of extents.
        size = extent_bytes(max(nbytes, self._arena.extent_bytes // 8))
        for region in idle:
            if size <= room and len(extents) < MOST_EXTENTS:
                break
            room += region.nbytes
            self._detach(region)
        if size > room:
            size = exact
        if (why := self._charge.charge(size)) is not None:
            raise ResourceExhausted(f"no memory for an extent of {size} bytes: {why}")
        try:
            extent = segment.create_extent(size, self._kind)
        except OSError as error:
            self._charge.refund(size)
            raise ResourceExhausted(f"no memory for an extent of {size} bytes: {error}") from None
        where = address_of(extent.mapping)
        assert where is not None  # a mapping always has an address
        region = self._arena.add(extent, where[0])
        task = self._loop.create_task(self._attach(region, extent), name=f"shmrpc extent {region.number}")
        self._attaching[region.number] = task
        self._promised[region.number] = 0
        task.add_done_callback(_say)
        return region

    def try_grow(self, nbytes: int) -> Region | None:
        """`grow`, or None where it would raise."""
        try:
            return self.grow(nbytes)
        except ResourceExhausted as error:
            log.debug("%s", error)
            return None

    async def _attach(self, region: Region, extent: segment.Extent) -> None:
        try:
            await anyio.to_thread.run_sync(extent.commit, limiter=self._threads)
            if self._ended is not None:
                raise anew(self._ended)
            await self._control.send(Attach(region.number, region.nbytes, extent.kind), [extent.fd])
            extent.drop_fd()
            region.attached = True
            region.idle_since_ns = monotonic_ns()
        except ConnectionResetError:
            raise anew(self._ended or Unavailable("the connection ended")) from None
        except OSError as error:
            raise ResourceExhausted(f"no memory for an extent of {region.nbytes} bytes: {error}") from None
        except RuntimeError as error:
            raise ResourceExhausted(f"no thread to make an extent of {region.nbytes} bytes: {error}") from None
        finally:
            del self._attaching[region.number], self._promised[region.number]
            region.lost = not region.attached
            if self._ended is not None:
                extent.close()
            elif region.lost and not region.blocks:
                self._detach(region)
            self._on_attached()

    async def wait_attached(self, region: Region) -> None:
        """Returns when the peer has an extent.

        Raises:
            ResourceExhausted: it will never have it.
            Unavailable: the connection ended.
        """
        if (task := self._attaching.get(region.number)) is not None:
            await asyncio.wait((task, self._end), return_when=asyncio.FIRST_COMPLETED)
            error = task.exception() if task.done() else self._ended
            if isinstance(error, RpcError):  # of all that wait, who may each add to it what it knows
                raise anew(error)
            if error is not None:
                raise error
        elif region.lost:
            raise ResourceExhausted(f"the array lies in an extent of {region.nbytes} bytes that could not be attached")

    def detach_idle(self, now_ns: int) -> None:
        """Detaches those that nothing has used for long, and forgets those that the peer will never have."""
        for region in self._arena.extents.copy():
            idle = not self._for_good and now_ns - region.idle_since_ns >= self.idle_ns
            if self._is_idle(region) and (idle or region.lost):
                self._detach(region)

    def next_idle_ns(self, now_ns: int) -> list[int]:
        """When each of them may be due."""
        return [
            self.idle_ns + (now_ns if region.blocks or not region.attached else region.idle_since_ns)
            for region in (() if self._for_good else self._arena.extents)
        ]

    def _is_idle(self, region: Region) -> bool:
        return not region.blocks and region.number not in self._attaching

    def _detach(self, region: Region) -> None:
        self._arena.remove(region)
        if region.attached:
            self._control.send_soon(Detach(region.number))
        else:
            self._charge.refund(region.nbytes)

    def close(self, why: Unavailable) -> None:
        """Lets go of all of them, and of those who wait; what is seen of one goes with its last view. Idempotent."""
        self.forget(why)
        if not self._end.done():
            self._end.set_result(None)

    def forget(self, why: Unavailable) -> None:
        """In a forked child, which leaves the event loop alone: lets go of its copies."""
        if self._ended is not None:
            return
        self._ended = why
        for region in self._arena.extents:
            if region.number not in self._attaching and region.backing is not None:  # else when its thread is done
                region.backing.close()
        self._arena.close()

    @property
    def settled(self) -> bool:
        """Whether no thread works on one."""
        return not self._attaching

    async def wait_closed(self) -> None:
        """Returns when no thread works on one any more."""
        if self._attaching:
            await asyncio.wait(list(self._attaching.values()))


def _say(task: "asyncio.Task[None]") -> None:
    """Those who wait for an extent are told why it failed; there may be none."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Unavailable):
        log.warning("%s", str(error))  # its frames may hold arrays, and a record may be kept
