"""Calls in JSON, as the command line makes them, with JSON that is deep, endless or none; also of the built-in service."""

import pytest
from hostile_stage import ADD, HOLD, against_server, decode
from life_api import METHODS
from raw_channel import AS_JSON, CANCEL, FAILURE, REPLY, REQUEST, RESULTS

import shmrpc
from shmrpc import contract

pytestmark = pytest.mark.counted("bad inputs tried")


_BUILT_IN = list(contract.read(shmrpc.Introspection).methods)
CONTRACTS, WATCH = (len(METHODS) + _BUILT_IN.index(name) for name in ("contracts", "watch"))

BAD = {
    "nothing": b"",
    "a tower of arrays": b"[" * 7000,
    "a whole tower": b"[" * 3500 + b"]" * 3500,
    "a tower of objects": b'{"a":' * 1400,
    "a tower in an argument": b"[" + b"[" * 3000 + b"]" * 3000 + b"]",
    "no end": b'["' + b"x" * 7000,
    "no text": b'["\xff\xfe"]',
    "half a surrogate": b'["\\ud800"]',
    "a number without end": b"[" + b"9" * 7000 + b"]",
    "a number beyond all": b"[1e999999]",
    "not a number": b"[NaN]",
    "msgpack": b"\x91\x01",
    "too many": b"[1,1,1,1,1,1,1,1,1]",
    "an object": b'{"left":1}',
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("method", [ADD, CONTRACTS, WATCH], ids=["add", "contracts", "watch"])
@pytest.mark.parametrize("payload", BAD.values(), ids=BAD)
async def test_only_the_call_is_refused_with(
    path: str, method: int, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, payload, call_id=2, method=method, flags=AS_JSON)
        answer = await scene.channel.receive()
        assert (answer.kind, answer.call_id) == (FAILURE, 2)
        assert decode(answer.payload)[0] == shmrpc.Code.INVALID_ARGUMENT
        await scene.must_go_on()
        assert caplog.text == ""


async def test_contracts_of_services_that_are_not_there_are_none(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        for call_id in range(2, 52):
            scene.channel.send(REQUEST, b'["%d"]' % call_id, call_id=call_id, method=CONTRACTS, flags=AS_JSON)
            answer = await scene.channel.receive()
            assert (answer.kind, answer.payload) == (REPLY, b"[]")
        await scene.must_go_on()


async def test_watches_of_services_that_are_not_there_leave_nothing_when_they_end(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        for call_id in range(2, 52):
            scene.channel.send(REQUEST, b'["%d"]' % call_id, call_id=call_id, method=WATCH, flags=AS_JSON)
            answer = await scene.channel.receive()
            assert (answer.kind, answer.payload) == (RESULTS, b'"SERVICE_UNKNOWN"')
        for call_id in range(2, 52):
            scene.channel.send(CANCEL, call_id=call_id)
            assert (await scene.channel.receive()).kind == FAILURE
        await scene.must_go_on()
        assert not scene.server._dispatcher.health._waiters


async def test_a_call_in_json_is_cancelled_like_any_other(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, b"[7]", call_id=2, method=HOLD, flags=AS_JSON)
        scene.channel.send(CANCEL, call_id=2)
        answer = await scene.channel.receive()
        assert (answer.kind, decode(answer.payload)[0]) == (FAILURE, shmrpc.Code.CANCELLED)
        await scene.must_go_on()
