"""The entrants of the stream benchmark, and the face that each of their modules shows."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from benchmarks.entrants import MODULES, Entrant

if TYPE_CHECKING:
    from benchmarks.streams.workload import Streams

SUBJECT = Entrant("shmrpc", "uvloop", "adaptive")
ON_ASYNCIO = Entrant("shmrpc", "asyncio", "adaptive")
GRPC = Entrant("grpc", "uvloop")
HANDROLLED = Entrant("handrolled", "uvloop")

ENTRANTS = (SUBJECT, ON_ASYNCIO, HANDROLLED, GRPC, Entrant("pyzmq", "uvloop"))


class Face(Protocol):
    """What a module of this package offers."""

    async def serve(self, path: str, variant: str) -> None:
        """Serve streams at the socket `path` until cancelled."""

    def client(self, path: str, variant: str) -> AbstractAsyncContextManager["Streams"]:
        """Connect to a server that listens at `path`, for the length of the context."""


def module_of(entrant: Entrant) -> str:
    """The importable name of the module that implements an entrant here."""
    return f"{__name__}.{MODULES[entrant.family]}"


def load(entrant: Entrant) -> Face:
    """Import its module; raises ImportError when what it measures is not installed."""
    return cast(Face, import_module(module_of(entrant)))


def among(chosen: Sequence[Entrant]) -> list[Entrant]:
    """Those of the chosen that take part with streams."""
    return [one for one in ENTRANTS if one in chosen]
