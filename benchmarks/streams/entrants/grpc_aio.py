"""grpc.aio over a Unix socket: its three kinds of streaming methods, generic handlers, msgspec as the serializer.

Each item is a message, as grpc's streams have it. Flow control is its own. An array is copied into `bytes` once on its way
out, which no caller can avoid, and looked at in place on its way in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import msgspec

from benchmarks.arrays.entrants.grpc_aio import UNLIMITED, pack, pack_number, unpack, unpack_number
from benchmarks.arrays.workload import Words, numbered
from benchmarks.entrants.grpc_aio import decode, encode
from benchmarks.streams.workload import count_of, items, stamp
from benchmarks.workload import Item

SERVICE = "benchmarks.Streams"

Context = grpc.aio.ServicerContext
Asked = tuple[int, int, bool]

encode_any = msgspec.msgpack.Encoder().encode
decode_asked = msgspec.msgpack.Decoder(Asked).decode


async def give(count: int, context: Context[Any, Any]) -> AsyncIterator[Item]:
    """So many items."""
    async for item in items(count):
        yield item


async def take(source: AsyncIterator[Item], context: Context[Any, Any]) -> int:
    """How many there were."""
    return await count_of(source)


async def talk(source: AsyncIterator[Item], context: Context[Any, Any]) -> AsyncIterator[Item]:
    """Each item, back."""
    async for item in source:
        yield item


async def arrays(asked: Asked, context: Context[Any, Any]) -> AsyncIterator[Words]:
    """So many arrays: the same one, on the heap, warm."""
    count, nbytes, touch_all = asked
    array = numbered(nbytes)
    for number in range(count):
        stamp(array, number, touch_all=touch_all)
        yield array


HANDLERS: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
    "give": grpc.unary_stream_rpc_method_handler(give, request_deserializer=unpack_number, response_serializer=encode),
    "take": grpc.stream_unary_rpc_method_handler(take, request_deserializer=decode, response_serializer=pack_number),
    "talk": grpc.stream_stream_rpc_method_handler(talk, request_deserializer=decode, response_serializer=encode),
    "arrays": grpc.unary_stream_rpc_method_handler(arrays, request_deserializer=decode_asked, response_serializer=pack),
}


async def serve(path: str, variant: str) -> None:
    """Serve streams at `path` until cancelled."""
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, HANDLERS),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(grace=None)


class Client:
    """The streams of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._give = channel.unary_stream(
            f"/{SERVICE}/give", request_serializer=pack_number, response_deserializer=decode
        )
        self._take = channel.stream_unary(
            f"/{SERVICE}/take", request_serializer=encode, response_deserializer=unpack_number
        )
        self._talk = channel.stream_stream(f"/{SERVICE}/talk", request_serializer=encode, response_deserializer=decode)
        self._arrays = channel.unary_stream(
            f"/{SERVICE}/arrays", request_serializer=encode_any, response_deserializer=unpack
        )

    def give(self, count: int) -> AsyncIterator[Item]:
        """So many items from the server."""
        return aiter(self._give(count))

    async def take(self, source: AsyncIterator[Item]) -> int:
        """The server's count of what it was given."""
        return await self._take(source)

    def talk(self, source: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, back from the server."""
        return aiter(self._talk(source))

    def arrays(self, count: int, nbytes: int, touch_all: bool) -> AsyncIterator[Words]:
        """So many arrays from the server."""
        return aiter(self._arrays((count, nbytes, touch_all)))


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    async with grpc.aio.insecure_channel(f"unix:{path}", options=UNLIMITED) as channel:
        await channel.channel_ready()
        yield Client(channel)
