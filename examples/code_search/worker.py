"""The index worker: the contract, served from an `Index` in memory. To start one:

python -m shmrpc serve examples.code_search.worker:Worker --at /tmp/search.sock
"""

import asyncio
from pathlib import Path

from examples.code_search.api import MAX_TOP, BadQuery, CodeSearch, Hit, Statistics, UnreadableSource
from examples.code_search.index import Document, Index, words_of
from examples.code_search.sources import read_source

MIN_PREFIX_LENGTH = 2


class Worker(CodeSearch):
    """Searches the files that it was told to index.

    The index belongs to the event loop's thread. Files are read and parsed on another one, because that takes
    long, and other calls are answered meanwhile.
    """

    def __init__(self) -> None:
        self._index = Index()

    async def index(self, paths: list[str]) -> Statistics:
        for document in await asyncio.to_thread(_parse_all, paths):
            self._index.add(document)
        return self._index.statistics()

    async def warm_up(self) -> None:
        self._index.sort()

    async def count(self, word: str) -> int:
        return self._index.count(_one_word(word))

    async def word(self, word: str, top: int = 10) -> list[Hit]:
        return self._index.word(_one_word(word), _checked_top(word, top))

    async def phrase(self, phrase: str, top: int = 10) -> list[Hit]:
        words = words_of(phrase)
        if not words:
            raise BadQuery(phrase, "a phrase needs at least one word")
        return self._index.phrase(words, _checked_top(phrase, top))

    async def prefix(self, prefix: str, top: int = 10) -> list[Hit]:
        if len(_one_word(prefix)) < MIN_PREFIX_LENGTH:
            raise BadQuery(prefix, f"a prefix needs at least {MIN_PREFIX_LENGTH} characters")
        return self._index.prefix(prefix, _checked_top(prefix, top))

    async def statistics(self) -> Statistics:
        return self._index.statistics()


def _parse_all(paths: list[str]) -> list[Document]:
    return [Document.parse(path, _read(path)) for path in paths]


def _read(path: str) -> str:
    try:
        return read_source(Path(path))
    except OSError as error:
        raise UnreadableSource(path, error.strerror or str(error)) from error


def _one_word(query: str) -> str:
    if words_of(query) != [query]:
        raise BadQuery(query, "one word is wanted: letters, digits and underscores")
    return query


def _checked_top(query: str, top: int) -> int:
    if not 1 <= top <= MAX_TOP:
        raise BadQuery(query, f"top is {top}, allowed is 1 to {MAX_TOP}")
    return top
