"""The queries of the demo, drawn from the sources themselves, and the clock that times them."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter, perf_counter_ns

from examples.code_search.api import CodeSearch

IN_FLIGHT = 64


@dataclass(frozen=True)
class Workload:
    """One method of the contract and what to ask it."""

    method: str
    cost: str
    """Where the time of such a call goes."""
    ask: Callable[[CodeSearch, str], Awaitable[object]]
    subjects: Sequence[str]
    calls: int
    """Calls in one round, one after the other; then as many again, `IN_FLIGHT` at a time."""


@dataclass(frozen=True)
class Timing:
    """What one service needed for one workload."""

    p50_us: float
    p99_us: float
    calls_per_s: float


def workloads(sources: Mapping[str, Sequence[str]], *, subjects: int, calls: int) -> list[Workload]:
    """Words, phrases and prefixes that the sources have, the same in every run over the same sources.

    Args:
        sources: The lines of each file.
        subjects: How many different words, phrases and prefixes to ask for.
        calls: Calls in one round of the cheap queries; of the dear ones there are a tenth.
    """
    rng = random.Random(1)
    lines = [line for lines in sources.values() for line in lines if len(re.findall(r"\w+", line)) > 1]
    words = ["a_word_that_no_source_has"]
    phrases: list[str] = []
    prefixes: list[str] = []
    for line in rng.choices(lines, k=subjects):
        found = list(re.finditer(r"\w+", line))
        words.append(rng.choice(found)[0])
        first = rng.randrange(len(found) - 1)
        last = rng.randrange(first + 1, min(first + 4, len(found)))
        phrases.append(line[found[first].start() : found[last].end()])
        prefixes += [word[0][:4] for word in found if len(word[0]) > 4][:1]
    few = max(calls // 10, 1)
    return [
        Workload("count", "call", lambda search, word: search.count(word), words, calls),
        Workload("word", "call", lambda search, word: search.word(word, top=3), words, calls),
        Workload("phrase", "search", lambda search, text: search.phrase(text), phrases, few),
        Workload("prefix", "search", lambda search, text: search.prefix(text), prefixes, few),
    ]


class Stopwatch:
    """Times one workload on one service, in as many rounds as wanted."""

    def __init__(self, workload: Workload, search: CodeSearch) -> None:
        self._workload = workload
        self._search = search
        self._latencies_ns: list[int] = []
        self._rates: list[float] = []

    async def round(self) -> None:
        """Ask everything one by one, then again with `IN_FLIGHT` calls at a time."""
        ask, search, subjects = self._workload.ask, self._search, self._workload.subjects
        questions = [subjects[number % len(subjects)] for number in range(self._workload.calls)]
        for subject in questions:
            started = perf_counter_ns()
            await ask(search, subject)
            self._latencies_ns.append(perf_counter_ns() - started)

        remaining = iter(questions)

        async def ask_remaining() -> None:
            for subject in remaining:
                await ask(search, subject)

        started_s = perf_counter()
        await asyncio.gather(*(ask_remaining() for _ in range(IN_FLIGHT)))
        self._rates.append(len(questions) / (perf_counter() - started_s))

    def timing(self) -> Timing:
        """The latency of all calls that were alone, and the rate of the median round."""
        percentiles = quantiles(self._latencies_ns, n=100)
        return Timing(percentiles[49] / 1e3, percentiles[98] / 1e3, median(self._rates))
