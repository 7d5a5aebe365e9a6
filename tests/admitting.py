"""Methods that are served as by a transport, for the tests of guards and limits."""

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Any, Protocol, cast

import shmrpc
from shmrpc.admission import Limit
from shmrpc.context import Metadata, Peer, running
from shmrpc.dispatch import Dispatcher, ServedMethod


class Served:
    """What guards and limits need of a call that a transport keeps."""

    def __init__(self, method_name: str = "Api.work", deadline_ns: int = 0, **metadata: str) -> None:
        self.method_name = method_name
        self.deadline_ns = deadline_ns
        self.metadata: Metadata = metadata
        self.peer = Peer(12, 34, 56)
        self.cancelled = False

    def allocate(self, nbytes: int) -> bytearray:
        return bytearray(nbytes)


class Api(Protocol):
    async def work(self, number: int) -> int: ...


def start(served: ServedMethod, *args: Any, deadline_ns: int = 0, **metadata: str) -> "asyncio.Task[Any]":
    """Calls a method as a transport does: in a context of its own."""
    context = contextvars.copy_context()
    context.run(running.set, cast(Any, Served(served.full_name, deadline_ns, **metadata)))

    async def call() -> Any:
        return await served.invoke(*args)

    return asyncio.get_running_loop().create_task(call(), context=context)


async def settle() -> None:
    """Lets everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Gate:
    """A handler that ends when it is told how."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ends: dict[int, asyncio.Future[int]] = {}

    async def work(self, number: int) -> int:
        self.began.append(number)
        self.ends[number] = asyncio.get_running_loop().create_future()
        return await self.ends[number]


class Two(Gate):
    @shmrpc.method(max_concurrency=2, max_waiting=3)
    async def work(self, number: int) -> int:
        return await super().work(number)


def served_by(implementation: object) -> ServedMethod:
    return Dispatcher((shmrpc.service(implementation, Api),)).methods[0]


def limit_of(served: ServedMethod) -> Limit:
    limit = next(cell.cell_contents for cell in _cells(served.invoke) if isinstance(cell.cell_contents, Limit))
    assert isinstance(limit, Limit)
    return limit


def _cells(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        yield cell
        if callable(cell.cell_contents) and hasattr(cell.cell_contents, "__closure__"):
            yield from _cells(cell.cell_contents)
