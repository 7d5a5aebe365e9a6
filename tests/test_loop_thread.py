"""`LoopThread`: errands from other threads, and that each of them ends whatever happens to the loop."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blocking_service import InThread
from life_waiting import wait_until

from shmrpc.errors import Closed, ForkedError, ResourceExhausted, WrongLoop
from shmrpc.loop_thread import Errand, LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("test loop")
    thread.start()
    yield thread
    thread.stop()


async def give(value: object) -> object:
    return value


async def fail(error: BaseException) -> None:
    raise error


def test_a_coroutines_result_and_its_error_reach_the_caller(thread: LoopThread) -> None:
    assert thread.run(give, 1) == 1
    with pytest.raises(KeyError, match="mine"):
        thread.run(fail, KeyError("mine"))


def test_it_runs_in_a_copy_of_the_callers_context(thread: LoopThread) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def change() -> int:
        variable.set(variable.get() + 1)
        return variable.get()

    variable.set(1)
    assert thread.run(change) == 2
    assert variable.get() == 1


def test_plain_functions_are_called_in_the_loops_thread_also_from_there(thread: LoopThread) -> None:
    assert thread.call(threading.get_ident) != threading.get_ident()

    async def call_again() -> bool:
        return thread.call(threading.get_ident) == threading.get_ident()

    assert thread.run(call_again)


def test_its_own_thread_is_not_made_to_wait_for_itself(thread: LoopThread) -> None:
    async def wait_for_itself() -> None:
        thread.run(give, 1)

    with pytest.raises(WrongLoop, match="was made in the thread that carries it, test loop"):
        thread.run(wait_for_itself)


def test_what_was_entered_is_left_in_the_loop_when_it_stops() -> None:
    diary = []

    @asynccontextmanager
    async def noted(name: str):  # type: ignore[no-untyped-def]
        diary.append(f"{name} entered in {threading.current_thread().name}")
        yield name
        diary.append(f"{name} left in {threading.current_thread().name}")

    thread = LoopThread("test loop")
    thread.start()
    assert [thread.enter(noted("a")), thread.enter(noted("b"))] == ["a", "b"]
    thread.stop()
    assert diary == [f"{what} in test loop" for what in ("a entered", "b entered", "b left", "a left")]


def test_what_leaving_raises_is_raised_by_stop_once() -> None:
    @asynccontextmanager
    async def failing():  # type: ignore[no-untyped-def]
        yield
        raise KeyError("mine")

    thread = LoopThread("test loop")
    thread.start()
    thread.enter(failing())
    with pytest.raises(KeyError, match="mine"):
        thread.stop()
    thread.stop()
    with pytest.raises(Closed):
        thread.run(give, 1)


def test_what_is_entered_while_it_stops_is_left_too() -> None:
    thread = LoopThread("test loop")
    thread.start()
    diary = []
    begun = threading.Event()

    @asynccontextmanager
    async def late():  # type: ignore[no-untyped-def]
        begun.set()
        while thread.running:  # noqa: ASYNC110 - nothing says when it begins to stop
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # by then what was entered before has been left
        diary.append("entered")
        yield
        diary.append("left")

    entering = InThread(thread.enter, late())
    begun.wait()
    thread.stop()
    entering.wait()
    assert diary == ["entered", "left"]


SCRIPT = """
from contextlib import asynccontextmanager
from pathlib import Path
from shmrpc.loop_thread import LoopThread

@asynccontextmanager
async def noted():
    print("entered")
    yield
    print("left")

thread = LoopThread("test loop")
thread.start()
thread.enter(noted())
"""


def test_what_nobody_stopped_is_left_when_the_interpreter_exits() -> None:
    root = Path(__file__).parent.parent
    output = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, cwd=root).stdout
    assert output == "entered\nleft\n"


def test_errands_that_are_under_way_end_when_it_stops() -> None:
    thread = LoopThread("test loop")
    thread.start()
    begun = threading.Semaphore(0)

    async def hold() -> None:
        begun.release()
        await asyncio.Event().wait()

    calls = [InThread(thread.run, hold) for _ in range(3)]
    for _ in calls:
        begun.acquire()
    thread.stop()
    for call in calls:
        error = call.wait().error
        assert isinstance(error, Closed)
        assert error.maybe_executed


def test_an_errand_that_comes_while_it_stops_ends(thread: LoopThread) -> None:
    """One is sent, and behind it in the loop's queue, before it could begin, the word to stop."""
    calls: list[InThread] = []
    sent = threading.Event()

    def hold_up() -> None:
        sent.wait()

    thread.post(hold_up)
    calls.append(InThread(thread.run, give, 1))
    wait_until(lambda: thread._errands, "it to be sent")
    thread.stop_soon()
    calls.append(InThread(thread.run, give, 2))
    wait_until(lambda: len(thread._errands) == 2, "the other to be sent")
    sent.set()
    first, second = (call.wait() for call in calls)
    assert first.result == 1 or isinstance(first.error, Closed)
    assert isinstance(second.error, Closed)
    assert not second.error.maybe_executed


def test_an_errand_that_the_loop_never_came_to_ends_with_the_thread() -> None:
    """As one does that is sent between the loop's last turn and its close; here it is only put into the books."""
    thread = LoopThread("test loop")
    thread.start()
    ended = []
    errand = Errand(lambda: ended.append(True), give, 1)
    thread._errands.add(errand)
    thread.stop()
    assert ended == [True]
    with pytest.raises(Closed) as caught:
        errand.outcome()
    assert not caught.value.maybe_executed


def test_a_loop_that_is_ended_by_an_errand_ends_the_others(thread: LoopThread) -> None:
    begun = threading.Event()

    async def hold() -> None:
        begun.set()
        await asyncio.Event().wait()

    other = InThread(thread.run, hold)
    begun.wait()
    with pytest.raises(SystemExit):
        thread.run(fail, SystemExit())
    assert isinstance(other.wait().error, Closed)
    with pytest.raises(SystemExit):
        thread.stop()


def test_an_errand_that_was_given_up_before_it_began_does_not_begin(thread: LoopThread) -> None:
    ended = []
    errand = Errand(lambda: ended.append(True), fail, KeyError())
    thread.call(errand.give_up)
    thread.send(errand)
    thread.call(int)
    assert ended == [True]
    assert isinstance(errand.error, asyncio.CancelledError)


def test_an_errand_that_is_cancelled_before_its_first_step_ends(thread: LoopThread) -> None:
    ended = []
    errand = Errand(lambda: ended.append(True), fail, KeyError())

    def begin_and_cancel() -> None:
        errand.begin(asyncio.get_running_loop(), int)
        errand.give_up()

    thread.call(begin_and_cancel)
    wait_until(lambda: ended, "it to end")
    assert ended == [True]
    assert isinstance(errand.error, asyncio.CancelledError)


def test_it_can_be_started_once_and_stopped_often() -> None:
    thread = LoopThread("test loop")
    thread.stop()
    with pytest.raises(Closed, match="was not started"):
        thread.run(give, 1)
    assert not thread.running
    thread.start()
    assert thread.running
    assert repr(thread) == "<LoopThread test loop, running>"
    with pytest.raises(Closed, match="once"):
        thread.start()
    thread.stop()
    thread.stop()
    assert repr(thread) == "<LoopThread test loop, not running>"


def test_a_forked_child_has_no_such_thread_and_exits(thread: LoopThread) -> None:
    child = os.fork()
    if not child:
        try:
            thread.run(give, 1)
        except ForkedError:
            thread.stop()
            os._exit(0 if not thread.running else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert thread.run(give, 1) == 1


def test_that_there_is_no_helping_thread_is_said(thread: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(ResourceExhausted, match="test loop feed needs a thread, and cannot have one: can't start"):
        thread.call(thread.help, print)


def test_the_end_waits_for_all_helping_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrpc.loop_thread.LATE_SECONDS", 0.05)
    thread = LoopThread("test loop")
    thread.start()
    gate = threading.Event()
    for _ in range(3):
        thread.call(thread.help, gate.wait)
    waits: list[float] = []
    join = threading.Thread.join

    def joining(one: threading.Thread, timeout: float | None = None) -> None:
        if one.name.endswith("feed") and timeout is not None:
            waits.append(timeout)
        join(one, timeout)

    monkeypatch.setattr(threading.Thread, "join", joining)
    thread.stop()
    gate.set()
    assert len(waits) == 3
    assert waits[1:] == [0.0, 0.0], "the first one has used it up"
    monkeypatch.undo()
    wait_until(lambda: "test loop feed" not in {one.name for one in threading.enumerate()}, "them to end")
