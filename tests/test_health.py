"""The health of services: who sets it, who asks, and who waits for a change."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

import shmrpc
from shmrpc import Health
from shmrpc.health import HealthBoard

PATIENCE_SECONDS = 20


class Engine:
    """Stands for an implementation."""


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def board(engine: Engine) -> HealthBoard:
    """Of two implementations, the first of which is two services."""
    return HealthBoard([(engine, ["Vision", "Sound"]), (Engine(), ["Log"])])


def states(board: HealthBoard) -> list[Health]:
    return [board.state(name) for name in ("Vision", "Sound", "Log", "")]


# Setting and asking


def test_every_service_is_serving_until_somebody_says_otherwise(board: HealthBoard) -> None:
    assert states(board) == [Health.SERVING] * 4
    assert repr(board) == "<HealthBoard Vision SERVING, Sound SERVING, Log SERVING>"


def test_a_server_is_as_healthy_as_the_worst_of_its_services(board: HealthBoard) -> None:
    board.set("Vision", Health.UNKNOWN)
    assert states(board) == [Health.UNKNOWN, Health.SERVING, Health.SERVING, Health.UNKNOWN]
    board.set("Log", Health.NOT_SERVING)
    assert states(board) == [Health.UNKNOWN, Health.SERVING, Health.NOT_SERVING, Health.NOT_SERVING]


def test_without_a_name_the_health_of_all_services_is_set(board: HealthBoard) -> None:
    board.set("", Health.NOT_SERVING)
    assert states(board) == [Health.NOT_SERVING] * 4
    board.set("", Health.SERVING)
    assert states(board) == [Health.SERVING] * 4


def test_a_service_that_is_not_there_has_no_health(board: HealthBoard) -> None:
    assert board.state("Taste") is Health.SERVICE_UNKNOWN
    with pytest.raises(ValueError, match="there is no service 'Taste' here; there is Vision, Sound, Log"):
        board.set("Taste", Health.SERVING)


def test_that_a_service_is_unknown_cannot_be_set(board: HealthBoard, engine: Engine) -> None:
    text = "health is one of SERVING, NOT_SERVING, UNKNOWN, not <Health.SERVICE_UNKNOWN"
    with pytest.raises(ValueError, match=text):
        board.set("Vision", Health.SERVICE_UNKNOWN)
    with pytest.raises(ValueError, match=text):
        shmrpc.set_health(engine, Health.SERVICE_UNKNOWN)
    with pytest.raises(ValueError, match="not 'SERVING'"):
        board.set("Vision", "SERVING")  # type: ignore[arg-type]
    assert states(board) == [Health.SERVING] * 4


def test_an_implementation_sets_the_health_of_all_that_it_serves(board: HealthBoard, engine: Engine) -> None:
    other = HealthBoard([(engine, ["Vision"])])
    shmrpc.set_health(engine, Health.NOT_SERVING)
    assert states(board) == [Health.NOT_SERVING, Health.NOT_SERVING, Health.SERVING, Health.NOT_SERVING]
    assert other.state() is Health.NOT_SERVING


def test_what_is_not_served_has_no_health_to_set(board: HealthBoard, engine: Engine) -> None:
    with pytest.raises(ValueError, match="Engine is not served here, so that it has no health"):
        shmrpc.set_health(Engine(), Health.SERVING)


def test_a_board_is_not_kept_by_those_who_set_health() -> None:
    engine = Engine()
    board = HealthBoard([(engine, ["Vision"])])
    shmrpc.set_health(engine, Health.NOT_SERVING)
    del board
    gc.collect()
    with pytest.raises(ValueError, match="not served"):
        shmrpc.set_health(engine, Health.SERVING)


def test_once_the_server_drains_nothing_is_serving_whatever_is_set(board: HealthBoard) -> None:
    board.close()
    board.set("", Health.SERVING)
    assert states(board) == [Health.NOT_SERVING] * 4
    assert board.state("Taste") is Health.SERVICE_UNKNOWN


# Watching


async def next_of(watch: AsyncIterator[Health]) -> Health:
    return await asyncio.wait_for(anext(watch), PATIENCE_SECONDS)


async def all_of(watch: AsyncIterator[Health]) -> list[Health]:
    return [state async for state in watch]


async def test_a_watch_tells_the_present_state_and_then_each_change(board: HealthBoard) -> None:
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    for state in (Health.NOT_SERVING, Health.UNKNOWN, Health.SERVING):
        waiting = asyncio.ensure_future(next_of(watch))
        await asyncio.sleep(0)
        board.set("Vision", state)
        assert await waiting is state
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_of_the_server_hears_of_each_service(board: HealthBoard) -> None:
    watch = board.watch()
    assert await next_of(watch) is Health.SERVING
    board.set("Log", Health.NOT_SERVING)
    assert await next_of(watch) is Health.NOT_SERVING
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_that_is_slow_is_told_the_last_state_only(board: HealthBoard) -> None:
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    for state in (Health.NOT_SERVING, Health.SERVING, Health.UNKNOWN):
        board.set("Vision", state)
    assert await next_of(watch) is Health.UNKNOWN
    await watch.aclose()  # type: ignore[attr-defined]


async def test_what_changes_nothing_is_not_told(board: HealthBoard) -> None:
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    waiting = asyncio.ensure_future(next_of(watch))
    await asyncio.sleep(0)
    board.set("Vision", Health.SERVING)
    board.set("Log", Health.NOT_SERVING)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    board.set("Vision", Health.UNKNOWN)
    assert await waiting is Health.UNKNOWN
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_hears_of_a_change_that_is_made_in_another_thread(board: HealthBoard) -> None:
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    waiting = asyncio.ensure_future(next_of(watch))
    for _ in range(5):  # so that it waits
        await asyncio.sleep(0)
    asyncio.get_running_loop().set_debug(True)  # refuses what another thread must not do
    await asyncio.to_thread(board.set, "Vision", Health.NOT_SERVING)
    assert await waiting is Health.NOT_SERVING
    await watch.aclose()  # type: ignore[attr-defined]


async def test_a_watch_ends_when_the_server_drains(board: HealthBoard) -> None:
    watches = [board.watch("Vision"), board.watch()]
    assert [await next_of(watch) for watch in watches] == [Health.SERVING, Health.SERVING]
    rest = asyncio.gather(*map(all_of, watches))
    await asyncio.sleep(0)
    board.close()
    assert await asyncio.wait_for(rest, 60) == [[Health.NOT_SERVING], [Health.NOT_SERVING]]
    assert await all_of(board.watch("Sound")) == [Health.NOT_SERVING]


async def test_a_watch_that_is_given_up_as_something_changes_is_no_error(board: HealthBoard) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    waiting = asyncio.ensure_future(all_of(watch))
    await asyncio.sleep(0)
    board.set("Vision", Health.NOT_SERVING)
    waiting.cancel()
    await asyncio.wait((waiting,))
    await asyncio.sleep(0)
    assert errors == []


async def test_a_watch_that_is_given_up_leaves_nothing_behind(board: HealthBoard) -> None:
    watch = board.watch("Vision")
    assert await next_of(watch) is Health.SERVING
    waiting = asyncio.ensure_future(next_of(watch))
    await asyncio.sleep(0)
    assert len(board._waiters) == 1
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert not board._waiters
