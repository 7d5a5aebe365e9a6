"""Records of a kind that nobody knows, or that only the other side may send: the connection is cut."""

import pytest
from hostile_stage import Act, Open, Scene, against_client, against_server, case, encode, record, sides
from raw_channel import (
    ARGUMENT_CREDIT,
    ARGUMENTS,
    CANCEL,
    END_OF_ARGUMENTS,
    FAILURE,
    GOAWAY,
    IN_BLOCK,
    INITIAL_METADATA,
    REPLY,
    REQUEST,
    RESULT_CREDIT,
    RESULTS,
)

pytestmark = pytest.mark.counted("bad inputs tried")

_UNKNOWN = "the peer sent a record of a kind that this side does not take"


@sides
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("nobody knows", record(kind=99), _UNKNOWN),
        case("is the last one", record(kind=127), _UNKNOWN),
        case("is behind the last one", record(kind=128), "sent a record of kind 128, the highest is 127"),
        case("is the last byte", record(kind=255), "sent a record of kind 255, the highest is 127"),
        case("nobody knows in a block", record(kind=99, payload=encode((0, 1, 1)), flags=IN_BLOCK), _UNKNOWN),
    ],
)
async def test_the_connection_is_cut_after_a_record_whose_kind(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


def _kinds(**kinds: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds.values(), ids=kinds)


async def _must_cut(open_stage: Open, path: str, kind: int, caplog: pytest.LogCaptureFixture) -> None:
    async with open_stage(path, caplog) as scene:
        _send(scene, kind)
        await scene.must_be_cut(_UNKNOWN)


def _send(scene: Scene, kind: int) -> None:
    scene.channel.send(kind, encode((0, 0)), call_id=scene.call_id)


@_kinds(
    reply=REPLY,
    failure=FAILURE,
    goodbye=GOAWAY,
    results=RESULTS,
    argument_credit=ARGUMENT_CREDIT,
    metadata=INITIAL_METADATA,
)
async def test_a_server_takes_no(path: str, kind: int, caplog: pytest.LogCaptureFixture) -> None:
    await _must_cut(against_server, path, kind, caplog)


@_kinds(
    request=REQUEST,
    cancel=CANCEL,
    arguments=ARGUMENTS,
    end_of_arguments=END_OF_ARGUMENTS,
    result_credit=RESULT_CREDIT,
)
async def test_a_client_takes_no(path: str, kind: int, caplog: pytest.LogCaptureFixture) -> None:
    await _must_cut(against_client, path, kind, caplog)
