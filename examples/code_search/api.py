"""The contract between the index worker and whoever searches; both sides import it.

A *word* is a run of letters, digits and underscores; upper and lower case differ. The hits of a query are
files: those with the most occurrences first, and files with equally many in the order of their paths.
"""

from dataclasses import dataclass
from typing import Protocol

import msgspec

import shmrpc

MAX_TOP = 100
"""Most hits that one query may ask for; it keeps a reply below 64 KiB."""


class Hit(msgspec.Struct, frozen=True):
    """One file that answers a query."""

    path: str
    line: int
    """Line of the first occurrence, counted from 1."""
    excerpt: str
    """That line without its indentation, cut to 120 characters."""
    score: int
    """Occurrences in this file."""


class Statistics(msgspec.Struct, frozen=True):
    """What the index holds."""

    files: int
    lines: int
    words: int
    distinct_words: int


@dataclass(eq=False)
class BadQuery(shmrpc.RpcError, code=shmrpc.Code.INVALID_ARGUMENT):
    """The query asks for nothing that could be looked up."""

    query: str
    reason: str


@dataclass(eq=False)
class UnreadableSource(shmrpc.RpcError, code=shmrpc.Code.NOT_FOUND):
    """A path given to `index` cannot be read; no file of that batch was indexed."""

    path: str
    reason: str


class CodeSearch(Protocol):
    """Full-text search over source files."""

    async def index(self, paths: list[str]) -> Statistics:
        """Read and index these files, and say what the index holds now. A file indexed before is replaced."""
        ...

    @shmrpc.oneway
    async def warm_up(self) -> None:
        """Prepare for queries, once the last batch is indexed. Nobody needs to wait for it."""
        ...

    async def count(self, word: str) -> int:
        """How often a word occurs in all files."""
        ...

    async def word(self, word: str, top: int = 10) -> list[Hit]:
        """Files that have this word."""
        ...

    async def phrase(self, phrase: str, top: int = 10) -> list[Hit]:
        """Files that have these words one after the other in a line, whatever stands between two of them.

        ``os path join`` finds ``os.path.join``, and so does ``os.path.join``.
        """
        ...

    async def prefix(self, prefix: str, top: int = 10) -> list[Hit]:
        """Files that have words which begin like this; at least two characters."""
        ...

    async def statistics(self) -> Statistics:
        """What the index holds."""
        ...
