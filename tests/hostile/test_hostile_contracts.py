"""Contracts in no known language, at a server or of services that a client exposes: refused, by those who need them."""

import msgspec
import pytest
from hostile_stage import bystander, decode, well_begun
from life_api import METHODS, Life
from raw_channel import FAILURE
from raw_peer import RawClient, RawServer, hung_up, raw_listener

import shmrpc
from shmrpc import Code

pytestmark = pytest.mark.counted("bad inputs tried")


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
SIGNATURES = [*map(_add, NO_TYPES), *(_add(left=type_) for type_ in NO_TYPES), [7]]


@pytest.mark.parametrize("signatures", SIGNATURES)
async def test_a_contract_in_no_known_language_is_refused_and_leaves_nothing(path: str, signatures: object) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(offered=[{"name": "Life", "digest": b"?", "first_method": 0, "signatures": signatures}])
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


async def test_a_server_that_does_not_offer_the_contract_is_refused(path: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(offered=[])
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.ContractMismatch, match="did not say that it serves Life"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


class Caller:
    """Calls its client back."""

    async def back(self) -> int:
        return await shmrpc.current_call().client(Life).add(1)


@pytest.mark.parametrize("signatures", SIGNATURES)
async def test_services_that_a_client_exposes_in_no_known_language_fail_the_calls_that_need_them(
    path: str, signatures: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path, Caller()), RawClient(path) as peer:
        exposed = [{"name": "Life", "digest": b"?", "first_method": 0, "signatures": signatures}]
        answer = await peer.ask(exposed=exposed)
        if answer["type"] == "rejection":
            assert "cannot be understood" in answer["message"]
            await hung_up(peer.sock)
            return
        peer.channel.request(1, len(METHODS))
        record = await peer.channel.receive()
        assert record.kind == FAILURE
        assert decode(record.payload)[0] in (Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED), decode(record.payload)
        peer.channel.request(2, 0, 40, 2)
        assert decode((await peer.channel.receive()).payload) == 42


async def test_numbers_that_run_over_fail_the_calls_that_need_them(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bystander(path, Caller()), RawClient(path) as peer:
        exposed = [{"name": "Life", "digest": b"", "first_method": 65_535, "signatures": []}]
        channel = await well_begun(peer, exposed=exposed)
        channel.request(2, len(METHODS))
        record = await channel.receive()
        assert (record.kind, record.call_id) == (FAILURE, 2)
        assert "its number is 65536, the highest is 65535" in decode(record.payload)[1]
