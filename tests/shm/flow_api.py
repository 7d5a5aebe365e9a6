"""The contract that the tests of streams between processes share, and a service whose streams can be held and watched.

Served in the tests' own process, or with ``shmrpc serve flow_api:Streamer`` in others. What happened to a stream is in the
service's `events`, and one line for each event in the file that LIFE_RECORD names, which outlives a killed server.
"""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.session import Session

Bytes = npt.NDArray[np.uint8]


class Flow(Protocol):
    """Streams to begin, hold and count."""

    async def plain(self, number: int) -> int: ...

    def count(self, number: int, most: int) -> AsyncIterator[int]:
        """Numbers from zero."""
        ...

    def texts(self, number: int, length: int) -> AsyncIterator[str]:
        """Texts without end, of that many characters."""
        ...

    def arrays(self, number: int, count: int, nbytes: int) -> AsyncIterator[Bytes]:
        """Arrays that were born in shared memory."""
        ...

    def hold_after(self, number: int, items: int) -> AsyncIterator[int]:
        """Some numbers, and one more when it is let go."""
        ...

    async def total(self, number: int, parts: AsyncIterator[int]) -> int:
        """Reads as fast as it can."""
        ...

    async def keep(self, number: int, parts: AsyncIterator[str]) -> int:
        """Reads nothing until it is let go; how many there were."""
        ...

    async def keep_arrays(self, number: int, parts: AsyncIterator[Bytes]) -> int:
        """The same for arrays; their bytes."""
        ...

    async def long_after(self, number: int, parts: AsyncIterator[str], length: int) -> str:
        """Reads one item, and gives a text of that many characters."""
        ...

    def echo(self, number: int, parts: AsyncIterator[int]) -> AsyncIterator[int]: ...

    def negate(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]: ...

    async def let_go(self) -> None:
        """Lets everything go on that is held, now and later."""
        ...


FLOWS: list[str] = [name for name in vars(Flow) if not name.startswith("_")]
"""In the order of their numbers."""


class Streamer(Flow):
    """The service."""

    def __init__(self, record: str | None = None) -> None:
        self.events: Counter[str] = Counter()
        self.go = asyncio.Event()
        self._record = record or os.environ.get("LIFE_RECORD", "")

    def _note(self, event: str, number: int) -> None:
        self.events[f"{event} {number}"] += 1
        if self._record:
            with Path(self._record).open("a") as record:
                record.write(f"{event} {number}\n")

    async def _watched(self, number: int, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self._note("began", number)
        try:
            async for item in items:
                self._note("gave", number)
                yield item
                del item  # it may be all of the memory that there is for the next one
        except BaseException as error:
            self._note(type(error).__name__, number)
            raise
        self._note("ended", number)

    async def plain(self, number: int) -> int:
        return number

    def count(self, number: int, most: int) -> AsyncIterator[int]:
        async def items() -> AsyncIterator[int]:
            for item in range(most):
                yield item

        return self._watched(number, items())

    def texts(self, number: int, length: int) -> AsyncIterator[str]:
        async def items() -> AsyncIterator[str]:
            while True:
                yield "x" * length

        return self._watched(number, items())

    def arrays(self, number: int, count: int, nbytes: int) -> AsyncIterator[Bytes]:
        async def items() -> AsyncIterator[Bytes]:
            for item in range(count):
                array: Bytes = shmrpc.empty(nbytes, np.uint8)
                array[:] = item % 256
                yield array
                del array

        return self._watched(number, items())

    def hold_after(self, number: int, items: int) -> AsyncIterator[int]:
        async def numbers() -> AsyncIterator[int]:
            for item in range(items):
                yield item
            asyncio.get_running_loop().call_soon(self._note, "sent", number)  # which is after they were
            await self.go.wait()
            yield items

        return self._watched(number, numbers())

    async def total(self, number: int, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in self._watched(number, parts)])

    async def keep(self, number: int, parts: AsyncIterator[str]) -> int:
        self._note("began", number)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self._note("cancelled", number)
            raise
        return len([part async for part in parts])

    async def keep_arrays(self, number: int, parts: AsyncIterator[Bytes]) -> int:
        self._note("began", number)
        await self.go.wait()
        return sum([part.nbytes async for part in parts])

    async def long_after(self, number: int, parts: AsyncIterator[str], length: int) -> str:
        await anext(parts)
        self._note("ended", number)
        return "x" * length

    def echo(self, number: int, parts: AsyncIterator[int]) -> AsyncIterator[int]:
        return self._watched(number, parts)

    async def negate(self, number: int, parts: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
        async for part in self._watched(number, parts):
            out: Bytes = shmrpc.empty(part.shape, np.uint8)
            np.subtract(255, part, out=out)
            del part
            yield out
            del out

    async def let_go(self) -> None:
        self.go.set()


# Looking at both ends


def session_of(stub: object) -> Session:
    """The client's end of a connection, if there is one."""
    transport: Any = open_stub(stub)[1]
    session: Session = transport._session
    return session


def sessions_of(server: shmrpc.Server) -> list[Session]:
    """The server's ends."""
    return list(server._listener.sessions)


def left_of(session: Session) -> list[str]:
    """What a session still keeps of streams that should be over."""
    left = []
    if (outgoing := session.outgoing) is not None:
        left += [f"call {call_id} pending" for call_id in outgoing.pending]
        left += [f"flow {call_id}" for call_id in outgoing.flows._flows]
    if (incoming := session.incoming) is not None:
        flows = incoming.flows
        left += [f"call {call_id} running" for call_id in incoming.running]
        left += [f"inlet {call_id}" for call_id in flows._inlets]
        left += [f"outlet {call_id}" for call_id in flows._outlets]
        left += [f"items {state.value} of call {call_id}" for call_id, state in flows._states.items()]
    if session.channel.outbox:
        left.append(f"{len(session.channel.outbox)} records waiting")
    session.channel.collect()
    if loans := session.channel.arena.loans:
        left.append(f"{len(loans)} leases")
    return left


def all_left(*sessions: Session) -> list[str]:
    """What they keep, after what is garbage has gone."""
    gc.collect()
    return [what for session in sessions for what in left_of(session)]
