"""The rival: the same computation behind a Unix socket, by hand, as fast as plain Python goes.

A message is a header of fixed size and one array. uvloop reads the array straight into the memory in which it stays,
and writes it straight from where it is: each array is copied into the kernel and out of it, and nowhere else. The
computation has a thread of its own, as in the worker. There are three axes and three methods, and no more; no deadlines,
no cancellation, no back-pressure and no agreement about versions. It exists to compare with. To start one:

    python -m examples.images.rival /tmp/rival.sock
"""

import argparse
import asyncio
import signal
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import uvloop

from examples.images.api import BadImage, Edges, Histogram, Images, Pixels, Resized
from examples.images.check import InProcess, Result

R = TypeVar("R")

RESIZE, HISTOGRAM, EDGES, BAD_IMAGE = range(4)
"""What a request asks for, and what a reply brings."""

MAX_AXES = 3
LAYOUT = Struct("<QIIIIIIIQd")


class Head(NamedTuple):
    """What goes before an array; what a message has no use for is zero."""

    nbytes: int
    """Of the array; for a picture that was refused, of the reason."""
    call_id: int
    kind: int
    axes: tuple[int, ...]
    size: tuple[int, int] = (0, 0)
    """Rows and columns to shrink to."""
    compute_ns: int = 0
    strongest: float = 0.0

    def pack(self) -> bytes:
        """The header's bytes; an axis that the array does not have is zero."""
        axes = (*self.axes, 0, 0, 0)[:MAX_AXES]
        return LAYOUT.pack(self.nbytes, self.call_id, self.kind, *axes, *self.size, self.compute_ns, self.strongest)

    @classmethod
    def unpack(cls, content: bytearray) -> "Head":
        """The header in these bytes."""
        nbytes, call_id, kind, *sizes, compute_ns, strongest = LAYOUT.unpack(content)
        axes = tuple(size for size in sizes[:MAX_AXES] if size)
        return cls(nbytes, call_id, kind, axes, (sizes[3], sizes[4]), compute_ns, strongest)


def completed(call: Coroutine[Any, Any, R]) -> R:
    """The result of a call that never waits, made without an event loop."""
    try:
        call.send(None)
    except StopIteration as end:
        return cast(R, end.value)
    raise RuntimeError("the call waits for something")


class Messages(asyncio.BufferedProtocol):
    """Cuts the bytes of a socket into headers and arrays."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._header = bytearray(LAYOUT.size)
        self._head: Head | None = None
        self._body: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._rest = memoryview(self._header)
        """The room for what is still missing of the header, or of the array."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._rest

    def buffer_updated(self, nbytes: int) -> None:
        self._rest = self._rest[nbytes:]
        if self._rest:
            return
        if self._head is None:
            self._head = Head.unpack(self._header)
            self._body = np.empty(self._head.nbytes, np.uint8)
            self._rest = self._body.data
            if self._rest:
                return
        head, body = self._head, self._body
        self._head, self._body, self._rest = None, np.empty(0, np.uint8), memoryview(self._header)
        self.message_received(head, body)

    def message_received(self, head: Head, body: npt.NDArray[np.uint8]) -> None:
        raise NotImplementedError

    def send(self, head: Head, array: npt.NDArray[Any]) -> None:
        """Write one message; the array must stay as it is until it is written."""
        self.transport.writelines([head.pack(), array.reshape(-1).view(np.uint8).data])


class Session(Messages):
    """The worker's end of one connection."""

    def __init__(self, images: InProcess) -> None:
        super().__init__()
        self._images = images
        self._tasks: set[asyncio.Task[None]] = set()

    def message_received(self, head: Head, body: npt.NDArray[np.uint8]) -> None:
        task = asyncio.create_task(self._answer(head, body.reshape(head.axes)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, head: Head, image: Pixels) -> None:
        try:
            if head.kind == RESIZE:
                resized = await asyncio.to_thread(completed, self._images.resize(image, *head.size))
                self._reply(head, resized, resized.pixels)
            elif head.kind == HISTOGRAM:
                histogram = await asyncio.to_thread(completed, self._images.histogram(image))
                self._reply(head, histogram, histogram.counts)
            else:
                edges = await asyncio.to_thread(completed, self._images.edges(image))
                self._reply(head, edges, edges.magnitude, edges.strongest)
        except BadImage as error:
            reason = np.frombuffer(error.reason.encode(), np.uint8)
            self.send(Head(reason.nbytes, head.call_id, BAD_IMAGE, error.shape), reason)

    def _reply(self, head: Head, result: Result, array: npt.NDArray[Any], strongest: float = 0.0) -> None:
        reply = Head(array.nbytes, head.call_id, head.kind, array.shape, (0, 0), result.compute_ns, strongest)
        self.send(reply, array)


class Client(Messages, Images):
    """The caller's end: the contract over one connection."""

    def __init__(self) -> None:
        super().__init__()
        self._last_call_id = 0
        self._pending: dict[int, asyncio.Future[tuple[Head, npt.NDArray[np.uint8]]]] = {}

    async def resize(self, image: Pixels, rows: int, columns: int) -> Resized:
        head, body = await self._ask(RESIZE, image, (rows, columns))
        return Resized(body.reshape(head.axes), head.compute_ns)

    async def histogram(self, image: Pixels) -> Histogram:
        head, body = await self._ask(HISTOGRAM, image)
        return Histogram(body.view(np.int64).reshape(head.axes), head.compute_ns)

    async def edges(self, image: Pixels) -> Edges:
        head, body = await self._ask(EDGES, image)
        return Edges(body.view(np.float32).reshape(head.axes), head.strongest, head.compute_ns)

    async def _ask(
        self, kind: int, image: Pixels, size: tuple[int, int] = (0, 0)
    ) -> tuple[Head, npt.NDArray[np.uint8]]:
        self._last_call_id = call_id = self._last_call_id + 1
        self._pending[call_id] = reply = asyncio.get_running_loop().create_future()
        self.send(Head(image.nbytes, call_id, kind, image.shape, size), image)
        head, body = await reply
        if head.kind == BAD_IMAGE:
            raise BadImage(head.axes, bytes(body).decode())
        return head, body

    def message_received(self, head: Head, body: npt.NDArray[np.uint8]) -> None:
        reply = self._pending.pop(head.call_id)
        if not reply.done():  # else its caller gave up
            reply.set_result((head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(exc or ConnectionResetError("the worker closed the connection"))
        self._pending.clear()


@asynccontextmanager
async def connect(address: Path, wait_s: float) -> AsyncGenerator[Images, None]:
    """Connect to a rival worker, which may still be starting."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(wait_s):
        while True:
            try:
                transport, client = await loop.create_unix_connection(Client, str(address))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(0.01)
    try:
        yield client
    finally:
        transport.close()


async def serve(address: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_unix_server(lambda: Session(InProcess()), str(address))
    try:
        await stopped.wait()
    finally:
        server.close()


def main() -> None:
    """Serve from the command line."""
    parser = argparse.ArgumentParser(description="Serve the computation over a hand-rolled protocol.")
    parser.add_argument("address", type=Path, help="path of the socket")
    address: Path = parser.parse_args().address
    try:
        uvloop.run(serve(address))
    finally:
        address.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
