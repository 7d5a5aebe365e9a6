"""The input: the Python source files of the standard library, which every machine with Python has."""

import sysconfig
import tokenize
from pathlib import Path

SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def library() -> Path:
    """The directory of the standard library."""
    return Path(sysconfig.get_path("stdlib"))


def library_files(limit: int | None = None) -> list[Path]:
    """Source files of the standard library without its tests, in a fixed order; at most `limit` of them."""
    root = library()
    files = (path for path in root.rglob("*.py") if SKIPPED.isdisjoint(path.relative_to(root).parts))
    return sorted(files)[:limit]


def read_source(path: Path) -> str:
    """The text of a source file in the encoding that it declares; what does not decode is replaced.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        with tokenize.open(path) as source:
            return source.read()
    except (SyntaxError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8", errors="replace")
