"""What the fuzzers of the native core begin with: for each target inputs by name, as its C file reads them.

An input that a fuzzer found belongs here, so that it is replayed from then on.
"""

from pathlib import Path
from typing import Final

ALONE: Final = 0
SCRIBBLED: Final = 4
RING_64, RING_128, RING_256, RING_512 = range(4)

TAIL, ADVANCE, TAKE, _, COMMIT, POKE, HEAD, PUSH = range(8)
"""The operations of fuzz_record_ring.c."""
SAY_TAIL, SAY_MORE, REAP, SAY_BYTE, SAY_HEAD, RELEASE = range(6)
"""The operations of fuzz_release_ring.c."""


def any_number(number: int) -> bytes:
    """A number of eight bytes in a script."""
    return bytes([255]) + (number % (1 << 64)).to_bytes(8, "little")


def record(length: int, kind: int = 1, call_id: int = 7) -> bytes:
    """A record with its header, payload and padding, or what claims to be one."""
    payload = bytes(range(256)) * 2
    room = (length + 7) // 8 * 8 if length < len(payload) else 16
    return (
        (length | kind << 32 | 3 << 40 | 5 << 48).to_bytes(8, "little")
        + call_id.to_bytes(8, "little") * 2
        + payload[:room]
    )


def pad(length: int) -> bytes:
    """The word that gives away the rest of a ring."""
    return length.to_bytes(8, "little")


def ring(how: int, script: bytes, *records: bytes) -> bytes:
    """An input of fuzz_record_ring.c."""
    return bytes([how, len(script)]) + script + b"".join(records)


def references(most: int, granules: int, *table: tuple[int, int, int, int], count: int | None = None) -> bytes:
    """An input of fuzz_references.c."""
    words = b"".join(word.to_bytes(8, "little") for reference in table for word in reference)
    counted = len(table) if count is None else count
    return bytes([most, granules]) + counted.to_bytes(4, "little") + bytes(4) + words + b"body"


_ROUND = bytes([ADVANCE, 4, TAKE, COMMIT])
_RINGS: Final = {
    "nothing": b"",
    "an empty ring": ring(RING_64, bytes([TAKE])),
    "one record": ring(RING_64, bytes([TAIL, 4, TAKE, COMMIT]), record(8)),
    "several records": ring(RING_256, bytes([TAIL, 12, TAKE, COMMIT, TAKE]), record(0), record(8), record(1)),
    "a full ring": ring(RING_64, bytes([TAIL, 8, TAKE, COMMIT, ADVANCE, 8, TAKE]), record(40)),
    "many turns": ring(RING_64, _ROUND * 12, record(8), record(8)),
    "padding at the end": ring(
        RING_64, bytes([TAIL, 5, TAKE, COMMIT, ADVANCE, 3, TAKE, COMMIT, ADVANCE, 5, TAKE]), record(16), pad(24)
    ),
    "padding that is too long": ring(RING_64, bytes([TAIL, 8, TAKE]), pad(72)),
    "a record that runs over the end": ring(
        RING_64, bytes([TAIL, 6, TAKE, COMMIT, ADVANCE, 4, TAKE]), record(24), record(8)
    ),
    "a record longer than what was published": ring(RING_256, bytes([TAIL, 4, TAKE]), record(200)),
    "the longest length": ring(RING_512, bytes([TAIL, 128, TAKE]), record((1 << 32) - 1)),
    "a tail that goes back": ring(RING_64, bytes([TAIL, 4, TAKE, TAIL, 0, TAKE]), record(8)),
    "a tail that runs over": ring(RING_64, bytes([TAIL, 4, TAKE, TAIL, 12, TAKE]), record(8)),
    "a tail at the end of numbers": ring(RING_64, bytes([TAIL]) + any_number(-8) + bytes([TAKE])),
    "a tail between words": ring(RING_64, bytes([TAIL]) + any_number(33) + bytes([TAKE]), record(8)),
    "a byte that changes": ring(RING_64, bytes([TAIL, 8, TAKE, POKE, 36, 0, TAKE]), record(8), record(8)),
    "pushes": ring(RING_256, bytes([PUSH, 20, HEAD, 8, PUSH, 60, HEAD, 16, PUSH, 60, PUSH, 3, PUSH, 70])),
    "pushes for a peer that reads nothing": ring(RING_64, bytes([PUSH, 2] * 20)),
    "heads that lie": ring(
        RING_64,
        bytes([PUSH, 9, HEAD])
        + any_number(-1)
        + bytes([PUSH, 9, HEAD, 200, PUSH, 9, HEAD, 7, PUSH, 9, HEAD, 0, PUSH, 9]),
    ),
    "a head between words": ring(RING_64, bytes([PUSH, 9, PUSH, 2, HEAD]) + any_number(33) + bytes([PUSH, 9, PUSH, 9])),
    "a record that is changed": ring(
        SCRIBBLED | RING_64, bytes([TAIL, 8, TAKE, COMMIT, PUSH, 9] * 20), record(8), record(0)
    ),
    "records that are changed": ring(
        SCRIBBLED | RING_512,
        bytes([ADVANCE, 100, TAKE, COMMIT, HEAD, 8, PUSH, 9] * 20),
        *[record(8 * n) for n in range(12)],
    ),
}
_RELEASES: Final = {
    "nothing": b"",
    "one block": bytes([ALONE, SAY_BYTE, 0, 9, SAY_TAIL, 1, REAP]),
    "many turns": bytes([ALONE]) + bytes([SAY_MORE, 5, REAP, RELEASE, 3, SAY_HEAD, 1]) * 12,
    "a full ring": bytes([ALONE]) + bytes([RELEASE, 3] * 18) + bytes([SAY_TAIL, 16, REAP, SAY_MORE, 17, REAP]),
    "a tail that goes back": bytes([ALONE, SAY_TAIL, 4, REAP, SAY_TAIL, 1, REAP]),
    "a tail at the end of numbers": bytes([ALONE, SAY_TAIL]) + any_number(-1) + bytes([REAP]),
    "heads that lie": bytes([ALONE, RELEASE, 1, SAY_HEAD, 2, RELEASE, 1, SAY_HEAD])
    + any_number(-1)
    + bytes([RELEASE, 1]),
    "entries that are changed": bytes([1]) + bytes([SAY_MORE, 5, REAP, RELEASE, 3, SAY_HEAD, 1]) * 12,
}
_OUT: Final = (1 << 64) - 1024
_REFERENCES: Final = {
    "nothing": b"",
    "no references": references(8, 16),
    "one": references(8, 16, (1, 2, 0, 64)),
    "several": references(8, 16, (1, 2, 0, 64), (1 << 63, 3, 0, 1), (5 << 32 | 2, 4, 100, 924)),
    "all of the slab": references(8, 16, (0, 1, 0, 16 * 1024), (16, 1, 0, 0), (15, 1, 1023, 1)),
    "out of the slab": references(8, 16, (0, 1, 0, 16 * 1024 + 1), (16, 1, 0, 1), (17, 1, 0, 0), (15, 1, 1024, 1)),
    "sums that overflow": references(8, 16, (1, 1, _OUT, 1), (0, 1, 8, (1 << 64) - 8), (15, 1, 0, _OUT)),
    "more than allowed": references(1, 16, (1, 2, 0, 64), (1, 3, 0, 64)),
    "more than there are": references(31, 16, (1, 2, 0, 64), count=30),
    "a table of which 32 bits know nothing": any_number(-1) + bytes([16, 0, 0, 0, 8]) + bytes(40),
    "a dirty word": bytes([8, 16, 1, 0, 0, 0, 1]) + bytes(33),
    "an empty slab": references(8, 0, (0, 1, 0, 0), (0, 1, 0, 1)),
}
SEEDS: Final = {"fuzz_record_ring": _RINGS, "fuzz_release_ring": _RELEASES, "fuzz_references": _REFERENCES}


def write_seeds(folder: Path, target: str) -> list[Path]:
    """Writes one file into a folder for each input of a target."""
    for name, content in SEEDS[target].items():
        (folder / name.replace(" ", "_")).write_bytes(content)
    return sorted(folder.iterdir())
