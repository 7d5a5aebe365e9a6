"""What memory processes share and own, as the kernel accounts for it. Linux."""

from collections.abc import Iterable
from pathlib import Path

NAME = "/memfd:shmrpc"
"""How the mappings of shmrpc are called in /proc/PID/maps."""


def segments(pids: Iterable[int]) -> dict[str, int]:
    """The size of every segment and extent that one of the processes has mapped, by device and inode, in bytes.

    All of it is committed: shmrpc allocates the whole of a segment before it is used. One that both have mapped counts once.
    """
    found: dict[str, int] = {}
    for pid in pids:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if NAME in line:
                span, _, offset, device, inode = line.split(maxsplit=5)[:5]
                start, end = (int(edge, 16) for edge in span.split("-"))
                key = f"{device} {inode}"
                found[key] = max(found.get(key, 0), int(offset, 16) + end - start)
    return found


def anonymous(pids: Iterable[int]) -> int:
    """Resident memory of the processes that is nobody else's: heaps and stacks, in bytes."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total
