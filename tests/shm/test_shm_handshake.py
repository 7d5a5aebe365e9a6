"""The server's half of the handshake, against clients that do not do theirs."""

import asyncio
import os
import re
import socket
import struct

import msgspec
import pytest
from bad_halves import BAD, Spoil
from life_api import METHODS, Keeper, Life
from life_waiting import until
from raw_channel import DEFAULT, REPLY, Geometry
from raw_peer import RawClient, frame_of, hung_up, receive_frame, send_with_fds

import shmrpc
from shmrpc.inlet import DEFAULT_WINDOW
from shmrpc.shm import handshake, liveness
from shmrpc.shm.settings import Settings


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def fd_exists(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")  # the fd of the listing itself does not


async def still_serves(path: str) -> bool:
    async with shmrpc.connect(Life, path) as life:
        return await life.add(2, 3) == 5


def refused(why: str, answer: dict[str, object]) -> bool:
    assert answer["type"] == "rejection", answer
    assert answer["code"] == "refused"
    assert isinstance(answer["message"], str)
    assert re.search(why, answer["message"]), answer["message"]
    return True


# The peer that does it right


@pytest.mark.parametrize("doorbell", ["eventfd", "pipe"])
async def test_a_client_that_was_written_from_the_specification_is_served(path: str, doorbell: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path, doorbell=doorbell) as peer:
        channel = await peer.shake_hands()
        assert server.connections == 1
        for call_id in (1, 2, 3):
            channel.request(call_id, METHODS.index("add"), call_id, 40)
            reply = await channel.receive()
            assert (reply.kind, reply.call_id) == (REPLY, call_id)
            assert msgspec.msgpack.decode(reply.payload) == call_id + 40


async def test_the_welcome_says_what_is_served(path: str) -> None:
    async with (
        shmrpc.Server(Keeper(), at=path, max_message=1 << 20, max_in_flight=7, max_extent_bytes=5 << 20) as server,
        RawClient(path) as peer,
    ):
        answer = await peer.ask(features=["json", "telepathy"])
        life, built_in = answer["offered"]
        assert (answer["version"], answer["features"]) == (1, [])
        assert (answer["max_message"], answer["max_in_flight"]) == (1 << 20, 7)
        assert answer["max_extent_bytes"] == 5 << 20
        assert (answer["segment"], answer["geometry"]) == ("memfd", DEFAULT._asdict())
        assert (life["name"], life["first_method"]) == ("Life", 0)
        assert [signature["name"] for signature in life["signatures"]] == METHODS
        assert (built_in["name"], built_in["first_method"]) == ("shmrpc.Introspection", len(METHODS))
        assert server.connections == 1


@pytest.mark.parametrize(("servers", "clients"), [(1 << 20, 1 << 30), (1 << 30, 1 << 20), (0, 1 << 30)])
async def test_the_smaller_limit_of_extents_counts_on_both_sides(servers: int, clients: int) -> None:
    client, server = socket.socketpair()
    client.setblocking(False)
    server.setblocking(False)

    async def serve() -> handshake.Answered:
        frame = handshake.new_frame()
        hello = await handshake.receive_hello(server, frame)
        settings = Settings(max_extent_bytes=servers)
        joined = handshake.join_client(hello, frame, liveness.peer_of(server), settings)
        return await handshake.answer_hello(server, hello, joined, [], settings)

    serving = asyncio.ensure_future(serve())
    accepted = await handshake.as_client(client, [], Settings(max_extent_bytes=clients))
    answered = await serving
    assert accepted.max_extent_bytes == answered.max_extent_bytes == min(servers, clients)
    assert accepted.pidfd is not None
    os.close(accepted.pidfd)
    accepted.channel.close()
    answered.channel.close()
    client.close()
    server.close()


async def test_each_side_says_what_it_accepts_of_a_stream(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, stream_items=7, stream_bytes=1234) as server:
        async with RawClient(path) as peer:
            assert (await peer.ask(stream_window=[5, 99]))["stream_window"] == [7, 1234]
            (session,) = server._listener.sessions
            assert session.windows == ((7, 1234), (5, 99))
        async with RawClient(path) as peer:
            await peer.ask()
            assert {session.windows for session in server._listener.sessions} >= {((7, 1234), DEFAULT_WINDOW)}


@pytest.mark.parametrize("window", [[0, 1], [1, 0], [-1, 1], [1], [1, 1, 1], 5, ["many", "more"], [1.5, 1], None, {}])
async def test_a_client_that_accepts_nothing_of_a_stream_is_refused(path: str, window: object) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        assert refused(r"cannot be understood: .*stream_window", await peer.ask(stream_window=window))
        await hung_up(peer.sock)
        assert server.connections == 0


async def test_a_client_that_knows_the_contract_is_told_no_more_than_that(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        async with RawClient(path) as peer:
            life = (await peer.ask())["offered"][0]
        async with RawClient(path) as peer:
            answer = await peer.ask(wanted=[{"name": "Life", "digest": life["digest"]}])
            assert answer["offered"] == [life | {"signatures": []}]


async def test_a_client_that_wants_a_built_in_service_of_a_later_version_is_not_refused(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        wanted = [{"name": name, "digest": b""} for name in ("Life", "shmrpc.Telepathy", "shmrpc.Introspection")]
        answer = await peer.ask(wanted=wanted)
        assert [service["name"] for service in answer["offered"]] == ["Life", "shmrpc.Introspection"]


async def test_a_small_segment_will_do(path: str) -> None:
    small = Geometry(ring_bytes=4096, release_entries=512, slab_bytes=1024, inline_limit=64)
    async with shmrpc.Server(Keeper(), at=path), RawClient(path, small) as peer:
        channel = await peer.shake_hands()
        channel.request(1, METHODS.index("add"), 1)
        assert (await channel.receive()).kind == REPLY


# What it brings


@pytest.mark.parametrize(("spoil", "why"), BAD)
async def test_a_client_is_refused_that_brings(
    path: str, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server:
        before = open_fds()
        async with RawClient(path) as peer:
            spoil(peer.half)
            assert refused(why, await peer.ask())
            await hung_up(peer.sock)
        assert f"pid {os.getpid()} (uid {os.getuid()}, gid {os.getgid()}) was refused at {path}: " in caplog.text
        assert server.connections == 0
        assert open_fds() == before
        assert await still_serves(path)


# What it says


def head(length: int, magic: bytes = b"SHMR") -> bytes:
    return struct.pack("<4sI", magic, length)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak shmrpc: it began with b'GET / HT'"),
        (os.urandom(4096), "does not speak shmrpc"),
        (bytes(64), "does not speak shmrpc"),
        (head(1 << 31), "handshake has 2147483648 bytes, the limit is 1048576"),
        (head(0), "cannot be understood"),
        (head(4) + b"\xc1\xc1\xc1\xc1", "cannot be understood"),
        (head(100_000) + b"\x91" * 100_000, "cannot be understood"),
        (frame_of({"type": "hello"}), "cannot be understood: .*versions"),
        (frame_of({"type": "welcome", "version": 1}), "cannot be understood"),
        (frame_of({"type": "goodbye"}), "cannot be understood"),
    ],
    ids=[
        "http",
        "noise",
        "zeros",
        "too long",
        "empty",
        "no msgpack",
        "a tower",
        "half of it",
        "a welcome",
        "a goodbye",
    ],
)
async def test_a_client_that_talks_nonsense_is_refused(path: str, said: bytes, why: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server:
        async with RawClient(path) as peer:
            send_with_fds(peer.sock, said, peer.half.fds)
            assert refused(why, (await receive_frame(peer.sock))[0])
            await hung_up(peer.sock)
        assert server.connections == 0
        assert await still_serves(path)


@pytest.mark.parametrize("versions", [(2, 3), (0, 0), (2, 1)])
async def test_a_client_of_another_version_is_told_both(path: str, versions: tuple[int, int]) -> None:
    low, high = versions
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        why = f"the peer speaks protocol versions {low} to {high}, this side speaks 1"
        assert refused(why, await peer.ask(versions=versions))


async def test_a_client_of_a_range_of_versions_gets_the_one_of_the_server(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        assert (await peer.ask(versions=(1, 9), novelty="unheard of"))["version"] == 1


async def test_a_service_that_is_not_there_is_refused_with_those_that_are(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        answer = await peer.ask(wanted=[{"name": "Death", "digest": b""}])
        assert answer["code"] == "contract"
        assert answer["message"] == f"there is no service Death at {path}; there is Life"


async def test_a_client_cannot_have_the_same_service_described_many_times(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        answer = await peer.ask(wanted=[{"name": "Life", "digest": b"?"}] * 1000)
        assert [service["name"] for service in answer["offered"]] == ["Life"]


# When it says it


@pytest.mark.parametrize("said", [b"", b"SHMR", head(50) + b"begun"], ids=["nothing", "half a head", "half a body"])
async def test_a_client_that_stalls_is_sent_away(path: str, said: bytes) -> None:
    async with shmrpc.Server(Keeper(), at=path, handshake_timeout=0.05) as server:
        before = open_fds()
        async with RawClient(path) as peer:
            if said:
                send_with_fds(peer.sock, said, peer.half.fds)
            why = r"no handshake within 0.05 s \(handshake_timeout\)"
            assert refused(why, (await receive_frame(peer.sock))[0])
            await hung_up(peer.sock)
        assert server.connections == 0
        assert open_fds() == before
        assert await still_serves(path)


async def test_a_client_that_stalls_holds_nobody_up(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer:
        send_with_fds(peer.sock, b"SHMR", peer.half.fds)
        assert await still_serves(path)


@pytest.mark.parametrize("said", [b"", b"SHMR", head(50) + b"begun"], ids=["nothing", "half a head", "half a body"])
async def test_a_client_that_hangs_up_leaves_nothing(path: str, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with shmrpc.Server(Keeper(), at=path):
        before = open_fds()
        async with RawClient(path) as peer:
            if said:
                send_with_fds(peer.sock, said, peer.half.fds)
        await until(lambda: "the peer hung up in the handshake" in caplog.text, "the server to notice")
        await until(lambda: open_fds() == before, "the server to let go")
        assert await still_serves(path)


async def test_a_hello_in_many_pieces_is_a_hello(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        frame = frame_of(peer.hello())
        send_with_fds(peer.sock, frame[:1], peer.half.fds)
        for index in range(1, len(frame)):
            await asyncio.sleep(0)
            peer.sock.send(frame[index : index + 1])
        answer, fds = await receive_frame(peer.sock)
        peer.channel = peer.half.join(answer, fds)
        assert answer["type"] == "welcome"
        assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1", "the peer does not speak shmrpc: it began with b'GET / HT'"),
        (frame_of({"type": "hello"}), "the peer sent 2 fds with its control message, expected are exactly 1"),
        (frame_of({"type": "detach", "extent": 1}), "the peer sent 2 fds with its control message"),
    ],
)
async def test_nonsense_after_the_handshake_cuts_the_connection(
    path: str, said: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with shmrpc.Server(Keeper(), at=path) as server, RawClient(path) as peer:
        await peer.shake_hands()
        before = len(open_fds())
        send_with_fds(peer.sock, said, [] if said.startswith(b"GET") else peer.half.fds)
        await hung_up(peer.sock)
        assert f"was cut: {why}" in caplog.text
        assert server.connections == 0
        assert len(open_fds()) < before


async def test_a_server_that_closes_ends_the_handshakes_that_are_under_way(path: str) -> None:
    async with shmrpc.Server(Keeper(), at=path, grace=0) as server, RawClient(path) as peer:
        name = f"shmrpc handshake at {path}"
        await until(lambda: name in [task.get_name() for task in asyncio.all_tasks()], "the handshake to begin")
        await server.drain()
        await hung_up(peer.sock)


async def test_every_fd_of_a_connection_is_closed_on_exec(path: str) -> None:
    before = open_fds()
    async with shmrpc.Server(Keeper(), at=path), RawClient(path) as peer, shmrpc.connect(Life, path) as life:
        await peer.shake_hands()
        assert await life.add(1) == 2
        opened = [int(fd) for fd in open_fds() - before]
        assert len(opened) > 10
        assert [fd for fd in opened if fd_exists(fd) and os.get_inheritable(fd)] == []
