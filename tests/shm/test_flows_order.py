"""Which records of a stream of arguments a handler's side takes, and which end the connection."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import msgspec
import pytest

from shmrpc.buffers import Buffer
from shmrpc.dispatch import Dispatcher, ServedMethod
from shmrpc.errors import ProtocolError
from shmrpc.inlet import DEFAULT_WINDOW
from shmrpc.shm.flows import Flows, IncomingFlows, RunningCall

CALL, OTHER = 1, 2


class Sums(Protocol):
    async def total(self, parts: AsyncIterator[int]) -> int: ...
    async def nothing(self) -> None: ...


class Service(Sums):
    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def nothing(self) -> None:
        return None


class Common:
    """What flows need of a session, for records without buffers."""

    own_window = peer_window = DEFAULT_WINDOW

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    def open(self, flags: int, payload: bytes) -> tuple[bytes, Sequence[Buffer]]:
        return payload, ()


class Running(NamedTuple):
    """A call that is being served."""

    served: ServedMethod


class Scene:
    """The handler's side of call 1, which takes a stream, and of call 2, which takes none."""

    def __init__(self) -> None:
        dispatcher = Dispatcher((Service(),))
        self.running: dict[int, RunningCall] = {
            CALL: Running(dispatcher.find("Sums.total")),
            OTHER: Running(dispatcher.find("Sums.nothing")),
        }
        self.flows = IncomingFlows(cast(Flows, Common()), self.running, lambda call_id: call_id <= max(CALL, OTHER))
        self.handling: Any = self.flows.begin(CALL, self.running[CALL].served, (), as_json=False)

    def item(self, number: int, call_id: int = CALL) -> None:
        self.flows.on_arguments(0, 0, call_id, 0, msgspec.msgpack.encode(number))

    def end_of_items(self, call_id: int = CALL) -> None:
        self.flows.on_end_of_arguments(0, 0, call_id, 0, b"")

    def end_call(self) -> None:
        del self.running[CALL]
        self.end_handler()

    def end_handler(self) -> None:
        self.flows.end(CALL, "Sums.total")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    made.handling.close()


async def test_items_come_until_their_end(scene: Scene) -> None:
    for number in (1, 2, 3):
        scene.item(number)
    scene.end_of_items()
    assert await scene.handling == 6


async def test_nothing_comes_after_the_end_of_the_items(scene: Scene) -> None:
    scene.end_of_items()
    with pytest.raises(ProtocolError, match="items of call 1 after their end"):
        scene.item(1)
    with pytest.raises(ProtocolError, match="the end of the items of call 1 after their end"):
        scene.end_of_items()


@pytest.mark.parametrize("half_closed", [False, True])
async def test_what_crossed_the_end_of_its_call_is_ignored(scene: Scene, half_closed: bool) -> None:
    if half_closed:
        scene.end_of_items()
    scene.end_call()
    scene.item(1)
    scene.end_of_items()


async def test_what_comes_while_the_answer_waits_for_memory_is_ignored(scene: Scene) -> None:
    scene.end_handler()
    scene.item(1)
    scene.end_of_items()


async def test_a_call_that_takes_no_stream_gets_no_items(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="items of call 2, which takes no stream"):
        scene.item(1, OTHER)
    with pytest.raises(ProtocolError, match="the end of the items of call 2, which takes no stream"):
        scene.end_of_items(OTHER)


async def test_a_call_that_was_never_begun_gets_no_items(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="items of call 3, which it never began"):
        scene.item(1, 3)
    with pytest.raises(ProtocolError, match="the end of the items of call 3, which it never began"):
        scene.end_of_items(3)
