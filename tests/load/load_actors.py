"""A load: actors that make calls of all kinds through one stub, at random, and keep the books of them in a ledger.

An actor makes one call after the other until the load is stopped. Whatever an actor does comes from its seed. What the calls
give is checked to the last byte; that they ended, and what was done, is the ledger's.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import numpy as np
from load_api import Answering, Bytes, Work, checksum, fill, filled, is_filled
from load_ledger import Kind, Ledger, Outcome

import shmrpc

SIZES: Final = (16, 900, 8_100, 30_000, 100_000, 400_000)
"""Bytes of arrays: in the record, in blocks of the slab, in extents."""
WEIGHTS: Final = (8, 8, 8, 8, 4, 1)
RETRY: Final = shmrpc.Retry(attempts=3, backoff=0.001)
STREAM_SIZES: Final = (64, 5_000, 20_000)


PATIENT: Final[dict[str, Any]] = {"wait": 60.0, "reconnect_timeout": 60.0}
"""For a stub whose server may be away for a while."""


class Mismatch(AssertionError):
    """What came is not what must come."""


class Load:
    """The actors of one stub."""

    def __init__(self, work: Work, ledger: Ledger, seed: object, *, sizes: tuple[int, ...] = SIZES) -> None:
        self.ledger: Final = ledger
        self._work = work
        self._seed = seed
        self._sizes = sizes
        self._stopping = False
        self._actors = 0
        self._acts: Final[dict[Callable[[random.Random], Awaitable[None]], int]] = {
            self._effect: 6,
            self._again: 3,
            self._drop: 1,
            self._mirror: 4,
            self._handed_back: 2,
            self._fetch: 3,
            self._pause: 3,
            self._cancelled: 2,
            self._late: 1,
            self._bounce: 2,
            self._count: 2,
            self._items: 2,
            self._left_early: 1,
            self._total: 2,
            self._negate: 2,
        }

    def __repr__(self) -> str:
        return f"<Load seed={self._seed}, {self.ledger!r}>"

    @asynccontextmanager
    async def running(self, actors: int = 16) -> AsyncIterator[None]:
        """So many actors, until the block ends and each has ended its last call. May be repeated, one after the other."""
        self._stopping = False
        first, self._actors = self._actors, self._actors + actors
        tasks = [
            asyncio.create_task(self._act(number), name=f"actor {number}") for number in range(first, self._actors)
        ]
        try:
            yield
        except BaseException:  # it has failed, and nobody waits for calls that may last
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        self._stopping = True
        await asyncio.gather(*tasks)

    async def _act(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        acts, weights = list(self._acts), list(self._acts.values())
        while not self._stopping:
            (act,) = rng.choices(acts, weights)
            await act(rng)
            await asyncio.sleep(0)

    def _size(self, rng: random.Random) -> int:
        return rng.choices(self._sizes, WEIGHTS[: len(self._sizes)])[0]

    async def _call(self, kind: Kind, call: Callable[[int], Awaitable[bool]], nbytes: int = 0) -> None:
        """One call by the books; it says whether what came is right."""
        number = self.ledger.begin(kind)
        try:
            right = await call(number)
        except shmrpc.RpcError as error:
            self.ledger.fail(number, error)
        except asyncio.CancelledError:
            self.ledger.end(number, Outcome.CANCELLED)
            raise
        else:
            self.ledger.end(number, Outcome.DONE)
            if right:
                self.ledger.nbytes += nbytes
            else:
                self.ledger.wrong.append(f"what came of call {number} is not what must come")

    # ---- unary ----

    async def _effect(self, rng: random.Random) -> None:
        payload = bytes(rng.choice((10, 200, 4000)))
        work = shmrpc.options(self._work, metadata={"load": b"x" * 100}) if rng.random() < 0.3 else self._work

        async def call(number: int) -> bool:
            return await work.effect(number, payload) == checksum(np.frombuffer(payload, np.uint8))

        await self._call(Kind.ONCE, call, len(payload))

    async def _again(self, rng: random.Random) -> None:
        payload = rng.randbytes(rng.choice((10, 200, 4000)))
        work = shmrpc.options(self._work, retry=RETRY) if rng.random() < 0.5 else self._work

        async def call(number: int) -> bool:
            return await work.again(number, payload) == checksum(np.frombuffer(payload, np.uint8))

        await self._call(Kind.AGAIN, call, len(payload))

    async def _drop(self, rng: random.Random) -> None:
        async def call(number: int) -> bool:
            await self._work.drop(number)
            return True

        await self._call(Kind.ONE_WAY, call)

    async def _mirror(self, rng: random.Random) -> None:
        nbytes, born = self._size(rng), rng.random() < 0.5

        async def call(number: int) -> bool:
            array: Bytes = shmrpc.empty(nbytes, np.uint8, to=self._work) if born else np.empty(nbytes, np.uint8)
            fill(array, number)
            out = await self._work.mirror(number, checksum(array), array)
            return bool(np.array_equal(np.subtract(255, array), out))

        await self._call(Kind.ONCE, call, 2 * nbytes)

    async def _handed_back(self, rng: random.Random) -> None:
        nbytes = self._size(rng)

        async def call(number: int) -> bool:
            array = filled(number, nbytes)
            return is_filled(await self._work.handed_back(number, checksum(array), array), number)

        await self._call(Kind.ONCE, call, 2 * nbytes)

    async def _fetch(self, rng: random.Random) -> None:
        nbytes = self._size(rng)

        async def call(number: int) -> bool:
            return is_filled(await self._work.fetch(number, nbytes), number)

        await self._call(Kind.ONCE, call, nbytes)

    async def _pause(self, rng: random.Random) -> None:
        seconds = rng.random() * 0.005

        async def call(number: int) -> bool:
            return await self._work.pause(number, seconds) == number

        await self._call(Kind.ONCE, call)

    async def _bounce(self, rng: random.Random) -> None:
        nbytes = self._size(rng)

        async def call(number: int) -> bool:
            array = filled(number, nbytes)
            return await self._work.bounce(number, array) == checksum(array) and self.ledger.returned[number] == 1

        await self._call(Kind.ONCE, call, 2 * nbytes)

    # ---- given up ----

    async def _cancelled(self, rng: random.Random) -> None:
        if rng.random() < 0.5:

            async def call(number: int) -> bool:
                await self._work.hold(number)
                return False
        else:

            async def call(number: int) -> bool:
                return is_filled(await self._work.fetch(number, 30_000), number)

        task = asyncio.ensure_future(self._call(Kind.ONCE, call))
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.003)
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()

    async def _late(self, rng: random.Random) -> None:
        hasty = shmrpc.options(self._work, timeout=rng.choice((0.0005, 0.002, 0.01)))
        nbytes = self._size(rng)

        async def call(number: int) -> bool:
            if number % 3:
                await hasty.hold(number)
                return False
            return is_filled(await hasty.fetch(number, nbytes), number)

        await self._call(Kind.ONCE, call)

    # ---- streams ----

    async def _count(self, rng: random.Random) -> None:
        most = rng.choice((1, 10, 300))

        async def call(number: int) -> bool:
            expected = 0
            async for item in self._work.count(number, most):
                if item != number + expected:
                    raise Mismatch(f"item {expected} of stream {number} is {item}")
                expected += 1
                self.ledger.items += 1
            self.ledger.streams += 1
            return expected == most

        await self._call(Kind.ONCE, call)

    async def _items(self, rng: random.Random) -> None:
        count, nbytes = rng.choice((1, 4, 20)), rng.choice(STREAM_SIZES)

        async def call(number: int) -> bool:
            expected = 0
            async for item in self._work.items(number, count, nbytes):
                self._check_item(item, number, expected, inverted=False)
                del item
                expected += 1
            self.ledger.streams += 1
            return expected == count

        await self._call(Kind.ONCE, call)

    async def _left_early(self, rng: random.Random) -> None:
        nbytes, turns = rng.choice(STREAM_SIZES), rng.randrange(5)

        async def call(number: int) -> bool:
            stream = self._work.items(number, 1000, nbytes)
            expected = 0
            async for item in stream:
                self._check_item(item, number, expected, inverted=False)
                del item
                if (expected := expected + 1) > turns:
                    break
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
            return True

        await self._call(Kind.ONCE, call)

    def _check_item(self, item: Bytes, number: int, index: int, *, inverted: bool) -> None:
        if not is_filled(item, number, index, inverted=inverted):
            raise Mismatch(f"item {index} of stream {number} is not what it must be")
        self.ledger.nbytes += item.nbytes
        self.ledger.items += 1

    async def _parts(self, number: int, count: int, nbytes: int, pause: bool) -> AsyncIterator[Bytes]:
        for index in range(count):
            part: Bytes = shmrpc.empty(nbytes, np.uint8, to=self._work)
            fill(part, number, index)
            yield part
            del part
            if pause:
                await asyncio.sleep(0.0005)

    async def _total(self, rng: random.Random) -> None:
        count, nbytes, pause = rng.choice((1, 4, 20)), rng.choice(STREAM_SIZES), rng.random() < 0.5

        async def call(number: int) -> bool:
            total = await self._work.total(number, self._parts(number, count, nbytes, pause))
            expected = 0
            for index in range(count):
                expected = checksum(filled(number, nbytes, index), expected)
            self.ledger.streams += 1
            return total == expected

        await self._call(Kind.FED, call, count * nbytes)

    async def _negate(self, rng: random.Random) -> None:
        count, nbytes, pause = rng.choice((1, 4, 20)), rng.choice(STREAM_SIZES), rng.random() < 0.5

        async def call(number: int) -> bool:
            expected = 0
            async for item in self._work.negate(number, self._parts(number, count, nbytes, pause)):
                self._check_item(item, number, expected, inverted=True)
                del item
                expected += 1
            self.ledger.streams += 1
            return expected == count

        await self._call(Kind.FED, call, count * nbytes)


@asynccontextmanager
async def load_stub(path: str, ledger: Ledger, **settings: Any) -> AsyncIterator[Work]:
    """A stub of the load, whose client answers what the server asks it."""
    exposed = Answering(lambda number: ledger.returned.update((number,)))
    async with shmrpc.connect(Work, path, exposes=exposed, **PATIENT, **settings) as work:
        yield work
