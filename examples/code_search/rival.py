"""The rival: the same worker over a Unix socket, by hand, as fast as plain Python goes.

uvloop moves the bytes, msgspec encodes them, and a frame is 9 bytes of header and a body. The contract has to
be written out again, in the table of methods and in `Client`; and there are no deadlines, no cancellation, no
streams, no back-pressure and no agreement about versions. It exists to compare with. To start one:

    python -m examples.code_search.rival /tmp/rival.sock
"""

import argparse
import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, Generic, TypeVar, cast

import uvloop
from msgspec.msgpack import Decoder, Encoder

from examples.code_search.api import BadQuery, CodeSearch, Hit, Statistics, UnreadableSource
from examples.code_search.worker import Worker

R = TypeVar("R")

HEADER = Struct("<IIB")
"""Bytes in the body, call id, then the method of a request or the outcome of a reply."""

NO_REPLY = 0
"""The call id of a request that wants no reply."""


class Crash(Exception):
    """The handler failed in a way that the contract does not know."""


RESULT, BAD_QUERY, UNREADABLE_SOURCE, CRASH = range(4)
"""The outcomes of a call."""

ERRORS = {BAD_QUERY: BadQuery, UNREADABLE_SOURCE: UnreadableSource, CRASH: Crash}

encode = Encoder().encode
decode_error = Decoder(tuple[str, str]).decode


@dataclass(frozen=True)
class Method(Generic[R]):
    """One method of the contract: its number on the wire, its handler and its types."""

    number: int
    handler: Callable[..., Coroutine[Any, Any, R]]
    arguments: Decoder[Any]
    result: Decoder[R]


INDEX = Method(0, Worker.index, Decoder(tuple[list[str]]), Decoder(Statistics))
WARM_UP = Method(1, Worker.warm_up, Decoder(tuple[()]), Decoder(None))
COUNT = Method(2, Worker.count, Decoder(tuple[str]), Decoder(int))
WORD = Method(3, Worker.word, Decoder(tuple[str, int]), Decoder(list[Hit]))
PHRASE = Method(4, Worker.phrase, Decoder(tuple[str, int]), Decoder(list[Hit]))
PREFIX = Method(5, Worker.prefix, Decoder(tuple[str, int]), Decoder(list[Hit]))
STATISTICS = Method(6, Worker.statistics, Decoder(tuple[()]), Decoder(Statistics))

METHODS: tuple[Method[Any], ...] = (INDEX, WARM_UP, COUNT, WORD, PHRASE, PREFIX, STATISTICS)


class Frames(asyncio.Protocol):
    """Cuts the bytes of a socket into frames."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        start = 0
        while len(data) - start >= HEADER.size:
            size, call_id, kind = HEADER.unpack_from(data, start)
            body = start + HEADER.size
            if len(data) < body + size:
                break
            start = body + size
            self.frame_received(call_id, kind, data[body:start])
        self._rest = data[start:]

    def frame_received(self, call_id: int, kind: int, body: bytes) -> None:
        raise NotImplementedError


class Session(Frames):
    """The worker's end of one connection."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self._replies: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._flush()

    def frame_received(self, call_id: int, kind: int, body: bytes) -> None:
        method = METHODS[kind]
        call = method.handler(self._worker, *method.arguments.decode(body))
        if method is INDEX:  # it waits for a thread; all others end at their first step and need no task
            task = asyncio.create_task(self._finish(call_id, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            call.send(None)
        except StopIteration as end:
            self._reply(call_id, RESULT, end.value)
        except Exception as error:
            self._fail(call_id, error)

    async def _finish(self, call_id: int, call: Coroutine[Any, Any, object]) -> None:
        try:
            self._reply(call_id, RESULT, await call)
        except Exception as error:
            self._fail(call_id, error)
        self._flush()

    def _reply(self, call_id: int, outcome: int, content: object) -> None:
        if call_id != NO_REPLY:
            body = encode(content)
            self._replies += HEADER.pack(len(body), call_id, outcome), body

    def _fail(self, call_id: int, error: Exception) -> None:
        match error:
            case BadQuery():
                self._reply(call_id, BAD_QUERY, (error.query, error.reason))
            case UnreadableSource():
                self._reply(call_id, UNREADABLE_SOURCE, (error.path, error.reason))
            case _:
                logging.error("a handler failed", exc_info=error)
                self._reply(call_id, CRASH, ("a handler failed", "the worker's log says how"))

    def _flush(self) -> None:
        if self._replies:
            self.transport.write(b"".join(self._replies))
            self._replies.clear()


class Client(Frames, CodeSearch):
    """The caller's end: the contract over one connection."""

    def __init__(self) -> None:
        super().__init__()
        self._last_call_id = NO_REPLY
        self._pending: dict[int, asyncio.Future[bytes]] = {}
        self._create_future = asyncio.get_running_loop().create_future

    async def index(self, paths: list[str]) -> Statistics:
        return await self._call(INDEX, paths)

    async def warm_up(self) -> None:
        self._send(NO_REPLY, WARM_UP, ())

    async def count(self, word: str) -> int:
        return await self._call(COUNT, word)

    async def word(self, word: str, top: int = 10) -> list[Hit]:
        return await self._call(WORD, word, top)

    async def phrase(self, phrase: str, top: int = 10) -> list[Hit]:
        return await self._call(PHRASE, phrase, top)

    async def prefix(self, prefix: str, top: int = 10) -> list[Hit]:
        return await self._call(PREFIX, prefix, top)

    async def statistics(self) -> Statistics:
        return await self._call(STATISTICS)

    async def _call(self, method: Method[R], *arguments: object) -> R:
        self._last_call_id = call_id = self._last_call_id + 1
        self._send(call_id, method, arguments)
        self._pending[call_id] = reply = self._create_future()
        return method.result.decode(await reply)

    def _send(self, call_id: int, method: Method[Any], arguments: tuple[object, ...]) -> None:
        body = encode(arguments)
        self.transport.write(HEADER.pack(len(body), call_id, method.number) + body)

    def frame_received(self, call_id: int, kind: int, body: bytes) -> None:
        reply = self._pending.pop(call_id)
        if reply.done():  # its caller gave up
            return
        if kind == RESULT:
            reply.set_result(body)
        else:
            reply.set_exception(ERRORS[kind](*decode_error(body)))

    def connection_lost(self, exc: Exception | None) -> None:
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(exc or ConnectionResetError("the worker closed the connection"))
        self._pending.clear()


@asynccontextmanager
async def connect(address: Path, wait_s: float) -> AsyncGenerator[CodeSearch, None]:
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
    """Serve one worker until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    worker = Worker()
    server = await loop.create_unix_server(lambda: Session(worker), str(address))
    try:
        await stopped.wait()
    finally:
        server.close()


def main() -> None:
    """Serve from the command line."""
    parser = argparse.ArgumentParser(description="Serve the index worker over a hand-rolled protocol.")
    parser.add_argument("address", type=Path, help="path of the socket")
    address: Path = parser.parse_args().address
    try:
        uvloop.run(serve(address))
    finally:
        address.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
