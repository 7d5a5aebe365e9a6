"""The door to the shared-memory transport: says what this machine lacks before anything of it is imported.

`import shmrpc` works everywhere, so nothing above this file imports `shmrpc.shm` at its top.
"""

import importlib
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from shmrpc.context import check_seconds
from shmrpc.contract import Contract
from shmrpc.errors import UnsupportedPlatform

if TYPE_CHECKING:
    from shmrpc.dispatch import Dispatcher
    from shmrpc.shm.caller import Caller
    from shmrpc.shm.link import Link
    from shmrpc.shm.listener import Listener
    from shmrpc.shm.pool import Pool
    from shmrpc.shm.settings import Settings


def require_platform() -> None:
    """Refuses a machine that cannot carry calls through shared memory.

    Raises:
        UnsupportedPlatform: names what is missing.
    """
    missing = [
        name
        for name, present in (
            ("Linux", sys.platform == "linux"),
            ("SO_PEERCRED", hasattr(socket, "SO_PEERCRED")),
            ("pidfd_open", hasattr(os, "pidfd_open")),
        )
        if not present
    ]
    if not missing:
        try:
            importlib.import_module("shmrpc._native")
        except ImportError as error:
            missing.append(f"the extension module shmrpc._native ({error}); reinstall with a C compiler at hand")
    if missing:
        raise UnsupportedPlatform(f"shared-memory transport needs {', '.join(missing)}, which this machine lacks")


def make_settings(values: dict[str, Any]) -> "Settings":
    """The transport's settings from keyword arguments.

    Raises:
        TypeError: there is no such setting.
        ValueError: a value cannot work.
    """
    require_platform()
    from shmrpc.shm.settings import Settings

    if unknown := sorted(set(values) - set(Settings.__struct_fields__)):
        known = ", ".join(sorted(Settings.__struct_fields__))
        raise TypeError(f"there is no setting {unknown[0]!r}; there are {known}")
    for name in ("allow_uids", "allow_gids"):
        if values.get(name) is not None:
            values = {**values, name: frozenset(values[name])}
    return Settings(**values)


def make_link(
    contract: Contract | None,
    where: str | os.PathLike[str],
    *,
    wait: float,
    reconnect_timeout: float,
    settings: dict[str, Any],
    exposed: "Dispatcher | None" = None,
) -> "Link":
    """The client's transport for an address.

    Raises:
        TypeError, ValueError: an argument cannot work.
    """
    check_seconds("wait", wait)
    check_seconds("reconnect_timeout", reconnect_timeout)
    made = make_settings(settings)
    from shmrpc.shm import address
    from shmrpc.shm.link import Link

    return Link(contract, address.path_of(where), made, wait=wait, reconnect_timeout=reconnect_timeout, exposed=exposed)


def make_transport(
    contract: Contract,
    where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    connections: int,
    *,
    wait: float,
    reconnect_timeout: float,
    settings: dict[str, Any],
    exposed: "Dispatcher | None",
) -> "Link | Pool":
    """The client's transport for an address, or for several."""
    if connections < 1:
        raise ValueError(f"connections is {connections}, it must be at least 1")
    if not isinstance(where, (str, os.PathLike, Iterable)) or isinstance(where, bytes):
        raise TypeError(f"an address is a path, or shm:///path, or a list of them, not {where!r}")
    several = [where] if isinstance(where, (str, os.PathLike)) else list(where)
    if not several:
        raise ValueError("there is no address to connect to")
    links = [
        make_link(contract, one, wait=wait, reconnect_timeout=reconnect_timeout, settings=settings, exposed=exposed)
        for one in several
        for _ in range(connections)
    ]
    if len(links) == 1:
        return links[0]
    from shmrpc.shm.pool import Pool

    return Pool(links, wait=wait, reconnect_timeout=reconnect_timeout, exposed=exposed)


def make_caller(where: str | os.PathLike[str], settings: dict[str, Any]) -> "Caller":
    """A connection to a server whose contracts are not at hand."""
    link = make_link(None, where, wait=0.0, reconnect_timeout=0.0, settings=settings)
    from shmrpc.shm.caller import Caller

    return Caller(link)


def make_listener(
    dispatcher: "Dispatcher",
    where: str | os.PathLike[str],
    *,
    mode: int,
    fd: int | None,
    settings: "Settings",
) -> "Listener":
    """A server's listener: on a new socket at an address, or on an inherited one."""
    from shmrpc.shm import address
    from shmrpc.shm.listener import Listener

    path = address.path_of(where)
    sock = address.listen(path, mode, backlog=256) if fd is None else address.inherit(fd)
    try:
        return Listener(dispatcher, sock, path, owns_path=fd is None, settings=settings)
    except BaseException:  # the system refuses to watch one more fd
        if fd is None:
            address.unlink_own(path, os.lstat(path).st_ino)
            sock.close()
        else:
            sock.detach()
        raise
