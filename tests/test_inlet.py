"""The reading end of a stream, alone: what comes, what is read, what is granted, and how it ends."""

import asyncio
import gc
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from shmrpc import codec
from shmrpc.buffers import Buffer
from shmrpc.errors import Cancelled
from shmrpc.inlet import DEFAULT_WINDOW, BrokenCredit, Inlet, Window, cut_off

HEAD = codec.MANY_HEAD_BYTES


class Side:
    """An inlet whose items are letters, and what it granted."""

    def __init__(self, window: Window = DEFAULT_WINDOW, ready: deque[Any] | None = None) -> None:
        self.granted: list[tuple[int, int]] = []
        self.inlet = Inlet(
            asyncio.get_running_loop(), self._read, window, lambda *credit: self.granted.append(credit), ready
        )

    def _read(self, payload: bytes, views: Sequence[Buffer], many: bool) -> list[Any]:
        text = payload[HEAD if many else 0 :].decode()
        if "?" in text:
            raise ValueError(f"{text} does not fit")
        return list(text) if many else [text]

    def put(self, letters: str) -> None:
        """One message with an item for each letter."""
        self.inlet.put(codec.head_of_many(len(letters)) + letters.encode(), (), many=True)

    def put_one(self, item: str, views: Sequence[Buffer] = ()) -> None:
        """A message with one item."""
        self.inlet.put(item.encode(), views, many=False)

    async def read(self, count: int) -> str:
        """So many items."""
        return "".join([await anext(self.inlet) for _ in range(count)])

    async def rest(self) -> str:
        """All items until the end."""
        return "".join([item async for item in self.inlet])


@contextmanager
def without_collector() -> Iterator[None]:
    """What dies here dies by its reference count."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# What is read


async def test_items_are_read_in_the_order_in_which_they_came() -> None:
    side = Side()
    side.put("abc")
    side.put_one("d")
    side.put("ef")
    side.inlet.finish()
    assert await side.rest() == "abcdef"


async def test_a_reader_waits_for_what_has_not_come() -> None:
    side = Side()
    reading = asyncio.ensure_future(side.rest())
    for letters in ("a", "bc"):
        await asyncio.sleep(0)
        side.put(letters)
    await asyncio.sleep(0)
    assert not reading.done()
    side.inlet.finish()
    assert await reading == "abc"


async def test_items_are_put_where_they_can_be_had_without_waiting() -> None:
    ready: deque[Any] = deque()
    side = Side(ready=ready)
    side.put("abc")
    assert await anext(side.inlet) == "a"
    assert list(ready) == ["b", "c"]


async def test_a_second_reader_is_refused_and_the_first_one_gets_its_item() -> None:
    side = Side()
    first = asyncio.ensure_future(anext(side.inlet))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="read by one task at a time"):
        await anext(side.inlet)
    side.put("a")
    assert await first == "a"


async def test_a_reader_that_is_cancelled_in_the_tick_of_an_item_leaves_it_to_the_next() -> None:
    side = Side()
    reader = asyncio.ensure_future(anext(side.inlet))
    await asyncio.sleep(0)
    side.put("a")
    reader.cancel()
    await asyncio.wait((reader,))
    assert reader.cancelled()
    assert await side.read(1) == "a"


async def test_an_item_that_does_not_fit_is_raised_at_its_place_and_its_credit_comes_back() -> None:
    side = Side(Window(4, 1000))
    side.put("ab")
    side.put("?")
    side.put("d")
    assert await side.read(2) == "ab"
    with pytest.raises(ValueError, match="does not fit"):
        await anext(side.inlet)
    assert await side.read(1) == "d"
    assert side.granted[-1][0] == 4


async def test_a_message_is_kept_as_it_came_until_it_is_read() -> None:
    side = Side()
    assert not side.inlet.touched
    side.put("?")
    assert side.inlet.touched
    assert repr(side.inlet) == "<Inlet open, 1 items to be read>"


# Credit


async def test_credit_is_given_when_half_of_the_window_was_read_and_counts_from_the_beginning() -> None:
    side = Side(Window(8, 10_000))
    for letters in ("abc", "de", "fgh"):
        side.put(letters)
    assert side.granted == []
    assert await side.read(3) == "abc"
    assert side.granted == []
    assert await side.read(1) == "d"  # its whole message was opened
    assert side.granted == [(5, 2 * HEAD + 5)]
    assert await side.read(4) == "efgh"
    assert side.granted == [(5, 2 * HEAD + 5)]
    side.put("ij")
    assert await side.read(2) == "ij"
    assert side.granted == [(5, 2 * HEAD + 5), (10, 4 * HEAD + 10)]


async def test_credit_is_given_when_half_of_the_bytes_were_read() -> None:
    side = Side(Window(1000, 100))
    side.put_one("x" * 49)
    side.put_one("y")
    await side.read(1)
    assert side.granted == []
    await side.read(1)
    assert side.granted == [(2, 50)]


async def test_buffers_count_as_bytes() -> None:
    side = Side(Window(1000, 100))
    side.put_one("x", [bytearray(60), bytearray(39)])
    await side.read(1)
    assert side.granted == [(1, 100)]


async def test_after_the_end_no_credit_is_given() -> None:
    side = Side(Window(2, 100))
    side.put("ab")
    side.inlet.finish()
    assert await side.rest() == "ab"
    assert side.granted == []


@pytest.mark.parametrize(
    ("window", "messages"),
    [
        (Window(3, 1000), ["abc", "d"]),
        (Window(3, 1000), ["abcd"]),
        (Window(3, 1000), ["ab", "cd"]),
        (Window(100, 7), ["abcdefgh", "i"]),
    ],
)
async def test_more_than_the_window_is_refused(window: Window, messages: list[str]) -> None:
    side = Side(window)
    *allowed, last = messages
    for letters in allowed:
        side.put(letters)
    with pytest.raises(BrokenCredit, match=r"items of \d+ bytes came, and the credit was \d+ items of \d+ bytes"):
        side.put(last)


async def test_one_item_may_exceed_the_window_of_bytes() -> None:
    side = Side(Window(8, 10))
    side.put_one("x" * 1000)
    with pytest.raises(BrokenCredit, match="the credit was 7 items of 0 bytes"):
        side.put_one("y")
    await side.read(1)
    side.put_one("y")


async def test_what_was_granted_may_come() -> None:
    side = Side(Window(2, 100))
    for _ in range(50):
        side.put("ab")
        assert await side.read(2) == "ab"
    assert side.granted[-1][0] == 100


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xdd\x00\x00\x00",
        codec.head_of_many(0),
        codec.head_of_many(0) + b"a",
        codec.head_of_many(2) + b"a",
        codec.head_of_many((1 << 32) - 1) + b"abc",
        b"\x93abcde",
        b"\xdc\x00\x01\x00\x00a",
    ],
)
async def test_what_is_no_message_of_many_is_refused(payload: bytes) -> None:
    side = Side()
    with pytest.raises(BrokenCredit, match="bytes are no message of"):
        side.inlet.put(payload, (), many=True)


# How it ends


async def test_what_came_before_the_end_is_read_first() -> None:
    side = Side()
    side.put("ab")
    side.inlet.finish(KeyError("over"))
    assert await side.read(2) == "ab"
    with pytest.raises(KeyError, match="over"):
        await anext(side.inlet)


async def test_an_error_is_raised_once_and_then_it_is_over() -> None:
    side = Side()
    side.inlet.finish(KeyError("over"))
    with pytest.raises(KeyError):
        await anext(side.inlet)
    assert await side.rest() == ""


async def test_an_end_at_once_drops_what_was_not_read() -> None:
    side = Side()
    side.put("ab")
    side.put("c")
    assert await anext(side.inlet) == "a"
    side.inlet.finish(KeyError("over"), at_once=True)
    with pytest.raises(KeyError, match="over"):
        await anext(side.inlet)


@pytest.mark.parametrize(("error", "raised"), [(None, StopAsyncIteration), (KeyError("over"), KeyError)])
async def test_an_end_wakes_who_waits(error: Exception | None, raised: type[Exception]) -> None:
    side = Side()
    reader = asyncio.ensure_future(anext(side.inlet))
    await asyncio.sleep(0)
    side.inlet.finish(error)
    with pytest.raises(raised):
        await reader


async def test_the_first_end_counts() -> None:
    side = Side()
    side.put("a")
    side.inlet.finish()
    side.inlet.finish(KeyError("too late"))
    assert await side.rest() == "a"


async def test_what_comes_after_the_end_is_dropped() -> None:
    side = Side()
    side.inlet.finish()
    side.put("a")
    assert await side.rest() == ""


async def test_whoever_stops_to_read_lets_go_of_what_came_also_after_the_end() -> None:
    class View(bytearray):
        pass

    for end_first in (True, False):
        side = Side()
        view = View(5)
        seen = weakref.ref(view)
        side.put_one("a", [view])
        del view
        if end_first:
            side.inlet.finish()
        with without_collector():
            side.inlet.finish(at_once=True)
            assert seen() is None
        assert await side.rest() == ""


async def test_who_reads_on_after_everything_was_dropped_hears_so() -> None:
    side = Side()
    side.put("ab")
    side.inlet.finish()
    cut_off(side.inlet, "Api.total")
    with pytest.raises(Cancelled, match=r"the call of Api\.total has ended"):
        await side.rest()


async def test_who_had_read_everything_is_not_cut_off() -> None:
    side = Side()
    side.put("a")
    side.inlet.finish()
    assert await side.read(1) == "a"
    cut_off(side.inlet, "Api.total")
    assert await side.rest() == ""


async def test_an_error_does_not_keep_what_its_reader_saw() -> None:
    """Its traceback leads to the reader's frame: it must not lead back to the error."""

    class Held:
        pass

    held: list[Callable[[], Held | None]] = []

    async def read(inlet: Inlet) -> None:
        seen = Held()
        held.append(weakref.ref(seen))
        async for _ in inlet:
            pass

    side = Side()
    side.inlet.finish(KeyError("over"))
    with without_collector():
        with pytest.raises(KeyError) as caught:
            await read(side.inlet)
        del caught
        assert held[0]() is None


async def test_in_a_forked_child_an_inlet_ends_without_waking_anybody() -> None:
    side = Side()
    side.put("a")
    side.inlet.disown(KeyError("forked"))
    assert side.inlet.ended
    with pytest.raises(KeyError, match="forked"):
        await side.rest()
