"""How much the peers of one server may hold, by uid.

A server's own uid is bounded by the number of connections alone. Every other uid also by connections and by bytes: a peer
that closes its connection may keep this side's segment mapped, so its bytes stay charged until its process is gone.
"""

import asyncio
import socket
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
        self._by_process: dict[object, tuple[liveness.ProcessWatch, int, int]] = {}
        """By process and uid, since a process may change its uid: the watch, the uid, and the bytes that it was charged."""

    def __repr__(self) -> str:
        return f"<Quota {self._connections.total()} connections, {sum(self._bytes.values())} bytes charged>"

    def open(self, peer: Peer, orphans: Counter[int] | None = None) -> str | None:
        """Counts one more connection of this peer, or says why it would be too much.

        Args:
            peer: Who connects.
            orphans: Connections that have ended and whose one-way calls still run, by uid. They count as if they were there.
        """
        settings: Final = self._settings
        ended = orphans if orphans is not None else Counter[int]()
        total, of_uid = self._connections.total() + ended.total(), self._connections[peer.uid] + ended[peer.uid]
        if total >= settings.max_connections:
            return f"the server has {total} connections, the limit (max_connections){_among_them(ended.total())}"
        if peer.uid != self._own_uid and of_uid >= settings.max_connections_per_uid:
            among = _among_them(ended[peer.uid])
            return f"uid {peer.uid} has {of_uid} connections, the limit (max_connections_per_uid){among}"
        self._connections[peer.uid] += 1
        return None

    def close(self, peer: Peer) -> None:
        """Ends one connection's count; bytes charged stay."""
        self._connections[peer.uid] -= 1

    def charge(self, loop: asyncio.AbstractEventLoop, peer: Peer, sock: socket.socket, nbytes: int) -> str | None:
        """Charges a peer of another uid for a segment that it is about to get, or says why it cannot have it."""
        uid, pid = peer.uid, peer.pid
        if uid == self._own_uid:
            return None
        if self._bytes[uid] + nbytes > self._settings.max_bytes_per_uid:
            return (
                f"uid {uid} is charged {self._bytes[uid]} bytes of segments, the limit is "
                f"{self._settings.max_bytes_per_uid} (max_bytes_per_uid), until its processes end"
            )
        process = self._key(peer, sock)
        watch, _, charged = self._by_process.get(process, (None, uid, 0))
        if watch is None:
            pidfd = liveness.open_pidfd(peer, sock)
            if pidfd is None:
                return f"pid {pid} of uid {uid} is gone, or cannot be seen from here: its charge would never end"
            watch = liveness.ProcessWatch(loop, pidfd, lambda: self._gone(process))
        self._by_process[process] = (watch, uid, charged + nbytes)
        self._bytes[uid] += nbytes
        return None

    @staticmethod
    def _key(peer: Peer, sock: socket.socket) -> object:
        if peer.pid > 0:
            return peer.pid, peer.uid
        # Processes of other pid namespaces are all pid 0 here. Where nothing else tells one from the other, each of their
        # connections is watched by itself, which costs an fd until the process ends.
        identity = liveness.identity_of(sock)
        return sock if identity is None else (identity, peer.uid)

    def refund(self, peer: Peer, sock: socket.socket, nbytes: int) -> None:
        """Ends the charge for memory that the peer never got, or of its own that is not mapped any more."""
        process = self._key(peer, sock)
        if process in self._by_process:
            watch, uid, charged = self._by_process[process]
            self._by_process[process] = (watch, uid, charged - nbytes)
            self._bytes[uid] -= nbytes

    def _gone(self, process: object) -> None:
        _, uid, charged = self._by_process.pop(process)
        self._bytes[uid] -= charged

    def shut(self) -> None:
        """Stops watching: the server ends."""
        for watch, _, _ in self._by_process.values():
            watch.close()
        self._by_process.clear()

    def forget(self) -> None:
        """In a forked child: closes its copies of what is watched."""
        for watch, _, _ in self._by_process.values():
            watch.forget()
        self._by_process.clear()


def _among_them(ended: int) -> str:
    return f"; {ended} of them have ended, and their one-way calls still run" if ended else ""
