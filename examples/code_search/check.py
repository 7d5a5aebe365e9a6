"""The same questions answered the slow way, by reading every line, and compared with a worker's answers.

Nothing here uses `index.py`: the two agree only if both are right about what a word, a phrase and a line are.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.code_search.api import BadQuery, CodeSearch, Hit, Statistics
from examples.code_search.load import Workload
from examples.code_search.sources import read_source

BAD_QUERY = "two words"


class Scan(CodeSearch):
    """The contract without an index: every query reads every line."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}
        """The lines of each file, by its path."""

    async def index(self, paths: list[str]) -> Statistics:
        for path in paths:
            self.lines[path] = read_source(Path(path)).split("\n")
        return await self.statistics()

    async def warm_up(self) -> None:
        pass

    async def count(self, word: str) -> int:
        return sum(occurrences for _, _, occurrences in self._matching_lines(word, rf"\b{word}\b"))

    async def word(self, word: str, top: int = 10) -> list[Hit]:
        return self._hits(word, rf"\b{word}\b", top)

    async def phrase(self, phrase: str, top: int = 10) -> list[Hit]:
        words = re.split(r"\W+", phrase)
        ahead = r"\W+".join(words)
        return self._hits(max(words, key=len), rf"\b(?={ahead}\b)", top)

    async def prefix(self, prefix: str, top: int = 10) -> list[Hit]:
        return self._hits(prefix, rf"\b{prefix}", top)

    async def statistics(self) -> Statistics:
        words = [word for lines in self.lines.values() for word in re.findall(r"\w+", "\n".join(lines))]
        return Statistics(len(self.lines), sum(map(len, self.lines.values())), len(words), len(set(words)))

    def _matching_lines(self, literal: str, pattern: str) -> Iterator[tuple[str, int, int]]:
        """Path, number and count of matches of each line that matches; all of them contain `literal`."""
        matches = re.compile(pattern).findall
        for path, lines in self.lines.items():
            for number, line in enumerate(lines, start=1):
                if literal in line and (found := matches(line)):
                    yield path, number, len(found)

    def _hits(self, literal: str, pattern: str, top: int) -> list[Hit]:
        first: dict[str, int] = {}
        score: dict[str, int] = {}
        for path, number, occurrences in self._matching_lines(literal, pattern):
            first.setdefault(path, number)
            score[path] = score.get(path, 0) + occurrences
        best = sorted(score, key=lambda path: (-score[path], path))[:top]
        excerpts = {path: self.lines[path][first[path] - 1].strip()[:120] for path in best}
        return [Hit(path, first[path], excerpts[path], score[path]) for path in best]


@dataclass(frozen=True)
class Answers:
    """What the sources answer, to compare with."""

    statistics: Statistics
    workloads: list[tuple[Workload, dict[str, object]]]
    """For each workload the answer to each of its subjects."""

    def __len__(self) -> int:
        return 2 + sum(len(answers) for _, answers in self.workloads)

    @classmethod
    async def of(cls, scan: Scan, workloads: Sequence[Workload], advance: Callable[[int], None]) -> "Answers":
        """Scan the sources for every subject; `advance` hears of each."""
        answered: list[tuple[Workload, dict[str, object]]] = []
        for workload in workloads:
            answers: dict[str, object] = {}
            for subject in workload.subjects:
                answers[subject] = await workload.ask(scan, subject)
                advance(1)
            answered.append((workload, answers))
        return cls(await scan.statistics(), answered)

    async def differences(self, search: CodeSearch) -> list[str]:
        """Ask a worker the same, and say of each answer how it differs."""
        found: list[str] = []
        if (statistics := await search.statistics()) != self.statistics:
            found.append(f"statistics() is {statistics}, the sources have {self.statistics}")
        for workload, answers in self.workloads:
            for subject, expected in answers.items():
                answer = await workload.ask(search, subject)
                if answer != expected:
                    found.append(f"{workload.method}({subject!r}) is {answer}, the sources say {expected}")
        try:
            hits = await search.word(BAD_QUERY)
        except BadQuery as error:
            if error.query != BAD_QUERY:
                found.append(f"the BadQuery about {BAD_QUERY!r} came back about {error.query!r}")
        else:
            found.append(f"word({BAD_QUERY!r}) is {hits}, but should be a BadQuery")
        return found
