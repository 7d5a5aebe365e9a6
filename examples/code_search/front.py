"""The front end: has the standard library indexed, then asks a question. To ask one:

python -m examples.code_search.front /tmp/search.sock "raise NotImplementedError"
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import shmrpc
from examples.code_search.api import BadQuery, CodeSearch, Statistics
from examples.code_search.sources import library_files

BATCH_FILES = 16
"""Files in one `index` call: large enough to keep calls few, small enough to show progress."""


def ignore_progress(_files: int) -> None:
    """Take no notice of progress."""


async def index_files(
    search: CodeSearch, paths: Sequence[Path], advance: Callable[[int], None] = ignore_progress
) -> Statistics:
    """Have files indexed in batches; `advance` hears of each batch how many files it had."""
    remaining = iter(paths)
    while batch := [str(path) for path in islice(remaining, BATCH_FILES)]:
        await search.index(batch)
        advance(len(batch))
    await search.warm_up()
    return await search.statistics()


async def ask(address: str, question: str, top: int) -> int:
    """Print the answer to one question; return the exit status."""
    async with shmrpc.connect(CodeSearch, address, wait=10.0) as search:
        indexed = await search.statistics()
        if not indexed.files:
            indexed = await index_files(search, library_files())
        print(f"{indexed.words:,} words in {indexed.files:,} files")
        try:
            hits = await shmrpc.options(search, timeout=1.0).phrase(question, top)
        except BadQuery as error:
            print(f"{error.query!r}: {error.reason}")
            return 2
        for hit in hits:
            print(f"{hit.path}:{hit.line}: ({hit.score}x) {hit.excerpt}")
        return 0 if hits else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Search the standard library's source.")
    parser.add_argument("address", help="where the worker listens")
    parser.add_argument("question", help="words that stand next to each other in a line")
    parser.add_argument("--top", type=int, default=10, help="files to show (default: %(default)s)")
    arguments = parser.parse_args()
    return asyncio.run(ask(arguments.address, arguments.question, arguments.top))


if __name__ == "__main__":
    raise SystemExit(main())
