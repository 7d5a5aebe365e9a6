"""`Server` and `serve`: services at an address, from the first connection to the last call."""

import asyncio
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Final

import anyio

from shmrpc import shm_gate
from shmrpc.context import Lease, check_seconds
from shmrpc.dispatch import Dispatcher
from shmrpc.errors import Closed
from shmrpc.health import Health
from shmrpc.interceptors.call import Interceptor
from shmrpc.transport import require_event_loop

DRAIN_SECONDS: Final = 10.0


class Server:
    """Serves services at an address while it is entered.

    ::

        async with shmrpc.Server(Worker(), at="/run/app/vision.sock") as server:
            await server.wait_closed()

    Args:
        *services: Implementations, or what `shmrpc.service` makes of one. One that is an async context manager is entered
            before the first call and left after the last.
        at: A path, or ``shm:///path``.
        mode: The socket's permission bits; with its folder they say who may connect at all.
        fd: A listening socket that was inherited, to be used instead of a new one.
        grace: Seconds that calls get to end when the server is left.
        interceptors: Async callables around each handler, the first one outermost: see `Intercepted`.
        **settings: The knobs of the transport: see `shmrpc.shm.settings.Settings`.

    Raises:
        ContractError: a contract cannot work, or a service does not implement it.
        TypeError, ValueError: an argument cannot work.
        BadAddress: on entering: the address cannot be served.
    """

    _listener: Any = None
    _before_listening: Callable[[], object] | None = None
    """Called when the services have been entered, right before the first client can connect."""

    def __init__(
        self,
        *services: object,
        at: str | os.PathLike[str],
        mode: int = 0o600,
        fd: int | None = None,
        grace: float = DRAIN_SECONDS,
        interceptors: Iterable[Interceptor] = (),
        **settings: Any,
    ) -> None:
        if not isinstance(at, (str, os.PathLike)):
            raise TypeError(f"an address is a path, or shm:///path, not {at!r}")
        check_mode(mode)
        check_seconds("grace", grace)
        self._dispatcher = Dispatcher(services, interceptors=interceptors)
        self._settings = shm_gate.make_settings(settings)
        self._at = at
        self._mode = mode
        self._fd = fd
        self._grace = grace
        self._closed: asyncio.Event | None = None
        self._draining: asyncio.Task[bool] | None = None

    def __repr__(self) -> str:
        return f"<Server of {', '.join(self._dispatcher.names)} at {os.fspath(self._at)}>"

    def __del__(self) -> None:
        if self._listener is not None and self._listener.listening:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=1)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._listener.connections if self._listener is not None else 0

    def leases(self) -> list[Lease]:
        """What the clients hold of the server's memory: see `shmrpc.leases`."""
        return self._listener.leases() if self._listener is not None else []

    def set_health(self, service: str, health: Health) -> None:
        """Says whether a service can do its work, for those who ask: see `introspect`. May be called from any thread.

        Args:
            service: Its name, like ``"Vision"``; empty: all of this server.
            health: `SERVING`, as it is at first, `NOT_SERVING` or `UNKNOWN`. While the server drains, all are told to be
                `NOT_SERVING`, whatever is set.

        Raises:
            ValueError: there is no such service, or `health` is none of these.
        """
        self._dispatcher.health.set(service, health)

    async def __aenter__(self) -> "Server":
        """Enters the services and begins to listen."""
        if self._closed is not None:
            raise Closed("a server can be entered once")
        require_event_loop()
        self._closed = asyncio.Event()
        await self._dispatcher.__aenter__()
        try:
            if self._before_listening is not None:
                self._before_listening()
            self._listener = shm_gate.make_listener(
                self._dispatcher, self._at, mode=self._mode, fd=self._fd, settings=self._settings
            )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._dispatcher.__aexit__(None, None, None)
            raise
        self._dispatcher.carried_by(self._listener)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Drains, then closes everything and leaves the services; also in a scope of anyio's that was cancelled."""
        with anyio.CancelScope(shield=True):
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self.drain()
        finally:
            try:
                await self._listener.close()
            finally:
                try:
                    await self._dispatcher.__aexit__(None, None, None)
                finally:
                    self._set_closed()

    async def drain(self, grace: float | None = None) -> bool:
        """Stops accepting, tells every client which calls will still be answered, and lets those end.

        Args:
            grace: Seconds that they get; then they are cancelled and their callers get `Unavailable`. None: as the
                server was made. Called again, it can shorten the time that is left, not lengthen it.

        Returns:
            Whether all of them ended in time.

        Raises:
            TypeError, ValueError: `grace` is no number of seconds.
        """
        if grace is not None:
            check_seconds("grace", grace)
        if self._listener is None:
            return True
        if self._draining is not None and grace is not None:
            self._listener.hurry(grace)
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain(self._grace if grace is None else grace))
        return await asyncio.shield(self._draining)

    async def _drain(self, grace: float) -> bool:
        self._dispatcher.health.close()
        ended: bool = await self._listener.drain(grace)
        await self._listener.close()
        self._set_closed()
        return ended

    async def wait_closed(self) -> None:
        """Returns when the server has drained."""
        if self._closed is None:
            raise Closed("the server was never entered")
        await self._closed.wait()

    def _set_closed(self) -> None:
        if self._closed is not None:
            self._closed.set()


def check_mode(mode: int) -> None:
    """Refuses what are no permission bits.

    Raises:
        TypeError: it is no int.
        ValueError: it is another one, like the decimal number 600.
    """
    if not isinstance(mode, int) or isinstance(mode, bool):
        raise TypeError(f"mode is permission bits like 0o600, not {mode!r}")
    if not 0 <= mode <= 0o777:
        meant = f"; write 0o{mode}" if re.fullmatch("[0-7]{3}", str(mode)) else ""
        raise ValueError(f"mode is permission bits from 0 to 0o777, not {mode}{meant}")


async def serve(*services: object, at: str | os.PathLike[str], handle_signals: bool = True, **options: Any) -> None:
    """Serves until the task is cancelled or, in the main thread, SIGTERM or SIGINT comes; then drains.

    Args:
        *services: As for `Server`.
        at: As for `Server`.
        handle_signals: Whether SIGTERM and SIGINT drain the server instead of ending the process.
        **options: As for `Server`.
    """
    server = Server(*services, at=at, **options)
    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []

    def handle() -> None:
        handled.extend(_handle_signals(loop, server))

    def leave_alone() -> None:
        while handled:
            loop.remove_signal_handler(handled.pop())

    if handle_signals:
        server._before_listening = handle  # whoever sees that it listens may also stop it
    try:
        async with server:
            try:
                await server.wait_closed()
            finally:
                leave_alone()
    finally:
        leave_alone()


def _handle_signals(loop: asyncio.AbstractEventLoop, server: Server) -> list[signal.Signals]:
    handled: list[signal.Signals] = []
    draining: set[asyncio.Task[bool]] = set()

    def drain() -> None:
        """The first signal drains; one more ends what still runs."""
        draining.add(loop.create_task(server.drain(0 if draining else None)))

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, drain)
        except (ValueError, RuntimeError):  # not the main thread: its owner handles signals
            break
        handled.append(number)
    return handled
