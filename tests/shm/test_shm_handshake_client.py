"""The client's half of the handshake, against servers that do not do theirs."""

import asyncio
import os
import socket
import struct
from typing import Any

import msgspec
import pytest
from bad_halves import BAD, Spoil
from life_api import METHODS, Life
from life_waiting import until
from raw_channel import REPLY, REQUEST
from raw_peer import RawServer, frame_of, hung_up, raw_listener, send_with_fds

import shmrpc


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def refusal(path: str, error: type[shmrpc.RpcError] = shmrpc.HandshakeError, **settings: Any) -> str:
    """What a client says that tries to connect; it must have let go of everything."""
    with pytest.raises(error) as caught:
        async with shmrpc.connect(Life, path, **settings):
            raise AssertionError("connected")
    assert type(caught.value) is error
    return str(caught.value)


# The peer that does it right


@pytest.mark.parametrize("doorbell", ["eventfd", "pipe"])
async def test_a_server_that_was_written_from_the_specification_is_called(path: str, doorbell: str) -> None:
    async def play(server: RawServer) -> None:
        channel = await server.shake_hands()
        for _ in range(3):
            request = await channel.receive()
            assert (request.kind, request.method) == (REQUEST, METHODS.index("add"))
            total = sum(msgspec.msgpack.decode(request.payload))
            channel.send(REPLY, msgspec.msgpack.encode(total), call_id=request.call_id)
        await hung_up(server.sock)

    async with raw_listener(path, play, doorbell=doorbell), shmrpc.connect(Life, path) as life:
        assert [await life.add(number, 5) for number in (1, 2, 3)] == [6, 7, 8]


async def test_the_hello_says_what_is_wanted(path: str) -> None:
    async def play(server: RawServer) -> None:
        hello = await server.receive_hello()
        assert hello["type"] == "hello"
        assert hello["versions"] == [1, 1]
        assert (hello["segment"], hello["doorbell"], hello["max_message"]) == ("memfd", "eventfd", 1 << 20)
        assert hello["max_extent_bytes"] == 5 << 20
        assert hello["stream_window"] == [7, 1234]
        assert [want["name"] for want in hello["wanted"]] == ["Life", "shmrpc.Introspection"]
        assert len(server.client_fds) == 2
        send_with_fds(server.sock, frame_of({"type": "rejection", "code": "refused", "message": "seen enough"}), [])
        await hung_up(server.sock)

    async with raw_listener(path, play):
        text = await refusal(path, max_message=1 << 20, max_extent_bytes=5 << 20, stream_items=7, stream_bytes=1234)
        assert text == "the server refused the connection: seen enough"


# What the server brings


@pytest.mark.parametrize(("spoil", "why"), BAD)
async def test_a_server_is_refused_that_brings(path: str, spoil: Spoil, why: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        spoil(server.half)
        server.answer()
        await hung_up(server.sock)

    async with raw_listener(path, play):
        before = open_fds()
        with pytest.raises(shmrpc.HandshakeError, match=why):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
    assert open_fds() < before  # the listener's are gone too


# What it says


def head(length: int, magic: bytes = b"SHMR") -> bytes:
    return struct.pack("<4sI", magic, length)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak shmrpc: it began with b'HTTP/1.1'"),
        (os.urandom(4096), "does not speak shmrpc"),
        (head(1 << 31), "handshake has 2147483648 bytes, the limit is 1048576"),
        (head(0), "cannot be understood"),
        (head(100_000) + b"\x91" * 100_000, "cannot be understood"),
        (frame_of({"type": "hello"}), "cannot be understood"),
        (frame_of({"type": "welcome", "version": 1}), "cannot be understood: .*missing"),
        (frame_of({"type": "rejection"}), "cannot be understood: .*code"),
    ],
    ids=["http", "noise", "too long", "empty", "a tower", "a hello", "half of it", "an empty refusal"],
)
async def test_a_server_that_talks_nonsense_is_refused(path: str, said: bytes, why: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        send_with_fds(server.sock, said, server.half.fds)
        await hung_up(server.sock)

    async with raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match=why):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


@pytest.mark.parametrize("version", [0, 2])
async def test_a_server_of_another_version_is_refused_with_both(path: str, version: int) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(version=version)
        await hung_up(server.sock)

    async with raw_listener(path, play):
        why = f"the peer speaks protocol versions {version} to {version}, this side speaks 1"
        assert await refusal(path) == why


@pytest.mark.parametrize("limit", [0, -5, "many"])
async def test_a_server_that_would_take_no_calls_is_refused(path: str, limit: object) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(max_in_flight=limit)
        await hung_up(server.sock)

    async with raw_listener(path, play):
        assert "cannot be understood" in await refusal(path)


@pytest.mark.parametrize("window", [[0, 1], [1, -1], [1], 5, "many", None])
async def test_a_server_that_would_take_nothing_of_a_stream_is_refused(path: str, window: object) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(stream_window=window)
        await hung_up(server.sock)

    async with raw_listener(path, play):
        text = await refusal(path)
        assert "cannot be understood" in text
        assert "stream_window" in text


def _tower(height: int) -> msgspec.Raw:
    """list[list[…[int]…]], which no encoder would make that high."""
    return msgspec.Raw(b"\x92\xa4list" * height + b"\x91\xa3int")


def _add(result: object = ("int",), left: object = ("int",)) -> list[dict[str, object]]:
    parameters = [{"name": "left", "type": left, "has_default": False}]
    parameters.append({"name": "right", "type": ["int"], "has_default": True})
    return [{"name": "add", "parameters": parameters, "result": result}]


NO_TYPES = [
    [],
    [{}],
    [["int"]],
    ["object"],
    ["object", "Spam", None, [1, 2]],
    ["union", 7],
    ["list"],
    ["literal", "x", 5],
    *(_tower(height) for height in (300, 450, 900, 10_000)),
]


@pytest.mark.parametrize("signatures", [*map(_add, NO_TYPES), *(_add(left=type_) for type_ in NO_TYPES), [7]])
async def test_a_contract_in_no_known_language_is_refused_and_leaves_nothing(path: str, signatures: object) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(offered=[{"name": "Life", "digest": b"?", "first_method": 0, "signatures": signatures}])
        await hung_up(server.sock)

    async with raw_listener(path, play):
        before = open_fds()
        with pytest.raises(shmrpc.HandshakeError):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
    assert open_fds() < before


async def test_a_server_that_does_not_offer_the_contract_is_refused(path: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(offered=[])
        await hung_up(server.sock)

    async with raw_listener(path, play):
        assert "did not say that it serves Life" in await refusal(path, shmrpc.ContractMismatch)


@pytest.mark.parametrize("number", [-1, 1 << 16, 1 << 62])
async def test_a_method_number_that_no_record_can_carry_is_refused(path: str, number: int) -> None:
    async def play(server: RawServer) -> None:
        want, _ = (await server.receive_hello())["wanted"]
        server.answer(offered=[{**want, "first_method": number, "signatures": []}])
        await hung_up(server.sock)

    async with raw_listener(path, play):
        assert "first_method" in await refusal(path)


# When it says it


@pytest.mark.parametrize("said", [b"", b"SHMR", head(50) + b"begun"], ids=["nothing", "half a head", "half a body"])
async def test_a_server_that_stalls_is_given_up(path: str, said: bytes) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        if said:
            send_with_fds(server.sock, said, server.half.fds)
        await hung_up(server.sock)

    async with raw_listener(path, play):
        before = open_fds()
        text = await refusal(path, handshake_timeout=0.05)
        assert text == f"the server at {path} did not finish the handshake within 0.05 s (handshake_timeout)"
    assert open_fds() < before


@pytest.mark.parametrize("said", [b"", b"SHMR", head(50) + b"begun"], ids=["nothing", "half a head", "half a body"])
async def test_a_server_that_hangs_up_is_one_that_is_not_there(path: str, said: bytes) -> None:
    """So that a client that waits, or reconnects, tries again: it may be a server that was killed in mid-handshake."""

    async def play(server: RawServer) -> None:
        await server.receive_hello()
        if said:
            send_with_fds(server.sock, said, server.half.fds)

    async with raw_listener(path, play):
        text = await refusal(path, shmrpc.ConnectFailed)
        assert text.startswith(f"the server at {path} went away in the handshake: ")


async def test_a_server_that_never_accepts_is_given_up(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert "did not finish the handshake within 0.05 s" in await refusal(path, handshake_timeout=0.05)


async def test_a_full_backlog_is_waited_for_and_then_given_up(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)  # the backlog has room for one
        text = await refusal(path, shmrpc.ConnectFailed, handshake_timeout=0.05)
        assert text == f"the server at {path} accepts no connections: its backlog is full"


async def test_a_connection_attempt_that_is_cancelled_leaves_nothing(path: str) -> None:
    waiting = asyncio.Event()

    async def play(server: RawServer) -> None:
        await server.receive_hello()
        waiting.set()
        await hung_up(server.sock)

    async with raw_listener(path, play):
        entering = asyncio.ensure_future(shmrpc.connect(Life, path).__aenter__())
        await waiting.wait()
        entering.cancel()
        await until(entering.done, "the attempt to end")
        assert entering.cancelled()
