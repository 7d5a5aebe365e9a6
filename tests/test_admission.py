"""Guards and limits: who is let pass, who waits, and that each slot comes back once, however its call ends."""

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Protocol, cast

import pytest

import shmrpc
from shmrpc import admission
from shmrpc.admission import Limit
from shmrpc.context import Metadata, Peer, running
from shmrpc.dispatch import Dispatcher, ServedMethod

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Waits for the threads of plain handlers, which are told to end with the test's task."""
    yield
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(PATIENCE)


class Served:
    """What guards and limits need of a call that a transport keeps."""

    def __init__(self, method_name: str = "Api.work", deadline_ns: int = 0, **metadata: str) -> None:
        self.method_name = method_name
        self.deadline_ns = deadline_ns
        self.metadata: Metadata = metadata
        self.peer = Peer(12, 34, 56)
        self.cancelled = False

    def allocate(self, nbytes: int) -> bytearray:
        return bytearray(nbytes)


class Api(Protocol):
    async def work(self, number: int) -> int: ...


def start(served: ServedMethod, *args: Any, deadline_ns: int = 0, **metadata: str) -> "asyncio.Task[Any]":
    """Calls a method as a transport does: in a context of its own."""
    context = contextvars.copy_context()
    context.run(running.set, cast(Any, Served(served.full_name, deadline_ns, **metadata)))

    async def call() -> Any:
        return await served.invoke(*args)

    return asyncio.get_running_loop().create_task(call(), context=context)


async def settle() -> None:
    """Lets everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Gate:
    """A handler that ends when it is told how."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ends: dict[int, asyncio.Future[int]] = {}

    async def work(self, number: int) -> int:
        self.began.append(number)
        self.ends[number] = asyncio.get_running_loop().create_future()
        return await self.ends[number]


class Two(Gate):
    @shmrpc.method(max_concurrency=2, max_waiting=3)
    async def work(self, number: int) -> int:
        return await super().work(number)


def served_by(implementation: object) -> ServedMethod:
    return Dispatcher((shmrpc.service(implementation, Api),)).methods[0]


def limit_of(served: ServedMethod) -> Limit:
    limit = next(cell.cell_contents for cell in _cells(served.invoke) if isinstance(cell.cell_contents, Limit))
    assert isinstance(limit, Limit)
    return limit


def _cells(function: Any) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        yield cell
        if callable(cell.cell_contents) and hasattr(cell.cell_contents, "__closure__"):
            yield from _cells(cell.cell_contents)


# What costs nothing


async def test_a_method_without_a_policy_is_not_wrapped() -> None:
    gate = Gate()
    assert served_by(gate).invoke == gate.work


async def test_what_is_for_the_callers_is_not_wrapped_either() -> None:
    class Known(Protocol):
        @shmrpc.method(timeout=1.0, idempotent=True)
        async def work(self, number: int) -> int: ...

    gate = Gate()
    assert Dispatcher((shmrpc.service(gate, Known),)).methods[0].invoke == gate.work


# Limits


async def test_no_more_calls_are_handled_at_once_than_the_limit_and_the_others_wait_in_order() -> None:
    two = Two()
    served = served_by(two)
    calls = [start(served, number) for number in range(5)]
    await settle()
    assert two.began == [0, 1]
    assert repr(limit_of(served)) == "<Limit, 2 of 2 running, 3 of 3 waiting>"
    two.ends[1].set_result(11)
    await settle()
    assert two.began == [0, 1, 2]
    for number in (0, 2):
        two.ends[number].set_result(number)
    await settle()
    assert two.began == [0, 1, 2, 3, 4]
    for number in (3, 4):
        two.ends[number].set_result(number)
    assert await asyncio.gather(*calls) == [0, 11, 2, 3, 4]
    assert repr(limit_of(served)) == "<Limit, 0 of 2 running, 0 of 3 waiting>"


async def test_one_more_than_may_wait_is_refused_at_once() -> None:
    two = Two()
    served = served_by(two)
    calls = [start(served, number) for number in range(5)]
    with pytest.raises(shmrpc.ResourceExhausted) as caught:
        await start(served, 5)
    assert str(caught.value) == (
        "Api.work: 2 calls run, the limit is 2 (max_concurrency), and 3 wait, the limit is 3 (max_waiting)"
    )
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert 5 not in two.began


async def test_by_default_as_many_may_wait_as_a_connection_may_have_in_flight() -> None:
    class One(Gate):
        @shmrpc.method(max_concurrency=1)
        async def work(self, number: int) -> int:
            return await super().work(number)

    assert limit_of(served_by(One())).max_waiting == 1024


async def test_none_may_wait_if_the_policy_says_so() -> None:
    class One(Gate):
        @shmrpc.method(max_concurrency=1, max_waiting=0)
        async def work(self, number: int) -> int:
            return await super().work(number)

    one = One()
    served = served_by(one)
    first = start(served, 1)
    with pytest.raises(shmrpc.ResourceExhausted, match=r"and 0 wait, the limit is 0 \(max_waiting\)"):
        await start(served, 2)
    one.ends[1].set_result(1)
    assert await first == 1


async def test_a_call_that_waits_is_refused_shortly_before_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "EARLY_SHARE", 1.0)
    monkeypatch.setattr(admission, "EARLY_SECONDS", 99.95)
    two = Two()
    served = served_by(two)
    calls = [start(served, number) for number in range(3)]
    with pytest.raises(shmrpc.ResourceExhausted) as caught:
        await start(served, 3, deadline_ns=monotonic_ns() + 100_000_000_000)
    assert str(caught.value) == (
        "Api.work: 2 calls run, the limit is 2 (max_concurrency), 1 more wait, and this one had waited until shortly "
        "before its deadline"
    )
    assert two.began == [0, 1]
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


def test_it_gives_up_early_enough_for_its_reason_to_arrive_and_not_much_earlier() -> None:
    assert admission._patience(0) is None
    for seconds, early in ((0.1, 0.01), (10.0, 0.05)):
        patience = admission._patience(monotonic_ns() + int(seconds * 1e9))
        assert patience is not None
        assert patience <= seconds - early


async def test_who_is_cancelled_while_it_waits_leaves_and_takes_no_slot() -> None:
    two = Two()
    served = served_by(two)
    calls = [start(served, number) for number in range(4)]
    await settle()
    calls[2].cancel()
    await settle()
    assert repr(limit_of(served)) == "<Limit, 2 of 2 running, 1 of 3 waiting>"
    two.ends[0].set_result(0)
    await settle()
    assert two.began == [0, 1, 3]
    for number in (1, 3):
        two.ends[number].set_result(number)
    await asyncio.wait(calls)
    assert limit_of(served).running == 0


async def test_a_slot_given_to_one_that_is_cancelled_in_the_same_tick_goes_to_the_next() -> None:
    two = Two()
    served = served_by(two)
    calls = [start(served, number) for number in range(4)]
    await settle()
    limit_of(served).give_back()  # and before the one that got it wakes up:
    calls[2].cancel()
    await settle()
    assert calls[2].cancelled()
    assert two.began == [0, 1, 3]
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


@pytest.mark.parametrize("how", ["result", "error", "cancellation", "a fatal error", "at once"])
async def test_the_slot_comes_back_however_the_handler_ends(how: str) -> None:
    class One(Gate):
        @shmrpc.method(max_concurrency=1)
        async def work(self, number: int) -> int:
            if how == "at once":
                raise ValueError
            return await super().work(number)

    one = One()
    served = served_by(one)
    for number in range(3):
        call = start(served, number)
        await settle()
        if how == "result":
            one.ends[number].set_result(1)
        elif how == "error":
            one.ends[number].set_exception(ValueError())
        elif how == "cancellation":
            call.cancel()
        elif how == "a fatal error":
            one.ends[number].set_exception(GeneratorExit())
        await asyncio.wait((call,))
        with suppress(BaseException):
            call.result()
        assert repr(limit_of(served)) == "<Limit, 0 of 1 running, 0 of 1024 waiting>"


async def test_a_handler_has_one_limit_under_all_its_names() -> None:
    class Extended(Api, Protocol):
        async def more(self) -> int: ...

    class Both(Two, Extended):
        async def more(self) -> int:
            return 1

    dispatcher = Dispatcher((Both(),))
    limits = {limit_of(dispatcher.find(name)) for name in ("Api.work", "Extended.work")}
    assert len(limits) == 1


async def test_two_services_have_limits_of_their_own() -> None:
    class Other(Protocol):
        async def work(self, number: int) -> int: ...

    dispatcher = Dispatcher((shmrpc.service(Two(), Api), shmrpc.service(Two(), Other)))
    assert len({limit_of(served) for served in dispatcher.methods}) == 2


async def test_the_arguments_of_a_call_that_runs_are_kept_by_its_handler_alone() -> None:
    class Held:
        pass

    class Keeper:
        @shmrpc.method(max_concurrency=1)
        async def work(self, number: Any) -> int:
            watch.append(sys.getrefcount(number))
            return 1

    watch: list[int] = []
    plain = Keeper()
    await start(served_by(plain), Held())
    limited = watch.pop()
    await Keeper.work(plain, Held())
    assert limited <= watch.pop() + 1  # that of the test's own frame


# Limits of plain functions, which run in threads


class InThread:
    def __init__(self) -> None:
        self.began: list[int] = []
        self.gates = [threading.Event() for _ in range(4)]

    @shmrpc.method(max_concurrency=1)
    def work(self, number: int) -> int:
        self.began.append(number)
        self.gates[number].wait(PATIENCE)
        return number


async def begun(service: InThread, *numbers: int) -> None:
    while service.began != list(numbers):  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)


async def test_a_thread_that_its_call_has_left_behind_still_counts() -> None:
    service = InThread()
    served = served_by(service)
    first, second = start(served, 0), start(served, 1)
    await begun(service, 0)
    first.cancel()
    await asyncio.wait((first,))
    await settle()
    assert (limit_of(served).running, len(limit_of(served).waiting)) == (1, 1)
    assert service.began == [0]
    service.gates[0].set()
    await begun(service, 0, 1)
    service.gates[1].set()
    assert await second == 1
    assert limit_of(served).running == 0


async def test_a_call_that_ends_before_there_is_a_thread_gives_its_slot_back() -> None:
    service = InThread()
    served = Dispatcher((shmrpc.service(service, Api),), max_threads=1).methods[0]
    call = start(served, 0)
    await asyncio.sleep(0)
    call.cancel()  # in the checkpoint before the thread, or in its first moment
    await asyncio.wait((call,))
    service.gates[0].set()
    next_one = start(served, 1)
    service.gates[1].set()
    assert await next_one == 1


async def test_a_thread_that_begins_after_its_call_has_ended_does_not_call_the_handler() -> None:
    limit = Limit(1, 0)
    slot = await limit.take("Api.work", 0)
    slot.end()
    called: list[int] = []
    with pytest.raises(shmrpc.Cancelled):
        slot.run(called.append, 1)
    assert (called, limit.running) == ([], 0)


async def test_a_thread_that_gives_a_coroutine_has_its_slot_until_that_has_ended() -> None:
    gate = Gate()

    class Wrapped:
        @shmrpc.method(max_concurrency=1)
        def work(self, number: int) -> Coroutine[Any, Any, int]:
            return gate.work(number)

    served = served_by(Wrapped())
    first, second = start(served, 0), start(served, 1)
    while gate.began != [0]:  # noqa: ASYNC110 - a thread makes the coroutine
        await asyncio.sleep(0)
    await settle()
    assert (limit_of(served).running, len(limit_of(served).waiting)) == (1, 1)
    gate.ends[0].set_result(7)
    assert await first == 7
    second.cancel()
    await asyncio.wait((second,))


# Limits of streams


class Flow(Protocol):
    def count(self, most: int) -> AsyncIterator[int]: ...


class OneFlow:
    """Counts, and remembers when it began and ended."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    @shmrpc.method(max_concurrency=1)
    async def count(self, most: int) -> AsyncIterator[int]:
        self.diary.append(f"began {most}")
        try:
            for number in range(most):
                yield number
            if most == 7:
                raise ValueError(most)
        finally:
            self.diary.append(f"ended {most}")


def flow_of(implementation: object) -> ServedMethod:
    return Dispatcher((shmrpc.service(implementation, Flow),)).methods[0]


async def test_a_stream_has_its_slot_until_its_last_item_was_taken() -> None:
    flow = OneFlow()
    served = flow_of(flow)
    running = served.invoke(2)
    assert await anext(running) == 0
    waiting = served.invoke(3)
    begins = asyncio.ensure_future(anext(waiting))
    await settle()
    assert flow.diary == ["began 2"]
    assert [item async for item in running] == [1]
    assert await begins == 0
    assert flow.diary == ["began 2", "ended 2", "began 3"]
    await waiting.aclose()
    assert limit_of(served).running == 0


@pytest.mark.parametrize("how", ["closed", "failed", "cancelled", "never begun"])
async def test_the_slot_of_a_stream_comes_back_however_it_ends(how: str) -> None:
    flow = OneFlow()
    served = flow_of(flow)
    stream = served.invoke(7)
    if how == "closed":
        await anext(stream)
        await stream.aclose()
    elif how == "failed":
        with pytest.raises(ValueError):
            [item async for item in stream]
    elif how == "cancelled":
        await anext(stream)
        with pytest.raises(asyncio.CancelledError):
            await stream.athrow(asyncio.CancelledError())
    else:
        await stream.aclose()
    assert flow.diary == ([] if how == "never begun" else ["began 7", "ended 7"])
    assert repr(limit_of(served)) == "<Limit, 0 of 1 running, 0 of 1024 waiting>"


async def test_a_stream_may_be_anything_that_can_be_iterated() -> None:
    class Iterable:
        def __aiter__(self) -> AsyncIterator[int]:
            return OneFlow().count(2)

    class Gives:
        @shmrpc.method(max_concurrency=1)
        def count(self, most: int) -> Any:
            return Iterable() if most else [5, 6]

    served = flow_of(Gives())
    assert [item async for item in served.invoke(1)] == [0, 1]
    assert [item async for item in served.invoke(0)] == [5, 6]
    assert limit_of(served).running == 0


async def test_a_plain_generator_has_its_slot_until_the_step_that_it_was_cancelled_in_has_ended() -> None:
    began, gate = threading.Event(), threading.Event()

    class InThreads:
        @shmrpc.method(max_concurrency=1)
        def count(self, most: int) -> Iterator[int]:
            began.set()
            gate.wait(PATIENCE)
            yield most

    served = flow_of(InThreads())
    step = asyncio.ensure_future(anext(served.invoke(1)))
    while not began.is_set():  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait((step,))
    assert limit_of(served).running == 1
    gate.set()
    while limit_of(served).running:  # noqa: ASYNC110 - the thread gives it back
        await asyncio.sleep(0)
    again = served.invoke(2)
    assert [item async for item in again] == [2]


async def test_an_item_is_kept_by_nobody_while_the_next_one_is_not_asked_for() -> None:
    class Item:
        pass

    class Gives:
        @shmrpc.method(max_concurrency=1)
        async def count(self, most: int) -> AsyncIterator[Any]:
            yield Item()
            await asyncio.Event().wait()

    stream = flow_of(Gives()).invoke(1)
    item = weakref.ref(await anext(stream))
    assert item() is None
    await stream.aclose()


# Guards


class Asked:
    """A guard that answers as it is told, and remembers what it saw."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: list[shmrpc.Call] = []

    def __call__(self, call: shmrpc.Call) -> Any:
        self.seen.append(call)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class AskedAndWaiting(Asked):
    async def __call__(self, call: shmrpc.Call) -> Any:
        await asyncio.sleep(0)
        return super().__call__(call)


guard_kinds = pytest.mark.parametrize("kind", [Asked, AskedAndWaiting])


def guarded(guard: Any) -> tuple[ServedMethod, list[int]]:
    """A method behind a guard, and the calls that came through."""
    began: list[int] = []

    class Service:
        @shmrpc.method(guard=guard)
        async def work(self, number: int) -> int:
            began.append(number)
            return number

    return served_by(Service()), began


@guard_kinds
@pytest.mark.parametrize("answer", [True, None])
async def test_a_guard_lets_pass(kind: type[Asked], answer: bool | None) -> None:
    served, began = guarded(kind(answer))
    assert await start(served, 3) == 3
    assert began == [3]


@guard_kinds
async def test_a_guard_that_says_false_refuses_and_gives_no_reason(kind: type[Asked]) -> None:
    served, began = guarded(kind(False))
    with pytest.raises(shmrpc.PermissionDenied) as caught:
        await start(served, 3)
    assert str(caught.value) == "Api.work: pid 12 (uid 34, gid 56) may not call it"
    assert began == []


@guard_kinds
async def test_a_guard_that_raises_an_error_of_shmrpc_refuses_with_that(kind: type[Asked]) -> None:
    error = shmrpc.RpcError("log in first", code=shmrpc.Code.UNAUTHENTICATED)
    served, began = guarded(kind(error))
    with pytest.raises(shmrpc.RpcError) as caught:
        await start(served, 3)
    assert caught.value is error
    assert not hasattr(error, "__notes__")
    assert began == []


@guard_kinds
async def test_a_guard_that_fails_lets_nobody_pass_and_is_named_in_the_log(kind: type[Asked]) -> None:
    served, began = guarded(kind(KeyError("no such tenant")))
    with pytest.raises(KeyError) as caught:
        await start(served, 3)
    assert caught.value.__notes__ == ["It was raised by the guard of Api.work, so that the handler was not called."]
    assert began == []


@guard_kinds
@pytest.mark.parametrize("answer", [0, "", "yes", [], object()])
async def test_a_guard_that_gives_neither_yes_nor_no_lets_nobody_pass(kind: type[Asked], answer: object) -> None:
    served, began = guarded(kind(answer))
    with pytest.raises(TypeError, match="a guard gives True, False or None, or raises an RpcError"):
        await start(served, 3)
    assert began == []


async def test_a_guard_sees_who_calls_what_with_which_metadata_until_when() -> None:
    asked = Asked(True)
    served, _ = guarded(asked)
    await start(served, 3, deadline_ns=2_500_000_000, tenant="a")
    (call,) = asked.seen
    assert (call.method, call.peer, call.metadata, call.deadline) == ("Api.work", (12, 34, 56), {"tenant": "a"}, 2.5)


async def test_a_guard_runs_in_the_context_of_its_call() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")

    async def name(call: shmrpc.Call) -> None:
        user.set(f"uid {call.peer.uid}")

    class Service:
        @shmrpc.method(guard=name)
        async def work(self, number: int) -> str:
            return user.get()

    assert await start(served_by(Service()), 1) == "uid 34"
    assert user.get() == "nobody"


async def test_who_is_refused_does_not_wait_for_a_slot() -> None:
    asked = Asked(True)

    class One(Gate):
        @shmrpc.method(max_concurrency=1, max_waiting=0, guard=asked)
        async def work(self, number: int) -> int:
            return await super().work(number)

    one = One()
    served = served_by(one)
    first = start(served, 0)
    await settle()
    asked.answer = False
    with pytest.raises(shmrpc.PermissionDenied):
        await start(served, 1)
    one.ends[0].set_result(0)
    assert await first == 0


@pytest.mark.parametrize("why", ["guard", "limit", "deadline"])
async def test_a_refused_call_keeps_nothing_of_its_arguments(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "EARLY_SHARE", 1.0)
    monkeypatch.setattr(admission, "EARLY_SECONDS", 100.0)

    class Held:
        pass

    class Refuses:
        @shmrpc.method(guard=Asked(why != "guard"), max_concurrency=1, max_waiting=int(why == "deadline"))
        async def work(self, number: Any) -> int:
            await asyncio.Event().wait()
            return 1

    served = served_by(Refuses())
    running_call = start(served, 1)
    await settle()
    held = Held()
    kept = weakref.ref(held)
    refused = start(served, held, deadline_ns=monotonic_ns() + 100_000_000_000)
    del held
    gc.disable()
    try:
        await asyncio.wait((refused,))
        assert isinstance(refused.exception(), shmrpc.PermissionDenied if why == "guard" else shmrpc.ResourceExhausted)
        del refused
        assert kept() is None
    finally:
        gc.enable()
    running_call.cancel()
    await asyncio.wait((running_call,))
    if why == "guard":
        assert isinstance(running_call.exception(), shmrpc.PermissionDenied)


async def test_a_guard_of_the_contract_gives_way_to_that_of_the_handler() -> None:
    strict, lenient = Asked(False), Asked(True)

    class Strict(Protocol):
        @shmrpc.method(guard=strict)
        async def work(self, number: int) -> int: ...

    class Lenient:
        @shmrpc.method(guard=lenient)
        async def work(self, number: int) -> int:
            return number

    class Silent:
        async def work(self, number: int) -> int:
            return number

    assert await start(Dispatcher((shmrpc.service(Lenient(), Strict),)).methods[0], 1) == 1
    assert (len(strict.seen), len(lenient.seen)) == (0, 1)
    with pytest.raises(shmrpc.PermissionDenied):
        await start(Dispatcher((shmrpc.service(Silent(), Strict),)).methods[0], 1)
