"""grpc.aio over a Unix socket: generic method handlers and msgspec as the serializer, no generated code."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import msgspec

from benchmarks.workload import Echo, Item

SERVICE = "benchmarks.Echo"
METHOD = "echo"

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Item).decode


async def echo(item: Item, context: "grpc.aio.ServicerContext[Any, Any]") -> Item:
    """The handler."""
    return item


async def serve(path: str, variant: str) -> None:
    """Answer echo calls at `path` until cancelled."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo, request_deserializer=decode, response_serializer=encode)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Echo]:
    """Connect to `path`."""
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        await channel.channel_ready()
        yield channel.unary_unary(f"/{SERVICE}/{METHOD}", request_serializer=encode, response_deserializer=decode)
