"""What a peer can do to streams: records of items and credit, and the two stages on which streams are under way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from flow_api import FLOWS, Flow, Streamer, sessions_of
from hostile_stage import (
    bystander,
    cuts,
    encode,
    must_be_lost,
    nothing_worse_than_a_warning,
    raw_server_of,
)
from life_api import METHODS
from raw_channel import (
    FAILURE,
    MANY,
    REPLY,
    REQUEST,
    RawChannel,
    Record,
    many,
)
from raw_peer import RawClient, RawServer, hung_up

import shmrpc

WINDOW = {"stream_items": 8, "stream_bytes": 1000}
"""What the other side accepts."""

COUNT, TEXTS, KEEP, KEEP_ARRAYS, TOTAL, LONG_AFTER = (
    len(METHODS) + FLOWS.index(name) for name in ("count", "texts", "keep", "keep_arrays", "total", "long_after")
)


Act = Callable[[RawChannel], None]


def send(kind: int, payload: bytes = b"", *, call_id: int = 2, flags: int = 0, times: int = 1) -> Act:
    def act(channel: RawChannel) -> None:
        for _ in range(times):
            channel.send(kind, payload, call_id=call_id, flags=flags)

    return act


def in_order(*acts: Act) -> Act:
    def act(channel: RawChannel) -> None:
        for one in acts:
            one(channel)

    return act


def many_items(kind: int, *items: object, count: int | None = None) -> Act:
    return send(kind, many(*items, count=count), flags=MANY)


def credit(kind: int, *fields: object, call_id: int = 2) -> Act:
    return send(kind, encode(fields), call_id=call_id)


@asynccontextmanager
async def client_of(path: str, **settings: Any) -> AsyncIterator[tuple[shmrpc.Server, RawClient, Streamer]]:
    """A server with a bystander, and a client that may do anything."""
    streamer = Streamer()
    async with bystander(path, streamer, **{**WINDOW, **settings}) as server, RawClient(path) as peer:
        yield server, peer, streamer


def waiting_at(server: shmrpc.Server) -> int:
    """How many records of one connection wait for room at a server."""
    return max(len(session.channel.outbox) for session in sessions_of(server))


async def next_end(channel: RawChannel) -> Record:
    """Passes over the items of streams."""
    while True:
        if (record := await channel.receive()).kind in (REPLY, FAILURE):
            return record


class Play:
    """One connection between a raw server and a real client, whose first call has been answered."""

    def __init__(self, server: RawServer, flow: Flow) -> None:
        self.server = server
        self.channel = server.channel
        self.flow = flow

    async def call(self, call: Awaitable[Any]) -> "asyncio.Future[Any]":
        """A call that the server has taken, which is call 2."""
        future = asyncio.ensure_future(call)
        record = await self.channel.receive()
        assert (record.kind, record.call_id) == (REQUEST, 2)
        return future

    async def must_lose(self, call: "asyncio.Future[Any]", why: str, caplog: pytest.LogCaptureFixture) -> None:
        """The call, which the server had taken, ends since the connection was cut."""
        await hung_up(self.server.sock)
        await must_be_lost(call, why)
        (text,) = cuts(caplog)
        assert why in text
        nothing_worse_than_a_warning(caplog)


@asynccontextmanager
async def played(path: str, **settings: Any) -> AsyncIterator[Play]:
    """The two, beside a server and clients that nothing may disturb."""
    welcome = {"stream_window": [8, 1000]}
    async with raw_server_of(path, Flow, welcome=welcome, **{**WINDOW, **settings}) as (server, flow):
        first = asyncio.ensure_future(flow.plain(7))
        request = await server.channel.receive()
        server.channel.send(REPLY, encode(7), call_id=request.call_id)
        assert await first == 7
        yield Play(server, flow)


async def read_all(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


async def nothing_yet() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


async def three() -> AsyncIterator[Any]:
    for item in ("a", "b", "c"):
        yield item
    await asyncio.Event().wait()
