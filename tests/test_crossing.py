"""How items cross between a thread and a loop: in order, a few ahead, and to an end on either side."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from blocking_service import InThread
from life_waiting import PATIENCE, wait_until

from shmrpc.crossing import AHEAD, BlockingStream, Feed
from shmrpc.loop_thread import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("test loop")
    thread.start()
    yield thread
    thread.stop()


class Source:
    """An async iterator as a stub gives it, which knows how far it was read and whether it was closed."""

    def __init__(self, most: int, *, wait_at: int = -1) -> None:
        self.given = 0
        self.closed = False
        self._most = most
        self._wait_at = wait_at

    def __aiter__(self) -> "Source":
        return self

    async def __anext__(self) -> int:
        if self.given == self._wait_at:
            await asyncio.Event().wait()
        if self.given == self._most:
            raise StopAsyncIteration
        self.given += 1
        return self.given - 1

    async def aclose(self) -> None:
        self.closed = True


def stream_of(thread: LoopThread, source: Source, feed: Feed[Any] | None = None) -> BlockingStream[int]:
    return BlockingStream(thread, "Test.stream", lambda: source, feed)


# From the loop to a thread


def test_all_items_come_in_order_and_the_source_is_closed(thread: LoopThread) -> None:
    source = Source(10_000)
    assert list(stream_of(thread, source)) == list(range(10_000))
    assert source.closed


def test_the_loop_is_ahead_by_a_bounded_number_of_items(thread: LoopThread) -> None:
    source = Source(1000)
    stream = stream_of(thread, source)
    for number in range(100):
        assert next(stream) == number
        thread.call(int)
        assert source.given <= number + 1 + AHEAD
    stream.close()
    wait_until(lambda: source.closed, "the source to be closed")


def test_items_that_wait_are_let_go_when_the_stream_is_left(thread: LoopThread) -> None:
    died = []

    class Item:
        def __del__(self) -> None:
            died.append(True)

    async def items() -> AsyncIterator[Item]:
        for _ in range(3):
            yield Item()
        await asyncio.Event().wait()

    stream: BlockingStream[Item] = BlockingStream(thread, "Test.items", items)
    next(stream)
    wait_until(lambda: stream._intake._items.qsize() == 2, "the others to come")
    stream.close()
    wait_until(lambda: len(died) == 3, "all to die while the stream lives")


def test_a_thread_that_waits_for_an_item_hears_that_another_one_has_left(thread: LoopThread) -> None:
    """Also when the end has come, and waits to be taken: leaving lets go of all that waits."""
    intake = stream_of(thread, Source(0))._intake
    intake._on_end()
    intake.leave()
    assert not intake._items.empty(), "the end"


def test_a_thread_that_waits_for_an_item_hears_of_the_end_and_not_before(thread: LoopThread) -> None:
    """When it goes on, the iterable that was given is not asked any more."""
    gate = threading.Event()

    def blocked() -> Iterator[int]:
        yield 0
        gate.wait()
        yield 1

    feed = Feed(thread, blocked())
    stream = stream_of(thread, Source(10, wait_at=0), feed)
    reader = InThread(next, stream)
    wait_until(lambda: stream._begun, "the reader")
    busy, goes_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        busy.set()
        goes_on.wait(PATIENCE)

    thread.post(stand_still)
    assert busy.wait(PATIENCE)
    stream.close()
    reader._thread.join(0.1)  # does not end
    before = (reader.error, feed._stopped)
    goes_on.set()
    assert before == (None, False), "nobody has said so yet"
    assert isinstance(reader.wait().error, StopIteration)
    assert feed._stopped
    gate.set()


def test_an_item_that_comes_while_the_stream_is_left_is_let_go(thread: LoopThread) -> None:
    died = []
    entered, gate = threading.Event(), threading.Event()

    class Item:
        def __del__(self) -> None:
            died.append(True)

    async def items() -> AsyncIterator[Item]:
        yield Item()
        entered.set()
        gate.wait()  # the loop stands still
        yield Item()

    stream: BlockingStream[Item] = BlockingStream(thread, "Test.items", items)
    next(stream)
    entered.wait()
    stream.close()
    gate.set()
    wait_until(lambda: len(died) == 2, "both to die while the stream lives")


def test_a_stream_that_was_never_begun_leaves_nothing(thread: LoopThread) -> None:
    source = Source(1)
    stream = stream_of(thread, source)
    stream.close()
    assert list(stream) == []
    assert (source.given, source.closed) == (0, False)


# From a thread to the loop


async def read(feed: Feed[int], most: int) -> list[int]:
    items = []
    async for item in feed:
        items.append(item)
        if len(items) == most:
            await feed.aclose()
            break
    return items


def test_the_loop_gets_all_items_in_order(thread: LoopThread) -> None:
    feed = Feed(thread, range(10_000))
    pouring = InThread(feed.pour)
    assert thread.run(read, feed, -1) == list(range(10_000))
    pouring.wait()


def test_a_reader_that_waits_is_woken(thread: LoopThread) -> None:
    feed = Feed(thread, slowly(5))
    reading = InThread(thread.run, read, feed, -1)
    wait_until(lambda: feed._arrived, "the reader to wait")
    feed.pour()
    assert reading.wait().result == list(range(5))


def slowly(most: int) -> Iterator[int]:
    for number in range(most):
        time.sleep(0.001)  # long enough for the reader to wait again
        yield number


def test_the_thread_is_ahead_by_a_bounded_number_of_items(thread: LoopThread) -> None:
    numbers = itertools.count()
    feed = Feed(thread, numbers)
    pouring = InThread(feed.pour)
    assert thread.run(read, feed, 100) == list(range(100))
    pouring.wait()
    assert next(numbers) <= 100 + AHEAD + 1


def test_a_stream_that_fails_before_it_reads_the_iterable_ends_the_thread_that_pours(thread: LoopThread) -> None:
    class Failing(Source):
        async def __anext__(self) -> int:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(stream_of(thread, Failing(0), Feed(thread, itertools.count())))
    wait_until(lambda: "test loop feed" not in {one.name for one in threading.enumerate()}, "it to end")


def test_an_iterable_whose_first_item_was_not_asked_for_yet_is_not_touched_after_stop(thread: LoopThread) -> None:
    numbers = itertools.count()
    feed = Feed(thread, numbers)
    feed.stop()
    feed.pour()
    assert next(numbers) == 0
    assert thread.run(read, feed, -1) == []


def test_a_thread_that_waits_for_room_ends_when_the_loop_wants_no_more(thread: LoopThread) -> None:
    feed = Feed(thread, itertools.count())
    pouring = InThread(feed.pour)
    wait_until(lambda: len(feed._items) == AHEAD, "it to be full")
    feed.stop()
    pouring.wait()


def test_what_the_iterable_raises_is_raised_in_the_loop_where_the_thread_has_no_caller(thread: LoopThread) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    feed = Feed(thread, failing())
    InThread(feed.pour_all).wait()
    with pytest.raises(KeyError, match="mine"):
        thread.run(read, feed, -1)
    with pytest.raises(KeyError, match="mine"):
        Feed(thread, failing()).pour()


def test_stopping_names_an_iterable_that_does_not_come_back(caplog: pytest.LogCaptureFixture) -> None:
    thread = LoopThread("test loop")
    thread.start()
    gate = threading.Event()

    def blocked() -> Iterator[int]:
        gate.wait()
        yield 1

    class Waiting(Source):
        async def __anext__(self) -> int:
            raise StopAsyncIteration

    assert list(stream_of(thread, Waiting(0), Feed(thread, blocked()))) == []
    thread.stop()
    assert "test loop feed still waits for the next item of an iterable" in caplog.text
    gate.set()
    wait_until(lambda: "test loop feed" not in {one.name for one in threading.enumerate()}, "it to end")
