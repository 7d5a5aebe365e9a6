"""How much the peers of one server may hold, by uid.

A server's own uid is bounded by the number of connections alone. Every other uid also by connections and by bytes: a peer
that closes its connection may keep this side's segment mapped, so its bytes stay charged until its process is gone.
"""

import asyncio
from collections import Counter
from typing import Final

from shmrpc.context import Peer
from shmrpc.shm import liveness
from shmrpc.shm.settings import Settings


class Quota:
    """The ledger of one server."""

    def __init__(self, own_uid: int, settings: Settings) -> None:
        self._own_uid = own_uid
        self._settings = settings
        self._connections: Counter[int] = Counter()
        self._bytes: Counter[int] = Counter()
        self._by_process: dict[int, tuple[liveness.ProcessWatch, int, int]] = {}
        """By pid: the watch, the uid, and the bytes that it was charged."""

    def __repr__(self) -> str:
        return f"<Quota {self._connections.total()} connections, {sum(self._bytes.values())} bytes charged>"

    def why_refused(self, peer: Peer, nbytes: int) -> str | None:
        """Why one more connection of this peer would be too much, or None."""
        settings: Final = self._settings
        if self._connections.total() >= settings.max_connections:
            return f"the server has {settings.max_connections} connections, the limit (max_connections)"
        if peer.uid == self._own_uid:
            return None
        if self._connections[peer.uid] >= settings.max_connections_per_uid:
            return f"uid {peer.uid} has {self._connections[peer.uid]} connections, the limit (max_connections_per_uid)"
        if self._bytes[peer.uid] + nbytes > settings.max_bytes_per_uid:
            return (
                f"uid {peer.uid} is charged {self._bytes[peer.uid]} bytes of segments, the limit is "
                f"{settings.max_bytes_per_uid} (max_bytes_per_uid), until its processes end"
            )
        return None

    def open(self, peer: Peer) -> None:
        """Counts one connection."""
        self._connections[peer.uid] += 1

    def close(self, peer: Peer) -> None:
        """Ends one connection's count; bytes charged stay."""
        self._connections[peer.uid] -= 1

    def charge(self, loop: asyncio.AbstractEventLoop, peer: Peer, nbytes: int) -> None:
        """Charges a peer of another uid for a segment that it can map from now on."""
        if peer.uid == self._own_uid:
            return
        watch, uid, charged = self._by_process.get(peer.pid, (None, peer.uid, 0))
        if watch is None:
            pidfd = liveness.open_pidfd(peer, None)
            if pidfd is None:  # gone already, or invisible: nobody can tell when to end the charge
                return
            watch = liveness.ProcessWatch(loop, pidfd, lambda: self._gone(peer.pid))
        self._by_process[peer.pid] = (watch, uid, charged + nbytes)
        self._bytes[uid] += nbytes

    def _gone(self, pid: int) -> None:
        _, uid, charged = self._by_process.pop(pid)
        self._bytes[uid] -= charged

    def shut(self) -> None:
        """Stops watching: the server ends."""
        for watch, _, _ in self._by_process.values():
            watch.close()
        self._by_process.clear()
