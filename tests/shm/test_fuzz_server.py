"""A real server and a client whose records are nearly right, thousands of them: calls are refused or connections are cut.

Nothing else may happen: no error that is nobody's, none that is blamed on a handler, nothing kept, nobody else disturbed.
The run is repeated with ``SHMRPC_SEED``.
"""

import asyncio
import logging

import msgspec
import pytest
from figures import Figures
from fuzz_api import METHODS, Fuzzed, Fuzzing
from fuzz_inputs import Changes, Sent, conversations, sent_back, soon
from life_waiting import until
from native_builds import chosen_seed
from raw_channel import FAILURE, HAS_BUFFERS, HAS_METADATA, HEAD, REQUEST, RawChannel, references_of
from raw_peer import RawClient

import shmrpc

INPUTS = 3000
LONG_INPUTS = 50_000
MOST_ON_ONE = 200
"""Records on one connection, which may well survive them all."""
AT_ONCE = 8
VALID = 0.6
"""How many records are sent as they should be: what comes later finds calls and streams under way."""
ALLOWED = {
    shmrpc.Code.INVALID_ARGUMENT,
    shmrpc.Code.UNIMPLEMENTED,
    shmrpc.Code.DEADLINE_EXCEEDED,
    shmrpc.Code.CANCELLED,
}
"""How a call of a strange request may end, if not well."""


class Fuzzer:
    """Sends records over one connection after the other."""

    def __init__(self, path: str, seed: int) -> None:
        self.path = path
        self.changes = Changes(seed)
        self.valid = conversations(METHODS)
        self.sent = 0
        self.last = 0
        """The highest call id of this connection."""
        self.codes: list[tuple[int, str]] = []

    async def run(self, inputs: int) -> None:
        """Sends so many."""
        while self.sent < inputs:
            async with RawClient(self.path) as client:
                channel = await client.shake_hands(stream_window=[8, 100_000])
                await self._play(client, channel)

    async def _play(self, client: RawClient, channel: RawChannel) -> None:
        self.last = 0
        for _ in range(MOST_ON_ONE // AT_ONCE):
            records: list[Sent] = []
            while len(records) < AT_ONCE:
                records += self.changes.random.choice(self.valid)
            for record in records:
                right = self.changes.random.random() < VALID
                self._send(channel, record if right else self.changes.record(record))
            await self._answered(client, channel)
            if _hung_up(client):
                return

    def _send(self, channel: RawChannel, record: Sent) -> None:
        call_id = self.last + record.call + (record.kind == REQUEST)
        words = {"flags": record.flags, "method": record.method, "deadline_ns": record.deadline_ns}
        channel.send(record.kind, record.payload[:8192], call_id=call_id % (1 << 64), **words)
        self.sent += 1
        if record.kind == REQUEST:
            self.last = max(self.last, call_id)

    async def _answered(self, client: RawClient, channel: RawChannel) -> None:
        """Waits until the server has taken what was sent, or hung up, and takes what it says."""
        await soon(lambda: channel.far_word(HEAD) == channel.tail or _hung_up(client), "the records to be taken")
        for _ in range(3):
            while (answer := channel.take()) is not None:
                if answer.flags & HAS_BUFFERS:  # lent memory goes back in a request, and is released behind it
                    back = sent_back(references_of(answer.payload)[0], METHODS.index("size_of_bytes"))
                    self._send(channel, back if self.changes.random.random() < VALID else self.changes.record(back))
                channel.give_back(answer)
                if answer.kind == FAILURE:
                    payload = answer.payload
                    if answer.flags & HAS_METADATA:
                        payload = msgspec.msgpack.decode(payload)[1]
                    code, text, *_ = msgspec.msgpack.decode(payload)
                    self.codes.append((code, text))
            await asyncio.sleep(0)


def _hung_up(client: RawClient) -> bool:
    try:
        return not client.sock.recv(65536)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
async def test_strange_records_are_refused_or_cut_the_connection(
    path: str, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    seed = chosen_seed()
    inputs = LONG_INPUTS if figures.long else INPUTS
    fuzzer = Fuzzer(path, seed)
    caplog.set_level(logging.WARNING)
    async with shmrpc.Server(Fuzzing(), at=path) as server, shmrpc.connect(Fuzzed, path) as bystander:
        await fuzzer.run(inputs)
        await until(lambda: server.connections == 1, "the others to be gone")
        assert await bystander.add(20, 22) == 42
        assert [number async for number in bystander.count(3)] == [0, 1, 2]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    cuts = [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]
    assert not errors, f"with SHMRPC_SEED={seed}"
    assert not [text for text in cuts if "failed" in text], f"with SHMRPC_SEED={seed}"
    assert not [failure for failure in fuzzer.codes if failure[0] not in ALLOWED], f"with SHMRPC_SEED={seed}"
    assert len(cuts) > inputs // MOST_ON_ONE
    assert len(fuzzer.codes) > inputs // 50
    figures.add("fuzz executions", fuzzer.sent)
