"""A live session: a client that was written from the specification joins a real server, and understands all that it says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from independent_decoder import digest
from independent_msgpack import write
from wire_contract import Lost
from wire_peer import ARGUMENTS, CANCEL, END_OF_ARGUMENTS, HAS_METADATA, REQUEST, RESULT_CREDIT, Peer

import shmrpc

Bytes = npt.NDArray[np.uint8]


class Spoken:
    """A service that says everything that a server can say."""

    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def repeat(self, text: str, count: int) -> str:
        return text * count

    async def ones(self, count: int) -> Bytes:
        return np.ones(count, np.uint8)

    async def lose(self, key: str) -> None:
        raise Lost(key, 3)

    async def attach(self) -> str:
        call = shmrpc.current_call()
        call.send_initial_metadata({"first": "1"})
        call.set_trailing_metadata({"last": b"\x02"})
        return str(call.metadata["mine"])

    async def count(self, most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()


@pytest.fixture
async def server(path: str) -> AsyncIterator[shmrpc.Server]:
    async with shmrpc.Server(Spoken(), at=path) as server:
        yield server


class Caller:
    """Calls by the methods' names, with the numbers that the welcome gives."""

    def __init__(self, peer: Peer, welcome: dict[str, Any]) -> None:
        (self.offered,) = [each for each in welcome["offered"] if each["name"] == "Spoken"]
        self.names = [signature["name"] for signature in self.offered["signatures"]]
        self.peer = peer
        self.last = 0

    async def call(self, method: str, *args: object) -> dict[str, Any]:
        self.start(method, write(list(args)))
        return await self.peer.record()

    def start(self, method: str, payload: bytes, flags: int = 0) -> int:
        self.last += 1
        number = self.offered["first_method"] + self.names.index(method)
        self.peer.send(REQUEST, self.last, payload, method=number, flags=flags)
        return self.last


async def met(peer: Peer) -> Caller:
    return Caller(peer, await asyncio.to_thread(peer.shake_hands))


def answer(call_id: int, kind: str = "REPLY", flags: tuple[str, ...] = (), **content: Any) -> dict[str, Any]:
    """A record of the server's, whose other words are 0."""
    return {"kind": kind, "flags": list(flags), "method": 0, "call_id": call_id, "deadline_ns": 0, **content}


async def test_the_welcome_is_as_specified_and_its_digest_is_that_of_its_signatures(
    path: str, server: shmrpc.Server
) -> None:
    with Peer(path) as peer:
        welcome = await asyncio.to_thread(peer.shake_hands)
        assert (welcome["type"], welcome["version"], welcome["features"]) == ("welcome", 1, [])
        for offered in welcome["offered"]:
            assert offered["digest"] == {"hex": digest(offered["signatures"]).hex()}
        assert (await Caller(peer, welcome).call("add", 20, 22))["result"] == 42


async def test_a_client_that_knows_the_digest_is_not_sent_the_signatures(path: str, server: shmrpc.Server) -> None:
    with Peer(path) as first, Peer(path) as second:
        (known,) = [
            each for each in (await asyncio.to_thread(first.shake_hands))["offered"] if each["name"] == "Spoken"
        ]
        wanted = [{"name": "Spoken", "digest": bytes.fromhex(known["digest"]["hex"])}]
        welcome = await asyncio.to_thread(lambda: second.shake_hands(wanted=wanted))
        assert welcome["offered"] == [known | {"signatures": []}]


@pytest.mark.parametrize(("low", "high"), [(2, 9), (0, 0), (9, 2), (1, 0)])
async def test_a_client_without_version_1_is_rejected(path: str, server: shmrpc.Server, low: int, high: int) -> None:
    with Peer(path) as peer:
        rejection = await asyncio.to_thread(lambda: peer.shake_hands(versions=[low, high]))
        text = f"the peer speaks protocol versions {low} to {high}, this side speaks 1"
        assert rejection == {"type": "rejection", "code": "refused", "message": text}


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0, 1), (1, 200)])
async def test_a_client_that_has_version_1_among_others_gets_it(
    path: str, server: shmrpc.Server, low: int, high: int
) -> None:
    with Peer(path) as peer:
        welcome = await asyncio.to_thread(lambda: peer.shake_hands(versions=[low, high], features=["x"], later={}))
        assert (welcome["version"], welcome["features"]) == (1, [])


async def test_every_answer_to_a_call_is_understood(path: str, server: shmrpc.Server) -> None:
    with Peer(path) as peer:
        caller = await met(peer)
        assert await caller.call("add", 1) == answer(1, result=2)
        lost = {"code": 5, "text": "Lost(key='a', tries=3)", "class": "Lost", "fields": {"key": "a", "tries": 3}}
        assert await caller.call("lose", "a") == answer(
            2, "FAILURE", failure=lost | {"correlation_id": "", "maybe_executed": True}
        )
        long = await caller.call("repeat", "ab", 10_000)
        assert (long["flags"], long["result"]) == (["IN_BLOCK"], "ab" * 10_000)
        caller.start("attach", write([{"mine": "x"}, write([])]), HAS_METADATA)
        assert await peer.record() == answer(4, "INITIAL_METADATA", metadata={"first": "1"})
        assert await peer.record() == answer(4, flags=("HAS_METADATA",), metadata={"last": {"hex": "02"}}, result="x")
        unfit = await caller.call("add", "one")
        assert (unfit["kind"], unfit["failure"]["code"]) == ("FAILURE", 3)
        peer.send(REQUEST, 6, write([]), method=60_000)
        assert (await peer.record())["failure"]["code"] == 12


@pytest.mark.parametrize("nbytes", [8001, 300_000, 3_000_000])
async def test_buffers_are_found_in_the_slab_and_in_extents(path: str, server: shmrpc.Server, nbytes: int) -> None:
    with Peer(path) as peer:
        caller = await met(peer)
        for _ in range(3):  # under a new lease each time
            caller.start("ones", write([nbytes]))
            if nbytes > 1 << 20 and not peer.extents:
                message = await asyncio.to_thread(peer.attach)
                assert (message["type"], message["kind"]) == ("attach", "memfd")
            reply = await peer.record()
            (reference,) = reply["references"]
            assert reply["flags"] == ["HAS_BUFFERS"]
            assert reply["result"] == {"buffer": 0, "order": "rows first", "element": "|u1", "shape": [nbytes]}
            assert peer.see(reference) == b"\1" * nbytes
            assert bool(reference["extent"]) == (nbytes > 1 << 20)
            peer.release(reference)


async def test_streams_are_understood_both_ways(path: str, server: shmrpc.Server) -> None:
    with Peer(path) as peer:
        caller = await met(peer)
        call_id = caller.start("count", write([600]))
        items: list[int] = []
        nbytes = 0
        while (said := await peer.record())["kind"] == "RESULTS":
            items += said["items"]
            nbytes += peer.payload_bytes
            peer.send(RESULT_CREDIT, call_id, write([len(items), nbytes]))
        assert said == answer(call_id, result=None)
        assert items == list(range(600))
        call_id = caller.start("total", write([]))
        for number in range(256):
            peer.send(ARGUMENTS, call_id, write(number))
        said = await peer.record()
        assert (said["kind"], said["credit"]["items"] > 0) == ("ARGUMENT_CREDIT", True)
        peer.send(END_OF_ARGUMENTS, call_id)
        while (said := await peer.record())["kind"] == "ARGUMENT_CREDIT":
            pass
        assert said == answer(call_id, result=sum(range(256)))


async def test_a_cancelled_call_ends_and_a_draining_server_says_which_call_was_the_last(path: str) -> None:
    async with shmrpc.Server(Spoken(), at=path) as server:
        with Peer(path) as peer:
            caller = await met(peer)
            call_id = caller.start("wait", write([]))
            peer.send(CANCEL, call_id)
            said = await peer.record()
            assert (said["kind"], said["call_id"], said["failure"]["code"]) == ("FAILURE", call_id, 1)
            await server.drain(grace=0)
            assert await peer.record() == answer(call_id, "GOAWAY")


def test_nothing_of_the_peer_is_of_shmrpc() -> None:
    text = (Path(__file__).parent / "wire_peer.py").read_text()
    assert "import shmrpc" not in text
    assert "from shmrpc" not in text
