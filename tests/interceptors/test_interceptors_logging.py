"""A line in the log for each call."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from intercepted_api import Api, Service

import shmrpc
from shmrpc.interceptors.logging import level_of, log_calls

HERE = f"pid {os.getpid()} (uid {os.getuid()}, gid {os.getgid()})"


@pytest.fixture
async def api(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Api]:
    caplog.set_level(logging.DEBUG, "shmrpc.calls")
    async with shmrpc.local(Api, Service(), interceptors=[log_calls], server_interceptors=[log_calls]) as api:
        yield api


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """Level, beginning and end of each line, without the time."""
    return [
        (record.levelname, text.partition(" in ")[0], text.partition(" ms")[2])
        for record in caplog.records
        if record.name == "shmrpc.calls"
        for text in (record.getMessage(),)
    ]


async def test_a_call_is_one_line_at_each_side(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    await api.add(1)
    assert said(caplog) == [
        ("INFO", f"Api.add (unary) from {HERE}: OK", ""),
        ("INFO", f"Api.add (unary) to {HERE}: OK", ""),
    ]


async def test_a_stream_is_one_line_when_it_has_ended(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    items = [item async for item in api.count(3)]
    assert items == [0, 1, 2]
    assert said(caplog) == [
        ("INFO", f"Api.count (server_stream) from {HERE}: OK", ""),
        ("INFO", f"Api.count (server_stream) to {HERE}: OK", ""),
    ]


async def test_a_failed_call_has_its_status_and_text(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(shmrpc.RpcError):
        await anext(api.count(1, fail_at=0))
    assert said(caplog) == [
        ("WARNING", f"Api.count (server_stream) from {HERE}: OUT_OF_RANGE", ": that far"),
        ("WARNING", f"Api.count (server_stream) to {HERE}: OUT_OF_RANGE", ": that far"),
    ]


async def test_a_cancelled_call_is_said_to_be_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "shmrpc.calls")
    service = Service()
    async with shmrpc.local(Api, service, interceptors=[log_calls]) as api:
        task = asyncio.create_task(api.hang())
        await service.started.wait()
        task.cancel()
        await asyncio.wait((task,))
    assert said(caplog) == [("INFO", f"Api.hang (unary) to {HERE}: CANCELLED", "")]


async def test_a_record_has_the_parts_of_its_line(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    await api.add(1)
    record: Any = caplog.records[-1]
    assert (record.rpc_method, record.rpc_kind, record.rpc_side, record.rpc_code) == (
        "Api.add",
        "unary",
        "client",
        "OK",
    )
    assert record.rpc_seconds > 0
    assert f"{record.rpc_seconds * 1e3:.3f} ms" in record.getMessage()


@pytest.mark.parametrize(
    ("level", "codes"),
    [
        ("INFO", "OK CANCELLED"),
        ("ERROR", "UNKNOWN UNIMPLEMENTED INTERNAL DATA_LOSS"),
        (
            "WARNING",
            "INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED "
            "FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNAVAILABLE UNAUTHENTICATED",
        ),
    ],
)
def test_the_level_is_that_of_the_status(level: str, codes: str) -> None:
    found = [code.name for code in shmrpc.Code if logging.getLevelName(level_of(code)) == level]
    assert found == codes.split()


async def test_a_level_that_is_not_wanted_is_not_written(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "shmrpc.calls")
    await api.add(1)
    assert said(caplog) == []
