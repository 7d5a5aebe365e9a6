"""The client's half of the handshake, against servers that keep to the specification; the others are in `hostile`."""

from typing import Any

import msgspec
import pytest
from life_api import METHODS, Life
from raw_channel import REPLY, REQUEST
from raw_peer import RawServer, frame_of, hung_up, raw_listener, send_with_fds

import shmrpc


async def refusal(path: str, error: type[shmrpc.RpcError] = shmrpc.HandshakeError, **settings: Any) -> str:
    """What a client says that tries to connect; it must have let go of everything."""
    with pytest.raises(error) as caught:
        async with shmrpc.connect(Life, path, **settings):
            raise AssertionError("connected")
    assert type(caught.value) is error
    return str(caught.value)


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
