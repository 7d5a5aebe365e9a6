"""The soak, for some seconds: nothing is lost, and nothing stays."""

import uvloop
from figures import Figures
from soak import Sample, Soaked, soak


async def test_a_mixed_load_loses_nothing_and_leaves_nothing(figures: Figures) -> None:
    uvloop.new_event_loop().close()
    soaked = await soak(0.0, 20261126, round_seconds=0.5)
    assert not soaked.wrong
    assert soaked.calls > 1000
    assert soaked.outcomes["DONE"] > soaked.calls / 2
    for what, count in soaked.counts().items():
        figures.add(what, count)


def test_what_grows_is_seen() -> None:
    flat, fat, slow = (
        Sample((20 << 20, 30 << 20), 40.0),
        Sample((20 << 20, 60 << 20), 41.0),
        Sample((20 << 20, 30 << 20), 90.0),
    )
    for samples, wrong in (
        ([flat] * 9, []),
        ([fat] + [flat] * 8, []),
        ([flat] * 6 + [fat] * 3, ["the memory of the server grew from 30.0 to 60.0 MiB"]),
        ([flat] * 6 + [slow] * 3, ["a small call took 40.0 us at first and 90.0 us in the end"]),
    ):
        soaked = Soaked(samples=list(samples))
        soaked.judge()
        assert soaked.wrong == wrong
