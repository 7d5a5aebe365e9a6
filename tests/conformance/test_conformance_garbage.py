"""An error that a call ended with is gone with the last reference to it.

An error whose traceback leads to a frame that refers to the error lives until the next run of the garbage collector, and
with it what the frames of its callers see: arrays, whose memory the peer or this process wants back.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import numpy as np
import pytest
from conformance_api import Api
from conformance_arrays import Arrays
from conformance_streams import Streams
from conformance_transports import Transport, on_every_transport
from garbage import uncollected

import shmrpc
from shmrpc import Code

pytest_plugins = ["conformance_plugin"]

Fail = Callable[[], Awaitable[object]]


async def _garbage_of(fail: Fail) -> list[BaseException]:
    """The errors that a call which fails leaves to the garbage collector."""
    await _fails(fail)  # what is made once
    with uncollected() as garbage:
        await _fails(fail)
    return [one for one in garbage if isinstance(one, BaseException) and one.__traceback__ is not None]


async def _fails(fail: Fail) -> None:
    failed = False
    try:
        await fail()
    except (shmrpc.RpcError, TimeoutError):
        failed = True
    assert failed
    for _ in range(3):  # what the end of a call leaves to the event loop
        await asyncio.sleep(0)


_PLAIN: Final[dict[str, Callable[[Api], Awaitable[object]]]] = {
    "declared": lambda api: api.refuse_shape((3, 4), "turn it"),
    "with a code": lambda api: api.refuse_with(Code.NOT_FOUND, "not here"),
    "a failure of the handler": lambda api: api.break_down("nothing"),
    "a misfit": lambda api: api.place("left"),  # type: ignore[arg-type]
    "a result that cannot be encoded": lambda api: api.give_what_cannot_be_encoded(),
    "a result that does not fit": lambda api: api.give_what_does_not_fit(),
    "late": lambda api: shmrpc.options(api, timeout=0.01).hang("late"),
    "cancelled": lambda api: asyncio.wait_for(api.hang("cancelled"), 0.01),
}


@pytest.mark.parametrize("ending", _PLAIN)
@on_every_transport
async def test_an_error_of_a_plain_call_leaves_no_garbage(api: Api, ending: str) -> None:
    assert await _garbage_of(lambda: _PLAIN[ending](api)) == []


_WITH_ARRAYS: Final[dict[str, Callable[[Arrays], Awaitable[object]]]] = {
    "objects": lambda arrays: arrays.free(np.array([object()])),
    "a misfit": lambda arrays: arrays.pixels(np.zeros(9)),  # type: ignore[arg-type]
    "a result that cannot be encoded": lambda arrays: arrays.give_objects(),
    "a result that does not fit": lambda arrays: arrays.give_reals(),
}


@pytest.mark.parametrize("ending", _WITH_ARRAYS)
@on_every_transport
async def test_an_error_of_a_call_with_arrays_leaves_no_garbage(transport: Transport, ending: str) -> None:
    async with transport.connect(Arrays) as arrays:
        assert await _garbage_of(lambda: _WITH_ARRAYS[ending](arrays)) == []


async def _all(items: AsyncIterator[Any]) -> None:
    async for _ in items:
        pass


async def _broken() -> AsyncIterator[int]:
    yield 1
    raise shmrpc.RpcError("no more")


async def _endless() -> AsyncIterator[int]:
    while True:
        yield 1
        await asyncio.sleep(0)


_STREAMS: Final[dict[str, Callable[[Streams], Awaitable[object]]]] = {
    "after items": lambda streams: _all(streams.fail_after(3)),
    "at once": lambda streams: _all(streams.fail_after(0)),
    "a misfit": lambda streams: _all(streams.misfits()),
    "late": lambda streams: _all(shmrpc.options(streams, timeout=0.01).sleep_after(1, "late")),
    "the caller's own": lambda streams: streams.total(_broken()),
    "late with a stream": lambda streams: shmrpc.options(streams, timeout=0.01).total(_endless()),
}


@pytest.mark.parametrize("ending", _STREAMS)
@on_every_transport
async def test_an_error_of_a_stream_leaves_no_garbage(streams: Streams, ending: str) -> None:
    assert await _garbage_of(lambda: _STREAMS[ending](streams)) == []
