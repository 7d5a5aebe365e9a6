"""The knobs of the shared-memory transport, with their defaults: one frozen value that both ends are made from."""

import math
import os
from typing import Final, Literal

import msgspec

from shmrpc.inlet import DEFAULT_WINDOW, Window
from shmrpc.shm import poller
from shmrpc.shm.layout import Geometry
from shmrpc.shm.liveness import UNMAPPED


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How one endpoint behaves. Times are seconds, sizes bytes."""

    polling: Literal["adaptive", "never"] | float = "adaptive"
    """How long to look for work before sleeping: see `poller`."""
    doorbell: Literal["auto", "eventfd", "pipe"] = "auto"
    segment: Literal["auto", "memfd", "posix"] = "auto"
    geometry: Geometry = Geometry()
    max_message: int = 1 << 30
    max_in_flight: int = 1024
    """Calls under way at once, for each connection and direction."""
    drain_budget: int = 64
    """Records taken in one turn of the event loop."""
    handshake_timeout: float = 5.0
    max_connections: int = 1024
    max_connections_per_uid: int = 64
    """For each uid other than one's own."""
    max_bytes_per_uid: int = 1 << 30
    """Segment memory charged to a uid other than one's own until its processes are gone."""
    max_segment_bytes: int = 16 << 20
    """The largest base segment accepted from a peer."""
    max_extent_bytes: int = 1 << 30
    """Extents of one connection, for each direction: what this side may have out, and what it accepts. The smaller one of
    both sides counts; 0: none."""
    stream_items: int = DEFAULT_WINDOW.items
    """How many items of one stream the peer may have sent that were not read yet."""
    stream_bytes: int = DEFAULT_WINDOW.nbytes
    """The same in bytes; the last item may exceed it."""
    extent_idle: float = 10.0
    """How long an extent is kept that nothing uses."""
    lease_warning: float = 60.0
    """How long the peer may hold a block before that is logged, once."""
    allow_uids: frozenset[int] | None = None
    """Peers by uid; None: one's own and root."""
    allow_gids: frozenset[int] = frozenset()
    """Peers by primary gid, beside the uids."""
    trust_folder: bool = False
    """Whether to connect also to a socket in whose place others could put one: see `folders`."""
    debug: bool = False
    """Whether the text of unexpected errors goes to the caller."""

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        poller.Polling.of(self.polling)
        self.geometry.check()
        for name, allowed in (("doorbell", ("auto", "eventfd", "pipe")), ("segment", ("auto", "memfd", "posix"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in (
            "max_message",
            "max_in_flight",
            "drain_budget",
            "max_connections",
            "handshake_timeout",
            "stream_items",
            "stream_bytes",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        for name in ("extent_idle", "lease_warning"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)!r}")
        if self.max_extent_bytes < 0:
            raise ValueError(f"max_extent_bytes must not be negative, not {self.max_extent_bytes!r}")
        if self.max_message < MIN_MESSAGE:
            raise ValueError(f"max_message is {self.max_message}, it must be at least {MIN_MESSAGE}")
        if self.max_in_flight > MAX_IN_FLIGHT:
            raise ValueError(f"max_in_flight is {self.max_in_flight}, the limit is {MAX_IN_FLIGHT}")

    @property
    def stream_window(self) -> Window:
        """What this side accepts of a stream."""
        return Window(self.stream_items, self.stream_bytes)

    def trusts(self, uid: int, gid: int) -> bool:
        """Whether a peer with these credentials may be talked to."""
        return self.why_refused(uid, gid) is None

    def why_refused(self, uid: int, gid: int) -> str | None:
        """Why a peer with these credentials may not be talked to, or None when it may."""
        allowed = self.allow_uids if self.allow_uids is not None else frozenset((os.geteuid(), 0)) - {UNMAPPED}
        if uid in allowed or (gid in self.allow_gids and UNMAPPED not in (uid, gid)):
            return None
        if uid == UNMAPPED:
            return f"uid {uid} is not mapped into this user namespace, so nobody knows who it is"
        names = ", ".join(map(str, sorted(allowed)))
        groups = f" or gids {', '.join(map(str, sorted(self.allow_gids)))}" if self.allow_gids else ""
        return f"uid {uid} (gid {gid}) is not allowed; allowed are uids {names}{groups} (allow_uids, allow_gids)"


MAX_IN_FLIGHT: Final = 1 << 20
MIN_MESSAGE: Final = 1024
"""The least that `max_message` may be, of either side: what an error needs to say what was wrong."""
