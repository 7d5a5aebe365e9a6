"""shmrpc itself, as a user would write it.

The variant is the polling: "adaptive", "never", or a time such as "50us".
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, Protocol

import shmrpc
from benchmarks.workload import Echo, Item

CONNECT_WAIT_S = 5.0


class EchoContract(Protocol):
    """The contract."""

    async def echo(self, item: Item) -> Item:
        """Return the item."""
        ...


class EchoService(EchoContract):
    """The service."""

    async def echo(self, item: Item) -> Item:
        """Return the item."""
        return item


def polling_of(variant: str) -> Literal["adaptive", "never"] | float:
    """The `polling` setting that a variant names."""
    match variant:
        case "adaptive" | "never":
            return variant
        case _:
            return float(variant.removesuffix("us")) * 1e-6


async def serve(path: str, variant: str) -> None:
    """Answer echo calls at `path` until cancelled."""
    await shmrpc.serve(EchoService(), at=path, polling=polling_of(variant))


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Echo]:
    """Connect to `path`."""
    async with shmrpc.connect(EchoContract, path, polling=polling_of(variant), wait=CONNECT_WAIT_S) as stub:
        yield stub.echo
