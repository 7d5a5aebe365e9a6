"""A real client and a server whose answers are nearly right, thousands of them: each call ends, well or with a known error.

Nothing else may happen, as in `test_fuzz_server`. The run is repeated with ``SHMRPC_SEED``.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from figures import Figures
from fuzz_api import Bytes, Fuzzed
from fuzz_inputs import Changes, Sent, answers, encode, inline_array, soon
from native_builds import chosen_seed
from raw_channel import HEAD, REPLY, REQUEST, RawChannel
from raw_peer import RawServer, raw_listener

import shmrpc

INPUTS = 800
LONG_INPUTS = 8_000
MOST_ON_ONE = 200
VALID = 0.4


async def _no_arrays() -> AsyncIterator[Bytes]:
    return
    yield np.zeros(1, np.uint8)


async def _all(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


CALLS: dict[str, Callable[[Fuzzed], Coroutine[Any, Any, object]]] = {
    "add": lambda stub: stub.add(1, 2),
    "array": lambda stub: stub.array(20),
    "any_value": lambda stub: stub.any_value(),
    "count": lambda stub: _all(stub.count(5)),
    "turn": lambda stub: _all(stub.turn(_no_arrays())),
}
TYPES: dict[str, type] = {"add": float, "array": np.ndarray, "any_value": object, "count": list, "turn": list}
GOOD_END: dict[str, bytes] = {
    "add": encode(3.0),
    "array": encode(inline_array()),
    "any_value": encode(None),
    "count": encode(None),
    "turn": encode(None),
}


class Fuzzer:
    """Answers the calls of one client after the other."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.changes = Changes(seed)
        self.sent = 0
        self.well = 0
        self.badly = 0

    async def run(self, inputs: int) -> None:
        """Sends so many answers."""
        while self.sent < inputs:
            over = asyncio.Event()
            server: list[RawServer] = []

            async def play(raw: RawServer, over: asyncio.Event = over, server: list[RawServer] = server) -> None:
                await raw.shake_hands()
                server.append(raw)
                await over.wait()

            async with raw_listener(self.path, play):
                try:
                    async with shmrpc.connect(Fuzzed, self.path, reconnect_timeout=0) as stub:
                        await self._answer(stub, server[0])
                finally:
                    over.set()

    async def _answer(self, stub: Fuzzed, server: RawServer) -> None:
        valid = answers()
        for _ in range(MOST_ON_ONE):
            name = self.changes.random.choice(list(CALLS))
            call = asyncio.ensure_future(CALLS[name](stub))
            call_id = await _request(server.channel, call)
            for _ in range(self.changes.random.choice((1, 1, 2, 4))):
                if call_id is not None and not call.done() and not _hung_up(server):
                    await self._say(server, valid[name], call_id, call)
            if not call.done() and not _hung_up(server):
                server.channel.send(REPLY, GOOD_END[name], call_id=call_id or 0)
            try:
                async with asyncio.timeout(60):
                    result = await call
                assert isinstance(result, TYPES[name])
                self.well += 1
            except shmrpc.RpcError:
                self.badly += 1
            if _hung_up(server):
                return

    async def _say(self, server: RawServer, valid: list[Sent], call_id: int, call: "asyncio.Future[object]") -> None:
        record = self.changes.random.choice(valid)
        if self.changes.random.random() > VALID:
            record = self.changes.record(record)
        words = {"flags": record.flags, "method": record.method, "deadline_ns": record.deadline_ns}
        channel = server.channel
        channel.send(record.kind, record.payload[:8192], call_id=(call_id + record.call) % (1 << 64), **words)
        self.sent += 1
        await soon(lambda: channel.far_word(HEAD) == channel.tail or _hung_up(server), "the record to be taken")
        await asyncio.sleep(0)


async def _request(channel: RawChannel, call: "asyncio.Future[object]") -> int | None:
    """The id of the call that begins next; None: it ended before."""
    found: list[int] = []

    def taken() -> bool:
        while (record := channel.take()) is not None:
            channel.give_back(record)
            if record.kind == REQUEST:
                found.append(record.call_id)
        return bool(found) or call.done()

    await soon(taken, "the request")
    return found[0] if found else None


def _hung_up(server: RawServer) -> bool:
    try:
        return not server.sock.recv(65536)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
async def test_strange_answers_end_their_call_or_cut_the_connection(
    path: str, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    seed = chosen_seed()
    inputs = LONG_INPUTS if figures.long else INPUTS
    fuzzer = Fuzzer(path, seed)
    caplog.set_level(logging.WARNING)
    await fuzzer.run(inputs)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    cuts = [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]
    assert not errors, f"with SHMRPC_SEED={seed}"
    assert not [text for text in cuts if "failed" in text], f"with SHMRPC_SEED={seed}"
    assert len(cuts) > inputs // MOST_ON_ONE
    assert fuzzer.well > inputs // 20
    assert fuzzer.badly > inputs // 20
    figures.add("fuzz executions", fuzzer.sent)
