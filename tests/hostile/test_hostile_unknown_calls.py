"""Ends, cancels and metadata of calls that are not under way: the connection is cut."""

import pytest
from hostile_stage import Act, Scene, against_client, against_server, case, encode
from raw_channel import (
    ARGUMENTS,
    CANCEL,
    END_OF_ARGUMENTS,
    FAILURE,
    HAS_METADATA,
    INITIAL_METADATA,
    REPLY,
    RESULT_CREDIT,
    RESULTS,
)

pytestmark = pytest.mark.counted("bad inputs tried")

FAR = (1 << 64) - 1


def _of(kind: int, payload: bytes = b"", *, ahead: int = 0, call_id: int | None = None, flags: int = 0) -> Act:
    def act(scene: Scene) -> None:
        about = scene.call_id + ahead if call_id is None else call_id
        scene.channel.send(kind, payload, call_id=about, flags=flags)

    return act


def _twice(act: Act) -> Act:
    def acts(scene: Scene) -> None:
        act(scene)
        act(scene)

    return acts


_NO = encode((2, "no"))
_NO_METADATA = encode(({}, _NO))


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("a reply to nothing", _of(REPLY, ahead=1), "ended call 3, which is not under way"),
        case("a reply to call 0", _of(REPLY, call_id=0), "ended call 0, which is not under way"),
        case("a reply to the last call", _of(REPLY, call_id=FAR), f"ended call {FAR}, which is not under way"),
        case("a reply to an ended call", _of(REPLY, ahead=-1), "ended call 1, which is not under way"),
        case("a failure of nothing", _of(FAILURE, _NO, ahead=1), "ended call 3, which is not under way"),
        case(
            "a failure of nothing with metadata",
            _of(FAILURE, _NO_METADATA, ahead=1, flags=HAS_METADATA),
            "ended call 3, which is not under way",
        ),
        case("metadata of nothing", _of(INITIAL_METADATA, encode({}), ahead=1), "metadata of call 3, which is not"),
        case("metadata of an ended call", _of(INITIAL_METADATA, encode({}), ahead=-1), "metadata of call 1, which is"),
        case("results of nothing", _of(RESULTS, ahead=1), "sent items of call 3, which is not under way"),
    ],
)
async def test_a_client_cuts_after(path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_client(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


async def test_a_client_cuts_after_a_second_end_that_comes_with_the_first(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog) as scene:
        call, call_id = await scene.call(scene.life.add(1))
        channel = scene.channel
        channel.write(REPLY, encode(2), call_id=call_id)
        tail = channel.tail + 24 + 8
        channel.tail = tail
        channel.publish(channel.write(REPLY, encode(3), call_id=call_id))
        await scene.must_be_cut(f"ended call {call_id}, which is not under way")
        assert await call == 2


@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("a cancel", _of(CANCEL), "cancelled call 2, which it never began"),
        case("a cancel of the last call", _of(CANCEL, call_id=FAR), f"cancelled call {FAR}, which it never began"),
        case("items", _of(ARGUMENTS), "sent items of call 2, which it never began"),
        case("an end of items", _of(END_OF_ARGUMENTS), "the end of the items of call 2, which it never began"),
        case("credit", _of(RESULT_CREDIT, encode((0, 0))), "gave credit for call 2, which it never began"),
    ],
)
async def test_a_server_cuts_after_what_is_of_a_call_that_never_was(
    path: str, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


@pytest.mark.parametrize("act", [_of(CANCEL, ahead=-1), _twice(_of(CANCEL, call_id=1)), _of(CANCEL, call_id=0)])
async def test_a_cancel_of_a_call_that_has_ended_means_nothing(
    path: str, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_server(path, caplog) as scene:
        act(scene)
        await scene.must_go_on()
