"""Doorbells that are rung without end, drained, filled, made blocking or closed: that one connection's affair at most."""

import contextlib
import os
import threading

import pytest
from hostile_stage import ADD, Act, AgainstServer, Open, Scene, against_client, against_server, encode, sides
from life_api import Life
from life_waiting import PATIENCE, until
from raw_channel import DOORBELL_EPOCH, REPLY, REQUEST, TAIL
from raw_peer import hung_up

import shmrpc

pytestmark = pytest.mark.counted("bad inputs tried")

FULL = (1 << 64) - 2
"""The most that the counter of an eventfd can hold."""
kinds = pytest.mark.parametrize("bell", ["eventfd", "pipe"])


def _flood(scene: Scene, stop: threading.Event) -> None:
    while not stop.is_set():
        scene.channel.ring()


@sides
@kinds
async def test_a_flood_holds_nobody_up(path: str, stage: Open, bell: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rung by a thread, as fast as it can, from before the bystander's calls to after them."""
    one_more = {"segments": 2} if stage is against_server else {}
    async with stage(path, caplog, doorbell=bell, **one_more) as scene:
        stop = threading.Event()
        thread = threading.Thread(target=_flood, args=(scene, stop))
        thread.start()
        try:
            async with shmrpc.connect(Life, _others_path(path, scene)) as life:
                for number in range(100):
                    assert await life.add(number, 1) == number + 1
            await scene.must_go_on()
        finally:
            stop.set()
            thread.join(PATIENCE)


def _others_path(path: str, scene: Scene) -> str:
    return path if isinstance(scene, AgainstServer) else f"{path}.other"


def _fill_its_own(scene: Scene) -> None:
    """The one that the victim rings."""
    os.set_blocking(scene.half.far_end, False)
    with contextlib.suppress(BlockingIOError):
        if _is_pipe(scene.half.far_end):
            while True:
                os.write(scene.half.far_end, bytes(4096))
        else:
            os.eventfd_write(scene.half.far_end, FULL)


def _is_pipe(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")


def _fill_the_victims(scene: Scene) -> None:
    with contextlib.suppress(BlockingIOError):
        if _is_pipe(scene.channel.far_bell):
            while True:
                os.write(scene.channel.far_bell, bytes(4096))
        else:
            os.eventfd_write(scene.channel.far_bell, FULL)


def _drain_the_victims(scene: Scene) -> None:
    """Also of a pipe, whose reading end it has not been given."""
    scene.channel.ring()
    fd = scene.channel.far_bell
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK) if _is_pipe(fd) else os.dup(fd)
    try:
        with contextlib.suppress(BlockingIOError):
            os.read(own, 65536)
    finally:
        os.close(own)


def _make_blocking(scene: Scene) -> None:
    """Both, as far as it can: an open file description is shared by all who have it."""
    os.set_blocking(scene.channel.far_bell, True)
    os.set_blocking(scene.half.far_end, True)


def _fill_and_make_blocking(scene: Scene) -> None:
    _fill_its_own(scene)
    _make_blocking(scene)


def _close_its_own(scene: Scene) -> None:
    """The reading end of a pipe: the victim can ring no more."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, scene.half.bell, inheritable=False)
    os.close(null)


async def _survives(scene: Scene, act: Act) -> None:
    """The victim must ring the raw peer for each record: it looks asleep."""
    for epoch in (1, 3, 5):
        scene.channel.set_word(DOORBELL_EPOCH, epoch)
        act(scene)
        await scene.must_go_on()


ACTS = {
    "filled": _fill_its_own,
    "flooded to the brim": _fill_the_victims,
    "drained": _drain_the_victims,
    "made blocking": _make_blocking,
}


@sides
@kinds
@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
async def test_calls_go_on_though_it_is(
    path: str, stage: Open, bell: str, act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog, doorbell=bell) as scene:
        await _survives(scene, act)


@sides
@pytest.mark.parametrize("act", [_fill_and_make_blocking, _close_its_own], ids=["filled and made blocking", "closed"])
async def test_calls_go_on_though_a_pipe_is(path: str, stage: Open, act: Act, caplog: pytest.LogCaptureFixture) -> None:
    """An eventfd can be made to freeze its writer like this, which is why it is for peers of one uid alone."""
    async with stage(path, caplog, doorbell="pipe") as scene:
        await _survives(scene, act)


def _close_the_victims(scene: Scene) -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, scene.channel.far_bell, inheritable=False)
    os.close(null)


async def test_a_pipe_whose_writing_end_is_closed_ends_the_connection_of_a_client(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is readable for ever: an event loop that only cleared it would spin."""
    async with against_server(path, caplog, doorbell="pipe") as scene:
        _close_the_victims(scene)
        await hung_up(scene.sock)
        await until(lambda: scene.server.connections == 2, "the connection to end")


async def test_a_pipe_whose_writing_end_is_closed_ends_the_connection_to_a_server(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with against_client(path, caplog, doorbell="pipe") as scene:
        _close_the_victims(scene)
        await hung_up(scene.sock)
        with pytest.raises(shmrpc.ConnectionLost, match="closed its doorbell"):
            await scene.held


async def test_a_drained_doorbell_delays_only_whose_it_is(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with against_server(path, caplog, segments=2) as scene:
        channel = scene.channel
        await until(lambda: channel.far_word(DOORBELL_EPOCH) % 2, "the server to fall asleep")
        _drain_the_victims(scene)
        channel.tail = channel.write(REQUEST, encode((40, 2)), call_id=2, method=ADD)
        channel.set_word(TAIL, channel.tail)
        _drain_the_victims(scene)
        async with shmrpc.connect(Life, path) as life:
            assert await life.add(1) == 2
        assert channel.take() is None
        channel.ring()
        answer = await channel.receive()
        assert (answer.kind, answer.call_id) == (REPLY, 2)
