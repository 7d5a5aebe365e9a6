"""The crash matrix itself: its table is true, and its books find what they must."""

import asyncio
import importlib
import re
from pathlib import Path

import pytest
from crash_death import NATIVE
from crash_ledger import Ledger
from crash_nursery import Nursery
from crash_points import CLIENT, CLIENT_NATIVE, SERVER, SERVER_NATIVE, Point, Role, cases
from crash_scene import Scene, client_dies, server_dies
from crash_work import SETTINGS

import shmrpc

pytest_plugins = ["crash_fixtures"]
ALL = (*SERVER, *SERVER_NATIVE, *CLIENT, *CLIENT_NATIVE)
STEPS = Path(shmrpc.__file__).parent / "_native" / "steps.h"
OF_CHANCE = {"announce_epoch_loaded", "announce_ring_due"}


def test_every_point_has_a_number_of_its_own_and_a_scenario() -> None:
    assert len({point.number for point in ALL}) == len(ALL)
    assert {point.scenario for point in ALL} == SETTINGS.keys()


@pytest.mark.parametrize("where", sorted({point.where for point in ALL if not point.where.startswith(NATIVE)}))
def test_every_point_is_in_the_code(where: str) -> None:
    module, _, path = where.partition(":")
    found: object = importlib.import_module(f"shmrpc.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    assert callable(found)


def test_every_native_step_is_a_point_of_either_side_but_those_of_chance() -> None:
    steps = set(re.findall(r"^    STEP\((\w+)\)", STEPS.read_text(), re.MULTILINE)) - OF_CHANCE
    for points in (SERVER_NATIVE, CLIENT_NATIVE):
        assert {point.where.removeprefix(NATIVE) for point in points} == steps


def test_a_long_run_takes_every_point_both_ways() -> None:
    assert len(cases(SERVER, long=True)) == 2 * len(SERVER)
    assert {way for _, way in cases(SERVER, long=False)} == {"exit", "kill"}


@pytest.mark.parametrize("role", ["server", "client"])
async def test_a_point_that_is_never_reached_fails(
    role: Role, nursery: Nursery, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point = Point(0, role, "call", "leave", "shm.incoming:IncomingCalls._place_later", "before", 1)
    scene = Scene(point, "kill", nursery, folder, caplog, patience=0.2)
    with pytest.raises(AssertionError, match="was never reached"):
        await (server_dies if role == "server" else client_dies)(scene)


# ---- the ledger ----


async def _ended(ledger: Ledger, error: BaseException | None, what: str = "note", result: int | None = None) -> None:
    async def make(number: int) -> int:
        if error is not None:
            raise error
        return number if result is None else result

    await asyncio.gather(ledger.call(what, make), return_exceptions=True)


LOST = shmrpc.ConnectionLost("it died")
PERHAPS = shmrpc.ConnectionLost("it died", maybe_executed=True)


@pytest.mark.parametrize(
    ("error", "effects", "fault"),
    [
        (None, [1], ""),
        (None, [], "note 1 was acknowledged and never happened"),
        (None, [1, 1], "note 1 happened 2 times"),
        (LOST, [], ""),
        (LOST, [1], "note 1 happened, and maybe_executed is False"),
        (PERHAPS, [], ""),
        (PERHAPS, [1], ""),
        (PERHAPS, [1, 1], "note 1 happened 2 times"),
        (shmrpc.Internal("what?"), [1], "which no death of a process causes"),
        (asyncio.CancelledError(), [], "which no death of a process causes"),
    ],
)
async def test_the_ledger_finds_what_was_lost(error: BaseException | None, effects: list[int], fault: str) -> None:
    ledger = Ledger(0)
    await _ended(ledger, error)
    found = ledger.faults(effects)
    assert len(found) == bool(fault)
    assert fault in "".join(found)


async def test_the_ledger_finds_a_call_that_has_not_ended() -> None:
    ledger = Ledger(0)
    call = asyncio.create_task(ledger.call("note", lambda _: asyncio.Event().wait()))
    await asyncio.sleep(0)
    assert ledger.faults([]) == ["note 1 ended 0 times"]
    call.cancel()
    await asyncio.wait((call,))


async def test_the_ledger_finds_a_wrong_result_and_when_asked_to_every_error() -> None:
    ledger = Ledger(0)
    await _ended(ledger, None, result=77)
    assert ledger.faults([1]) == ["note 1 has a wrong result"]
    ledger = Ledger(0)
    await _ended(ledger, LOST)
    assert "failed" in "".join(ledger.faults([], flawless=True))


async def test_a_call_that_was_cancelled_with_its_handler_is_in_order() -> None:
    ledger = Ledger(0)
    await _ended(ledger, asyncio.CancelledError(), "Home.note")
    assert ledger.faults([]) == []
