"""Metadata of answers: ahead of the result, and with the end of the call."""

from typing import Any

import pytest
from conformance_streams import OutOfItems, Streams
from conformance_transports import on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

INITIAL = {"model": "small", "ümlaut": "ß"}
TRAILING = {"cost": b"\x00\x01", "empty": b""}


@pytest.mark.parametrize("initial", [{}, INITIAL])
@pytest.mark.parametrize("trailing", [{}, TRAILING, {"much": b"x" * 20_000}])
@on_every_transport
async def test_an_answer_brings_metadata(streams: Streams, initial: Any, trailing: Any) -> None:
    reply = shmrpc.Reply()
    stub = shmrpc.options(streams, reply=reply)
    assert await stub.attach(initial, trailing) == "attached"
    assert (reply.initial_metadata, reply.trailing_metadata) == (initial, trailing)


@on_every_transport
async def test_a_failure_brings_metadata_too(streams: Streams) -> None:
    reply = shmrpc.Reply()
    with pytest.raises(OutOfItems):
        await shmrpc.options(streams, reply=reply).attach(INITIAL, TRAILING, fail=True)
    assert (reply.initial_metadata, reply.trailing_metadata) == (INITIAL, TRAILING)


@on_every_transport
async def test_a_result_with_buffers_brings_metadata_also_from_a_thread(streams: Streams) -> None:
    reply = shmrpc.Reply()
    result = await shmrpc.options(streams, reply=reply).attach_in_thread(INITIAL, TRAILING)  # type: ignore[misc]
    assert (len(result), int(result[-1])) == (100_000, 7)
    assert (reply.initial_metadata, reply.trailing_metadata) == (INITIAL, TRAILING)


@on_every_transport
async def test_a_stream_has_metadata_at_its_beginning_and_at_its_end(streams: Streams) -> None:
    reply = shmrpc.Reply()
    seen = []
    async for item in shmrpc.options(streams, reply=reply).attach_to_items(INITIAL, TRAILING):
        seen.append((item, reply.initial_metadata))
    assert seen == [(1, INITIAL)]
    assert reply.trailing_metadata == TRAILING


@on_every_transport
async def test_metadata_that_nobody_asked_for_is_dropped(streams: Streams) -> None:
    assert await streams.attach(INITIAL, TRAILING) == "attached"
    with pytest.raises(OutOfItems):
        await streams.attach(INITIAL, TRAILING, fail=True)


@on_every_transport
async def test_a_reply_is_cleared_when_it_is_used_again(streams: Streams) -> None:
    reply = shmrpc.Reply()
    stub = shmrpc.options(streams, reply=reply)
    await stub.attach(INITIAL, TRAILING)
    await stub.attach({}, {})
    assert (reply.initial_metadata, reply.trailing_metadata) == ({}, {})


@on_every_transport
async def test_initial_metadata_is_sent_once(streams: Streams) -> None:
    assert await streams.attach_twice() == "Streams.attach_twice: initial metadata was sent already"


@on_every_transport
async def test_nothing_goes_ahead_of_a_result_that_was_sent(streams: Streams) -> None:
    await streams.keep_call()
    assert await streams.attach_to_kept() == "Streams.keep_call: the call has ended"


@on_every_transport
async def test_a_one_way_call_leaves_the_reply_of_another_alone(streams: Streams, key: str) -> None:
    reply = shmrpc.Reply()
    stub = shmrpc.options(streams, reply=reply)
    await stub.attach_unheard({"of": b"nobody"}, key)
    await stub.attach(INITIAL, TRAILING)
    await streams.step(key)
    await streams.until(key, "attached")
    await streams.attach({}, {})  # the end of the one-way call came before this one's
    assert (reply.initial_metadata, reply.trailing_metadata) == (INITIAL, TRAILING)


@on_every_transport
async def test_metadata_has_a_limit(streams: Streams) -> None:
    large = shmrpc.options(streams, metadata={"large": "x" * 70_000})
    with pytest.raises(shmrpc.ResourceExhausted, match=r"the metadata has 7.* bytes, the limit is 65536"):
        await large.attach({}, {})
    with pytest.raises(shmrpc.ResourceExhausted, match=r"the metadata has 7.* bytes, the limit is 65536"):
        assert [number async for number in large.count(1)]
