"""Whether services can do their work: who sets it, who asks, and who waits for a change.

Owns the health of the services of one server. Knows nothing of how it is asked for: `built_in` answers for it.
"""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Final


class Health(Enum):
    """The state of a service, by the names of gRPC's health checking protocol
    (https://grpc.io/docs/guides/health-checking)."""

    UNKNOWN = "UNKNOWN"
    """It cannot tell."""
    SERVING = "SERVING"
    """It can do its work."""
    NOT_SERVING = "NOT_SERVING"
    """It cannot, or its server drains."""
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
    """There is no such service. Told, never set."""


class HealthBoard:
    """The health of the services of one server; each is `SERVING` until somebody says otherwise.

    May be used from any thread, except `watch`.

    Args:
        services: Each implementation with the names of the services that it is.
    """

    def __init__(self, services: Sequence[tuple[object, Sequence[str]]]) -> None:
        self._services: Final = services
        self._states: Final = {name: Health.SERVING for _, names in services for name in names}
        self._waiters: Final[set[asyncio.Future[None]]] = set()
        self._lock: Final = threading.Lock()
        self._closed = False
        _boards.add(self)

    def __repr__(self) -> str:
        return f"<HealthBoard {', '.join(f'{name} {self.state(name).name}' for name in self._states)}>"

    def state(self, service: str = "") -> Health:
        """The health of a service, or of the whole server: `SERVING` when all its services are, else the worst of them."""
        if service:
            known = self._states.get(service)
            return Health.SERVICE_UNKNOWN if known is None else Health.NOT_SERVING if self._closed else known
        states = {Health.NOT_SERVING} if self._closed else set(self._states.values())
        return next(state for state in (Health.NOT_SERVING, Health.UNKNOWN, Health.SERVING) if state in states)

    def set(self, service: str, health: Health) -> None:
        """Sets the health of a service, or with an empty name of all.

        Raises:
            ValueError: there is no such service, or `health` cannot be set.
        """
        if service and service not in self._states:
            raise ValueError(f"there is no service {service!r} here; there is {', '.join(self._states)}")
        self._set([service] if service else list(self._states), health)

    def set_of(self, implementation: object, health: Health) -> bool:
        """Sets the health of what an implementation serves here; whether it serves anything.

        Raises:
            ValueError: `health` cannot be set.
        """
        names = [name for one, names in self._services if one is implementation for name in names]
        if names:
            self._set(names, health)
        return bool(names)

    def _set(self, names: Sequence[str], health: Health) -> None:
        if health not in _SETTABLE:
            allowed = ", ".join(state.name for state in _SETTABLE)
            raise ValueError(f"health is one of {allowed}, not {health!r}")
        for name in names:
            self._states[name] = health
        self._wake()

    def close(self) -> None:
        """The server drains: everything is `NOT_SERVING` from now on, and whoever watches is told so and let go."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiters = list(self._waiters)
            self._waiters.clear()
        for waiter in waiters:
            waiter.get_loop().call_soon_threadsafe(_settle, waiter)

    async def watch(self, service: str = "") -> AsyncIterator[Health]:
        """The health of a service, or of the server, now and after each change, until the server drains.

        Whoever is slow misses changes, and gets the state that there is when it asks again.
        """
        told: Health | None = None
        loop = asyncio.get_running_loop()
        while True:
            changed: asyncio.Future[None] = loop.create_future()
            with self._lock:
                self._waiters.add(changed)  # before the look, so that no change falls between
            closed, state = self._closed, self.state(service)
            try:
                if state is not told:
                    told = state
                    yield state
                if closed:
                    return
                await changed
            finally:
                with self._lock:
                    self._waiters.discard(changed)


_SETTABLE: Final = (Health.SERVING, Health.NOT_SERVING, Health.UNKNOWN)
_boards: Final[weakref.WeakSet[HealthBoard]] = weakref.WeakSet()


def set_health(implementation: object, health: Health) -> None:
    """Says whether a service of this process can do its work, for those who ask its server: see `introspect`.

    ::

        class Worker(Vision):
            async def __aenter__(self) -> Self:
                shmrpc.set_health(self, shmrpc.Health.NOT_SERVING)
                self._loading = asyncio.create_task(self._load())  # sets SERVING at its end
                return self

    It may be called from any thread. `Server.set_health` does the same by the service's name.

    Args:
        implementation: The object that is served: by a `Server`, by `serve` or by `local`.
        health: `SERVING`, `NOT_SERVING` or `UNKNOWN`.

    Raises:
        ValueError: the object is not served, or no longer; or `health` is none of these.
    """
    if not [board for board in list(_boards) if board.set_of(implementation, health)]:
        raise ValueError(
            f"{type(implementation).__name__} is not served here, so that it has no health; set it when a server has it, "
            "for example in its __aenter__"
        )


def _settle(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
