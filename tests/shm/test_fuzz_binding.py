"""The native ends of rings while another process writes over the peer's segment: they refuse, or give what is possible.

Under the address sanitizer (`.ci/asan`) this is also the proof that nothing outside of the ring is read. The run is repeated
with ``SHMRPC_SEED``, as far as two processes repeat anything.
"""

import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest
from figures import Figures
from joined import KINDS
from native_builds import chosen_seed

from shmrpc import _native
from shmrpc.shm import layout, ring

ROUNDS: Final = 1500
LONG_ROUNDS: Final = 50_000
RING: Final = 0x2000
RING_BYTES: Final = 1024
ENTRIES: Final = 16
RELEASES: Final = RING + RING_BYTES
NBYTES: Final = 0x3000
LIMIT: Final = 100
"""The longest payload that is accepted inline: shorter than what fits in the ring."""

SCRIBBLER: Final = """
import mmap, random, sys
shared = memoryview(mmap.mmap(int(sys.argv[1]), 0)).cast("Q")
numbers = random.Random(int(sys.argv[2]))
words = [length | kind << 32 for length in (0, 8, 16, 40, 104, 200, 1000, 2**32 - 1) for kind in (0, 1, 2, 3, 255)]
cursors = range(0x1000 // 8, 0x1300 // 8, 16)
places = [*range(0x2000 // 8, 0x2500 // 8), *(place for place in cursors for _ in range(4))]
script = [(numbers.choice(places), numbers.choice(words)) for _ in range(4096)]
script = [(place, word % 200 * 8 if place < 0x2000 // 8 and word < 2**40 else word) for place, word in script]
print("writes", flush=True)
while True:
    for place, word in script:
        shared[place] = word
"""


@pytest.fixture
def scribbled() -> Iterator[tuple[mmap.mmap, int]]:
    """A segment that another process writes over all the time, and the seed of what it writes."""
    seed = chosen_seed()
    fd = os.memfd_create("scribbled", os.MFD_CLOEXEC)
    os.ftruncate(fd, NBYTES)
    shared = mmap.mmap(fd, NBYTES)
    command = [sys.executable, "-c", SCRIBBLER, str(fd), str(seed)]
    with subprocess.Popen(command, pass_fds=(fd,), stdout=subprocess.PIPE) as scribbler:
        try:
            assert scribbler.stdout is not None
            assert scribbler.stdout.readline() == b"writes\n"
            yield shared, seed
        finally:
            scribbler.kill()
            shared.close()
            os.close(fd)


def _say(shared: mmap.mmap, offset: int, value: int) -> None:
    shared[offset : offset + 8] = value.to_bytes(8, "little")


@pytest.mark.timed("fuzz seconds")
@pytest.mark.timeout(900)  # with --long, on a machine that has other things to do
def test_whatever_another_process_writes_is_refused_or_taken_whole(
    scribbled: tuple[mmap.mmap, int], figures: Figures
) -> None:
    shared, seed = scribbled
    numbers = random.Random(seed)
    rounds = LONG_ROUNDS if figures.long else ROUNDS
    taken, corrupt, home = 0, 0, 0

    def handler(flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
        nonlocal taken
        taken += 1
        assert len(payload) <= LIMIT

    for _ in range(rounds):
        own = bytearray(NBYTES)
        consumer = _native.Consumer(own, shared, RING, RING_BYTES, LIMIT)
        reaper = _native.Reaper(own, shared, RELEASES, ENTRIES)
        producer = _native.Producer(own, shared, RING, RING_BYTES, LIMIT)
        releaser = _native.Releaser(own, shared, RELEASES, ENTRIES)
        _say(shared, RING, 40 | 1 << 32)  # a good record, if nobody writes over it
        _say(shared, layout.CURSOR_TAIL, numbers.randrange(RING_BYTES // 8 + 1) * 8)
        _say(shared, layout.CURSOR_RELEASE_TAIL, numbers.randrange(ENTRIES + 1))
        for _ in range(4):
            try:
                consumer.dispatch(64, (handler,) * (2 * KINDS), {})
                consumer.arm()
                consumer.disarm()
            except _native.RingCorrupt:
                corrupt += 1
            try:
                entries = reaper.take()
                assert len(entries) <= ENTRIES
                home += len(entries)
            except _native.RingCorrupt:
                corrupt += 1
            try:
                for call_id in range(RING_BYTES):
                    if producer.send(1, 0, 0, call_id, 0, b"x" * numbers.randrange(LIMIT)) == ring.FULL:
                        break
                producer.unread()
            except _native.RingCorrupt:
                corrupt += 1
            try:
                releaser.release(1, 1)
            except _native.RingCorrupt:
                corrupt += 1
        for end in (consumer, reaper, producer, releaser):
            end.close()
    assert min(taken, corrupt, home) > rounds // 10, f"with SHMRPC_SEED={seed}"
    figures.add("fuzz executions", rounds)
