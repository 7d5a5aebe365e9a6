"""What a peer can do to the shared memory that the rules forbid: the same list for hostile clients and servers.

Each act has a channel on which calls were made before, the kind of record that the other side expects next, and that
record's call id. The other side must cut the connection, and log what is said here.
"""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest
from life_api import METHODS, Keeper, Life
from life_waiting import until
from raw_channel import GRANULE, IN_BLOCK, PAD, RELEASE_HEAD, RING, RawChannel

import shmrpc

Act = Callable[[RawChannel, int, int], None]

ECHO: Final = METHODS.index("echo")


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def bystander(path: str, *services: object, **settings: Any) -> AsyncIterator[shmrpc.Server]:
    """A server with another client, one of whose calls is under way all the time, and which nothing may disturb.

    Serves `Keeper`, and more services behind it.
    """
    keeper = Keeper()
    async with shmrpc.Server(keeper, *services, at=path, **settings) as server, shmrpc.connect(Life, path) as life:
        async with shmrpc.connect(Life, path) as other:
            held = asyncio.ensure_future(other.hold(1000))
            await until(lambda: keeper.began == [1000], "the call to begin")
            before = open_fds()
            try:
                yield server
            except BaseException:
                held.cancel()
                raise
            await until(lambda: server.connections == 2, "the others to be gone")
            await until(lambda: open_fds() == before, "everything of theirs to be closed")
            assert not held.done()
            assert await life.add(20, 22) == 42
            await other.let_go()
            assert await held == 1000


def _tail(move: Callable[[RawChannel], int]) -> Act:
    return lambda channel, kind, call_id: channel.publish(move(channel))


def _record(payload: bytes = b"", *, tail: int | None = None, kind: int | None = None, **how: int) -> Act:
    """One record, of the expected kind unless it says otherwise, published in full or as far as `tail` bytes."""

    def act(channel: RawChannel, expected: int, call_id: int) -> None:
        begin = channel.tail
        sent = expected if kind is None else kind
        end = channel.write(sent, payload, call_id=call_id, method=ECHO, **how)
        channel.publish(end if tail is None else begin + tail)

    return act


def _pad(length: int, published: int) -> Act:
    def act(channel: RawChannel, kind: int, call_id: int) -> None:
        at = RING + channel.tail % channel.geometry.ring_bytes
        channel.own[at : at + 8] = struct.pack("<IBBH", length, PAD, 0, 0)
        channel.publish(channel.tail + published)

    return act


def _block(*reference: object, raw: bytes | None = None) -> Act:
    payload = msgspec.msgpack.encode(reference) if raw is None else raw
    return _record(payload, flags=IN_BLOCK)


def _release_head(channel: RawChannel, kind: int, call_id: int) -> None:
    channel.set_word(RELEASE_HEAD, 1000)
    _block(0, 1, 1)(channel, kind, call_id)


def _act(name: str, act: Act, why: str) -> Any:
    return pytest.param(act, why, id=name)


_TAIL = "the peer's write position went back, is unaligned or ran over"
_FIT = "a record of the peer does not fit in its ring"
_OUTSIDE = "is outside of the peer's slab"
_UNKNOWN = "of a kind that this side does not take"

ACTS: Final = [
    # The write position
    _act("a tail that jumps", _tail(lambda channel: channel.tail + channel.geometry.ring_bytes + 8), _TAIL),
    _act("a tail that goes back", _tail(lambda channel: channel.tail - 8), _TAIL),
    _act("a tail at zero", _tail(lambda channel: 0), _TAIL),
    _act("an unaligned tail", _tail(lambda channel: channel.tail + 3), _TAIL),
    _act("a tail at the end of the world", _tail(lambda channel: (1 << 64) - 8), _TAIL),
    # Records
    _act("a record longer than what was published", _record(b"x" * 100, tail=24), _FIT),
    _act("half a header", _record(tail=16), _FIT),
    _act("a length of four gigabytes", _record(length=(1 << 32) - 1), _FIT),
    _act("a length that overflows when it is rounded up", _record(length=(1 << 32) - 8), _FIT),
    _act("a record over the inline limit", _record(b"x" * (8 * 1024 + 1)), _FIT),
    _act("a padding that is too short", _pad(length=8, published=64), _FIT),
    _act("a padding that is too long", _pad(length=(1 << 32) - 8, published=64), _FIT),
    _act("a kind that nobody knows", _record(kind=99), _UNKNOWN),
    _act("the last kind of all", _record(kind=255), "sent a record of kind 255, the highest is 127"),
    _act("a block of no kind", _record(kind=99, payload=msgspec.msgpack.encode((0, 1, 1)), flags=IN_BLOCK), _UNKNOWN),
    # Blocks
    _act("a reference that is none", _block(raw=b"\xc1"), "block reference cannot be decoded"),
    _act("an empty reference", _block(raw=b""), "block reference cannot be decoded"),
    _act("a reference of words", _block("a", "b", "c"), "block reference cannot be decoded"),
    _act("a reference of two", _block(0, 1), "block reference cannot be decoded"),
    _act("a reference of four", _block(0, 1, 2, 3), "block reference cannot be decoded"),
    _act("a tower of references", _block(raw=b"\x91" * 5000), "block reference cannot be decoded"),
    _act("a block behind the slab", _block(360, 1, 1), _OUTSIDE),
    _act("a block that ends behind the slab", _block(359, 1, GRANULE + 1), _OUTSIDE),
    _act("a block before the slab", _block(-1, 1, 1), _OUTSIDE),
    _act("a block of a negative size", _block(0, 1, -1), _OUTSIDE),
    _act("a block of any size", _block(0, 1, 1 << 62), _OUTSIDE),
    _act("a block anywhere", _block((1 << 64) - 1, 1, 1), "refers to extent 4294967295, which it never attached"),
    _act("a block that cannot be named back", _block(0, -1, 1), "block 0 cannot be released"),
    _act("a release position that ran ahead", _release_head, "block 0 cannot be released"),
]
