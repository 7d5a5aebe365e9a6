"""Words of a handshake that are no words, or ask for what nobody can give: it is refused."""

from typing import Any

import pytest
from hostile_halves import Refuse, Spoil, case, declares, victims
from hostile_stage import bystander
from life_api import Life
from raw_peer import RawClient, RawServer, hung_up, raw_listener

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")


def _not_understood(name: str, *values: object, **named: object) -> list[Any]:
    why = f"cannot be understood: .*{name}"
    said = {repr(value): value for value in values} | named
    return [case(f"{name} of {text}", declares(**{name: value}), why) for text, value in said.items()]


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        *_not_understood("max_message", -1, 0, 1023, None, "many", 1.5),
        *_not_understood("max_extent_bytes", -1, None, "many"),
        *_not_understood("features", 7, None, [7], "json"),
        *_not_understood("segment", "paper", None, 7),
        *_not_understood("doorbell", "gong", None, 7),
        *_not_understood(
            "stream_window", [0, 1], [1, 0], [-1, 1], [1], [1, 1, 1], 5, ["many", "more"], [1.5, 1], None, {}
        ),
    ],
)
async def test_a_peer_is_refused_that_says(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


_TOWER = 400
_WIDE: list[Any] = [{"name": "x"}] * 1000


def _tower() -> list[Any]:
    tower: list[Any] = ["int"]
    for _ in range(_TOWER):
        tower = ["list", tower]
    return tower


def _exposes(**changes: object) -> dict[str, object]:
    return {"exposed": [{"name": "Life", "digest": b"", "first_method": 0, "signatures": []} | changes]}


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": -5}, "max_in_flight"),
        ({"max_in_flight": "many"}, "max_in_flight"),
        ({"wanted": 7}, "wanted"),
        ({"wanted": [7]}, "wanted"),
        ({"wanted": [{"name": 7, "digest": b""}]}, "wanted"),
        ({"wanted": [{"name": "Life", "digest": "text"}]}, "wanted"),
        ({"exposed": 7}, "exposed"),
        (_exposes(first_method=-1), "exposed"),
        (_exposes(first_method=1 << 16), "exposed"),
        (_exposes(signatures=_WIDE), "exposed"),
        (_exposes(digest=7), "exposed"),
    ],
)
async def test_a_client_is_refused_that_says(path: str, hello: dict[str, object], why: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(**hello)
        assert answer["type"] == "rejection"
        assert "cannot be understood: " in answer["message"]
        assert why in answer["message"]
        await hung_up(peer.sock)


@pytest.mark.parametrize(
    ("welcome", "why"),
    [
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": -5}, "max_in_flight"),
        ({"max_in_flight": "many"}, "max_in_flight"),
        ({"offered": 7}, "offered"),
        ({"offered": [7]}, "offered"),
        ({"offered": None}, "offered"),
    ],
)
async def test_a_server_is_refused_that_says(path: str, welcome: dict[str, object], why: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(**welcome)
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match=f"cannot be understood: .*{why}"):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")


async def test_a_client_cannot_have_the_same_service_described_many_times(path: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(wanted=[{"name": "Life", "digest": b"?"}] * 1000)
        assert [service["name"] for service in answer["offered"]] == ["Life"]


async def test_a_service_that_is_not_there_is_refused_with_those_that_are(path: str) -> None:
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(wanted=[{"name": "Death", "digest": b""}])
        assert answer["code"] == "contract"
        assert answer["message"] == f"there is no service Death at {path}; there is Life"
        await hung_up(peer.sock)
