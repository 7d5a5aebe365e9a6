"""Handshakes and control messages that are nearly right, hundreds of them: refused in words, or the connection is cut.

Nothing else may happen, as in `test_fuzz_server`. The run is repeated with ``SHMRPC_SEED``.
"""

import asyncio
import logging
import os
import socket
import struct
from contextlib import suppress
from typing import Any, Final

import pytest
from figures import Figures
from fuzz_api import Fuzzed, Fuzzing
from fuzz_inputs import Changes, encode
from life_waiting import until
from native_builds import chosen_seed
from raw_channel import extent
from raw_peer import RawClient, RawServer, frame_of, raw_listener, receive_frame, send_with_fds

import shmrpc

INPUTS: Final = 250
LONG_INPUTS: Final = 1_500
MIB: Final = 1 << 20
WRONG: Final[tuple[Any, ...]] = (
    None,
    True,
    -1,
    0,
    1,
    1 << 31,
    (1 << 63) - 1,
    (1 << 64) - 1,
    0.5,
    "",
    "memfd",
    b"",
    [],
    {},
    [1],
    [[[1]]],
)
OFFERED: Final = [{"name": "Other", "digest": b"x" * 16, "first_method": 0, "signatures": []}]


class Frames:
    """Makes frames wrong: a field, a field of a field, or the bytes."""

    def __init__(self, seed: int) -> None:
        self.changes = Changes(seed)
        self.random = self.changes.random
        self.sent = 0

    def wrong(self, message: dict[str, Any]) -> bytes:
        """A frame of a message with a change."""
        self.sent += 1
        changed = dict(message)
        if self.random.random() < 0.6:
            self._change(changed)
        if self.random.random() < 0.4:
            body = self.changes.bytes(encode(changed))
            length = len(body) if self.random.random() < 0.9 else self.changes.number(32)
            return struct.pack("<4sI", b"SHMR", length) + body
        frame = frame_of(changed)
        return frame if self.random.random() < 0.95 else self.changes.bytes(frame)

    def _change(self, message: dict[str, Any]) -> None:
        name = self.random.choice(list(message))
        value = message[name]
        if isinstance(value, dict) and self.random.random() < 0.8:
            inner = message[name] = dict(value)
            self._change(inner)
        elif self.random.random() < 0.1:
            del message[name]
        elif isinstance(value, int) and self.random.random() < 0.5:
            message[name] = self.changes.number(self.random.choice((8, 16, 20, 32, 64)))
        else:
            message[name] = self.random.choice(WRONG)

    def fds(self, right: list[int]) -> list[int]:
        """The fds that go with it, which are not always the right ones."""
        which = self.random.random()
        if which < 0.8:
            return right
        return self.random.choice(([], right[:1], right[::-1], right * 2, [right[-1]] * 2))


async def _until_hung_up(sock: socket.socket) -> None:
    """Takes what the other side says until its end, and closes the fds that come with it."""
    with suppress(ConnectionResetError):
        while True:
            _, fds = await receive_frame(sock)
            for fd in fds:
                os.close(fd)


def _judge(caplog: pytest.LogCaptureFixture, seed: int, *allowed: str) -> list[str]:
    """What was logged, which must be no error and must all be of the kinds that are allowed."""
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not errors, f"with SHMRPC_SEED={seed}"
    assert not [text for text in texts if not any(word in text for word in allowed)], f"with SHMRPC_SEED={seed}"
    return texts


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
async def test_a_strange_hello_is_refused_or_makes_a_session(
    path: str, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    seed = chosen_seed()
    frames = Frames(seed)
    accepted = 0
    async with shmrpc.Server(Fuzzing(), at=path) as server, shmrpc.connect(Fuzzed, path) as bystander:
        for _ in range(LONG_INPUTS if figures.long else INPUTS):
            async with RawClient(path) as client:
                hello = client.hello(stream_window=[8, 1000], exposed=OFFERED, max_in_flight=8)
                send_with_fds(client.sock, frames.wrong(hello), frames.fds(client.half.fds))
                client.sock.shutdown(socket.SHUT_WR)  # nothing more comes, should it have said so
                with suppress(ConnectionResetError):
                    answer, fds = await receive_frame(client.sock)
                    accepted += answer["type"] == "welcome"
                    for fd in fds:
                        os.close(fd)
        await until(lambda: server.connections == 1, "the others to be gone")
        assert await bystander.add(20, 22) == 42
    refused = [text for text in _judge(caplog, seed, "was refused at", "was cut: ") if "was refused at" in text]
    assert accepted > frames.sent // 50
    assert len(refused) > frames.sent // 4
    figures.add("fuzz executions", frames.sent)


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
async def test_a_strange_welcome_is_a_handshake_error_or_makes_a_session(
    path: str, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    seed = chosen_seed()
    frames = Frames(seed)
    outcomes: list[str] = []

    async def play(raw: RawServer) -> None:
        await raw.receive_hello()
        message: dict[str, Any] = raw.welcome(stream_window=[8, 1000])
        if frames.random.random() < 0.1:
            message = {"type": "rejection", "code": "contract", "message": "no"}
        send_with_fds(raw.sock, frames.wrong(message), frames.fds(raw.half.fds))
        raw.sock.shutdown(socket.SHUT_WR)
        await _until_hung_up(raw.sock)

    for _ in range(LONG_INPUTS if figures.long else INPUTS):
        async with raw_listener(path, play):
            try:
                async with shmrpc.connect(Fuzzed, path, reconnect_timeout=0):
                    outcomes.append("connected")
            except shmrpc.HandshakeError:
                outcomes.append("refused")
            except shmrpc.Unavailable:  # it hung up in the handshake, or the control message that followed was none
                outcomes.append("lost")
    _judge(caplog, seed, "was cut: ")
    assert outcomes.count("connected") > frames.sent // 50
    assert outcomes.count("refused") > frames.sent // 4
    figures.add("fuzz executions", frames.sent)


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
async def test_a_strange_control_message_is_heard_or_cuts_the_connection(
    path: str, figures: Figures, caplog: pytest.LogCaptureFixture
) -> None:
    seed = chosen_seed()
    frames = Frames(seed)
    wanted = LONG_INPUTS if figures.long else INPUTS
    async with shmrpc.Server(Fuzzing(), at=path) as server, shmrpc.connect(Fuzzed, path) as bystander:
        while frames.sent < wanted:
            async with RawClient(path) as client:
                await client.shake_hands()
                fd = extent(MIB)
                client.half.spare.append(fd)
                for number in range(1, 20):
                    attach = {"type": "attach", "extent": number, "nbytes": MIB, "kind": "memfd"}
                    detach = {"type": "detach", "extent": frames.random.randrange(1, number + 1)}
                    right = frames.random.random() < 0.5
                    for message, fds in ((attach, [fd]), (detach, [])):
                        try:
                            if right:
                                send_with_fds(client.sock, frame_of(message), fds)
                            else:
                                send_with_fds(client.sock, frames.wrong(message), frames.fds(fds) if fds else fds)
                        except (BrokenPipeError, ConnectionResetError):
                            break
                    await asyncio.sleep(0)
                client.sock.shutdown(socket.SHUT_WR)
                await _until_hung_up(client.sock)
        await until(lambda: server.connections == 1, "the others to be gone")
        assert await bystander.add(20, 22) == 42
    assert len(_judge(caplog, seed, "was cut: ")) > frames.sent // 40
    figures.add("fuzz executions", frames.sent)
