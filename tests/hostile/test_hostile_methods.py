"""Numbers of methods that are not there: the call is refused, and nothing else happens."""

from typing import Any

import pytest
from hostile_stage import ADD, against_server, bystander, decode, encode
from life_api import METHODS, Life
from raw_channel import AS_JSON, FAILURE, HAS_METADATA, REPLY, REQUEST
from raw_peer import RawServer, hung_up, raw_listener

import shmrpc
from shmrpc import Code, contract

pytestmark = pytest.mark.counted("bad inputs tried")

BUILT_IN = len(contract.read(shmrpc.Introspection).methods)
FIRST_FREE = len(METHODS) + BUILT_IN


@pytest.mark.parametrize("number", [FIRST_FREE, 1000, 32_768, 65_535])
@pytest.mark.parametrize("flags", [0, AS_JSON, HAS_METADATA, 0xE0], ids=["plain", "JSON", "metadata", "unknown flags"])
async def test_a_server_refuses_the_number(
    path: str, number: int, flags: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, b"\xc1", call_id=2, method=number, flags=flags)
        answer = await scene.channel.receive()
        assert (answer.kind, answer.call_id) == (FAILURE, 2)
        code, text, *_, maybe_executed = decode(answer.payload)
        assert (code, text, maybe_executed) == (Code.UNIMPLEMENTED, f"there is no method number {number} here", False)
        await scene.must_go_on()


async def test_flags_that_nobody_knows_change_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, encode((40, 2)), call_id=2, method=ADD, flags=0xE0)
        answer = await scene.channel.receive()
        assert (answer.kind, decode(answer.payload)) == (REPLY, 42)
        await scene.must_go_on()


# A server that gives numbers which no record can carry


async def _refusal(path: str, offered: Any) -> str:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(offered=offered(server))
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
    return str(caught.value)


def _from(first: object) -> Any:
    return lambda server: [{**server.hello["wanted"][0], "first_method": first, "signatures": []}]


@pytest.mark.parametrize("number", [-1, 1 << 16, 1 << 62, (1 << 64) - 1, 0.5, "0", None])
async def test_a_client_refuses_a_first_number(path: str, number: object) -> None:
    assert "first_method" in await _refusal(path, _from(number))


async def test_a_client_refuses_numbers_that_run_over(path: str) -> None:
    """The first one fits in a record, and the last one does not."""
    last = 65_535 - len(METHODS) + 2
    text = await _refusal(path, _from(last))
    assert f"{METHODS[-1]}: its number is 65536, the highest is 65535" in text
    assert METHODS[-2] not in text
