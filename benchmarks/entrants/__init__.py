"""The entrants by name, and the face that each of their modules shows.

A name is `family/loop` or `family/loop/variant`. The family is a module of this package; what a variant means
is its own business.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Literal, Protocol, cast

import msgspec

from benchmarks.workload import Echo

MODULES = {"shmrpc": "shm", "handrolled": "handrolled", "grpc": "grpc_aio", "pyzmq": "zmq_aio"}


class Face(Protocol):
    """What a module of this package offers."""

    async def serve(self, path: str, variant: str) -> None:
        """Answer echo calls at the socket `path` until cancelled."""

    def client(self, path: str, variant: str) -> AbstractAsyncContextManager[Echo]:
        """Connect to a server that listens at `path`, for the length of the context."""


class Entrant(msgspec.Struct, frozen=True):
    """One competitor: a family, the event loop on both sides, a variant, and idle connections beside it."""

    family: str
    loop: Literal["uvloop", "asyncio"]
    variant: str = ""
    idle_connections: int = 0

    @property
    def name(self) -> str:
        """How tables and the command line call it."""
        name = f"{self.family}/{self.loop}"
        if self.variant:
            name += f"/{self.variant}"
        if self.idle_connections:
            name += f" +{self.idle_connections} idle"
        return name

    @property
    def module(self) -> str:
        """The importable name of the module that implements it."""
        return f"{__name__}.{MODULES[self.family]}"

    def load(self) -> Face:
        """Import its module; raises ImportError when what it measures is not installed."""
        return cast(Face, import_module(self.module))

    def crowded(self, connections: int) -> "Entrant":
        """The same, with idle connections beside the measured one."""
        return msgspec.structs.replace(self, idle_connections=connections)


ENTRANTS = (
    Entrant("shmrpc", "uvloop", "adaptive"),
    Entrant("shmrpc", "uvloop", "50us"),
    Entrant("shmrpc", "uvloop", "never"),
    Entrant("shmrpc", "asyncio", "adaptive"),
    Entrant("shmrpc", "asyncio", "50us"),
    Entrant("shmrpc", "asyncio", "never"),
    Entrant("handrolled", "uvloop"),
    Entrant("handrolled", "uvloop", "batched"),
    Entrant("handrolled", "asyncio"),
    Entrant("handrolled", "asyncio", "batched"),
    Entrant("grpc", "asyncio"),
    Entrant("grpc", "uvloop"),
    Entrant("pyzmq", "asyncio"),
    Entrant("pyzmq", "uvloop"),
)


def select(wanted: Sequence[str]) -> list[Entrant]:
    """The entrants whose name is one of these or continues one; ValueError for a name that nobody has."""
    chosen = []
    for prefix in wanted:
        matches = [one for one in ENTRANTS if f"{one.name}/".startswith(f"{prefix}/")]
        if not matches:
            known = ", ".join(one.name for one in ENTRANTS)
            raise ValueError(f"no entrant is called {prefix!r}; there are {known}")
        chosen += matches
    return [one for one in ENTRANTS if one in chosen]
