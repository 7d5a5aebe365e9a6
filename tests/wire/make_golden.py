"""Writes the golden files of those vectors that have none: ``python tests/wire/make_golden.py``.

It never changes a file that is there. A vector whose meaning has changed is a new one, under another name.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from wire_vectors import GOLDEN, VECTORS, as_json  # noqa: E402


def main() -> None:
    """Writes them, and says which."""
    GOLDEN.mkdir(exist_ok=True)
    for vector in VECTORS:
        packed = vector.make()
        for suffix, contents in ((".bin", packed), (".json", as_json(vector).encode())):
            path = GOLDEN / f"{vector.name}{suffix}"
            if not path.exists():
                path.write_bytes(contents)
                print(f"{path.name}: {len(contents)} bytes")


if __name__ == "__main__":
    main()
