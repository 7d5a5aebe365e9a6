"""Streams for interceptors to pass, without a transport."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from intercepted_api import Api, marked

import shmrpc
from shmrpc import contract
from shmrpc.context import CallOptions
from shmrpc.interceptors.client import CallAtClient
from shmrpc.interceptors.passage import passed

READ = contract.read(Api)


class Below:
    """Stands for the stream of a transport: a class, not a generator, which says what is done to it."""

    def __init__(self, count: int, *, error: Exception | None = None, hang: bool = False) -> None:
        self.left = count
        self.error = error
        self.hang = hang
        self.closed = 0
        self.waiting = asyncio.Event()
        self.cancelled = 0
        self.contexts: list[str] = []

    def __aiter__(self) -> "Below":
        return self

    async def __anext__(self) -> int:
        self.contexts.append(marked.get())
        if self.left:
            self.left -= 1
            return self.left
        if self.hang:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # a new one: it would keep this object, and this object it
        raise StopAsyncIteration

    async def aclose(self) -> None:
        assert not self.waiting.is_set() or self.cancelled, "closed while somebody reads it"
        self.closed += 1


class Source:
    """Begins streams: makes them of what it was given, one after the other."""

    def __init__(self, *streams: Below) -> None:
        self.streams = list(streams)
        self.begun = 0

    def begin(self) -> Any:
        self.begun += 1
        return self.streams[self.begun - 1]

    def read(self, *interceptors: shmrpc.Interceptor) -> Any:
        def ask() -> Any:
            method = READ.methods["count"]
            return CallAtClient(Any, method, CallOptions(), Any, ()), self.begin  # type: ignore[arg-type]

        return passed(ask, interceptors)


async def collect(stream: AsyncIterator[Any], into: list[Any] | None = None) -> list[Any]:
    items: list[Any] = [] if into is None else into
    async for item in stream:
        items.append(item)
    return items
