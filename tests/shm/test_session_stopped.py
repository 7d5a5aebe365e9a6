"""What a session still does when something in it has stopped the event loop, which then runs again to clean up."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from life_waiting import until
from raw_channel import ROOM_EPOCH, RawChannel
from raw_peer import RawClient

import shmrpc

REPLY_BYTES = 8000
FITTING = 128 * 1024 // (24 + 8 + REPLY_BYTES)


class Stopping:
    """Served here; its methods are in the order of their names on the wire."""

    async def fill(self) -> bytes:
        return bytes(REPLY_BYTES)

    async def stop(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


def test_what_waits_for_room_goes_though_the_turn_that_made_it_stopped_the_loop(
    runner: asyncio.Runner, path: str
) -> None:
    """The peer has rung for the room, and will not do so again."""
    server = shmrpc.Server(Stopping(), at=path)
    peer = RawClient(path)
    channels: list[RawChannel] = []
    held = AsyncExitStack()

    async def fill_and_stop() -> None:
        await held.enter_async_context(server)
        channel = await (await held.enter_async_context(peer)).shake_hands()
        channels.append(channel)
        for call_id in range(1, FITTING + 4):
            channel.request(call_id, 0)
        await until(lambda: channel.far_word(ROOM_EPOCH) & 1 == 1, "the server to wait for room")
        for _ in range(FITTING):
            assert channel.take() is not None
        channel.request(FITTING + 4, 1)
        await asyncio.Event().wait()

    async def clean_up() -> None:
        for call_id in range(FITTING + 1, FITTING + 4):
            record = await channels[0].receive()
            assert record.call_id == call_id
        await held.aclose()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    with pytest.raises(KeyboardInterrupt):
        runner.run(fill_and_stop())
    runner.run(clean_up())
