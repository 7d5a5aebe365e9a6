"""`connect_sync`: calls that block, how they end, and what is left after them."""

import asyncio
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocking_service import InThread, Listener, Odd, PlainWork, Work, Worker, serving
from life_waiting import wait_until

import shmrpc


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


# Calls


def test_a_call_takes_the_contracts_parameters_and_returns_the_result(work: Any) -> None:
    assert work.add(1) == 2
    assert work.add(1, 2) == work.add(left=1, right=2) == work.add(1, right=2) == 3


def test_a_declared_error_arrives_as_itself(work: Any) -> None:
    with pytest.raises(Odd) as caught:
        work.half(3)
    assert caught.value.number == 3


def test_the_traceback_of_an_error_leads_to_the_call_and_not_through_the_event_loop(work: Any) -> None:
    with pytest.raises(shmrpc.Internal) as caught:
        work.fail()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[0].line == "work.fail()"
    assert {Path(frame.filename).name for frame in frames[1:]} == {"blocking.py", "loop_thread.py"}
    assert caught.value.__context__ is None


def test_arguments_that_do_not_fit_are_refused_as_with_an_async_stub(work: Any) -> None:
    with pytest.raises(shmrpc.InvalidArgument, match=r"Work\.add: parameter 'left'"):
        work.add("one")
    with pytest.raises(shmrpc.InvalidArgument, match=r"Work\.add: .*missing"):
        work.add()
    with pytest.raises(shmrpc.InvalidArgument, match=r"Work\.count: got an unexpected keyword argument 'least';"):
        work.count(least=1)


def test_a_timeout_ends_the_call_and_the_handler(worker: Worker, path: str) -> None:
    with shmrpc.connect_sync(Work, path, timeout=0.05) as work:
        with pytest.raises(shmrpc.DeadlineExceeded):
            work.hold("late")
        wait_until(lambda: worker.diary == ["late began", "late was cancelled"], "the handler to be cancelled")
        assert work.add(1) == 2


def test_a_one_way_call_returns_when_it_is_on_its_way(work: Any, worker: Worker) -> None:
    assert work.note("it") is None
    wait_until(lambda: worker.diary == ["it was noted"], "the note")


def test_several_threads_use_one_stub_at_once(work: Any, worker: Worker) -> None:
    calls = [InThread(work.hold, f"call {number}") for number in range(20)]
    wait_until(lambda: len(worker.diary) == 20, "all to be under way at once")
    work.open_gate()
    assert [call.wait().result for call in calls] == [f"call {number}" for number in range(20)]


async def test_it_works_beside_a_running_event_loop(path: str) -> None:
    """As in a notebook; here the server is in the running loop, so that only a thread may block."""
    async with shmrpc.Server(Worker(), at=path):

        def script() -> int:
            with shmrpc.connect_sync(Work, path) as work:
                return int(work.add(1) + sum(work.count(3)))

        assert await asyncio.to_thread(script) == 5


async def test_it_blocks_a_running_event_loop_and_works_in_it(path: str) -> None:
    with serving(Worker(), path), shmrpc.connect_sync(Work, path) as work:
        assert work.add(1) == 2
        assert list(work.count(3)) == [0, 1, 2]


# What surrounds a call


def test_a_handler_in_a_thread_passes_its_deadline_on(path: str, worker: Worker) -> None:
    with shmrpc.connect_sync(Work, path) as inner:

        class Outer:
            def time_left(self) -> float | None:  # plain, so that it runs in a thread
                left: float | None = inner.time_left()
                return left

        outer = f"{path}.outer"
        with serving(Outer(), outer):
            with shmrpc.connect_sync(Outer, outer) as stub:
                assert stub.time_left() is None
            with shmrpc.connect_sync(Outer, outer, timeout=30) as stub:
                left = stub.time_left()
                assert left is not None
                assert 20 < left < 30


def test_options_peer_and_endpoints_take_a_blocking_stub(work: Any, path: str) -> None:
    assert shmrpc.options(work, metadata={"a": "1"}).metadata() == {"a": "1"}
    assert shmrpc.options(shmrpc.options(work, timeout=30), metadata={"a": "1"}).time_left() > 20
    assert work.metadata() == {}
    assert shmrpc.peer(work) == (os.getpid(), os.getuid(), os.getgid())
    assert shmrpc.endpoints(work) == [(path, "connected", shmrpc.peer(work), 0)]
    assert repr(work) == f"<stub of Work over <Link to {path}, connected> in another thread>"


def test_a_server_may_be_asked_about_itself(work: Any) -> None:
    assert "Work" in [contract.name for contract in shmrpc.introspect(work).contracts()]  # type: ignore[attr-defined]


class Ear(Listener):
    async def hear(self) -> str:
        return threading.current_thread().name


def test_a_server_may_call_back_while_the_caller_waits(worker: Worker, path: str) -> None:
    with shmrpc.connect_sync(Work, path, exposes=Ear()) as work:
        assert work.call_back() == "shmrpc Work"


def test_the_metadata_of_an_answer_is_there_when_the_call_has_ended(work: Any) -> None:
    reply = shmrpc.Reply()
    assert shmrpc.options(work, reply=reply).process() == os.getpid()
    assert reply.trailing_metadata == {"served": "yes"}


def test_a_blocking_stub_may_be_over_several_servers(path: str) -> None:
    other = f"{path}.other"
    with serving(Worker(), path), serving(Worker(), other):
        with shmrpc.connect_sync(Work, [path, other], connections=2) as work:
            assert [end.address for end in shmrpc.endpoints(work)] == [path, path, other, other]
            calls = [InThread(work.hold, "it") for _ in range(8)]
            wait_until(lambda: [end.in_flight for end in shmrpc.endpoints(work)] == [2] * 4, "all to be under way")
            work.add(1)
        assert all(isinstance(call.wait().error, shmrpc.Closed) for call in calls)


def test_memory_for_a_blocking_stub_is_shared(work: Any) -> None:
    image = shmrpc.empty((100, 1000), np.uint8, to=work)
    image[:] = 1
    assert work.total_of(image) == 100_000
    assert [lease.nbytes for lease in shmrpc.leases(work) if not lease.method] == [100_000]
    memory = shmrpc.buffer(20_000, to=work)
    memory[:] = b"\1" * 20_000
    assert work.total_of(np.frombuffer(memory, np.uint8)) == 20_000


def test_a_methods_docstring_is_the_contracts(work: Any) -> None:
    assert work.add.__doc__ == "Adds."
    assert work.add.__name__ == "add"


# The end


def test_close_ends_calls_that_are_under_way(worker: Worker, path: str) -> None:
    connection = shmrpc.connect_sync(Work, path)
    work = connection.open()
    call = InThread(work.hold, "it")
    wait_until(lambda: worker.diary == ["it began"], "the call to begin")
    connection.close()
    error = call.wait().error
    assert isinstance(error, shmrpc.Closed)
    assert error.maybe_executed
    wait_until(lambda: worker.diary == ["it began", "it was cancelled"], "the handler to be cancelled")


def test_a_stub_that_is_used_after_close_says_so(worker: Worker, path: str) -> None:
    connection = shmrpc.connect_sync(Work, path)
    with connection as work:
        pass
    stream = work.count(3)
    for use in (
        lambda: work.add(1),
        lambda: next(stream),
        lambda: work.total([1]),
        lambda: shmrpc.empty(3, to=work),
        lambda: shmrpc.leases(work),
        connection.open,
    ):
        with pytest.raises(shmrpc.Closed):
            use()
    connection.close()
    assert shmrpc.peer(work) is None


def test_nothing_is_left_after_close(worker: Worker, path: str) -> None:
    """Threads, fds and mappings: which `conftest` looks for after each test, and this one before."""
    with shmrpc.connect_sync(Work, path) as work:
        list(work.double(work.count(10)))
        names = {thread.name for thread in threading.enumerate()}
        assert "shmrpc Work" in names
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("shmrpc Work")]


def test_a_connection_that_cannot_be_made_leaves_nothing(path: str) -> None:
    with pytest.raises(shmrpc.ConnectFailed) as caught, shmrpc.connect_sync(Work, path):
        pass
    assert {Path(frame.filename).name for frame in traceback.extract_tb(caught.value.__traceback__)} == {
        "test_blocking.py",
        "blocking.py",
        "loop_thread.py",
    }
    assert "shmrpc Work" not in {thread.name for thread in threading.enumerate()}


def test_a_connection_that_nobody_closed_is_warned_about_and_ends(worker: Worker, path: str) -> None:
    work = shmrpc.connect_sync(Work, path).open()
    assert work.add(1) == 2
    with pytest.warns(ResourceWarning, match=r"BlockingConnection.*was never closed"):
        del work
    wait_until(lambda: "shmrpc Work" not in {thread.name for thread in threading.enumerate()}, "its thread to end")


def test_a_call_in_the_stubs_own_thread_is_refused_and_does_not_wait_for_itself(work: Any) -> None:
    """Here: made by the finalizer of something that dies there."""
    errors = []

    class Last:
        def __del__(self) -> None:
            try:
                work.add(1)
            except shmrpc.WrongLoop as error:
                errors.append(str(error))

    async def drop(last: list[Last]) -> None:
        last.clear()

    from shmrpc.client import open_stub

    open_stub(work)[1].thread.run(drop, [Last()])  # type: ignore[attr-defined]
    assert errors == ["a blocking call was made in the thread that carries it, shmrpc Work, and would never end"]


def test_a_forked_child_is_told_that_the_connection_is_not_its_own(work: Any) -> None:
    stream = work.count(3)
    assert next(stream) == 0
    child = os.fork()
    if not child:
        answers = []
        uses = [work.add, work.total, lambda _: shmrpc.leases(work), lambda _: next(work.count(1))]
        for use in uses:
            try:
                use([1])
            except shmrpc.ForkedError:
                answers.append(True)
        stream.close()
        os._exit(0 if answers == [True] * 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(stream) == [1, 2]
    assert work.add(1) == 2


SCRIPT = """
import sys, shmrpc
sys.path[:0] = {folders!r}
from blocking_service import Work
work = shmrpc.connect_sync(Work, {path!r}).open()
print(work.add(1), next(work.count(5)))
"""


def test_an_interpreter_that_exits_without_close_does_not_hang(worker: Worker, path: str) -> None:
    here = Path(__file__).parent
    script = SCRIPT.format(folders=[str(here), str(here.parent)], path=path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 0\n", "")


# Typing


def test_a_class_to_be_typed_as_is_compared_with_the_contract(worker: Worker, path: str) -> None:
    with shmrpc.connect_sync(Work, path, typed_as=PlainWork) as work:
        assert work.add(1) == 2

    class Wrong:
        def add(self, left: int) -> int: ...  # type: ignore[empty-body]

    with pytest.raises(shmrpc.ContractError, match=r"Wrong\.add has other parameters"):
        shmrpc.connect_sync(Work, path, typed_as=Wrong)


def test_what_cannot_work_is_refused_at_once(path: str) -> None:
    with pytest.raises(TypeError, match="there is no setting 'colour'"):
        shmrpc.connect_sync(Work, path, colour="red")
    with pytest.raises(shmrpc.BadAddress):
        shmrpc.connect_sync(Work, "http://host")


def test_it_can_be_entered_once(worker: Worker, path: str) -> None:
    connection = shmrpc.connect_sync(Work, path)
    with connection:
        assert repr(connection) == f"<BlockingConnection, <Connection of Work over <Link to {path}, connected>>>"
        with pytest.raises(shmrpc.Closed, match="once"):
            connection.open()
