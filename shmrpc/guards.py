"""Guards that are ready-made, for `shmrpc.method`. They ask who the calling process is, as the kernel told it.

A guard is any callable that takes a `Call`; what runs it is `admission`.
"""

from shmrpc.context import Call
from shmrpc.policy import Guard


def uids(*allowed: int) -> Guard:
    """Lets processes of these users pass."""

    def guard(call: Call) -> bool:
        return call.peer.uid in allowed

    return guard


def gids(*allowed: int) -> Guard:
    """Lets processes pass whose primary group is one of these. The kernel tells nothing of further groups."""

    def guard(call: Call) -> bool:
        return call.peer.gid in allowed

    return guard
