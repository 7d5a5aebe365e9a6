"""How a client meets its server: one attempt, from the socket to a session that carries calls.

When to try, and again, is `link`'s.
"""

import asyncio
import contextvars
import logging
import os
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

from shmrpc import contract as contracts
from shmrpc.contract import Contract
from shmrpc.dispatch import Dispatcher
from shmrpc.errors import ConnectFailed, HandshakeError
from shmrpc.introspection import Introspection
from shmrpc.shm import address, disposal, folders, handshake
from shmrpc.shm.incoming import IncomingCalls
from shmrpc.shm.matching import add_built_in, match
from shmrpc.shm.outgoing import OutgoingCalls
from shmrpc.shm.session import Session
from shmrpc.shm.settings import Settings

log: Final = logging.getLogger("shmrpc")

OnSession = Callable[[Session], None]


class Meeting:
    """Meets the server of one address, as often as it is asked to."""

    def __init__(
        self,
        contract: Contract | None,
        path: str,
        settings: Settings,
        exposed: Dispatcher | None,
        on_end: OnSession,
        on_drain: OnSession,
    ) -> None:
        self.path: Final = path
        self.contract: Final = contract
        self.offered: list[handshake.Offered] = []
        """What the server said that it serves, at the last handshake."""
        self._settings = settings
        self._exposed = exposed
        self._on_end = on_end
        self._on_drain = on_drain
        self._context = contextvars.copy_context()

    def __repr__(self) -> str:
        return f"<Meeting at {self.path}>"

    async def meet(self) -> tuple[Session, OutgoingCalls]:
        """Connects, shakes hands with whoever accepts the connection, and finds the contract's methods.

        Raises:
            ConnectFailed: nobody listens, or one of the two processes has no memory, fds or whatever else it takes.
            HandshakeError: somebody does, and the two do not agree.
        """
        try:
            return await self._meet()
        except TimeoutError:
            text = f"the server at {self.path} did not finish the handshake within {self._settings.handshake_timeout} s"
            raise HandshakeError(f"{text} (handshake_timeout)", unanswered=True) from None
        except ConnectionError as error:
            raise ConnectFailed(f"the server at {self.path} went away in the handshake: {error}") from None
        except OSError as error:
            raise ConnectFailed(f"this process cannot connect to {self.path}: {error}") from None

    async def _meet(self) -> tuple[Session, OutgoingCalls]:
        loop = asyncio.get_running_loop()
        built_in = contracts.read(Introspection)
        asked = {contract.name: contract for contract in (self.contract, built_in) if contract is not None}
        wanted = [handshake.Wanted(name, handshake.digest_of(one.signatures)) for name, one in asked.items()]
        if self.contract is None:  # everything
            wanted = []
        sock, pid = await self._connect(), os.getpid()
        try:
            accepted = await handshake.as_client(sock, wanted, self._settings, self._offers())
        except BaseException:
            disposal.put_away_socket(sock, pid)
            raise
        session = Session(
            loop,
            accepted.channel,
            sock,
            accepted.peer,
            self._settings,
            accepted.max_extent_bytes,
            self._on_end,
            self._on_drain,
            windows=(self._settings.stream_window, accepted.peer_window),
        )
        in_flight = min(accepted.max_in_flight, self._settings.max_in_flight)
        try:
            matched = match(self.contract, accepted.offered, self.path)
        except BaseException:
            session.start(pidfd=accepted.pidfd)
            session.close("the contracts do not match")
            raise
        add_built_in(matched, built_in, accepted.offered)
        self.offered = accepted.offered
        calls = OutgoingCalls(
            loop,
            accepted.channel,
            session.memory,
            matched.numbers,
            in_flight,
            session.cut,
            session.windows,
            narrow=matched.narrow,
            where=f"the server at {self.path}",
        )
        session.start(pidfd=accepted.pidfd, outgoing=calls, incoming=self._serve(loop, session))
        return session, calls

    def _offers(self) -> list[handshake.Offered]:
        """What the hello says of the services that this side exposes."""
        if self._exposed is None:
            return []
        first = self._exposed.first_method
        return [
            handshake.Offered(contract.name, b"", first[contract.name], contract.signatures)
            for contract in self._exposed.contracts.values()
        ]

    def _serve(self, loop: asyncio.AbstractEventLoop, session: Session) -> IncomingCalls | None:
        """What serves the calls that the server makes."""
        if self._exposed is None:
            return None
        return IncomingCalls(
            loop,
            session.channel,
            session.memory,
            self._exposed.methods,
            session.peer,
            self._context,
            self._settings.max_in_flight,
            windows=session.windows,
            debug=self._settings.debug,
            on_broken=session.cut,
        )

    async def _connect(self) -> Any:
        self._check_folders()
        if disposal.closing() >= disposal.MOST:
            raise ConnectFailed(f"no connection to {self.path} is made: what peers sent takes long to close")
        until_ns = monotonic_ns() + int(self._settings.handshake_timeout * 1e9)
        while (sock := address.connect(self.path)) is None:
            if monotonic_ns() > until_ns:
                raise ConnectFailed(f"the server at {self.path} accepts no connections: its backlog is full")
            await asyncio.sleep(0.005)
        disposal.receive_all(sock)
        return sock

    def _check_folders(self) -> None:
        settings = self._settings
        if settings.trust_folder:
            return
        try:
            why = folders.why_unsafe(self.path, settings.trusts, settings.allow_gids)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:  # who connects is told in words
            log.debug("what leads to %s cannot be looked at: %s", self.path, error)
            return
        except OSError as error:
            why = f"what leads there cannot be looked at ({error.strerror})"
        if why is not None:
            raise HandshakeError(
                f"{self.path} is no safe place for a socket: {why}, so others could put theirs there; change the owner or "
                "the mode (chmod go-w), or trust them (trust_folder)"
            )
