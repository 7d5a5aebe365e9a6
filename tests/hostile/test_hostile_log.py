"""Words of a peer that would forge lines of a log, steer a terminal or fill a disk: they are escaped, and cut."""

import asyncio
import logging
import os
from typing import Any

import msgspec
import pytest
from hostile_halves import MakeFd, Spoil, by_client, by_server, segment, sends
from hostile_stage import Open, against_client, bystander, encode, sides, well_begun
from life_api import METHODS, Life
from raw_channel import FAILURE, HAS_METADATA, REQUEST
from raw_peer import Half, RawClient, RawServer, frame_of, hung_up, raw_listener, send_with_fds

import shmrpc
from shmrpc.interceptors.logging import log_calls

pytestmark = pytest.mark.counted("bad inputs tried")

FORGED = "x\nWARNING shmrpc.server: all is well\r\x1b[2J\x1b]0;owned\x07\u2028\u202e\x85\x00"
ESCAPED = r"x\nWARNING shmrpc.server: all is well\r\x1b[2J\x1b]0;owned\x07\u2028\u202e\x85\x00"
GIANT = "x" * 100_000
LONGEST = 2000
"""Characters: what a line may have, with what this side adds."""


def must_be_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Each record of the log is one line that shows what it has, and not long."""
    assert caplog.records
    for record in caplog.records:
        text = record.getMessage()
        assert text.isprintable(), text
        assert len(text) < LONGEST


@pytest.mark.parametrize(("word", "shown"), [(FORGED, ESCAPED), (GIANT, "x" * 900)], ids=["forged", "giant"])
async def test_the_name_of_a_service_forges_nothing(
    path: str, word: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bystander(path), RawClient(path) as peer:
        answer = await peer.ask(wanted=[{"name": word, "digest": b""}])
        assert answer["code"] == "contract"
        assert shown in answer["message"]
        assert len(answer["message"]) < LONGEST
        await hung_up(peer.sock)
    assert shown in caplog.text
    must_be_lines(caplog)


def _says_type(word: str) -> Spoil:
    def spoil(half: Half) -> None:
        half.said = frame_of({"type": word})

    return spoil


words = pytest.mark.parametrize("word", [FORGED, GIANT], ids=["forged", "giant"])


@words
async def test_the_type_of_a_hello_forges_nothing(path: str, word: str, caplog: pytest.LogCaptureFixture) -> None:
    await by_server(path, caplog, _says_type(word), "cannot be understood: Invalid value 'x")
    must_be_lines(caplog)


def _memfd_of_name(name: str) -> MakeFd:
    return lambda half: os.memfd_create(name, os.MFD_CLOEXEC)


async def test_the_name_of_a_file_forges_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    name = FORGED.replace("\0", "")
    await by_server(path, caplog, sends(segment, _memfd_of_name(name)), "the peer's doorbell is '/memfd:x.*WARNING")
    must_be_lines(caplog)


async def test_nor_does_that_of_a_servers_file(path: str, caplog: pytest.LogCaptureFixture) -> None:
    name = FORGED.replace("\0", "")
    spoil = sends(segment, _memfd_of_name(name))
    await by_client(path, caplog, spoil, "^the peer's doorbell is '/memfd:x[^\n\x1b]*WARNING[^\n\x1b]*$")


@sides
async def test_the_type_of_a_control_message_forges_nothing(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.sock.send(frame_of({"type": FORGED}))
        await scene.must_be_cut(f"cannot be understood: Invalid value '{ESCAPED}'")
    must_be_lines(caplog)


async def test_a_key_of_metadata_forges_nothing(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with bystander(path), RawClient(path) as peer:
        channel = await well_begun(peer)
        channel.send(REQUEST, encode(({FORGED: 1}, b"")), call_id=2, flags=HAS_METADATA)
        await hung_up(peer.sock)
    assert "all is well" in caplog.text
    must_be_lines(caplog)


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Says the name of a field that it does not have."""

    field: int = 0


class Service:
    """Takes one, and answers nobody."""

    @shmrpc.oneway
    async def take(self, what: Strict) -> None: ...

    @shmrpc.oneway
    async def refuse(self, what: str) -> None:
        raise shmrpc.InvalidArgument(f"no {what}")


@words
@pytest.mark.parametrize("method", [0, 1], ids=["arguments that do not fit", "an error of the handler"])
async def test_what_a_one_way_call_says_forges_nothing(
    path: str, method: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    small = word[:4000]
    async with bystander(path, Service()), RawClient(path) as peer:
        channel = await well_begun(peer)
        argument: Any = {small: 1} if method == 0 else small
        channel.request(2, len(METHODS) + method, argument)
        assert (await channel.receive()).kind == FAILURE
    assert "one-way" in caplog.text
    must_be_lines(caplog)


@words
async def test_the_reason_of_a_refusal_forges_nothing_at_a_client(path: str, word: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        rejection = {"type": "rejection", "code": "refused", "message": word}
        send_with_fds(server.sock, frame_of(rejection), [])
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < LONGEST


async def test_the_names_of_a_servers_methods_forge_nothing_at_a_client(path: str) -> None:
    async def play(server: RawServer) -> None:
        await server.receive_hello()
        parameters = [{"name": FORGED, "type": ["object", FORGED, None, [], False], "has_default": False}]
        signatures = [{"name": "add", "parameters": parameters, "result": ["int"]}]
        server.answer(offered=[{"name": "Life", "digest": b"?", "first_method": 0, "signatures": signatures}])
        await hung_up(server.sock)

    async with bystander(f"{path}.other"), raw_listener(path, play):
        with pytest.raises(shmrpc.HandshakeError) as caught:
            async with shmrpc.connect(Life, path):
                raise AssertionError("connected")
        assert str(caught.value).replace("\n  ", " ").isprintable()


@words
async def test_the_text_of_a_failure_forges_nothing_where_calls_are_logged(
    path: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shmrpc.calls")
    async with against_client(path, caplog, interceptors=[log_calls]) as scene:
        call = asyncio.ensure_future(scene.life.add(1))
        record = await scene.channel.receive()
        scene.channel.send(FAILURE, encode((3, word[:7000])), call_id=record.call_id)
        with pytest.raises(shmrpc.InvalidArgument) as caught:
            await call
        assert str(caught.value) == word[:7000]  # the caller sees it as it is
        (line,) = [one for one in caplog.records if one.name == "shmrpc.calls" and "Life.add" in one.getMessage()][-1:]
        assert line.getMessage().isprintable()
        assert len(line.getMessage()) < LONGEST
