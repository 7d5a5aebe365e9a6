"""grpc.aio over a Unix socket: the array's memory as the message, generic method handlers, no limits on messages.

grpc takes and gives `bytes`. The array is copied into such once on its way out, which no caller can avoid, and looked at
in place on its way in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np

from benchmarks.arrays.workload import Warm, Words, total
from benchmarks.entrants.grpc_aio import decode, encode
from benchmarks.workload import Item

SERVICE = "benchmarks.Arrays"
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
NUMBER_BYTES = 8

Context = grpc.aio.ServicerContext


def pack(array: Words) -> bytes:
    """The message of an array."""
    return array.tobytes()


def unpack(message: bytes) -> Words:
    """The array of a message."""
    return np.frombuffer(message, np.uint64)


def pack_number(number: int) -> bytes:
    """The message of a small result."""
    return number.to_bytes(NUMBER_BYTES, "little")


def unpack_number(message: bytes) -> int:
    """The small result of a message."""
    return int.from_bytes(message, "little")


async def small(item: Item, context: Context[Any, Any]) -> Item:
    """Return the item."""
    return item


async def first(array: Words, context: Context[Any, Any]) -> int:
    """Return the first word."""
    return int(array[0])


async def echo(array: Words, context: Context[Any, Any]) -> Words:
    """Return the array."""
    return array


async def echo_summed(array: Words, context: Context[Any, Any]) -> Words:
    """Read all of the array, and return it."""
    total(array)
    return array


HANDLERS: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
    "small": grpc.unary_unary_rpc_method_handler(small, request_deserializer=decode, response_serializer=encode),
    "first": grpc.unary_unary_rpc_method_handler(first, request_deserializer=unpack, response_serializer=pack_number),
    "echo": grpc.unary_unary_rpc_method_handler(echo, request_deserializer=unpack, response_serializer=pack),
    "echo_summed": grpc.unary_unary_rpc_method_handler(
        echo_summed, request_deserializer=unpack, response_serializer=pack
    ),
}


async def serve(path: str, variant: str) -> None:
    """Answer calls at `path` until cancelled."""
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, HANDLERS),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(grace=None)


class Client(Warm):
    """The calls of one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__()
        self.small = channel.unary_unary(f"/{SERVICE}/small", request_serializer=encode, response_deserializer=decode)
        self.first = channel.unary_unary(
            f"/{SERVICE}/first", request_serializer=pack, response_deserializer=unpack_number
        )
        self.echo = channel.unary_unary(f"/{SERVICE}/echo", request_serializer=pack, response_deserializer=unpack)
        self.echo_summed = channel.unary_unary(
            f"/{SERVICE}/echo_summed", request_serializer=pack, response_deserializer=unpack
        )


@asynccontextmanager
async def client(path: str, variant: str) -> AsyncIterator[Client]:
    """Connect to `path`."""
    async with grpc.aio.insecure_channel(f"unix:{path}", options=UNLIMITED) as channel:
        await channel.channel_ready()
        yield Client(channel)
