"""What shmrpc sets out to reach with streams, and whether a run reached it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.arrays.bars import Finding
from benchmarks.bars import Verdict
from benchmarks.streams.entrants import GRPC, HANDROLLED, ON_ASYNCIO, SUBJECT
from benchmarks.streams.figures import StreamFigures
from benchmarks.summary import Ratio

Rounds = Mapping[str, Sequence[StreamFigures]]
Metric = Callable[[StreamFigures], float]

NAME = SUBJECT.name
BEST = "best rival"
"""The rival that was best in the round."""
ITEMS_PER_S = 1.5e6
ITEMS_AGAINST_GRPC = 5.0
ARRAYS_AGAINST_GRPC = 10.0


def give(figures: StreamFigures) -> float:
    """Small items from the server, per second."""
    return figures.give.per_s


def take(figures: StreamFigures) -> float:
    """Small items from the client, per second."""
    return figures.take.per_s


def turn(figures: StreamFigures) -> float:
    """A round trip over a stream, us."""
    return figures.turn.p50_us


def arrays(figures: StreamFigures) -> float:
    """Arrays per second; a word of each is touched."""
    return figures.arrays.per_s


def arrays_touched(figures: StreamFigures) -> float:
    """Arrays per second; every word is touched, at both sides."""
    return figures.arrays_touched.per_s


def in_process(figures: StreamFigures) -> float:
    """Items per second that never leave the client."""
    return figures.in_process.per_s


@dataclass(frozen=True)
class Bar:
    """One comparison of shmrpc."""

    words: str
    metric: Metric
    against: str
    """A rival, BEST, or what `reference` is."""
    reference: Metric | None = None
    """Of shmrpc itself; None: `metric` of the rival."""
    at_least: float | None = None
    subject: str = NAME

    @property
    def less_is_better(self) -> bool:
        """Whether it is a time."""
        return self.metric is turn


def all_bars() -> Iterator[Bar]:
    """Every comparison."""
    for words, metric, bar in (
        ("small items to the client", give, ITEMS_AGAINST_GRPC),
        ("small items to the server", take, ITEMS_AGAINST_GRPC),
        ("a turn", turn, None),
        ("1 MiB arrays, a word touched", arrays, ARRAYS_AGAINST_GRPC),
        ("1 MiB arrays, all touched", arrays_touched, None),
    ):
        yield Bar(words, metric, GRPC.name, at_least=bar)
        yield Bar(words, metric, BEST)
    yield Bar("small items to the client", give, "in one process", in_process)
    yield Bar("small items to the client, on asyncio", give, HANDROLLED.name, subject=ON_ASYNCIO.name)


def reference(bar: Bar, rounds: Rounds) -> list[float] | None:
    """What the subject is compared with, round by round; None where it was not measured."""
    if bar.reference is not None:
        return [bar.reference(one) for one in rounds[bar.subject]]
    if bar.against != BEST:
        return [bar.metric(one) for one in rounds[bar.against]] if bar.against in rounds else None
    rivals = [figures for name, figures in rounds.items() if not name.startswith("shmrpc/")]
    best = min if bar.less_is_better else max
    return [best(map(bar.metric, of_round)) for of_round in zip(*rivals, strict=True)] if rivals else None


def judge(bar: Bar, rounds: Rounds, *, one_cpu: bool) -> Verdict | None:
    """The ratio within each round, above 1 where shmrpc is better; None where one of both was not measured."""
    if bar.subject not in rounds or (theirs := reference(bar, rounds)) is None:
        return None
    pairs = zip((bar.metric(one) for one in rounds[bar.subject]), theirs, strict=True)
    each = [their / own if bar.less_is_better else own / their for own, their in pairs]
    ratio = Ratio(median(each), min(each), max(each))
    reached: bool | None = None
    words = "none set"
    if bar.at_least is not None and not one_cpu:
        reached, words = ratio.middle >= bar.at_least, f"at least {bar.at_least:g}"
    figure = "p50" if bar.less_is_better else "rate"
    meaning = "lower" if bar.less_is_better else "higher" if bar.reference is None else "of it"
    return Verdict(bar.words, bar.against, figure, ratio, meaning, words, reached)


def verdicts(rounds: Rounds, *, one_cpu: bool) -> list[Verdict]:
    """Every comparison that can be made; the bars are for a CPU each."""
    judged = (judge(bar, rounds, one_cpu=one_cpu) for bar in all_bars())
    return [verdict for verdict in judged if verdict is not None]


def findings(rounds: Rounds, *, one_cpu: bool) -> list[Finding]:
    """The rates that shmrpc has to reach by itself."""
    found = []
    if NAME in rounds and not one_cpu:
        for words, metric in (("small items to the client", give), ("small items to the server", take)):
            rate = median(map(metric, rounds[NAME]))
            found.append(
                Finding(
                    words,
                    f"{rate / 1e6:.2f} million/s",
                    f"at least {ITEMS_PER_S / 1e6:g}",
                    rate >= ITEMS_PER_S,
                )
            )
    return found
