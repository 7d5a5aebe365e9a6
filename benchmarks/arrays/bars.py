"""What shmrpc sets out to reach with arrays and bytes, and whether a run reached it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from benchmarks.arrays.entrants import SUBJECT
from benchmarks.arrays.figures import KIB, MIB, ArrayFigures, AtSize, Footprint
from benchmarks.bars import Verdict
from benchmarks.summary import Ratio

Rounds = Mapping[str, Sequence[ArrayFigures]]
Metric = Callable[[AtSize], float]

NAME = SUBJECT.name
BEST = "best rival"
"""The rival that was fastest in the round."""

FIRST_AT_MOST = 1.3
ECHO_AT_MOST = {16 * MIB: 1.5}
ECHO_AT_LEAST = {64 * KIB: 4.0, 16 * MIB: 8.0}
PEAK_BYTES = 64 * MIB
COPIES_AT_MOST = 2
MEMCPY_FROM = MIB
"""Below this size a memcpy takes less than any call: comparing with it says nothing."""


class Finding(msgspec.Struct, frozen=True):
    """Something counted; `reached` is None where no bar was set."""

    what: str
    found: str
    bar: str
    reached: bool | None


@dataclass(frozen=True)
class Bar:
    """One comparison at one size."""

    words: str
    against: str
    metric: Metric
    reference: Metric | None
    """Of the same entrant; None: `metric` of the best rival."""
    at_least: float | None = None
    at_most: float | None = None


def size_words(nbytes: int) -> str:
    """`64 KiB`, `16 MiB`."""
    return f"{nbytes // MIB} MiB" if nbytes >= MIB else f"{nbytes // KIB} KiB"


def first(figures: AtSize) -> float:
    """See `AtSize.first`."""
    return figures.first.p50_us


def made_first(figures: AtSize) -> float:
    """See `AtSize.made_first`."""
    return figures.made_first.p50_us


def first_again(figures: AtSize) -> float:
    """See `AtSize.first_again`."""
    return figures.first_again.p50_us


def echo(figures: AtSize) -> float:
    """See `AtSize.echo`."""
    return figures.echo.p50_us


def echo_summed(figures: AtSize) -> float:
    """See `AtSize.echo_summed`."""
    return figures.echo_summed.p50_us


def small(figures: AtSize) -> float:
    """See `AtSize.small`."""
    return figures.small.p50_us


def memcpy(figures: AtSize) -> float:
    """See `AtSize.memcpy`."""
    return figures.memcpy.p50_us


def bars_at(nbytes: int) -> Iterator[Bar]:
    """The comparisons of one size."""
    yield Bar("first word, born shared", "small call", first, small, at_most=FIRST_AT_MOST)
    yield Bar("the same with empty()", "small call", made_first, small)
    yield Bar("the same array again", "small call", first_again, small)
    if nbytes >= MEMCPY_FROM:
        yield Bar("echo from the heap", "one memcpy", echo, memcpy, at_most=ECHO_AT_MOST.get(nbytes))
    yield Bar("echo from the heap", BEST, echo, None, at_least=ECHO_AT_LEAST.get(nbytes))
    yield Bar("echo, both read all", BEST, echo_summed, None)


def compare(bar: Bar, nbytes: int, rounds: Rounds) -> Ratio | None:
    """The ratio within each round, larger than 1 where shmrpc takes longer than its reference, or less than rivals."""
    own = [bar.metric(one.at(nbytes)) for one in rounds[NAME]]
    if bar.reference is not None:
        each = [mine / bar.reference(one.at(nbytes)) for mine, one in zip(own, rounds[NAME], strict=True)]
    else:
        rivals = [figures for name, figures in rounds.items() if name != NAME]
        if not rivals:
            return None
        best = [min(bar.metric(one.at(nbytes)) for one in of_round) for of_round in zip(*rivals, strict=True)]
        each = [theirs / mine for mine, theirs in zip(own, best, strict=True)]
    return Ratio(median(each), min(each), max(each))


def verdicts(rounds: Rounds, *, one_cpu: bool) -> list[Verdict]:
    """Every comparison that can be made; the bars are for a CPU each."""
    if NAME not in rounds:
        return []
    sizes = [one.nbytes for one in rounds[NAME][0].sizes]
    bars = [(bar, size) for size in sizes for bar in bars_at(size)]
    bars.sort(key=lambda pair: (pair[0].words, pair[0].against))  # stable: sizes stay in order
    found = []
    for bar, nbytes in bars:
        ratio = compare(bar, nbytes, rounds)
        if ratio is None:
            continue
        reached: bool | None = None
        words = "none set"
        if bar.at_most is not None and not one_cpu:
            reached, words = ratio.middle <= bar.at_most, f"at most {bar.at_most:g}"
        elif bar.at_least is not None and not one_cpu:
            reached, words = ratio.middle >= bar.at_least, f"at least {bar.at_least:g}"
        meaning = "lower" if bar.reference is None else "as long"
        found.append(Verdict(f"{bar.words}, {size_words(nbytes)}", bar.against, "p50", ratio, meaning, words, reached))
    return found


def mib(nbytes: int) -> str:
    """An amount of memory."""
    return f"{nbytes / MIB:.1f} MiB"


def findings(footprint: Footprint) -> Iterator[Finding]:
    """Memory and copies."""
    memory, plain = footprint.memory, footprint.plain_bytes
    growth = memory.last_tenth - memory.first_tenth
    gone = memory.after <= memory.at_rest
    calls = f"{memory.calls} calls with 1 MiB arrays, {memory.in_flight} in flight"
    yield Finding(
        f"{calls}: most memory that was shared, both sides",
        mib(memory.peak),
        f"below {mib(PEAK_BYTES)}",
        memory.peak < PEAK_BYTES,
    )
    yield Finding("growth of it, last tenth of the calls against the first", mib(growth), "none", growth <= 0)
    yield Finding("growth of both heaps meanwhile", mib(memory.heap_growth), "none set", None)
    yield Finding(
        f"left {memory.gone_after_s:.1f} s after the last call (extent_idle={memory.extent_idle_s:g})",
        mib(memory.after),
        f"as before, {mib(memory.at_rest)}",
        gone,
    )
    for words, copies, timed in (
        ("argument", plain.request, plain.request_only),
        ("result", plain.reply, plain.reply_only),
    ):
        places = f"{copies.sender_heap} sender's heap, {copies.shared} shared, {copies.receiver_heap} receiver's heap"
        yield Finding(
            f"copies of {size_words(plain.nbytes)} of bytes as {words} ({places})",
            str(copies.total),
            f"at most {COPIES_AT_MOST}",
            copies.total <= COPIES_AT_MOST,
        )
        floor = plain.memcpy.p50_us + plain.new_bytes.p50_us
        yield Finding(
            f"the time of that, against one memcpy and one copy into a new object ({floor:.0f} us)",
            f"{timed.p50_us:.0f} us, {timed.p50_us / floor:.2f}x",
            "none set",
            None,
        )
    yield Finding(
        f"echo of {size_words(plain.nbytes)} of bytes, against one memcpy ({plain.memcpy.p50_us:.0f} us)",
        f"{plain.echo.p50_us:.0f} us, {plain.echo.p50_us / plain.memcpy.p50_us:.2f}x",
        "none set",
        None,
    )
