"""A real endpoint with buffers, and a raw peer that plays the other side: a client to a server, or a server to a client.

Both sides have made a call, and the raw peer holds a lease on the victim's memory. Beside them two real endpoints carry
buffers all the time, which nothing may disturb.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import numpy as np
import pytest
from buffer_api import KIB, METHODS, Buffers, Pair, numbered, pair
from hostile_stage import cuts, nothing_but, nothing_worse_than_a_warning
from life_waiting import until
from msgspec.msgpack import Ext
from raw_channel import (
    DEFAULT,
    FAILURE,
    HAS_BUFFERS,
    IN_BLOCK,
    REPLY,
    REQUEST,
    Geometry,
    RawChannel,
    Record,
    Reference,
    extent,
    references_of,
)
from raw_peer import Half, RawClient, RawServer, frame_of, hung_up, raw_listener, send_with_fds

import shmrpc
from shmrpc.shm import disposal
from shmrpc.testing.holdings import Held

BUFFER = 66
"""The extension's code."""
LENT = 100 * KIB
"""Bytes that the victim has lent the raw peer."""
MINE = (0, 7, 0, 4 * KIB)
"""A correct reference to the raw peer's own slab."""

number_of = METHODS.index


def array_body(
    nbytes: int, *, index: int = 0, dtype: bytes = b"|u1", kind: int = 1, shape: tuple[int, ...] = ()
) -> bytes:
    """What stands for an array in a payload; a row of bytes unless it says otherwise."""
    sizes = shape or (nbytes,)
    head = bytes((kind, len(sizes))) + len(dtype).to_bytes(2, "little") + dtype
    return index.to_bytes(4, "little") + head + b"".join(size.to_bytes(8, "little") for size in sizes)


def array_ext(nbytes: int, **how: Any) -> Ext:
    """The same as an extension."""
    return Ext(BUFFER, array_body(nbytes, **how))


class Stage(Protocol):
    """The victim and its raw peer."""

    channel: RawChannel
    sock: socket.socket
    half: Half
    lease: Reference
    """On the victim's memory."""
    others: Pair
    caplog: pytest.LogCaptureFixture

    def send(self, payload: bytes, flags: int = HAS_BUFFERS) -> None:
        """Sends what must have one buffer, an array: a request, or the reply that the victim waits for."""
        ...

    async def must_be_cut(self, why: str) -> None:
        """Returns when the victim has cut the connection, and has logged why."""
        ...

    async def must_refuse(self, why: str) -> None:
        """Returns when the call was refused, and another has been made over the same connection."""
        ...

    async def must_take(self, contents: bytes) -> None:
        """Returns when the victim has got an array."""
        ...

    def look(self) -> None:
        """Has the victim look at what was released."""
        ...

    @property
    def seen(self) -> Any:
        """The array that the victim has got."""
        ...


def control(stage: Stage, what: str, number: int, fd: int | None = None, **more: object) -> None:
    """Sends an attach with an fd, which is closed, or a detach."""
    try:
        send_with_fds(stage.sock, frame_of({"type": what, "extent": number} | more), [] if fd is None else [fd])
    finally:
        if fd is not None:
            os.close(fd)


def attach(stage: Stage, number: int, nbytes: int, fd: int | None = None, **more: object) -> None:
    """Attaches an extent as one should, unless the fd says otherwise."""
    fd = extent(nbytes) if fd is None else fd
    control(stage, "attach", number, fd, **({"nbytes": nbytes, "kind": "memfd"} | more))


class AgainstServer:
    """The victim is a server."""

    def __init__(self, peer: RawClient, others: Pair, caplog: pytest.LogCaptureFixture) -> None:
        self.sock = peer.sock
        self.half = peer.half
        self.others = others
        self.caplog = caplog
        self._peer = peer
        self._last = 2

    async def begin(self) -> None:
        self.channel = await self._peer.shake_hands()
        self.channel.request(1, number_of("small"), 1)
        assert (await self.channel.receive()).kind == REPLY
        self.channel.request(2, number_of("give"), LENT, 5)
        record = await self.channel.receive()
        assert (record.kind, record.flags) == (REPLY, HAS_BUFFERS)
        [self.lease], _ = references_of(record.payload)
        assert self.channel.see(self.lease) == bytes([5]) * LENT

    def send(self, payload: bytes, flags: int = HAS_BUFFERS) -> None:
        if flags & HAS_BUFFERS and not flags & IN_BLOCK:
            references, body = _split(payload)
            payload = references + (b"\x91" + body if body else b"")  # one argument
        self._last += 1
        self.channel.send(REQUEST, payload, flags=flags, call_id=self._last, method=number_of("keep"))

    async def must_be_cut(self, why: str) -> None:
        await hung_up(self.sock)
        (text,) = cuts(self.caplog)
        assert why in text
        nothing_worse_than_a_warning(self.caplog)

    async def _answer(self) -> Record:
        record = await self.channel.receive()
        assert record.call_id == self._last
        return record

    async def must_refuse(self, why: str) -> None:
        record = await self._answer()
        code, message = msgspec.msgpack.decode(record.payload)[:2]
        assert (record.kind, code) == (FAILURE, shmrpc.Code.INVALID_ARGUMENT), message
        assert message.startswith("Buffers.keep: ")
        assert why in message
        self._last += 1
        self.channel.request(self._last, number_of("small"), 7)
        assert (await self._answer()).kind == REPLY
        assert not cuts(self.caplog)

    async def must_take(self, contents: bytes) -> None:
        assert (await self._answer()).kind == REPLY
        assert self.seen.tobytes() == contents

    def look(self) -> None:
        shmrpc.leases(self.others.server)

    @property
    def seen(self) -> Any:
        return self.others.holder.arrays[-1]


class AgainstClient:
    """The victim is a client."""

    def __init__(self, peer: RawServer, stub: Buffers, others: Pair, caplog: pytest.LogCaptureFixture) -> None:
        self.sock = peer.sock
        self.half = peer.half
        self.channel = peer.channel
        self.others = others
        self.caplog = caplog
        self._stub = stub
        self._call: asyncio.Future[Any]
        self._id = 0
        self.seen: Any = None

    async def begin(self) -> None:
        self._call = asyncio.ensure_future(self._stub.echo(numbered(LENT)))
        record = await self.channel.receive()
        assert (record.kind, record.flags) == (REQUEST, HAS_BUFFERS)
        [self.lease], _ = references_of(record.payload)
        assert self.channel.see(self.lease) == numbered(LENT).tobytes()
        self._id = record.call_id

    def send(self, payload: bytes, flags: int = HAS_BUFFERS) -> None:
        self.channel.send(REPLY, payload, flags=flags, call_id=self._id)

    async def must_be_cut(self, why: str) -> None:
        await hung_up(self.sock)
        (text,) = cuts(self.caplog)
        assert why in text
        nothing_worse_than_a_warning(self.caplog)
        await asyncio.wait((self._call,))
        if not isinstance(self._call.exception(), shmrpc.ConnectionLost):
            assert self._call.result() is not None  # it had ended before

    async def must_refuse(self, why: str) -> None:
        with pytest.raises(shmrpc.Internal, match=r"Buffers\.echo: .*result does not fit") as caught:
            await self._call
        assert why in str(caught.value)
        del caught  # its traceback leads to the buffers, and so does the call
        self._call = asyncio.ensure_future(self._stub.small(7))
        record = await self.channel.receive()
        self.channel.send(REPLY, msgspec.msgpack.encode(7), call_id=record.call_id)
        assert await self._call == 7
        assert not cuts(self.caplog)

    async def must_take(self, contents: bytes) -> None:
        self.seen = await self._call
        assert self.seen.tobytes() == contents
        self._call = asyncio.ensure_future(self._stub.echo(np.zeros(1, np.uint8)))
        self._id = (await self.channel.receive()).call_id

    def look(self) -> None:
        shmrpc.leases(self._stub)

    async def end(self) -> None:
        """Lets go of the last call."""
        self.seen = None
        self._call.cancel()
        await asyncio.wait((self._call,))
        del self._call


def _split(payload: bytes) -> tuple[bytes, bytes]:
    """The table and the body, if there is a whole table."""
    end = 8 + 32 * int.from_bytes(payload[:4], "little")
    return payload[:end], payload[end:]


@asynccontextmanager
async def against_server(
    path: str, caplog: pytest.LogCaptureFixture, geometry: Geometry = DEFAULT, **settings: Any
) -> AsyncIterator[AgainstServer]:
    """A stage whose victim is a server."""
    async with pair(path, **settings) as others, undisturbed(others):
        async with RawClient(path, geometry) as peer:
            stage = AgainstServer(peer, others, caplog)
            await stage.begin()
            yield stage
        others.holder.arrays.clear()


@asynccontextmanager
async def against_client(
    path: str, caplog: pytest.LogCaptureFixture, geometry: Geometry = DEFAULT, **settings: Any
) -> AsyncIterator[AgainstClient]:
    """A stage whose victim is a client."""
    ready: asyncio.Future[RawServer] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def play(raw: RawServer) -> None:
        channel = await raw.shake_hands()
        request = await channel.receive()
        channel.send(REPLY, msgspec.msgpack.encode(1), call_id=request.call_id)
        ready.set_result(raw)
        await over.wait()

    async with pair(f"{path}.other") as others, undisturbed(others):
        async with (
            raw_listener(path, play, geometry),
            shmrpc.connect(Buffers, path, reconnect_timeout=0, **settings) as stub,
        ):
            assert await stub.small(1) == 1
            stage = AgainstClient(await ready, stub, others, caplog)
            try:
                await stage.begin()
                yield stage
            finally:
                over.set()
                await stage.end()
                del stage, stub


@asynccontextmanager
async def undisturbed(others: Pair) -> AsyncIterator[None]:
    """A call with a buffer that is under way before, meanwhile and after; and nothing of the raw peer is left then."""
    held = asyncio.ensure_future(others.stub.hold(numbered(LENT)))
    while not others.holder.held:
        await others.stub.small(1)
    before = Held.now()
    try:
        yield
    except BaseException:
        held.cancel()
        raise
    await until(lambda: not disposal.closing(), "what the raw peer sent to be closed")
    await until(lambda: nothing_but(before), "everything of the raw peer's to be closed and unmapped")
    assert not held.done()
    await others.stub.let_go()
    assert (await held == numbered(LENT)).all()


Open = Callable[..., Any]
stages = pytest.mark.parametrize("stage", [against_server, against_client], ids=["server", "client"])
