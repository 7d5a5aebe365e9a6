"""An inverted index with positions: from words to the files and lines that have them.

It owns the tokens, the postings and the ranking. It reads no file and knows no RPC. A `Document` is made from
a path and a text alone, so that may happen on any thread; an `Index` belongs to one thread.
"""

import re
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass
from heapq import nsmallest
from typing import TypeAlias

from examples.code_search.api import MAX_TOP, Hit, Statistics

EXCERPT_LENGTH = 120

Positions: TypeAlias = "array[int]"
"""Where a word or phrase stands in one document, ascending."""

Matches: TypeAlias = dict[str, Positions]
"""The documents that match a query, by path, and where."""

_WORD = re.compile(r"\w+")
_AFTER_ANY_WORD = "\U0010ffff"


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    return _WORD.findall(text)


@dataclass(frozen=True, slots=True)
class Document:
    """One source file, taken apart.

    The words of a document are numbered from 0, and the end of a line takes a number too. So words with
    successive numbers are neighbours in one line, and no phrase reaches across the end of a line.
    """

    path: str
    lines: list[str]
    line_starts: Positions
    """The position at which each line starts."""
    positions: dict[str, Positions]
    """The positions of each word."""

    @classmethod
    def parse(cls, path: str, text: str) -> "Document":
        """Take a text apart."""
        document = cls(path, text.split("\n"), _no_positions(), {})
        position = 0
        for line in document.lines:
            document.line_starts.append(position)
            for word in words_of(line):
                if word not in document.positions:
                    document.positions[word] = _no_positions()
                document.positions[word].append(position)
                position += 1
            position += 1
        return document

    @property
    def word_count(self) -> int:
        """Number of words, repeated ones counted each time."""
        return sum(map(len, self.positions.values()))

    def hit(self, positions: Positions) -> Hit:
        """The hit for a query that matches at these positions."""
        row = bisect_right(self.line_starts, positions[0]) - 1
        return Hit(self.path, row + 1, self.lines[row].strip()[:EXCERPT_LENGTH], len(positions))


class Index:
    """Documents that can be searched by word, phrase and prefix."""

    def __init__(self) -> None:
        self._documents: dict[str, Document] = {}
        self._postings: dict[str, Matches] = {}
        self._counts: Counter[str] = Counter()
        self._lines = 0
        self._words = 0
        self._vocabulary: list[str] = []  # sorted, or empty until someone needs it
        self._best: dict[str, list[Hit]] = {}  # hits of the words asked for so far

    def __repr__(self) -> str:
        return f"<Index of {len(self._documents)} files, {len(self._postings)} distinct words>"

    def add(self, document: Document) -> None:
        """Index a document, in place of the one that had its path."""
        self.discard(document.path)
        self._documents[document.path] = document
        for word, positions in document.positions.items():
            self._postings.setdefault(word, {})[document.path] = positions
            self._counts[word] += len(positions)
        self._resized(len(document.lines), document.word_count)

    def discard(self, path: str) -> None:
        """Forget the document that has this path, if there is one."""
        document = self._documents.pop(path, None)
        if document is None:
            return
        for word, positions in document.positions.items():
            del self._postings[word][path]
            self._counts[word] -= len(positions)
            if not self._postings[word]:
                del self._postings[word], self._counts[word]
        self._resized(-len(document.lines), -document.word_count)

    def sort(self) -> None:
        """Sort the vocabulary, which otherwise the first `prefix` after a change does."""
        if not self._vocabulary:
            self._vocabulary = sorted(self._postings)

    def count(self, word: str) -> int:
        """How often a word occurs."""
        return self._counts.get(word, 0)

    def word(self, word: str, top: int) -> list[Hit]:
        """The best hits for a word; at most `MAX_TOP`."""
        if word not in self._best:
            if word not in self._postings:
                return []
            self._best[word] = self._rank(self._postings[word], MAX_TOP)
        return self._best[word][:top]

    def phrase(self, words: list[str], top: int) -> list[Hit]:
        """The best hits for words that follow each other in a line."""
        postings = [self._postings.get(word, {}) for word in words]
        matches: Matches = {}
        for path in min(postings, key=len):
            if all(path in posting for posting in postings):
                starts = set(postings[0][path])
                for offset, posting in enumerate(postings):
                    starts.intersection_update([position - offset for position in posting[path]])
                if starts:
                    matches[path] = array("I", sorted(starts))
        return self._rank(matches, top)

    def prefix(self, prefix: str, top: int) -> list[Hit]:
        """The best hits for all words that begin with `prefix`."""
        self.sort()
        first = bisect_left(self._vocabulary, prefix)
        end = bisect_left(self._vocabulary, prefix + _AFTER_ANY_WORD)
        found: dict[str, list[int]] = {}
        for word in self._vocabulary[first:end]:
            for path, positions in self._postings[word].items():
                found.setdefault(path, []).extend(positions)
        return self._rank({path: array("I", sorted(positions)) for path, positions in found.items()}, top)

    def statistics(self) -> Statistics:
        """How much is indexed."""
        return Statistics(len(self._documents), self._lines, self._words, len(self._postings))

    def _rank(self, matches: Matches, top: int) -> list[Hit]:
        best = nsmallest(top, matches, key=lambda path: (-len(matches[path]), path))
        return [self._documents[path].hit(matches[path]) for path in best]

    def _resized(self, lines: int, words: int) -> None:
        self._lines += lines
        self._words += words
        self._vocabulary = []
        self._best.clear()


def _no_positions() -> Positions:
    return array("I")
