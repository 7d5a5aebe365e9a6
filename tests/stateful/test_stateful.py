"""Calls, streams, cancellations, stalls, kills, releases, forks, drains and reconnects in any order, against a model."""

import re
from collections.abc import Iterator
from typing import ClassVar

import pytest
from figures import Figures
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from stateful_machine import Peers
from stateful_mutants import MUTANTS, change_client
from stateful_servers import Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def machine_settings(examples: int, *, derandomize: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        derandomize=derandomize,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(
            Phase.explicit,
            Phase.generate,
        ),  # what failed once among processes need not fail again when it is shrunk
    )


@pytest.mark.timeout(900)
def test_whatever_happens_in_whatever_order_nothing_is_lost_and_nothing_is_done_twice(
    zygote: Zygote, figures: Figures
) -> None:
    class Machine(Peers):
        pass

    Machine.zygote = zygote
    chosen = machine_settings(250, derandomize=False) if figures.long else machine_settings(30, derandomize=True)
    run_state_machine_as_test(Machine, settings=chosen)
    figures.add("stateful steps", Machine.count)
    figures.add("kills survived", Machine.kills)
    figures.add("calls checked", Machine.calls)
    for what in ("calls lost", "blocks lost", "fds lost"):
        figures.add(what, 0)  # each would have failed its example


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_promise_is_caught(zygote: Zygote, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine(Peers):
        mutant = name
        preludes = (MUTANTS[name].prelude,)
        caught: ClassVar[list[str]] = []

    Machine.zygote = zygote
    change_client(name, monkeypatch)
    with pytest.raises(BaseException):  # noqa: B017 - hypothesis may put it into another one
        run_state_machine_as_test(Machine, settings=machine_settings(20, derandomize=True))
    assert any(re.search(MUTANTS[name].caught, text) for text in Machine.caught), Machine.caught
