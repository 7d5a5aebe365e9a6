"""The contract that the tests of a connection's life share, and a service whose handlers can be held and watched.

The tests serve it in their own process, or with ``shmrpc serve life_api:Keeper`` in others. What a handler did is in the
service's `began`, and one line for each event in the file that LIFE_RECORD names, which outlives a killed server.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec

import shmrpc
from shmrpc import guards


class Grumpy(msgspec.Struct):
    """A value whose own check raises what a decoder does not expect."""

    mood: str

    def __post_init__(self) -> None:
        if self.mood == "bad":
            raise KeyError(self.mood)


class Life(Protocol):
    """Methods to begin, hold, count and fill."""

    async def add(self, left: int, right: int = 1) -> int: ...

    async def echo(self, payload: bytes) -> bytes: ...

    async def sized(self, nbytes: int) -> bytes:
        """A result of that many bytes, which is a buffer."""
        ...

    async def repeat(self, text: str) -> str:
        """The same text, which is no buffer, however long it is."""
        ...

    async def long(self, length: int) -> str:
        """A text of that many characters."""
        ...

    async def note(self, number: int) -> int:
        """Records its number and ends."""
        ...

    async def hold(self, number: int) -> int:
        """Records its number and ends when it is let go."""
        ...

    @shmrpc.method(idempotent=True)
    async def hold_again(self, number: int) -> int:
        """The same, and may be repeated."""
        ...

    async def let_go(self) -> int:
        """Ends every held call; says how many."""
        ...

    async def odd(self) -> int:
        """A result that cannot be encoded."""
        ...

    async def cheer(self, who: Grumpy) -> str: ...

    @shmrpc.oneway
    async def drop(self, number: int) -> None:
        """Records its number; nobody waits for it."""
        ...

    async def where(self) -> int:
        """The server's process."""
        ...

    async def beget(self) -> int:
        """Forks a child of the server that does nothing but live on; says which process it is."""
        ...

    async def secret(self) -> int:
        """For processes of root alone."""
        ...

    async def in_turn(self, number: int) -> int:
        """Like `hold`, one at a time, and one more may wait."""
        ...

    @shmrpc.method(idempotent=True)
    def give_again(self, number: int) -> AsyncIterator[int]:
        """Records its number, and gives it when it is let go, and once more when it is let go again."""
        ...


METHODS: list[str] = [name for name in vars(Life) if not name.startswith("_")]
"""In the order of their numbers."""


class Keeper(Life):
    """The service."""

    def __init__(self, record: str | None = None) -> None:
        self.began: list[int] = []
        self.cancelled: list[int] = []
        self.held: set[asyncio.Future[None]] = set()
        self._record = record or os.environ.get("LIFE_RECORD", "")

    def _note(self, event: str, number: int) -> None:
        if self._record:
            fd = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(fd, f"{event} {number}\n".encode())
            finally:
                os.close(fd)

    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def echo(self, payload: bytes) -> bytes:
        return payload

    async def sized(self, nbytes: int) -> bytes:
        return bytes(nbytes)

    async def repeat(self, text: str) -> str:
        return text

    async def long(self, length: int) -> str:
        return "x" * length

    async def note(self, number: int) -> int:
        self.began.append(number)
        self._note("began", number)
        return number

    async def hold(self, number: int) -> int:
        loop = asyncio.get_running_loop()
        if self._record:  # in a process of its own: SIGUSR1 lets go, also when nobody can connect any more
            loop.add_signal_handler(signal.SIGUSR1, self._let_go)
        held = loop.create_future()
        self.held.add(held)
        self.began.append(number)
        self._note("began", number)
        try:
            await held
        except asyncio.CancelledError:
            self.cancelled.append(number)
            self._note("cancelled", number)
            raise
        finally:
            self.held.discard(held)
        self._note("ended", number)
        return number

    async def hold_again(self, number: int) -> int:
        return await self.hold(number)

    def _let_go(self) -> int:
        for held in self.held:
            if not held.done():
                held.set_result(None)
        return len(self.held)

    async def let_go(self) -> int:
        return self._let_go()

    async def odd(self) -> int:
        return object()  # type: ignore[return-value]

    async def cheer(self, who: Grumpy) -> str:
        return f"{who.mood} is fine"

    async def drop(self, number: int) -> None:
        self.began.append(number)
        self._note("began", number)

    async def where(self) -> int:
        return os.getpid()

    async def beget(self) -> int:
        begun, begin = os.pipe()
        child = os.fork()
        if not child:
            os.close(begin)  # after what the library does in a forked child
            signal.pause()
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        return child

    @shmrpc.method(guard=guards.uids(0))
    async def secret(self) -> int:
        self._note("secret", shmrpc.current_call().peer.uid)
        return 42

    @shmrpc.method(max_concurrency=1, max_waiting=1)
    async def in_turn(self, number: int) -> int:
        return await self.hold(number)

    async def give_again(self, number: int) -> AsyncIterator[int]:
        for _ in range(2):
            yield await self.hold(number)


def recorded(record: str, event: str = "began") -> list[int]:
    """The numbers of one event in a record, in order."""
    path = Path(record)
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.split()[0] == event]
