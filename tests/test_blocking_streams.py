"""Streams of blocking stubs: results as plain iterators, parameters from any iterable, and how either ends early."""

import gc
import itertools
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from blocking_service import InThread, Odd, Work, Worker, serving
from life_waiting import wait_until

import shmrpc
from shmrpc.crossing import AHEAD


@pytest.fixture
def worker(path: str) -> Iterator[Worker]:
    """The service, which is served at the path."""
    worker = Worker()
    with serving(worker, path):
        yield worker


@pytest.fixture
def work(worker: Worker, path: str) -> Iterator[Any]:
    """A blocking stub of it."""
    with shmrpc.connect_sync(Work, path) as work:
        yield work


def cancelled(worker: Worker, what: str) -> None:
    wait_until(lambda: f"the {what} was cancelled" in worker.diary, f"the {what} to be cancelled")


# Result streams


def test_a_result_stream_is_an_iterator_and_a_generator(work: Any) -> None:
    assert list(work.count(1000)) == list(range(1000))
    stream = work.count(3)
    assert isinstance(stream, Generator)
    assert [next(stream), stream.send(None), *stream] == [0, 1, 2]
    assert list(stream) == []


def test_nothing_is_sent_before_the_first_step(work: Any, path: str) -> None:
    stream = work.count(3)
    assert shmrpc.endpoints(work)[0].in_flight == 0
    assert repr(stream) == "<BlockingStream of Work.count, not begun>"
    next(stream)
    stream.close()
    assert repr(stream) == "<BlockingStream of Work.count, ended>"


def test_an_error_in_mid_stream_comes_after_the_items_before_it(work: Any) -> None:
    items = []
    with pytest.raises(Odd) as caught:
        for item in work.count_then_fail(40):
            items.append(item)
    assert items == list(range(40))
    assert caught.value.number == 40


def test_break_ends_the_other_side(work: Any, worker: Worker) -> None:
    for item in work.count(10_000_000):
        if item == 5:
            break
    cancelled(worker, "count")
    assert work.add(1) == 2


def test_close_ends_the_other_side_and_then_there_are_no_more_items(work: Any, worker: Worker) -> None:
    stream = work.count(10_000_000)
    next(stream)
    stream.close()
    cancelled(worker, "count")
    assert list(stream) == []
    stream.close()


def test_throw_closes_and_raises(work: Any, worker: Worker) -> None:
    stream = work.count(10_000_000)
    next(stream)
    with pytest.raises(KeyError, match="mine"):
        stream.throw(KeyError("mine"))
    cancelled(worker, "count")


def test_an_iterator_that_dies_unfinished_ends_the_other_side(work: Any, worker: Worker) -> None:
    stream = work.count(10_000_000)
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    cancelled(worker, "count")


def test_a_slow_reader_stops_the_writer(path: str) -> None:
    """The writer is ahead by the window of the stream and the few items that wait between the threads, not by more."""
    made = []

    class Counter(Worker):
        async def count(self, most: int) -> Any:
            for number in range(most):
                made.append(number)
                yield number

    with serving(Counter(), path), shmrpc.connect_sync(Work, path, stream_items=8) as work:
        stream = work.count(1000)
        assert next(stream) == 0
        for _ in range(3):
            work.add(1)  # by then what can be made was made
        assert len(made) <= 1 + AHEAD + 2 * 8
        assert list(stream) == list(range(1, 1000))


def test_several_threads_may_share_the_items_of_one_stream(work: Any) -> None:
    stream = work.count(2000)
    shares = [InThread(list, stream) for _ in range(4)]
    items: list[int] = []
    for share in shares:
        items += share.wait().result  # type: ignore[arg-type]
    assert sorted(items) == list(range(2000))


def test_close_in_another_thread_ends_the_wait_for_an_item(work: Any, worker: Worker) -> None:
    questions: queue.SimpleQueue[int] = queue.SimpleQueue()
    answers = work.double(iter(questions.get, None))
    questions.put(1)
    assert next(answers) == 2
    reader = InThread(list, answers)
    answers.close()
    assert reader.wait().result == []
    questions.put(0)  # so that the thread that waits for it can end


def test_closing_the_connection_ends_a_stream_as_closed(worker: Worker, path: str) -> None:
    connection = shmrpc.connect_sync(Work, path)
    stream = connection.open().count(10_000_000)
    next(stream)
    connection.close()
    with pytest.raises(shmrpc.Closed):
        list(stream)
    assert list(stream) == []


# Parameters that are streams


@pytest.mark.parametrize("parts", [[1, 2, 3], range(1, 4), iter((1, 2, 3)), (n for n in (1, 2, 3)), {1: 0, 2: 0, 3: 0}])
def test_a_parameter_takes_any_iterable(work: Any, parts: Any) -> None:
    assert work.total(parts) == 6


def test_an_iterable_may_be_passed_by_name_and_beside_other_parameters(work: Any) -> None:
    assert work.total(parts=[1, 2], most=10) == 3
    assert work.total([], most=10) == 0
    assert list(work.double(parts=[1, 2])) == [2, 4]


def test_what_is_no_iterable_is_refused(work: Any) -> None:
    with pytest.raises(
        shmrpc.InvalidArgument, match=r"Work\.total: parameter 'parts' is a stream; got int, expected somet"
    ):
        work.total(3)
    for text in ("123", b"123"):
        with pytest.raises(shmrpc.InvalidArgument, match=f"a stream; got {type(text).__name__}, expected something to"):
            work.total(text)
        with pytest.raises(shmrpc.InvalidArgument, match=f"a stream; got {type(text).__name__}, expected something to"):
            work.double(parts=text)

    async def parts() -> Any:
        yield 1

    with pytest.raises(shmrpc.InvalidArgument, match=r"got async_generator, .*; async iterators are for the st"):
        work.double(parts())


def test_an_iterable_is_iterated_in_the_callers_thread_when_the_result_is_no_stream(work: Any) -> None:
    threads = []

    def parts() -> Iterator[int]:
        threads.append(threading.get_ident())
        yield 1

    assert work.total(parts()) == 1
    assert threads == [threading.get_ident()]


def test_what_the_iterable_raises_reaches_the_caller_and_cancels_the_handler(work: Any, worker: Worker) -> None:
    def parts() -> Iterator[int]:
        yield 1
        wait_until(lambda: worker.diary, "the handler to begin")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        work.total(parts())
    assert caught.traceback[-1].name == "parts"
    cancelled(worker, "total")
    with pytest.raises(KeyError, match="mine") as caught:
        list(work.double(parts()))
    assert caught.traceback[-1].name == "parts"
    cancelled(worker, "doubling")


def test_an_iterable_that_exits_the_program_in_a_thread_of_ours_ends_the_call_only(work: Any) -> None:
    def parts() -> Iterator[int]:
        yield 1
        raise SystemExit

    with pytest.raises(RuntimeError, match="the iterable that was given raised SystemExit"):
        list(work.double(parts()))
    assert work.add(1) == 2


def test_a_call_that_ends_early_takes_no_more_of_an_endless_iterable(work: Any) -> None:
    with pytest.raises(Odd):
        work.total(itertools.count(), most=1000)
    with pytest.raises(shmrpc.InvalidArgument):
        work.total(itertools.repeat("text"))
    with pytest.raises(shmrpc.InvalidArgument):  # before it began
        work.total(itertools.count(), most=object())
    with pytest.raises(shmrpc.DeadlineExceeded):
        shmrpc.options(work, timeout=0.05).total(itertools.repeat(0))
    assert work.add(1) == 2


def test_an_iterable_is_not_asked_for_more_than_can_be_sent(work: Any, worker: Worker) -> None:
    asked = itertools.count()
    answers = work.double(asked)
    assert next(answers) == 0
    answers.close()
    cancelled(worker, "doubling")
    wait_until(lambda: not [thread for thread in threading.enumerate() if "feed" in thread.name], "its thread to end")
    assert next(asked) < 2000


def test_both_sides_may_talk_in_turn(work: Any) -> None:
    """The iterable waits for what the loop over the answers gives it: so it has a thread of its own."""
    questions: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    questions.put(1)
    heard = []
    for answer in work.double(iter(questions.get, None)):
        heard.append(answer)
        questions.put(answer if answer < 1000 else None)
    assert heard == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def test_a_stream_may_be_passed_on_to_another_call(work: Any) -> None:
    assert work.total(work.double(work.count(100))) == 9900
