"""The record ring and the release ring as `_native/ring.h` has them, step by step, for the explorer.

Each function has the name of the one that it stands for, and does the same loads and stores of shared words in the same
order. A record takes one place, and is one value; so there is no PAD, and no record can be torn. Where the code refuses what
an honest peer cannot have written, the model asserts that it does not happen.
"""

from typing import Any, Final

from model_steps import Load, Steps, Store

OK: Final = "ok"
EMPTY: Final = "empty"
FULL: Final = "full"


class Producer:
    """`struct shm_producer`: of the ring in the segment of `own`."""

    def __init__(self, own: str, peer: str, size: int) -> None:
        self.ring = f"{own}.record"
        self.size = size
        self.tail_word = f"{own}.tail"
        self.head_word = f"{peer}.head"
        self.tail = 0
        self.head = 0


class Consumer:
    """`struct shm_consumer`: of the ring in the segment of `peer`."""

    def __init__(self, own: str, peer: str, size: int) -> None:
        self.ring = f"{peer}.record"
        self.size = size
        self.tail_word = f"{peer}.tail"
        self.head_word = f"{own}.head"
        self.head = 0
        self.committed = 0
        self.tail = 0


class Releaser:
    """`struct shm_releaser`: of the release ring in the segment of `own`."""

    def __init__(self, own: str, peer: str, entries: int) -> None:
        self.ring = f"{own}.release"
        self.entries = entries
        self.tail_word = f"{own}.release_tail"
        self.head_word = f"{peer}.release_head"
        self.tail = 0


class Reaper:
    """`struct shm_reaper`: of the release ring in the segment of `peer`."""

    def __init__(self, own: str, peer: str, entries: int) -> None:
        self.ring = f"{peer}.release"
        self.entries = entries
        self.tail_word = f"{peer}.release_tail"
        self.head_word = f"{own}.release_head"
        self.head = 0


def place(ring: str, position: int, size: int) -> str:
    """The word of a place in a ring."""
    return f"{ring}{position % size}"


def shm_producer_refresh(p: Producer) -> Steps[None]:
    head: int = yield Load(p.head_word)
    assert p.head <= head <= p.tail, "SHM_BAD_HEAD"
    p.head = head


def shm_producer_push(p: Producer, record: Any) -> Steps[str]:
    if p.tail + 1 - p.head > p.size:
        yield from shm_producer_refresh(p)
        if p.tail + 1 - p.head > p.size:
            return FULL
    yield Store(place(p.ring, p.tail, p.size), record)
    p.tail += 1
    yield Store(p.tail_word, p.tail)
    return OK


def shm_consumer_ready(c: Consumer) -> Steps[bool]:
    if c.head != c.tail:
        return True
    tail: int = yield Load(c.tail_word)
    return tail != c.tail


def shm_consumer_published(c: Consumer) -> Steps[int]:
    tail: int = yield Load(c.tail_word)
    return tail


def shm_consumer_look(c: Consumer) -> Steps[str]:
    tail: int = yield Load(c.tail_word)
    assert c.tail <= tail <= c.committed + c.size, "SHM_BAD_TAIL"
    c.tail = tail
    return EMPTY if tail == c.head else OK


def shm_consumer_take(c: Consumer) -> Steps[Any]:
    """The next record, or EMPTY."""
    if c.head == c.tail:
        status = yield from shm_consumer_look(c)
        if status != OK:
            return EMPTY
    record = yield Load(place(c.ring, c.head, c.size))
    c.head += 1
    return record


def shm_consumer_commit(c: Consumer) -> Steps[bool]:
    if c.head == c.committed:
        return False
    c.committed = c.head
    yield Store(c.head_word, c.head)
    return True


def shm_releaser_push(r: Releaser, release: Any) -> Steps[None]:
    head: int = yield Load(r.head_word)
    assert head <= r.tail, "SHM_BAD_HEAD"
    assert r.tail - head < r.entries, "SHM_FULL: the release ring has as many places as leases may be out"
    yield Store(place(r.ring, r.tail, r.entries), release)
    r.tail += 1
    yield Store(r.tail_word, r.tail)


def shm_reaper_take(r: Reaper) -> Steps[Any]:
    """The next release, or EMPTY."""
    tail: int = yield Load(r.tail_word)
    if tail == r.head:
        return EMPTY
    assert r.head < tail <= r.head + r.entries, "SHM_BAD_TAIL"
    release = yield Load(place(r.ring, r.head, r.entries))
    r.head += 1
    yield Store(r.head_word, r.head)
    return release
