"""Metadata that is huge, of the wrong types, or comes twice."""

import pytest
from hostile_stage import ADD, Act, Scene, against_client, against_server, case, encode
from raw_channel import FAILURE, HAS_METADATA, IN_BLOCK, INITIAL_METADATA, REPLY, REQUEST

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

TOWER = b"\x91" * 5000
MOST = 64 * 1024


def _request(payload: bytes) -> Act:
    def act(scene: Scene) -> None:
        scene.channel.send(REQUEST, payload, flags=HAS_METADATA, method=ADD, call_id=2)

    return act


def _in_a_block(kind: int, payload: bytes, flags: int) -> Act:
    def act(scene: Scene) -> None:
        scene.channel.put(0, payload)
        reference = encode((0, 1, len(payload)))
        scene.channel.send(kind, reference, flags=flags | IN_BLOCK, method=ADD, call_id=scene.call_id)

    return act


def _metadata(*values: object) -> Act:
    return _request(encode(values))


_OVER = f"the limit is {MOST}"
_UNREADABLE = "the metadata of call 2 cannot be decoded"


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("none at all", _metadata(), _UNREADABLE),
        case("nothing", _request(b""), _UNREADABLE),
        case("noise", _request(b"\xc1"), _UNREADABLE),
        case("a tower", _request(TOWER), _UNREADABLE),
        case("a tower in it", _request(b"\x92\x81\xa1a" + TOWER), _UNREADABLE),
        case("a map in it", _metadata({"a": {"b": "c"}}, b""), "'a' is neither text nor bytes"),
        case("a word", _metadata("a", b""), _UNREADABLE),
        case("keys that are numbers", _metadata({1: "a"}, b""), _UNREADABLE),
        case("keys that are bytes", _metadata({b"a": "a"}, b""), _UNREADABLE),
        case("values that are numbers", _metadata({"a": 1}, b""), "'a' is neither text nor bytes"),
        case("values that are nothing", _metadata({"a": None}, b""), "'a' is neither text nor bytes"),
        case("a text that is none", _request(b"\x92\x81\xa1a\xa2\xff\xfe\xc4\0"), _UNREADABLE),
        case("a payload that is none", _metadata({}, 7), _UNREADABLE),
        case("too much", _in_a_block(REQUEST, encode(({"a": "x" * MOST}, b"\x91\1")), HAS_METADATA), _OVER),
        case(
            "too many",
            _in_a_block(REQUEST, encode(({str(n): "" for n in range(20_000)}, b"\x91\1")), HAS_METADATA),
            _OVER,
        ),
    ],
)
async def test_a_server_cuts_after_metadata_that_is(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


def _ahead(payload: bytes) -> Act:
    return lambda scene: scene.channel.send(INITIAL_METADATA, payload, call_id=scene.call_id)


def _at_the_end(payload: bytes, kind: int = REPLY) -> Act:
    return lambda scene: scene.channel.send(kind, payload, call_id=scene.call_id, flags=HAS_METADATA)


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("of noise", _ahead(b"\xc1"), _UNREADABLE),
        case("of nothing", _ahead(b""), _UNREADABLE),
        case("of a tower", _ahead(TOWER), _UNREADABLE),
        case("of numbers", _ahead(encode({"a": 1})), "'a' is neither text nor bytes"),
        case("of a list", _ahead(encode(["a"])), _UNREADABLE),
        case("too large", _in_a_block(INITIAL_METADATA, encode({"a": "x" * MOST}), 0), _OVER),
        case("of noise at the end", _at_the_end(b"\xc1"), "the metadata of the end of call 2 cannot be decoded"),
        case("of a tower at the end", _at_the_end(TOWER), "the metadata of the end of call 2 cannot be decoded"),
        case("of a tower at a failure", _at_the_end(TOWER, FAILURE), "the metadata of the end of call 2 cannot be"),
        case("too large at the end", _in_a_block(REPLY, encode(({"a": "x" * MOST}, b"\1")), HAS_METADATA), _OVER),
    ],
)
async def test_a_client_cuts_after_metadata(path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


async def test_metadata_ahead_that_comes_twice_is_what_came_last(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        reply = shmrpc.Reply()
        call, call_id = await scene.call(shmrpc.options(scene.life, reply=reply).add(1))
        for value in ("first", "second"):
            scene.channel.send(INITIAL_METADATA, encode({"a": value}), call_id=call_id)
        scene.channel.send(REPLY, encode(2), call_id=call_id)
        assert await call == 2
        assert reply.initial_metadata == {"a": "second"}
        await scene.must_go_on()


async def test_metadata_that_nobody_asked_for_is_dropped(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        for number in range(1000):
            scene.channel.send(INITIAL_METADATA, encode({str(number): "x"}), call_id=call_id)
        scene.channel.send(REPLY, encode(({"a": "b"}, encode(2))), call_id=call_id, flags=HAS_METADATA)
        assert await call == 2
        await scene.must_go_on()
