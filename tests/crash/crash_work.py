"""What a client does while one side dies: the calls that go through every step of a connection's life, by scenario."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import numpy as np
from crash_api import KEPT, TIMES, Bytes, Crash, Journal, Refused, number_in, numbered, stand_still
from crash_ledger import Ledger

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.layout import Geometry

SMALL: Final = 20_000
"""Bytes of an array that lies in a slab."""
LARGE: Final = 600_000
"""Of one that takes an extent."""
SCARCE: Final = 200_000
"""Of one beside which a slab has no room for another."""
BURST: Final = 300
"""Calls of which a narrow ring holds less than half."""
SEEN: Final = 60
"""So many of them are known to have begun."""

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "calls": {},
    "cut": {},
    "drain": {},
    "leave": {},
    "deaf": {},
    "burst": {"geometry": Geometry(ring_bytes=4096, release_entries=512, slab_bytes=8192, inline_limit=256)},
    "scarce": {"max_extent_bytes": 0},
    "idle": {"extent_idle": 0.05},
}
"""Of both sides, by scenario."""


class Work:
    """The calls of one client."""

    def __init__(self, stub: Crash, ledger: Ledger, journal: Journal) -> None:
        self.ledger: Final = ledger
        self.found: list[Bytes] = []
        """Results that are kept to the end, whoever dies."""
        self._stub = stub
        self._journal = journal

    async def do(self, scenario: str) -> None:
        """Makes the calls of one scenario; each ends, well or not."""
        held = asyncio.create_task(self.ledger.call("hold", self._stub.hold))
        try:
            await {
                "calls": self._calls,
                "cut": self._cut,
                "drain": self._drain,
                "leave": self._leave,
                "deaf": self._leave,
                "burst": self._burst,
                "scarce": self._scarce,
                "idle": self._idle,
            }[scenario]()
        finally:
            while not held.done():
                with suppress(shmrpc.Unavailable):
                    await self._stub.let_go()
                await asyncio.sleep(0.001)
        await held

    def found_is_right(self) -> bool:
        """Whether the results that were kept have not changed."""
        return all(array[0] == array[-1] == array[len(array) // 2] for array in self.found)

    # ---- scenarios ----

    async def _calls(self) -> None:
        await asyncio.gather(self._notes(6), self._arrays(), self._streams(), self._backwards(), self._oneway())

    async def _cut(self) -> None:
        await self._notes(2)
        await asyncio.gather(self.ledger.call("cut", self._stub.cut), self._notes(2))
        await asyncio.gather(self._notes(2), self._backwards())

    async def _leave(self) -> None:
        await self._notes(1)

    async def _drain(self) -> None:
        await self._notes(2)
        with suppress(shmrpc.Unavailable):
            await self._stub.drain()
        await self._notes(4)

    async def _burst(self) -> None:
        marker = self.ledger.number()
        begun: list[int] = []
        server = 0

        async def stall(number: int) -> int:
            begun.append(number)
            return await self._stub.stall(number, marker)

        stalled = asyncio.create_task(self.ledger.call("stall", stall))
        while not set(begun) & set(self._journal.read()) and not stalled.done():
            peer = shmrpc.peer(self._stub)
            server = peer.pid if peer is not None else server
            await asyncio.sleep(0.001)
        first = max(self.ledger.entries) + 1
        burst = [asyncio.create_task(self._padded("y", most=32)) for _ in range(BURST)]
        await asyncio.sleep(0)  # they are sent, as far as there is room
        self._journal.write(marker)
        if server:
            stand_still(self._journal, list(range(first + SEEN, first + BURST)), server)
        await asyncio.gather(stalled, *burst)

    async def _scarce(self) -> None:
        await asyncio.gather(*(self._echo(SCARCE, born=number % 2 == 0) for number in range(4)))
        await asyncio.gather(*(self._give(SCARCE) for _ in range(4)), self._notes(2))

    async def _idle(self) -> None:
        await asyncio.gather(self._echo(LARGE, born=True), self._give(LARGE), self._notes(2))
        while any(self._extents()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await self._notes(2)

    def _extents(self) -> tuple[int, int]:
        calls: Any = open_stub(self._stub)[1].calls  # type: ignore[attr-defined]
        if calls is None:
            return (1, 1)
        return len(calls.memory._arena.extents), len(calls.memory.borrowed._extents)

    # ---- lanes ----

    async def _notes(self, times: int) -> None:
        for _ in range(times):
            await self.ledger.call("note", self._stub.note)
            await self.ledger.call("note_again", self._stub.note_again, repeatable=True)
            await self.ledger.call("refuse", self._refuse, lambda _, right: right is True)

    async def _refuse(self, number: int) -> bool:
        try:
            await self._stub.refuse(number)
        except Refused as refused:
            return refused.number == number
        return False

    async def _arrays(self) -> None:
        await self._echo(SMALL, born=False)
        await self._echo(SMALL, born=True)
        await self._padded("x" * SMALL)
        for _ in range(2):  # the first is how the second one is known
            await self.ledger.call("lone", self._lone)
        await self._give(SMALL)
        await asyncio.gather(self._echo(LARGE, born=True), self._echo(LARGE, born=False), self._give(LARGE))
        kept = np.full(SMALL, KEPT, np.uint8)
        await self.ledger.call("keep", lambda number: self._stub.keep(number, kept))
        found: Any = await self.ledger.call("give", lambda number: self._stub.give(number, SMALL), _is_full)
        if found is not None:
            self.found.append(found)

    async def _padded(self, text: str, most: int = 1) -> None:
        """A text that comes back several times; with `most`, one of that many lengths."""

        def right(number: int) -> str:
            return text * (1 + number % most)

        await self.ledger.call(
            "padded",
            lambda number: self._stub.padded(number, right(number)),
            lambda number, got: got == right(number) * TIMES,
        )

    async def _lone(self, number: int) -> int:
        array = shmrpc.empty(SMALL, np.uint8, to=self._stub)
        return number_in(await self._stub.lone(numbered(array, number)))

    async def _echo(self, nbytes: int, *, born: bool) -> None:
        async def echo(number: int) -> bool:
            array = shmrpc.empty(nbytes, np.uint8, to=self._stub) if born else np.empty(nbytes, np.uint8)
            array[:] = number % 251
            answer = await self._stub.echo(number, array)
            return _is_full(number, answer) and len(answer) == nbytes

        await self.ledger.call("echo", echo, lambda _, right: right is True)

    async def _give(self, nbytes: int) -> None:
        async def give(number: int) -> bool:
            return _is_full(number, await self._stub.give(number, nbytes))

        await self.ledger.call("give", give, lambda _, right: right is True)

    async def _streams(self) -> None:
        async def numbers() -> AsyncIterator[int]:
            for item in range(600):
                if item % 100 == 0:
                    await asyncio.sleep(0)
                yield item

        async def count(number: int) -> list[int]:
            return [item async for item in self._stub.count(number, 600)]

        async def double(number: int) -> list[int]:
            async def parts() -> AsyncIterator[Bytes]:
                for value in range(4):
                    yield np.full(SMALL, value, np.uint8)

            return [int(part[-1]) async for part in self._stub.double(number, parts())]

        await self.ledger.call("count", count, lambda _, items: items == list(range(600)))
        await self.ledger.call(
            "total", lambda number: self._stub.total(number, numbers()), lambda _, total: total == sum(range(600))
        )
        await self.ledger.call("double", double, lambda _, values: values == [0, 2, 4, 6])

    async def _backwards(self) -> None:
        for _ in range(2):
            await self.ledger.call("back", self._stub.back)

    async def _oneway(self) -> None:
        async def drop(number: int) -> None:
            await self._stub.drop(number)
            self._journal.write(-number)

        for _ in range(3):
            await self.ledger.call("drop", drop, lambda _, nothing: nothing is None)


def _is_full(number: int, array: Any) -> bool:
    return bool(array[0] == array[-1] == number % 251)
