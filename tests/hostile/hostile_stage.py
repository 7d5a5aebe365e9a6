"""A victim and a raw peer that attacks it, server or client, beside two real endpoints that nothing may disturb.

A stage sees to all that must hold after every attack: one line of log says what the peer did, its connection ends and no
other one does, a call of a bystander that was under way all the time ends well, and nothing is left of the victim's side,
no fd, no mapping, no charge.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import msgspec
import pytest
from life_api import METHODS, Keeper, Life
from life_waiting import until
from raw_channel import DEFAULT, REPLY, REQUEST, Geometry, RawChannel
from raw_peer import Half, RawClient, RawServer, hung_up, raw_listener

import shmrpc
from shmrpc.shm import disposal, layout
from shmrpc.shm.quota import Quota
from shmrpc.testing.holdings import Held

ADD, ECHO, SIZED, LONG, HOLD, NOTE = (METHODS.index(name) for name in ("add", "echo", "sized", "long", "hold", "note"))

encode: Final = msgspec.msgpack.encode
decode: Final = msgspec.msgpack.decode


def nothing_but(before: Held) -> bool:
    """Whether this process has no fd and no shared mapping beside what it had before."""
    left = Held.now().without(before)
    return not left.fds and not left.mappings


def charged(server: shmrpc.Server) -> tuple[int, int]:
    """What a server's ledger says that its peers hold: connections, and bytes."""
    quota = server._listener._quota
    return quota._connections.total(), sum(quota._bytes.values())


def charge_everybody(server: shmrpc.Server) -> None:
    """Has a server count the memory of its own uid too, which it does not do otherwise."""
    settings = msgspec.structs.replace(server._listener._settings, max_connections_per_uid=1 << 20)
    server._listener._quota = Quota(own_uid=-1, settings=settings)


@asynccontextmanager
async def bystander(path: str, *services: object, segments: int = 1, **settings: Any) -> AsyncIterator[shmrpc.Server]:
    """A server with another client, one of whose calls is under way all the time, and which nothing may disturb.

    Serves `Keeper`, and more services behind it. Whoever else was connected must be gone at the end, with all that it held:
    the server's segment alone, one for each of so many connections, may stay charged to a process that lives on.
    """
    keeper = Keeper()
    segment_bytes = settings.get("geometry", layout.Geometry()).segment_bytes
    async with shmrpc.Server(keeper, *services, at=path, **settings) as server:
        charge_everybody(server)
        async with shmrpc.connect(Life, path) as life, shmrpc.connect(Life, path) as other:
            held = asyncio.ensure_future(other.hold(1000))
            await until(lambda: keeper.began == [1000], "the call to begin")
            before, charge = Held.now(), charged(server)
            try:
                yield server
            except BaseException:
                held.cancel()
                raise
            await until(lambda: server.connections == 2, "the others to be gone")
            await until(lambda: not disposal.closing(), "what they sent to be closed")
            await until(lambda: nothing_but(before), "everything of theirs to be closed and unmapped")
            connections, nbytes = charged(server)
            assert connections == charge[0]
            assert (nbytes - charge[1]) in range(0, segments * segment_bytes + 1, segment_bytes)
            assert not held.done()
            assert await life.add(20, 22) == 42
            await other.let_go()
            assert await held == 1000


def cuts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of connections that were cut."""
    return [record.getMessage() for record in caplog.records if " was cut: " in record.getMessage()]


def nothing_worse_than_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """An attack is no fault of this process: no error is logged, and no traceback."""
    ours = [record for record in caplog.records if record.name.startswith("shmrpc")]
    assert [record.getMessage() for record in ours if record.levelno > logging.WARNING or record.exc_info] == []


class Scene(Protocol):
    """A victim that knows its raw peer: a call has been made and answered, call 1."""

    channel: RawChannel
    sock: socket.socket
    half: Half
    kind: int
    """What the victim expects next: a request, or the reply to the call that it has under way."""
    call_id: int
    """Of that."""

    async def must_be_cut(self, why: str) -> None:
        """Returns when the victim has cut the connection, once, and has logged why."""
        ...

    async def must_go_on(self) -> None:
        """Returns when another call was made over the connection, and nothing was logged of it."""
        ...


async def well_begun(peer: RawClient, **hello: Any) -> RawChannel:
    """A connection on which a call has been made, so that no position is zero."""
    channel = await peer.shake_hands(**hello)
    channel.request(1, ADD, 1)
    assert (await channel.receive()).kind == REPLY
    return channel


async def must_be_cut(peer: RawClient, caplog: pytest.LogCaptureFixture, why: str) -> None:
    """Returns when a server has hung up on a client, and has logged why."""
    await hung_up(peer.sock)
    (text,) = cuts(caplog)
    assert why in text
    nothing_worse_than_a_warning(caplog)


class AgainstServer:
    """The victim is a server."""

    kind = REQUEST
    call_id = 2

    def __init__(
        self, peer: RawClient, channel: RawChannel, server: shmrpc.Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.sock = peer.sock
        self.half = peer.half
        self.channel = channel
        self.server = server
        self._peer = peer
        self._caplog = caplog
        self._last = 1_000_000

    async def must_be_cut(self, why: str) -> None:
        await must_be_cut(self._peer, self._caplog, why)

    async def must_go_on(self) -> None:
        self._last += 1
        self.channel.request(self._last, ADD, 40, 2)
        answer = await self.channel.receive()
        while answer.call_id != self._last:
            answer = await self.channel.receive()
        assert (answer.kind, decode(answer.payload)) == (REPLY, 42)
        assert not cuts(self._caplog)


class AgainstClient:
    """The victim is a client, which has called `hold`."""

    kind = REPLY

    def __init__(self, server: RawServer, life: Life, caplog: pytest.LogCaptureFixture) -> None:
        self.sock = server.sock
        self.half = server.half
        self.server = server
        self.channel = server.channel
        self.life = life
        self.call_id = 1
        self._caplog = caplog
        self.held: asyncio.Future[Any]

    async def begin(self) -> None:
        self.held, self.call_id = await self.call(self.life.hold(1))
        assert self.call_id == 2

    async def call(self, call: Any) -> tuple["asyncio.Future[Any]", int]:
        """A call that the server has taken, and its id."""
        future = asyncio.ensure_future(call)
        request = await self.channel.receive()
        assert request.kind == REQUEST
        return future, request.call_id

    async def must_be_cut(self, why: str) -> None:
        await hung_up(self.sock)
        (text,) = cuts(self._caplog)
        assert why in text
        nothing_worse_than_a_warning(self._caplog)
        await must_be_lost(self.held, why)

    async def must_go_on(self) -> None:
        call, call_id = await self.call(self.life.add(40, 2))
        self.channel.send(REPLY, encode(42), call_id=call_id)
        assert await call == 42
        assert not cuts(self._caplog)

    async def end(self) -> None:
        """Lets go of the call."""
        self.held.cancel()
        await asyncio.wait((self.held,))


async def must_be_lost(call: "asyncio.Future[Any]", why: str) -> None:
    """The call, which the server had taken, ends since the connection was cut."""
    with pytest.raises(shmrpc.ConnectionLost, match=r"was cut: .*; \w+\.\w+ was under way there") as caught:
        await call
    assert why in str(caught.value)
    assert caught.value.maybe_executed


@asynccontextmanager
async def against_server(
    path: str,
    caplog: pytest.LogCaptureFixture,
    geometry: Geometry = DEFAULT,
    *services: object,
    doorbell: str = "eventfd",
    **settings: Any,
) -> AsyncIterator[AgainstServer]:
    """A stage whose victim is a server. Both doorbells are of one kind."""
    settings = {"doorbell": doorbell} | settings
    async with bystander(path, *services, **settings) as server, RawClient(path, geometry, doorbell=doorbell) as peer:
        yield AgainstServer(peer, await well_begun(peer), server, caplog)


@asynccontextmanager
async def raw_server_of(
    path: str, contract: Any, geometry: Geometry = DEFAULT, *, doorbell: str = "eventfd", **settings: Any
) -> AsyncIterator[tuple[RawServer, Any]]:
    """A raw server and the stub of its only client, beside a server and clients that nothing may disturb."""
    server: asyncio.Future[RawServer] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()
    welcome: dict[str, Any] = settings.pop("welcome", {})

    async def play(raw: RawServer) -> None:
        await raw.shake_hands(**welcome)
        server.set_result(raw)
        await over.wait()

    async with (
        bystander(f"{path}.other"),
        raw_listener(path, play, geometry, doorbell=doorbell),
        shmrpc.connect(contract, path, reconnect_timeout=0, doorbell=doorbell, **settings) as stub,
    ):
        try:
            yield await server, stub
        finally:
            over.set()


@asynccontextmanager
async def against_client(
    path: str, caplog: pytest.LogCaptureFixture, geometry: Geometry = DEFAULT, **settings: Any
) -> AsyncIterator[AgainstClient]:
    """A stage whose victim is a client."""
    async with raw_server_of(path, Life, geometry, **settings) as (server, life):
        scene = AgainstClient(server, life, caplog)
        first, first_id = await scene.call(life.add(3, 4))
        scene.channel.send(REPLY, encode(7), call_id=first_id)
        assert await first == 7
        await scene.begin()
        try:
            yield scene
        finally:
            await scene.end()


Act = Callable[[Scene], None]
"""What a peer does."""

sides: Final = pytest.mark.parametrize("stage", [against_server, against_client], ids=["server", "client"])
Open = Callable[..., Any]


def case(name: str, act: Any, why: str) -> Any:
    """An attack, and what must be said of it."""
    return pytest.param(act, why, id=name)


def record(payload: bytes = b"", *, tail: int | None = None, kind: int | None = None, **how: int) -> Act:
    """One record, of the expected kind unless it says otherwise, published in full or as far as `tail` bytes."""

    def act(scene: Scene) -> None:
        channel = scene.channel
        begin = channel.tail
        words = {"call_id": scene.call_id, "method": ECHO} | how
        end = channel.write(scene.kind if kind is None else kind, payload, **words)
        channel.publish(end if tail is None else begin + tail)

    return act
