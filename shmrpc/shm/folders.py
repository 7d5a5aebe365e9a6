"""Whether others could put a socket of theirs where a client looks for its server's: owners and modes on the way there.

Looked at before each connection, from the root on and through every symbolic link, as sshd does with its StrictModes. What
it looks at can be changed meanwhile only by those whom it has found to be trusted. Who listens in the end, the kernel says.
"""

import os
import stat
from collections import deque
from collections.abc import Callable
from typing import Final

from shmrpc.shm.liveness import UNMAPPED

_MOST_LINKS: Final = 40  # as many as the kernel follows

Trusts = Callable[[int, int], bool]
"""Whether a uid with a gid may be talked to."""


def why_unsafe(path: str, trusts: Trusts, gids: frozenset[int]) -> str | None:
    """Says whose folder or link on the way to a path others than those who are trusted could change; None: there is none.

    A folder is safe if it belongs to root, to this process's user or to somebody trusted, and nobody else may write it but
    the groups `gids`, root's, and one that has nobody else in it. One that others may write is safe if it is sticky, as
    ``/tmp``: nobody can take away there what is not theirs.

    Raises:
        OSError: the path does not lead anywhere.
    """
    ahead = deque(os.path.join(os.getcwd(), path).split("/"))
    folder, links = "/", 0
    while True:
        name = ahead.popleft()
        if name == "..":
            folder = os.path.dirname(folder)
        elif name not in ("", "."):
            step = os.path.join(folder, name)
            status = os.lstat(step)
            if stat.S_ISLNK(status.st_mode):
                if not _owns(status, trusts):
                    return f"the link {step} belongs to uid {status.st_uid}"
                if (links := links + 1) > _MOST_LINKS:
                    return f"{path} leads through more than {_MOST_LINKS} links"
                target = os.readlink(step)
                ahead.extendleft(reversed(target.split("/")))
                folder = "/" if target.startswith("/") else folder
            elif not ahead:
                return None
            else:
                folder = step
        if not ahead:
            return None
        if (why := _why_unsafe_folder(folder, trusts, gids, last=len(ahead) == 1)) is not None:
            return why


def _why_unsafe_folder(folder: str, trusts: Trusts, gids: frozenset[int], *, last: bool) -> str | None:
    status = os.stat(folder)
    mode = status.st_mode
    if not _owns(status, trusts) and (last or status.st_uid != UNMAPPED):
        # In a user namespace the folders above are often the host's, whose users are not mapped.
        return f"the folder {folder} belongs to uid {status.st_uid}"
    if mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        return f"everybody may write the folder {folder}"
    if mode & stat.S_IWGRP and not (status.st_gid == 0 or status.st_gid in gids or _is_private(status.st_gid)):
        return f"group {status.st_gid} may write the folder {folder}"
    return None


def _owns(status: os.stat_result, trusts: Trusts) -> bool:
    return status.st_uid in (0, os.geteuid()) or trusts(status.st_uid, status.st_gid)


def _is_private(gid: int) -> bool:
    """Whether a group has this process's user as its only member: many systems give each user one."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
