"""Guards that are ready-made, for `shmrpc.method`. They ask who the calling process is, as the kernel told it.

A guard is any callable that takes a `Call`; what runs it is `admission`.
"""

from shmrpc.context import Call
from shmrpc.policy import Guard


def uids(*allowed: int) -> Guard:
    """Lets processes of these users pass.

    Raises:
        TypeError, ValueError: one of them is no uid.
    """
    _check("uid", allowed)

    def guard(call: Call) -> bool:
        return call.peer.uid in allowed

    return guard


def gids(*allowed: int) -> Guard:
    """Lets processes pass whose primary group is one of these. The kernel tells nothing of further groups.

    Raises:
        TypeError, ValueError: one of them is no gid.
    """
    _check("gid", allowed)

    def guard(call: Call) -> bool:
        return call.peer.gid in allowed

    return guard


def _check(what: str, allowed: tuple[int, ...]) -> None:
    """Refuses what no process could have, so that nobody would pass."""
    for one in allowed:
        text = f"a {what} is a whole number of 0 or more, not {one!r}"
        if not isinstance(one, int) or isinstance(one, bool):
            raise TypeError(f"{text}; write {what}s(0, 1000), or {what}s(*…) for those of a list")
        if one < 0:
            raise ValueError(text)
