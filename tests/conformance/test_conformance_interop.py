"""The cases of gRPC's public list of interoperability tests that are not about HTTP/2, compression or authentication.

The list is doc/interop-test-descriptions.md in gRPC's repository. The names, sizes and texts are the list's.
"""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from conformance_interop import (
    EchoStatus,
    Interop,
    Message,
    Nested,
    Nowhere,
    ResponseParameters,
    StreamingInput,
    StreamingOutput,
    zeros,
)
from conformance_transports import Transport, between_processes, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

LARGE_REQUEST, LARGE_RESPONSE = 271828, 314159
REQUEST_SIZES = (27182, 8, 1828, 45904)
RESPONSE_SIZES = (31415, 9, 2653, 58979)


async def each(*sizes: int) -> AsyncIterator[StreamingInput]:
    for size in sizes:
        yield StreamingInput(zeros(size))


@on_every_transport
async def test_empty_unary(interop: Interop) -> None:
    assert await interop.empty_call() is None  # type: ignore[func-returns-value]


@on_every_transport
async def test_large_unary(interop: Interop) -> None:
    response = await interop.unary_call(Message(zeros(LARGE_REQUEST), response_size=LARGE_RESPONSE))
    assert response == zeros(LARGE_RESPONSE)


@on_every_transport
async def test_client_streaming(interop: Interop) -> None:
    assert await interop.streaming_input_call(each(*REQUEST_SIZES)) == 74922


@on_every_transport
async def test_server_streaming(interop: Interop) -> None:
    request = StreamingOutput([ResponseParameters(size) for size in RESPONSE_SIZES])
    responses = [response async for response in interop.streaming_output_call(request)]
    assert [len(response) for response in responses] == list(RESPONSE_SIZES)
    assert responses == list(map(zeros, RESPONSE_SIZES))


@on_every_transport
async def test_ping_pong(interop: Interop) -> None:
    """Each request is sent when the response to the one before has come."""
    answered = asyncio.Event()
    sent = 0

    async def requests() -> AsyncIterator[StreamingOutput]:
        nonlocal sent
        for request_size, response_size in zip(REQUEST_SIZES, RESPONSE_SIZES, strict=True):
            sent += 1
            yield StreamingOutput([ResponseParameters(response_size)], zeros(request_size))
            await answered.wait()
            answered.clear()

    got = []
    async for response in interop.full_duplex_call(requests()):
        got.append(len(response))
        assert sent == len(got)
        answered.set()
    assert got == list(RESPONSE_SIZES)


@on_every_transport
async def test_empty_stream(interop: Interop) -> None:
    async def nothing() -> AsyncIterator[StreamingOutput]:
        return
        yield

    assert [response async for response in interop.full_duplex_call(nothing())] == []


@on_every_transport
async def test_cancel_after_begin(interop: Interop, key: str) -> None:
    """Nothing has been sent but the beginning of the call."""
    began = asyncio.Event()

    async def silent() -> AsyncIterator[StreamingInput]:
        began.set()
        await asyncio.Event().wait()
        yield StreamingInput(b"")

    call = asyncio.create_task(interop.streaming_input_call(silent(), key))
    await began.wait()
    await interop.until(key, "began")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await interop.until(key, "cancelled")


@on_every_transport
async def test_cancel_after_first_response(interop: Interop, key: str) -> None:
    async def requests() -> AsyncIterator[StreamingOutput]:
        yield StreamingOutput([ResponseParameters(RESPONSE_SIZES[0])], zeros(REQUEST_SIZES[0]))
        await asyncio.Event().wait()

    responses = interop.full_duplex_call(requests(), key)
    assert len(await anext(responses)) == RESPONSE_SIZES[0]
    reader = asyncio.ensure_future(anext(responses))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await interop.until(key, "cancelled")


@on_every_transport
async def test_timeout_on_sleeping_server(interop: Interop) -> None:
    """The deadline is a millisecond."""

    async def requests() -> AsyncIterator[StreamingOutput]:
        yield StreamingOutput([], zeros(27182))
        await asyncio.Event().wait()

    with pytest.raises(shmrpc.DeadlineExceeded) as caught:
        await anext(shmrpc.options(interop, timeout=0.001).full_duplex_call(requests()))
    assert caught.value.code == shmrpc.Code.DEADLINE_EXCEEDED


@on_every_transport
async def test_custom_metadata(interop: Interop) -> None:
    """The server sends back what it got: initial metadata ahead, trailing metadata with the end."""
    initial = {"x-grpc-test-echo-initial": "test_initial_metadata_value"}
    trailing = {"x-grpc-test-echo-trailing-bin": b"\xab\xab\xab"}

    async def one() -> AsyncIterator[StreamingOutput]:
        yield StreamingOutput([ResponseParameters(LARGE_RESPONSE)], zeros(LARGE_REQUEST))

    reply = shmrpc.Reply()
    stub = shmrpc.options(interop, metadata={**initial, **trailing}, reply=reply)
    await stub.unary_call(Message(zeros(LARGE_REQUEST), response_size=LARGE_RESPONSE))
    for _ in range(2):
        assert reply.initial_metadata == initial
        assert reply.trailing_metadata == trailing
        assert [len(response) async for response in stub.full_duplex_call(one())] == [LARGE_RESPONSE]


@on_every_transport
async def test_status_code_and_message(interop: Interop) -> None:
    status = EchoStatus(shmrpc.Code.UNKNOWN, "test status message")

    async def one() -> AsyncIterator[StreamingOutput]:
        yield StreamingOutput([], status=status)

    for call in (interop.unary_call(Message(b"", status=status)), anext(interop.full_duplex_call(one()))):
        with pytest.raises(shmrpc.RpcError) as caught:
            await call
        assert (caught.value.code, str(caught.value)) == (shmrpc.Code.UNKNOWN, "test status message")


@on_every_transport
async def test_special_status_message(interop: Interop) -> None:
    text = "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n"
    with pytest.raises(shmrpc.RpcError) as caught:
        await interop.unary_call(Message(b"", status=EchoStatus(shmrpc.Code.UNKNOWN, text)))
    assert (caught.value.code, str(caught.value)) == (shmrpc.Code.UNKNOWN, text)


@on_every_transport
async def test_unimplemented_method(interop: Interop) -> None:
    with pytest.raises(shmrpc.Unimplemented) as caught:
        await interop.unimplemented_call()
    assert caught.value.code == shmrpc.Code.UNIMPLEMENTED


@between_processes
async def test_unimplemented_service(transport: Transport) -> None:
    """It is said when the stub connects, and not only at the first call; `local` has nobody to connect to without one."""
    with pytest.raises(shmrpc.RpcError, match=r"Nowhere") as caught:
        async with transport.connect(Nowhere) as nowhere:
            await nowhere.unimplemented_call()
    assert caught.value.code in (shmrpc.Code.UNIMPLEMENTED, shmrpc.Code.FAILED_PRECONDITION)


# Calls in calls


@on_every_transport
async def test_calls_three_deep_inherit_the_deadline(transport: Transport) -> None:
    async with transport.connect(Nested, timeout=100.0) as nested:
        deadlines = await nested.descend(3)
    assert len(deadlines) == 4
    assert len(set(deadlines)) == 1
    assert None not in deadlines


@on_every_transport
async def test_a_deadline_that_passes_three_calls_deep_ends_them_all(transport: Transport, key: str) -> None:
    async with transport.connect(Nested) as nested:
        with pytest.raises(shmrpc.DeadlineExceeded, match=r"Nested\.hang did not end before its deadline"):
            await shmrpc.options(nested, timeout=0.2).hang(3, key)
        for depth in range(4):
            await nested.until(key, f"cancelled at {depth}")


@on_every_transport
async def test_streams_three_deep_inherit_the_deadline_too(transport: Transport, key: str) -> None:
    async with transport.connect(Nested) as nested:
        stream = shmrpc.options(nested, timeout=0.2).stream(3, key)
        got = [json.loads(await anext(stream))]
        with pytest.raises(shmrpc.DeadlineExceeded):
            async for item in stream:
                got.append(json.loads(item))
        for depth in range(4):
            await nested.until(key, f"cancelled at {depth}")
        assert got[0] == ["at 3", "at 2", "at 1", "at 0"]


@on_every_transport
async def test_a_cancellation_goes_three_calls_deep(transport: Transport, key: str) -> None:
    async with transport.connect(Nested) as nested:
        call = asyncio.create_task(nested.hang(3, key))
        await nested.until(key, "hangs")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for depth in range(4):
            await nested.until(key, f"cancelled at {depth}")
