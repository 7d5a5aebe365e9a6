"""Envelopes that cannot be decoded, or are nested without end: the connection is cut, or the one call fails."""

from typing import Any

import pytest
from hostile_stage import ADD, Act, Scene, against_client, against_server, case, decode, encode
from raw_channel import FAILURE, HAS_METADATA, REPLY, REQUEST

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

TOWER = b"\x91" * 5000
MAP_TOWER = b"\x81\xa1a" * 2500
NO_END = b"\xdd\xff\xff\xff\xff"
"""An array of four billion."""
NO_MAP_END = b"\xdf\xff\xff\xff\xff"
NO_STR_END = b"\xdb\xff\xff\xff\xff"
NO_EXT_END = b"\xc9\xff\xff\xff\xff\x42"


def _failure(payload: bytes, flags: int = 0) -> Act:
    def act(scene: Scene) -> None:
        scene.channel.send(FAILURE, payload, call_id=scene.call_id, flags=flags)

    return act


_UNREADABLE = "the failure of call 2 cannot be decoded"


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("of noise", _failure(b"\xc1"), _UNREADABLE),
        case("of nothing", _failure(b""), _UNREADABLE),
        case("in words", _failure(encode(("no", 2))), _UNREADABLE),
        case("without a text", _failure(encode((2,))), _UNREADABLE),
        case("with a number for a text", _failure(encode((2, 2))), _UNREADABLE),
        case("in a tower", _failure(TOWER), _UNREADABLE),
        case("with a tower behind it", _failure(b"\x97" + encode(2) + encode("no") + TOWER), _UNREADABLE),
        case("without an end", _failure(NO_END), _UNREADABLE),
        case("with a text that is none", _failure(b"\x92\2\xa2\xff\xfe"), _UNREADABLE),
        case("with metadata that is none", _failure(TOWER, HAS_METADATA), "the metadata of the end of call 2 cannot"),
    ],
)
async def test_a_client_cuts_after_a_failure(path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


UNDECODABLE: list[Any] = [
    pytest.param(payload, id=name)
    for name, payload in {
        "nothing": b"",
        "noise": b"\xc1",
        "a tower of arrays": TOWER,
        "a tower of maps": MAP_TOWER,
        "an array without an end": NO_END,
        "a map without an end": NO_MAP_END,
        "a text without an end": NO_STR_END,
        "an extension without an end": NO_EXT_END,
        "a word": encode("seven"),
    }.items()
]


@pytest.mark.parametrize("payload", UNDECODABLE)
async def test_arguments_that_cannot_be_decoded_fail_their_call_and_no_other(
    path: str, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        scene.channel.send(REQUEST, payload, call_id=2, method=ADD)
        answer = await scene.channel.receive()
        assert (answer.kind, answer.call_id) == (FAILURE, 2)
        code, text = decode(answer.payload)[:2]
        assert code == shmrpc.Code.INVALID_ARGUMENT
        assert text.startswith("Life.add: ")
        await scene.must_go_on()


@pytest.mark.parametrize("payload", UNDECODABLE)
async def test_a_result_that_cannot_be_decoded_fails_its_call_and_no_other(
    path: str, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        scene.channel.send(REPLY, payload, call_id=call_id)
        with pytest.raises(shmrpc.Internal, match=r"Life\.add: the server's result does not fit the contract"):
            await call
        await scene.must_go_on()
