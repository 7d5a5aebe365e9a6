"""Calls, streams, cancellations, stalls, kills, releases, forks, drains and reconnects in any order, against a model."""

from collections.abc import Iterator

import pytest
from figures import Figures
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from stateful_machine import Peers
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


def test_whatever_happens_in_whatever_order_nothing_is_lost_and_nothing_is_done_twice(
    zygote: Zygote, figures: Figures
) -> None:
    class Machine(Peers):
        pass

    Machine.zygote = zygote
    chosen = machine_settings(250, derandomize=False) if figures.long else machine_settings(30, derandomize=True)
    run_state_machine_as_test(Machine, settings=chosen)
    figures.add("stateful steps", Machine.count)
