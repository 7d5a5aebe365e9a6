"""The writing end of a stream, alone: what it puts into messages, when it stops, and how it leaves its source."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from shmrpc.buffers import Packed
from shmrpc.codec import MANY_HEAD_BYTES, ItemCodec, encode_json
from shmrpc.inlet import DEFAULT_WINDOW, BrokenCredit, Window
from shmrpc.outlet import MANY_MOST, Outlet

NUMBERS = ItemCodec(int)
TEXTS = ItemCodec(str)
ARRAYS = ItemCodec(npt.NDArray[np.uint8])
ONE = MANY_HEAD_BYTES + 1
"""Bytes of a message with one small number."""


class Sink:
    """Keeps what is sent: the items of each message of many, or the payload of one."""

    def __init__(self, largest: int = 100) -> None:
        self.largest = largest
        self.full = False
        self.messages: list[Any] = []
        self.sizes: list[int] = []
        self.apart: list[bool] = []
        self.memory = asyncio.Event()
        self.memory.set()
        self.emptied = asyncio.Event()

    def _keep(self, packed: Packed, many: bool) -> None:
        self.sizes.append(len(packed.payload) + sum(piece.nbytes for piece in packed.pieces))
        self.messages.append(msgspec.msgpack.decode(packed.payload) if many else packed)
        assert not many or packed.payload[0] == 0xDD

    def send(self, payload: bytes, *, many: bool) -> None:
        assert len(payload) <= self.largest
        self._keep(Packed(payload, ()), many)
        self.apart.append(False)

    async def send_apart(self, packed: Packed, *, many: bool) -> None:
        await self.memory.wait()
        self._keep(packed, many)
        self.apart.append(True)

    async def room(self) -> None:
        await self.emptied.wait()

    def empty(self) -> None:
        self.full = False
        self.emptied.set()


def outlet_of(sink: Sink, items: ItemCodec = NUMBERS, window: Window = DEFAULT_WINDOW) -> Outlet:
    return Outlet(asyncio.get_running_loop(), items, sink, window)


class Source:
    """Gives what it is told to give, and says how far it came and how it was left."""

    def __init__(self, items: Iterable[Any], error: BaseException | None = None) -> None:
        self.taken = 0
        self.left: str | None = None
        self._items = items
        self._error = error

    async def items(self) -> AsyncIterator[Any]:
        try:
            for item in self._items:
                self.taken += 1
                yield item
            if self._error is not None:
                raise self._error
        except BaseException as error:
            self.left = type(error).__name__
            raise


async def settled() -> None:
    """Returns when everything that can be done without news from outside has been done."""
    for _ in range(20):
        await asyncio.sleep(0)


# Messages


async def test_items_of_one_turn_are_one_message() -> None:
    sink = Sink()
    await outlet_of(sink).pump([1, 2, 3])
    assert sink.messages == [[1, 2, 3]]


async def test_what_came_is_sent_at_the_end_of_the_turn_also_if_no_more_comes() -> None:
    sink = Sink()
    more = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        yield 2
        await more.wait()
        yield 3

    pumping = asyncio.ensure_future(outlet_of(sink).pump(slow()))
    await settled()
    assert sink.messages == [[1, 2]]
    more.set()
    await pumping
    assert sink.messages == [[1, 2], [3]]


async def test_a_message_has_so_many_items_at_most() -> None:
    sink = Sink(largest=1000)
    await outlet_of(sink).pump(range(MANY_MOST + 3))
    assert [len(message) for message in sink.messages] == [MANY_MOST, 3]


async def test_a_message_is_no_larger_than_the_sink_takes() -> None:
    sink = Sink(largest=20)
    texts = ["a" * size for size in (8, 4, 4, 1, 14, 13, 0)]
    await outlet_of(sink, TEXTS).pump(texts)
    assert [text for message in sink.messages for text in message] == texts
    assert max(sink.sizes) <= 20
    assert sink.apart == [False] * len(sink.messages)


async def test_an_item_that_is_too_large_is_sent_apart_in_its_place() -> None:
    sink = Sink(largest=20)
    texts = ["a", "b", "c" * 50, "d"]
    await outlet_of(sink, TEXTS).pump(texts)
    assert sink.messages == [["a", "b"], ["c" * 50], ["d"]]
    assert sink.apart == [False, True, False]


async def test_items_that_can_hold_buffers_come_one_in_each_message() -> None:
    sink = Sink()
    small, large = np.arange(3, dtype=np.uint8), np.arange(200, dtype=np.uint8)
    await outlet_of(sink, ARRAYS).pump([small, large, small])
    assert len(sink.messages) == 3
    arrived = [ARRAYS.unpack(packed.payload, [bytes(p.exporter) for p in packed.pieces]) for packed in sink.messages]
    assert [array.tobytes() for array in arrived] == [a.tobytes() for a in (small, large, small)]


async def test_for_a_peer_without_the_contract_each_item_is_a_message_of_json() -> None:
    sink = Sink(largest=10)
    outlet = Outlet(asyncio.get_running_loop(), TEXTS, sink, DEFAULT_WINDOW, encode_json)
    await outlet.pump(["a", "b" * 20])
    assert [packed.payload for packed in sink.messages] == [b'"a"', b'"' + b"b" * 20 + b'"']
    assert sink.apart == [False, True]


# Credit


async def test_no_more_is_taken_than_the_window_allows() -> None:
    sink, source = Sink(), Source(range(100))
    outlet = outlet_of(sink, window=Window(5, 1000))
    pumping = asyncio.ensure_future(outlet.pump(source.items()))
    await settled()
    assert sink.messages == [[0, 1, 2, 3, 4]]
    assert source.taken == 5
    outlet.grant(3, ONE + 2)
    await settled()
    assert sink.messages == [[0, 1, 2, 3, 4], [5, 6, 7]]
    outlet.grant(8, sum(sink.sizes))
    await settled()
    assert source.taken == 13
    pumping.cancel()
    await asyncio.wait((pumping,))


async def test_bytes_are_counted_too_and_the_last_item_may_exceed_them() -> None:
    sink, source = Sink(largest=1000), Source(["x" * 60] * 10)
    outlet = outlet_of(sink, ARRAYS, Window(100, 100))
    array = np.zeros(60, np.uint8)
    source = Source([array] * 10)
    pumping = asyncio.ensure_future(outlet.pump(source.items()))
    await settled()
    assert source.taken == len(sink.messages) == 2
    outlet.grant(1, sink.sizes[0])
    await settled()
    assert source.taken == len(sink.messages) == 3
    pumping.cancel()
    await asyncio.wait((pumping,))


@pytest.mark.parametrize("window", [Window(1, 1), Window(2, 1000), Window(1000, 20), Window(3, 25), Window(64, 64)])
@pytest.mark.parametrize("largest", [18, 30, 100])
async def test_nothing_is_ever_sent_without_credit(window: Window, largest: int) -> None:
    """What a reader checks, whatever the sizes are: a message comes while there is credit, and has not more items."""
    sink = Sink(largest)
    texts = ["x" * (number * 7 % 23) for number in range(200)]
    outlet = outlet_of(sink, TEXTS, window)
    pumping = asyncio.ensure_future(outlet.pump(texts))
    seen = read_items = read_bytes = sent_items = sent_bytes = 0
    while not pumping.done() or seen < len(sink.messages):
        await settled()
        for message, nbytes in zip(sink.messages[seen:], sink.sizes[seen:], strict=True):
            assert sent_bytes - read_bytes < window.nbytes, "sent without credit for bytes"
            sent_items += len(message)
            sent_bytes += nbytes
            assert sent_items - read_items <= window.items, "sent without credit for items"
        seen = len(sink.messages)
        read_items, read_bytes = sent_items, sent_bytes
        outlet.grant(read_items, read_bytes)
    assert [text for message in sink.messages for text in message] == texts


async def test_an_item_that_is_sent_apart_waits_for_credit_too() -> None:
    sink = Sink(largest=20)
    outlet = outlet_of(sink, TEXTS, Window(1, 1000))
    pumping = asyncio.ensure_future(outlet.pump(["a", "b" * 50]))
    await settled()
    assert sink.messages == [["a"]]
    outlet.grant(1, sum(sink.sizes))
    await settled()
    assert sink.messages == [["a"], ["b" * 50]]
    outlet.grant(2, sum(sink.sizes))
    await pumping


@pytest.mark.parametrize(
    "credit", [(3, ONE + 1), (2, ONE + 2), (0, 0), (1, 0), (0, ONE), (-1, ONE), (1 << 62, 1 << 62), (2, 0)]
)
async def test_credit_for_what_was_not_sent_or_that_goes_back_is_refused(credit: tuple[int, int]) -> None:
    outlet = outlet_of(Sink())
    await outlet.pump([1, 2])
    outlet.grant(1, ONE)
    with pytest.raises(BrokenCredit, match=r"has read \S+ items of \S+ bytes after 1 of 6, and was sent 2 of 7"):
        outlet.grant(*credit)


async def test_credit_may_say_the_same_again() -> None:
    outlet = outlet_of(Sink())
    await outlet.pump([1, 2])
    for _ in range(2):
        outlet.grant(2, ONE + 1)
    assert repr(outlet) == "<Outlet 2 items sent, 2 read>"


# Room


@pytest.mark.parametrize("items", [NUMBERS, ARRAYS], ids=["numbers", "arrays"])
async def test_while_the_sink_is_full_nothing_more_is_taken(items: ItemCodec) -> None:
    sink = Sink()
    source = Source(range(10) if items is NUMBERS else [np.zeros(1, np.uint8)] * 10)
    sink.full = True
    pumping = asyncio.ensure_future(outlet_of(sink, items).pump(source.items()))
    await settled()
    assert source.taken == len(sink.messages) == 1
    sink.empty()
    await pumping
    assert source.taken == 10


async def test_what_waits_for_memory_holds_up_what_comes_behind_it() -> None:
    sink, source = Sink(largest=20), Source(["a" * 50, "b"])
    sink.memory.clear()
    pumping = asyncio.ensure_future(outlet_of(sink, TEXTS).pump(source.items()))
    await settled()
    assert (source.taken, sink.messages) == (1, [])
    sink.memory.set()
    await pumping
    assert sink.messages == [["a" * 50], ["b"]]


# The source


async def test_a_source_is_touched_as_soon_as_it_is_asked() -> None:
    async def nothing_yet() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    outlet = outlet_of(Sink())
    assert not outlet.touched
    pumping = asyncio.ensure_future(outlet.pump(nothing_yet()))
    assert not outlet.touched
    await settled()
    assert outlet.touched
    pumping.cancel()
    await asyncio.wait((pumping,))


async def test_what_a_source_raises_comes_after_the_items_before_it() -> None:
    sink, source = Sink(), Source([1, 2], KeyError("mine"))
    with pytest.raises(KeyError, match="mine"):
        await outlet_of(sink).pump(source.items())
    assert sink.messages == [[1, 2]]


@pytest.mark.parametrize(("items", "bad"), [(NUMBERS, object()), (ARRAYS, "text")], ids=["numbers", "arrays"])
async def test_an_item_that_cannot_be_encoded_ends_the_stream_and_closes_the_source(items: ItemCodec, bad: Any) -> None:
    good = 1 if items is NUMBERS else np.zeros(1, np.uint8)
    sink, source = Sink(), Source([good, bad, good])
    with pytest.raises((TypeError, ValueError)):
        await outlet_of(sink, items).pump(source.items())
    assert source.left == "GeneratorExit"
    assert len(sink.messages) == 1
    assert sink.messages == [[1]] or items is ARRAYS


async def test_an_item_that_cannot_be_encoded_leaves_nothing_of_itself_behind() -> None:
    """Half of it was encoded already when it turned out to be none."""
    sink = Sink()
    with pytest.raises(TypeError):
        await outlet_of(sink, ItemCodec(list[Any])).pump([[1, 2, object()]])
    with pytest.raises(TypeError):
        await outlet_of(sink, ItemCodec(tuple[int, int])).pump([(1, 2), (3, object())])
    assert sink.messages == [[[1, 2]]]


async def test_a_cancelled_pump_drops_what_was_not_sent_and_closes_the_source() -> None:
    sink, source = Sink(), Source(range(10))
    outlet = outlet_of(sink, window=Window(2, 100))
    pumping = asyncio.ensure_future(outlet.pump(source.items()))
    await settled()
    assert sink.messages == [[0, 1]]
    pumping.cancel()
    await asyncio.wait((pumping,))
    assert pumping.cancelled()
    assert source.left == "GeneratorExit"
    await settled()
    assert sink.messages == [[0, 1]]


async def test_what_a_source_gave_in_the_turn_of_its_cancellation_is_not_sent() -> None:
    sink, source = Sink(), Source([1], asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await outlet_of(sink).pump(source.items())
    await settled()
    assert sink.messages == []


async def test_anything_that_can_be_iterated_is_a_source() -> None:
    sink = Sink()
    for source in ([1], (2,), iter([3]), {4: 0}, (number for number in (5,))):
        await outlet_of(sink).pump(source)
    assert sink.messages == [[1], [2], [3], [4], [5]]


async def test_a_source_without_an_end_of_its_own_needs_none() -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> "Countdown":
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    sink = Sink()
    await outlet_of(sink).pump(Countdown())
    assert sink.messages == [[2, 1, 0]]
