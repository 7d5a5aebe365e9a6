"""What shmrpc sets out to reach against its rivals, and whether a run reached it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from benchmarks.entrants import Entrant
from benchmarks.summary import Metric, Ratio, Rounds, in_waves, p50, ratio, sustained

RIVAL = Entrant("handrolled", "uvloop").name
BATCHED_RIVAL = Entrant("handrolled", "uvloop", "batched").name

CROWD_LIMIT = 1.2
BIG_CROWD_LIMIT = 1.5
BIG_CROWD = 100
"""Up to so many idle connections the round trip stays within CROWD_LIMIT, beyond within BIG_CROWD_LIMIT."""


@dataclass(frozen=True)
class Figure:
    """Something to compare, and whether less of it is better."""

    words: str
    metric: Metric
    less_is_better: bool


ROUND_TRIP = Figure("round trip p50", p50, less_is_better=True)
SUSTAINED = Figure("64 in flight", sustained, less_is_better=False)
WAVES = Figure("waves of 64", in_waves, less_is_better=False)


@dataclass(frozen=True)
class Bar:
    """A comparison: how many times better the subject is than the rival, or how much worse it may be."""

    subject: str
    rival: str
    figure: Figure
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_cost(self) -> bool:
        """Whether the ratio says how much worse the subject is."""
        return self.at_most is not None


class Verdict(msgspec.Struct, frozen=True):
    """How a comparison came out; `reached` is None where no bar was set."""

    subject: str
    rival: str
    figure: str
    ratio: Ratio
    meaning: str
    bar: str
    reached: bool | None


def apart() -> list[Bar]:
    """The bars when client and server run on CPUs of their own."""
    uvloop, plain, never = (
        Entrant("shmrpc", "uvloop", "adaptive").name,
        Entrant("shmrpc", "asyncio", "adaptive").name,
        Entrant("shmrpc", "uvloop", "never").name,
    )
    return [
        Bar(uvloop, RIVAL, ROUND_TRIP, at_least=8.0),
        Bar(uvloop, RIVAL, SUSTAINED, at_least=2.2),
        Bar(uvloop, RIVAL, WAVES, at_least=2.2),
        Bar(plain, RIVAL, ROUND_TRIP, at_least=4.0),
        Bar(plain, RIVAL, SUSTAINED, at_least=1.5),
        Bar(plain, RIVAL, WAVES, at_least=1.5),
        Bar(never, RIVAL, ROUND_TRIP, at_most=1.1),
        Bar(uvloop, BATCHED_RIVAL, SUSTAINED),
        Bar(uvloop, BATCHED_RIVAL, WAVES),
    ]


def together(names: Iterable[str]) -> Iterator[Bar]:
    """The bars when client and server share one CPU: never slower than the rival on the same loop."""
    for name in names:
        if name.startswith("shmrpc/"):
            rival = f"handrolled/{name.split('/')[1]}"
            for figure in (ROUND_TRIP, SUSTAINED, WAVES):
                yield Bar(name, rival, figure, at_least=1.0)


def crowded(entrants: Iterable[Entrant]) -> Iterator[Bar]:
    """The bars for an active connection among idle ones, against itself alone."""
    for entrant in entrants:
        if entrant.idle_connections:
            limit = CROWD_LIMIT if entrant.idle_connections <= BIG_CROWD else BIG_CROWD_LIMIT
            yield Bar(entrant.name, entrant.crowded(0).name, ROUND_TRIP, at_most=limit)


def judge(bar: Bar, rounds: Rounds) -> Verdict:
    """Compare the two within each round."""
    subject_above = bar.figure.less_is_better == bar.is_cost
    above, below = (bar.subject, bar.rival) if subject_above else (bar.rival, bar.subject)
    found = ratio(rounds, above, below, bar.figure.metric)
    if bar.at_most is not None:
        reached: bool | None = found.middle <= bar.at_most
        words = f"at most {bar.at_most:g}"
    elif bar.at_least is not None:
        reached = found.middle >= bar.at_least
        words = f"at least {bar.at_least:g}"
    else:
        reached, words = None, "none set"
    meaning = "as long" if bar.is_cost else "lower" if bar.figure.less_is_better else "higher"
    return Verdict(bar.subject, bar.rival, bar.figure.words, found, meaning, words, reached)


def verdicts(entrants: list[Entrant], rounds: Rounds, *, one_cpu: bool) -> list[Verdict]:
    """Every bar whose two sides were measured."""
    bars = [*(together(rounds) if one_cpu else apart()), *crowded(entrants)]
    return [judge(bar, rounds) for bar in bars if bar.subject in rounds and bar.rival in rounds]
