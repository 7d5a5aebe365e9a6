"""The service of gRPC's interoperability tests as a contract, and one whose handlers call their own server."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
from conformance_service import Journal

import shmrpc


class EchoStatus(msgspec.Struct):
    """The error that a call is to end with."""

    code: int
    message: str


class Message(msgspec.Struct):
    """A request of so many bytes, and how many the response is to have."""

    payload: bytes
    response_size: int = 0
    status: EchoStatus | None = None


class StreamingInput(msgspec.Struct):
    payload: bytes


class ResponseParameters(msgspec.Struct):
    """One response."""

    size: int


class StreamingOutput(msgspec.Struct):
    """Which responses there are to be."""

    responses: list[ResponseParameters]
    payload: bytes = b""
    status: EchoStatus | None = None


def zeros(size: int) -> bytes:
    """A payload of the list's."""
    return bytes(size)


class Interop(Protocol):
    """gRPC's TestService, in Python's spelling."""

    async def empty_call(self) -> None: ...
    async def unary_call(self, request: Message) -> bytes: ...
    async def streaming_input_call(self, requests: AsyncIterator[StreamingInput], key: str = "") -> int: ...
    def streaming_output_call(self, request: StreamingOutput) -> AsyncIterator[bytes]: ...
    def full_duplex_call(self, requests: AsyncIterator[StreamingOutput], key: str = "") -> AsyncIterator[bytes]: ...
    async def unimplemented_call(self) -> None: ...
    async def until(self, key: str, word: str) -> None: ...


class Nowhere(Protocol):
    """gRPC's UnimplementedService, which nobody serves."""

    async def unimplemented_call(self) -> None: ...


class Nested(Protocol):
    """Each method calls itself at its own server, so many levels deep."""

    async def descend(self, depth: int) -> list[float | None]: ...
    async def hang(self, depth: int, key: str) -> None: ...
    def stream(self, depth: int, key: str) -> AsyncIterator[str]: ...
    async def until(self, key: str, word: str) -> None: ...


def _raise(status: EchoStatus | None) -> None:
    if status is not None:
        raise shmrpc.RpcError(status.message, code=shmrpc.Code(status.code))


def _echo_metadata() -> None:
    call = shmrpc.current_call()
    if (initial := call.metadata.get("x-grpc-test-echo-initial")) is not None:
        call.send_initial_metadata({"x-grpc-test-echo-initial": initial})
    if (trailing := call.metadata.get("x-grpc-test-echo-trailing-bin")) is not None:
        call.set_trailing_metadata({"x-grpc-test-echo-trailing-bin": trailing})


class InteropService(Interop):
    """Implements `Interop`."""

    def __init__(self) -> None:
        self._journal = Journal()

    async def empty_call(self) -> None:
        return None

    async def unary_call(self, request: Message) -> bytes:
        _echo_metadata()
        _raise(request.status)
        return zeros(request.response_size)

    async def streaming_input_call(self, requests: AsyncIterator[StreamingInput], key: str = "") -> int:
        self._journal.note(key, "began")
        try:
            return sum([len(request.payload) async for request in requests])
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            raise

    async def streaming_output_call(self, request: StreamingOutput) -> AsyncIterator[bytes]:
        for response in request.responses:
            yield zeros(response.size)

    async def full_duplex_call(self, requests: AsyncIterator[StreamingOutput], key: str = "") -> AsyncIterator[bytes]:
        _echo_metadata()
        try:
            async for request in requests:
                _raise(request.status)
                for response in request.responses:
                    yield zeros(response.size)
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            raise

    async def unimplemented_call(self) -> None:
        raise shmrpc.Unimplemented("the list says so")

    async def until(self, key: str, word: str) -> None:
        await self._journal.until(key, word)


class NestedService(Nested):
    """Implements `Nested`; `itself` is a stub of its own server."""

    def __init__(self) -> None:
        self._journal = Journal()
        self.itself: Nested

    async def descend(self, depth: int) -> list[float | None]:
        below = await self.itself.descend(depth - 1) if depth else []
        return [shmrpc.current_call().deadline, *below]

    async def hang(self, depth: int, key: str) -> None:
        try:
            if depth:
                await self.itself.hang(depth - 1, key)
            else:
                self._journal.note(key, "hangs")
                await asyncio.Event().wait()
        except (asyncio.CancelledError, shmrpc.DeadlineExceeded):
            self._journal.note(key, f"cancelled at {depth}")
            raise

    async def stream(self, depth: int, key: str) -> AsyncIterator[str]:
        try:
            if not depth:
                yield json.dumps(["at 0"])
                await asyncio.Event().wait()
            async for item in self.itself.stream(depth - 1, key):
                yield json.dumps([f"at {depth}", *json.loads(item)])
        except (asyncio.CancelledError, shmrpc.DeadlineExceeded):
            self._journal.note(key, f"cancelled at {depth}")
            raise

    async def until(self, key: str, word: str) -> None:
        await self._journal.until(key, word)
