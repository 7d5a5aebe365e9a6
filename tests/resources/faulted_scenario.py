"""What a client does while a fault is waiting for it, or for its server: one connection, used in every way there is.

Owns the steps and what became of each: right, a typed error, or a defect.
"""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
import numpy as np
from faulted_api import Caller, Exposed, Faulted

import shmrpc
from shmrpc.client import open_stub
from shmrpc.testing import all_released

PATIENCE: Final = 40.0
"""Seconds after which something hangs."""
WORDS: Final = 100_000
"""Of 8 bytes: more than the slab of a base segment has room for."""


class Step(msgspec.Struct):
    """One step, and its end."""

    name: str
    error: str = ""
    """The class of a typed error; empty: the result was right."""
    text: str = ""
    defect: str = ""
    """What should not have happened."""


class Scenario:
    """One run, at an address."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self.steps: Final[list[Step]] = []
        self._path = path
        self._settings = {"handshake_timeout": PATIENCE, **settings}

    async def run(self) -> list[Step]:
        """Every step in its turn, whatever became of those before it."""
        connection = shmrpc.connect(
            Faulted, self._path, exposes=shmrpc.service(Exposed(), Caller), timeout=PATIENCE, **self._settings
        )
        if await self._take("connect", connection.__aenter__) is not None:
            stub: Faulted = self._result
            for step in (
                self.add,
                self.negate,
                self.count,
                self.total,
                self.ask_back,
                self.cancel,
                self.in_thread,
                self.go_idle,
            ):
                await self._take(step.__name__, lambda step=step: step(stub))  # type: ignore[misc]
            await self._take("close", lambda: connection.__aexit__(None, None, None))
        return self.steps

    async def _take(self, name: str, function: Callable[[], Awaitable[Any]]) -> Step | None:
        """The step, if it went well."""
        step = Step(name)
        self.steps.append(step)
        try:
            async with asyncio.timeout(2 * PATIENCE):
                self._result = await function()
        except shmrpc.DeadlineExceeded as error:
            step.defect = f"it hung: {error}"
        except shmrpc.RpcError as error:
            step.error, step.text = type(error).__name__, str(error)
            if len(step.text) < 10:
                step.defect = f"it says nothing: {step.text!r}"
        except Exception:
            step.defect = traceback.format_exc()
        else:
            return step
        return None

    # ---- the steps ----

    async def add(self, stub: Faulted) -> None:
        assert await stub.add(1, 2) == 3

    async def negate(self, stub: Faulted) -> None:
        words = np.arange(WORDS)
        assert np.array_equal(await stub.negate(words), -words)

    async def count(self, stub: Faulted) -> None:
        assert [number async for number in stub.count(3)] == [0, 1, 2]

    async def total(self, stub: Faulted) -> None:
        async def numbers() -> AsyncIterator[int]:
            for number in range(4):
                yield number

        assert await stub.total(numbers()) == 6

    async def ask_back(self, stub: Faulted) -> None:
        assert await stub.ask_back(21) == 42

    async def cancel(self, stub: Faulted) -> None:
        """A call that the handler has begun is given up, and the handler ends."""
        held = asyncio.ensure_future(stub.hold())
        try:
            while not (held.done() or await stub.holding()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        finally:
            held.cancel()
            await asyncio.wait((held,))
        if not held.cancelled():
            held.result()
        until = time.monotonic() + PATIENCE
        while await stub.holding():
            assert time.monotonic() < until, "the handler runs on"
            await asyncio.sleep(0.001)

    async def in_thread(self, stub: Faulted) -> None:
        assert await stub.in_thread(7) == 7
        assert [number async for number in stub.steps_in_thread(3)] == [0, 1, 2]

    async def go_idle(self, stub: Faulted) -> None:
        """All blocks come home, and the extents of both sides are detached."""
        await all_released(stub, timeout=PATIENCE)
        link: Any = open_stub(stub)[1]
        until = time.monotonic() + PATIENCE
        while (calls := link.calls) is not None:
            memory = calls.memory
            if not (memory._arena.extents or memory.borrowed._extents or memory.borrowed._lingering):
                return
            assert time.monotonic() < until, f"extents stay: {memory!r}"
            await asyncio.sleep(0.002)
