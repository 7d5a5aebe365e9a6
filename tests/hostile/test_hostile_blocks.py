"""References to blocks that lie outside of the sender's memory, or are none: the connection is cut."""

import pytest
from hostile_stage import ADD, ECHO, Act, Open, Scene, against_server, case, decode, encode, record, sides
from raw_channel import GRANULE, IN_BLOCK, RELEASE_HEAD, RELEASE_TAIL, REQUEST

pytestmark = pytest.mark.counted("bad inputs tried")


def _block(*reference: object, raw: bytes | None = None) -> Act:
    return record(encode(reference) if raw is None else raw, flags=IN_BLOCK)


def _release_head(scene: Scene) -> None:
    scene.channel.set_word(RELEASE_HEAD, 1000)
    _block(0, 1, 1)(scene)


_OUTSIDE = "is outside of the peer's slab"
_UNREADABLE = "block reference cannot be decoded"


@sides
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("that is none", _block(raw=b"\xc1"), _UNREADABLE),
        case("that is empty", _block(raw=b""), _UNREADABLE),
        case("of words", _block("a", "b", "c"), _UNREADABLE),
        case("of fractions", _block(0.5, 1.0, 1.0), _UNREADABLE),
        case("of two", _block(0, 1), _UNREADABLE),
        case("of four", _block(0, 1, 2, 3), _UNREADABLE),
        case("by name", _block(raw=encode({"number": 0, "generation": 1, "nbytes": 1})), _UNREADABLE),
        case("in a tower", _block(raw=b"\x91" * 5000), _UNREADABLE),
        case("behind the slab", _block(360, 1, 1), _OUTSIDE),
        case("that ends behind the slab", _block(359, 1, GRANULE + 1), _OUTSIDE),
        case("before the slab", _block(-1, 1, 1), _OUTSIDE),
        case("of a negative size", _block(0, 1, -1), _OUTSIDE),
        case("of any size", _block(0, 1, 1 << 62), _OUTSIDE),
        case("of the largest size", _block(0, 1, (1 << 64) - 1), _OUTSIDE),
        case("to the last granule of all", _block((1 << 32) - 1, 1, 1), _OUTSIDE),
        case("anywhere", _block((1 << 64) - 1, 1, 1), "refers to extent 4294967295, which it never attached"),
        case("to an extent", _block(5 << 32, 1, 1), "refers to extent 5, which it never attached"),
        case("that cannot be named back", _block(0, -1, 1), "block 0 cannot be released"),
        case("when releases are read from far ahead", _release_head, "block 0 cannot be released"),
    ],
)
async def test_the_connection_is_cut_after_a_reference(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


async def test_a_block_that_is_named_again_and_again_cuts_the_connection(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A small peer could have large blocks copied without end."""
    async with against_server(path, caplog) as scene:
        for call_id in range(2, 50):
            whole_slab = encode((0, 1, 360 * 1024))
            scene.channel.send(REQUEST, whole_slab, flags=IN_BLOCK, method=ADD, call_id=call_id)
        await scene.must_be_cut("names a block again before that has come home")


async def test_a_block_in_the_clients_slab_may_be_sent_twice(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The block is the client's own: that it comes home twice is for the client to mind."""
    async with against_server(path, caplog) as scene:
        payload = encode((b"x" * 100,))
        scene.channel.put(0, payload)
        for call_id in (2, 3):
            reference = encode((0, 7, len(payload)))
            scene.channel.send(REQUEST, reference, flags=IN_BLOCK, method=ECHO, call_id=call_id)
            assert decode((await scene.channel.receive()).payload) == b"x" * 100
        assert scene.channel.far_word(RELEASE_TAIL) == 2
        await scene.must_go_on()
