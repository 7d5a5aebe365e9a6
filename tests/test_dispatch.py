"""Services and handlers: what can be served, how a handler is called, and when a service is entered and left."""

import abc
import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar, cast
from unittest.mock import Mock

import anyio.to_thread
import pytest
from life_waiting import until

import shmrpc
from shmrpc.dispatch import Dispatcher

F = TypeVar("F", bound=Callable[..., Any])


class Api(Protocol):
    async def add(self, left: int, *, right: int = 1) -> int: ...


class Extended(Api, Protocol):
    async def negate(self, value: int) -> int: ...


class Whole(Extended):
    async def add(self, left: int, *, right: int = 7) -> int:
        return left + right

    async def negate(self, value: int) -> int:
        return -value


class Structural:
    """Implements `Api` without inheriting from it."""

    async def add(self, left: int, *, right: int) -> int:
        return left + right


class Plain:
    def add(self, left: int, *, right: int) -> int:
        return left + right

    def where(self) -> int:
        return threading.get_ident()


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    """Waits for the threads of plain handlers, which are told to end with the test's task."""
    yield
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(60.0)


def full_names(*services: object) -> list[str]:
    found = [served.full_name for served in Dispatcher(services).methods]
    built_in = [name for name in found if name.startswith("shmrpc.")]
    assert found[-len(built_in) :] == built_in, "what is built in comes last, so that no number depends on it"
    return found[: -len(built_in)]


async def call(dispatcher: Dispatcher, full_name: str, *args: Any) -> Any:
    return await dispatcher.find(full_name).invoke(*args)


# What is served


def test_an_implementation_is_served_as_the_contracts_that_it_inherits_from() -> None:
    assert full_names(Whole()) == ["Extended.add", "Extended.negate", "Api.add"]


def test_an_implementation_may_be_served_as_some_of_its_contracts_only() -> None:
    assert full_names(shmrpc.service(Whole(), Api)) == ["Api.add"]


def test_an_implementation_need_not_inherit_from_its_contract() -> None:
    assert full_names(shmrpc.service(Structural(), Api)) == ["Api.add"]


def test_a_service_may_be_given_for_an_implementation() -> None:
    made = shmrpc.service(Structural(), Api)
    assert shmrpc.service(made) is shmrpc.service(made, Api) is made
    with pytest.raises(shmrpc.ContractError, match=r"the service of <.*Structural object.*> is not one of Extended"):
        shmrpc.service(made, Extended)


def test_a_class_without_a_contract_is_its_own() -> None:
    assert full_names(Plain()) == ["Plain.add", "Plain.where"]


def test_the_numbers_of_methods_run_through_the_services() -> None:
    dispatcher = Dispatcher((shmrpc.service(Whole(), Extended), shmrpc.service(Structural(), Api), Plain()))
    assert dispatcher.first_method == {"Extended": 0, "Api": 2, "Plain": 3, "shmrpc.Introspection": 5}
    assert repr(dispatcher) == "<Dispatcher of Extended, Api, Plain>"
    assert repr(dispatcher.methods[2]) == "<ServedMethod Api.add>"


def test_a_method_is_found_by_its_full_name() -> None:
    dispatcher = Dispatcher((shmrpc.service(Structural(), Api),))
    assert dispatcher.find("Api.add") is dispatcher.methods[0]
    with pytest.raises(shmrpc.Unimplemented, match=r"there is no method Api\.sub; there are Api\.add"):
        dispatcher.find("Api.sub")


# What is refused when the server is made


def test_a_server_needs_a_service() -> None:
    with pytest.raises(shmrpc.ContractError, match="at least one service"):
        Dispatcher(())


def test_a_class_is_not_a_service() -> None:
    with pytest.raises(shmrpc.ContractError, match=r"a service is an instance; write Whole\(…\)"):
        Dispatcher((Whole,))


def test_two_services_cannot_have_one_name() -> None:
    with pytest.raises(shmrpc.ContractError, match="two services are called Api"):
        Dispatcher((shmrpc.service(Whole(), Api), shmrpc.service(Structural(), Api)))


def test_a_method_that_is_not_implemented_is_named() -> None:
    class Half(Extended):
        async def negate(self, value: int) -> int:
            return -value

    class Nothing:
        pass

    half = cast(Callable[[], object], Half)()
    for implementation, contracts, text in (
        (half, (), r"Half does not implement Extended\.add"),
        (half, (Extended,), r"Half does not implement Extended\.add"),
        (half, (Api,), r"Half does not implement Api\.add"),
        (Nothing(), (Api,), r"Nothing does not implement Api\.add"),
    ):
        with pytest.raises(shmrpc.ContractError, match=text):
            shmrpc.service(implementation, *contracts)


def test_a_contract_class_may_implement_some_methods_itself() -> None:
    class Base(abc.ABC):
        async def double(self, value: int) -> int:
            return 2 * value

        @abc.abstractmethod
        async def triple(self, value: int) -> int: ...

    class Implementation(Base):
        async def triple(self, value: int) -> int:
            return 3 * value

    assert full_names(Implementation()) == ["Base.double", "Base.triple"]


def test_what_is_not_callable_is_no_handler() -> None:
    service = shmrpc.service(type("Odd", (), {"add": 3})(), Api)
    with pytest.raises(shmrpc.ContractError, match=r"Api\.add: Odd\.add is not callable"):
        Dispatcher((service,))


@pytest.mark.parametrize(
    "handler",
    [
        lambda self: None,
        lambda self, left: None,
        lambda self, left, /, other: None,
        lambda self, left, *, write: None,
        lambda self, left, *, right, more: None,
    ],
)
def test_a_handler_that_cannot_take_the_arguments_is_refused(handler: Callable[..., Any]) -> None:
    service = shmrpc.service(type("Odd", (), {"add": handler})(), Api)
    with pytest.raises(shmrpc.ContractError, match=r"Api\.add: Odd\.add\(.*\) does not take the arguments of add\("):
        Dispatcher((service,))


# How handlers are called


async def test_a_coroutine_function_is_called_with_keyword_only_arguments_by_name() -> None:
    dispatcher = Dispatcher((shmrpc.service(Structural(), Api),))
    assert await call(dispatcher, "Api.add", 2, 3) == 5


async def test_a_plain_function_runs_in_a_thread() -> None:
    dispatcher = Dispatcher((Plain(),))
    assert await call(dispatcher, "Plain.add", 2, 3) == 5
    assert await call(dispatcher, "Plain.where") != threading.get_ident()


async def test_no_more_than_so_many_plain_functions_run_at_once() -> None:
    gate = threading.Event()
    most = 0
    now = 0
    lock = threading.Lock()

    class Slow:
        def wait(self) -> None:
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
            gate.wait(60)
            with lock:
                now -= 1

    dispatcher = Dispatcher((Slow(),), max_threads=2)
    calls = [asyncio.ensure_future(call(dispatcher, "Slow.wait")) for _ in range(5)]
    while now < 2:  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*calls)
    assert most == 2


def wrapping(function: F) -> F:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return cast(F, wrapper)


def wrapping_plainly(function: F) -> F:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        return cast(Awaitable[Any], function(*args, **kwargs))

    return cast(F, wrapper)


def wrapping_silently(function: F) -> F:
    def wrapper(*args: Any, **kwargs: Any) -> Awaitable[Any]:
        return cast(Awaitable[Any], function(*args, **kwargs))

    return cast(F, wrapper)


@pytest.mark.parametrize("decorator", [wrapping, wrapping_plainly, wrapping_silently, functools.cache])
async def test_a_handler_may_be_decorated(decorator: Callable[[Any], Any]) -> None:
    class Decorated:
        @decorator
        async def add(self, left: int, *, right: int) -> int:
            await asyncio.sleep(0)
            return left + right

    dispatcher = Dispatcher((shmrpc.service(Decorated(), Api),))
    assert await call(dispatcher, "Api.add", 2, 3) == 5


async def test_a_handler_need_not_have_a_signature() -> None:
    class Builtin:
        add = Mock(side_effect=lambda left, right: left + right)

    dispatcher = Dispatcher((shmrpc.service(Builtin(), Api),))
    assert await call(dispatcher, "Api.add", 2, 3) == 5


async def test_a_plain_generator_that_is_cancelled_in_a_step_is_closed_after_that() -> None:
    began, gate, closed = threading.Event(), threading.Event(), threading.Event()
    diary: list[str] = []

    class Steps(Protocol):
        def count(self) -> AsyncIterator[int]: ...

    class Slow:
        def count(self) -> Iterator[int]:
            try:
                began.set()
                gate.wait(60)
                diary.append("the step ended")
                yield 1
            finally:
                diary.append("closed")
                closed.set()

    served = Dispatcher((shmrpc.service(Slow(), Steps),)).methods[0]
    step = asyncio.ensure_future(anext(served.invoke()))
    while not began.is_set():  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait((step,))  # which does not wait for the thread
    assert step.cancelled()
    assert diary == []
    gate.set()
    while not closed.is_set():  # noqa: ASYNC110 - it is set in a thread
        await asyncio.sleep(0)
    assert diary == ["the step ended", "closed"]


class NoThreads:
    """In the place of `anyio.to_thread.run_sync`: the system gives so many threads, and then no more."""

    def __init__(self, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.more = more
        self._run_sync = anyio.to_thread.run_sync
        monkeypatch.setattr(anyio.to_thread, "run_sync", self.run_sync)

    async def run_sync(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.more -= 1
        if self.more < 0:
            raise RuntimeError("can't start new thread")
        return await self._run_sync(function, *args, **options)


async def test_a_plain_handler_without_a_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        def add(self, left: int, *, right: int) -> int:
            raise RuntimeError("of its own")

    dispatcher = Dispatcher((shmrpc.service(Plain(), Api),))
    NoThreads(1, monkeypatch)
    with pytest.raises(RuntimeError, match="of its own"):
        await call(dispatcher, "Api.add", 2, 3)
    with pytest.raises(
        shmrpc.ResourceExhausted, match=r"Api\.add needs a thread, and .* cannot start one: can't start"
    ):
        await call(dispatcher, "Api.add", 2, 3)


async def test_a_plain_generator_that_gets_no_more_threads_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    diary: list[str] = []

    class Steps(Protocol):
        def count(self) -> AsyncIterator[int]: ...

    class Plain:
        def count(self) -> Iterator[int]:
            try:
                yield 1
                yield 2
            finally:
                diary.append("closed")

    served = Dispatcher((shmrpc.service(Plain(), Steps),)).methods[0]
    threads = NoThreads(1, monkeypatch)
    items = served.invoke()
    assert await anext(items) == 1
    await items.aclose()  # which raises nothing
    assert diary.pop() == "closed"
    threads.more = 1
    items = served.invoke()
    assert await anext(items) == 1
    with pytest.raises(shmrpc.ResourceExhausted, match=r"Steps\.count needs a thread"):
        await anext(items)
    assert diary == ["closed"]


# Entering and leaving


class Life:
    def __init__(self, diary: list[str], name: str, fails: str = "") -> None:
        self._diary, self._name, self._fails = diary, name, fails

    async def __aenter__(self) -> None:
        self._diary.append(f"enter {self._name}")
        if self._fails == "enter":
            raise OSError("no database")

    async def __aexit__(self, *exc_info: object) -> None:
        self._diary.append(f"leave {self._name}")

    async def add(self, left: int, *, right: int) -> int:
        return left + right


def lives(diary: list[str], *fails: str) -> Dispatcher:
    contracts = (Api, Extended, type("Third", (Structural,), {}))
    made = (shmrpc.service(Life(diary, str(i), fail), contracts[2 * (i == 1)]) for i, fail in enumerate(fails))
    return Dispatcher(tuple(made))


async def test_services_are_entered_in_order_and_left_in_reverse() -> None:
    diary: list[str] = []
    async with lives(diary, "", ""):
        assert diary == ["enter 0", "enter 1"]
    assert diary == ["enter 0", "enter 1", "leave 1", "leave 0"]


async def test_when_one_service_cannot_be_entered_those_before_it_are_left() -> None:
    diary: list[str] = []
    with pytest.raises(OSError, match="no database"):
        async with lives(diary, "", "enter"):
            pass
    assert diary == ["enter 0", "enter 1", "leave 0"]


async def test_a_service_that_is_no_context_manager_needs_none() -> None:
    async with Dispatcher((shmrpc.service(Structural(), Api), Plain())) as dispatcher:
        assert await call(dispatcher, "Api.add", 1, 1) == 2


# How many threads


async def test_a_thread_counts_until_its_function_has_ended() -> None:
    """Also when nobody waits for it any more: else callers that give up soon would have any number of threads running."""
    began, gate = threading.Event(), threading.Event()

    class Slow:
        def wait(self) -> None:
            began.set()
            gate.wait(60)

        def at_once(self) -> int:
            return 1

    dispatcher = Dispatcher((Slow(),), max_threads=1)
    given_up = asyncio.ensure_future(call(dispatcher, "Slow.wait"))
    await until(began.is_set, "the handler")
    given_up.cancel()
    await asyncio.wait((given_up,))
    later = asyncio.ensure_future(call(dispatcher, "Slow.at_once"))
    done, _ = await asyncio.wait((later,), timeout=0.05)
    assert not done
    gate.set()
    assert await later == 1


@pytest.mark.parametrize("turns", range(6))
async def test_a_call_that_is_given_up_before_its_thread_begins_takes_no_place(turns: int) -> None:
    class Quick:
        def at_once(self) -> int:
            return 1

    dispatcher = Dispatcher((Quick(),), max_threads=1)
    given_up = asyncio.ensure_future(call(dispatcher, "Quick.at_once"))
    for _ in range(turns):
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait((given_up,))
    async with asyncio.timeout(60):
        assert await call(dispatcher, "Quick.at_once") == 1


async def test_a_plain_generator_that_was_not_begun_needs_no_thread_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steps(Protocol):
        def count(self) -> AsyncIterator[int]: ...

    class Plain:
        def count(self) -> Iterator[int]:
            yield 1

    served = Dispatcher((shmrpc.service(Plain(), Steps),)).methods[0]
    threads = NoThreads(0, monkeypatch)
    with pytest.raises(shmrpc.ResourceExhausted):
        await anext(served.invoke())
    assert threads.more == -1, "asked for once, to begin"


async def test_what_a_coroutine_gives_as_a_stream_is_closed_with_it() -> None:
    diary: list[str] = []

    class Steps(Protocol):
        def count(self) -> AsyncIterator[int]: ...

    class Later:
        async def count(self) -> AsyncIterator[int]:
            return self._count()

        async def _count(self) -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                diary.append("closed")

    served = Dispatcher((shmrpc.service(Later(), Steps),)).methods[0]
    items = served.invoke()
    assert await anext(items) == 1
    await items.aclose()
    assert diary == ["closed"]
