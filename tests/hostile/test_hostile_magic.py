"""Peers that speak something else, or a version that does not exist: the handshake is refused."""

import os
import re
from typing import Any

import pytest
from hostile_halves import Refuse, Spoil, case, head, header, memfd, says, sends, victims
from hostile_halves import doorbell as the_doorbell
from hostile_stage import bystander
from life_api import Life
from raw_peer import RawClient, RawServer, frame_of, hung_up, raw_listener

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

TOWER = b"\x91" * 100_000
SKIPPED = b"\x82\xa1x" + TOWER[:90_000] + b"\1\xa1y\1"
"""A tower in a field that nobody knows."""


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("http", says(b"GET / HTTP/1.1\r\n\r\n"), "does not speak shmrpc: it began with b'GET / HT'"),
        case("noise", says(b"\xff" + os.urandom(4095)), "does not speak shmrpc"),
        case("zeros", says(bytes(64)), "does not speak shmrpc"),
        case("almost", says(b"SHMr" + head(0)[4:]), "does not speak shmrpc"),
        case("a length without end", says(head((1 << 32) - 1)), "handshake has 4294967295 bytes, the limit is 1048576"),
        case("a length over the limit", says(head((1 << 20) + 1)), "has 1048577 bytes, the limit is 1048576"),
        case("no body", says(head(0)), "cannot be understood"),
        case("no msgpack", says(head(4) + b"\xc1\xc1\xc1\xc1"), "cannot be understood"),
        case("an array without end", says(head(5) + b"\xdd\xff\xff\xff\xff"), "cannot be understood"),
        case("a tower", says(head(len(TOWER)) + TOWER), "cannot be understood"),
        case("a tower in what is skipped", says(head(len(SKIPPED)) + SKIPPED), "cannot be understood"),
        case("a goodbye", says(frame_of({"type": "goodbye"})), "cannot be understood"),
        case("nothing but its type", says(frame_of({"type": "hello"})), "cannot be understood"),
        case("half a welcome", says(frame_of({"type": "welcome", "version": 1})), "cannot be understood"),
        case("a refusal without a reason", says(frame_of({"type": "rejection"})), "cannot be understood"),
        case("a number", says(frame_of(7)), "cannot be understood"),  # type: ignore[arg-type]
        case("a segment of zeros", sends(memfd(header=bytes(80)), the_doorbell), "begins with b'.x00"),
        case(
            "a segment of another kind", sends(memfd(header=header(magic=b"SHMRPC\n\n")), the_doorbell), "begins with b"
        ),
        case(
            "another layout",
            sends(memfd(header=header(version=2)), the_doorbell),
            "layout version 2, this process reads 1",
        ),
        case(
            "no layout at all",
            sends(memfd(header=header(version=0)), the_doorbell),
            "layout version 0, this process reads 1",
        ),
    ],
)
async def test_a_peer_is_refused_that_speaks(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


@pytest.mark.parametrize("versions", [(2, 3), (0, 0), (2, 1), (-5, -1), (1 << 63, (1 << 64) - 1)])
async def test_a_client_of_another_version_is_told_both(path: str, versions: tuple[int, int]) -> None:
    low, high = versions
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(versions=versions)
        assert answer["type"] == "rejection"
        assert answer["message"] == f"the peer speaks protocol versions {low} to {high}, this side speaks 1"
        await hung_up(peer.sock)


@pytest.mark.parametrize("versions", [1, [1], [1, 1, 1], ["1", "1"], [1.5, 2], None])
async def test_a_client_whose_versions_are_none_is_refused(path: str, versions: object) -> None:
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(versions=versions)
        assert answer["type"] == "rejection"
        assert re.search("cannot be understood: .*versions", answer["message"])
        await hung_up(peer.sock)


@pytest.mark.parametrize("version", [0, 2, -1, (1 << 64) - 1])
async def test_a_server_of_another_version_is_refused_with_both(path: str, version: int) -> None:
    await _must_refuse_welcome(
        path, f"^the peer speaks protocol versions {version} to {version}, this side speaks 1$", version=version
    )


@pytest.mark.parametrize("version", ["1", 1.5, None, [1, 1]])
async def test_a_server_whose_version_is_none_is_refused(path: str, version: object) -> None:
    await _must_refuse_welcome(path, "cannot be understood: .*version", version=version)


async def _must_refuse_welcome(path: str, why: str, **changes: Any) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        server.answer(**changes)
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError, match=why):
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
