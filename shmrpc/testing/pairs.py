"""A server and a client in one event loop, over real shared memory."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from shmrpc.client import connect
from shmrpc.context import Metadata
from shmrpc.dispatch import Service, service
from shmrpc.server import Server
from shmrpc.testing.faults import Faults

T = TypeVar("T")

LONGEST_FOLDER: Final = 60
"""Bytes of a folder's path in which sockets find room for their names: a socket's path has at most 107."""


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for sockets, wherever the system puts temporary files."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual.encode()) <= LONGEST_FOLDER else "/tmp"
    with tempfile.TemporaryDirectory(prefix="shmrpc-", dir=parent) as path:
        yield Path(path)


class Pair(Generic[T]):
    """What `pair` gives: entered with ``async with``, gives the stub; has the server and its address."""

    def __init__(
        self,
        contract: Callable[..., T],
        services: list[Service],
        client_options: dict[str, Any],
        server_options: dict[str, Any],
    ) -> None:
        self._contract = contract
        self._services = services
        self._client_options = client_options
        self._server_options = server_options
        self._stack = AsyncExitStack()
        self._server: Server | None = None
        self._address = ""

    def __repr__(self) -> str:
        return f"<Pair of {self._contract.__name__} at {self._address or 'no address yet'}>"

    @property
    def server(self) -> Server:
        """The server.

        Raises:
            RuntimeError: the pair was not entered yet.
        """
        if self._server is None:
            raise RuntimeError("the pair has no server before it is entered")
        return self._server

    @property
    def address(self) -> str:
        """Where the server listens; more clients may connect there.

        Raises:
            RuntimeError: the pair was not entered yet.
        """
        if not self._address:
            raise RuntimeError("the pair has no address before it is entered")
        return self._address

    async def __aenter__(self) -> T:
        """Starts the server and connects; gives the stub."""
        try:
            self._address = str(self._stack.enter_context(short_folder()) / "pair.sock")
            server = Server(*self._services, at=self._address, **self._server_options)
            self._server = await self._stack.enter_async_context(server)
            client = connect(self._contract, self._address, **self._client_options)
            return await self._stack.enter_async_context(client)
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes the client, then the server."""
        await self._stack.aclose()


def pair(
    contract: Callable[..., T],
    implementation: object,
    *more_services: object,
    faults: Faults | None = None,
    timeout: float | None = None,
    metadata: Metadata | None = None,
    reconnect_timeout: float = 10.0,
    exposes: object = None,
    grace: float = 1.0,
    client: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Pair[T]:
    """A real server and a client of it in this event loop: nothing is left out but the second process.

    ::

        async with shmrpc.testing.pair(Vision, Worker()) as vision:
            labels = await vision.classify(image)

        both = shmrpc.testing.pair(Vision, Worker())
        async with both as vision:
            assert both.server.connections == 1

    Args:
        contract: The class that the stub looks like.
        implementation: What answers; it need not inherit from the contract.
        *more_services: Served at the same address, for further clients.
        faults: What goes wrong in the services: see `Faults`.
        timeout: As for `shmrpc.connect`.
        metadata: As for `shmrpc.connect`.
        reconnect_timeout: As for `shmrpc.connect`.
        exposes: As for `shmrpc.connect`.
        grace: Seconds that calls get to end when the pair is left.
        client: Settings of the client alone.
        server: Settings of the server alone.
        **settings: Settings of both: see `shmrpc.shm.settings.Settings`.

    Raises:
        ContractError: the contract cannot work, or the implementation lacks a method of it.
        ValueError: a fault is of a method that there is not.
    """
    services = [service(implementation, cast(type, contract)), *map(service, more_services)]
    if faults is not None:
        services = faults.wrap_all(services)
    return Pair(
        contract,
        services,
        {
            "timeout": timeout,
            "metadata": metadata,
            "reconnect_timeout": reconnect_timeout,
            "exposes": exposes,
            **settings,
            **(client or {}),
        },
        {"grace": grace, **settings, **(server or {})},
    )
