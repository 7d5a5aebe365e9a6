"""What a stub makes of its transport's methods: default timeouts, and calls that are made again."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Generator
from time import monotonic_ns
from typing import Any, Protocol

import pytest

import shmrpc
from shmrpc.client import Stub
from shmrpc.context import CallOptions, running
from shmrpc.contract import read
from shmrpc.errors import Code
from shmrpc.repeating import bind, budget_of
from shmrpc.retry import Retry

QUICK = Retry(backoff=0)
"""Three attempts without pauses."""


class Api(Protocol):
    async def change(self, value: int) -> int: ...

    @shmrpc.method(idempotent=True)
    async def look(self, value: int = 1) -> int: ...

    @shmrpc.method(timeout=7.0, idempotent=True)
    async def hurry(self) -> int: ...


METHODS = read(Api).methods


def gone(*, executed: bool = True) -> shmrpc.Unavailable:
    return shmrpc.Unavailable("gone", maybe_executed=executed)


def lost(*, executed: bool = True) -> shmrpc.ConnectionLost:
    return shmrpc.ConnectionLost("lost", maybe_executed=executed)


class Turn:
    """Awaited, lets others go on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Outcomes:
    """A transport whose calls end as it was told, one after the other."""

    peer = None

    def __init__(self, *outcomes: object) -> None:
        self.outcomes = list(outcomes)
        self.calls: list[tuple[Any, ...]] = []
        self.timeouts: list[int] = []
        self.bound = 0

    def bind(self, method: Any, options: CallOptions) -> Callable[..., Any]:
        self.bound += 1

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((*args, *kwargs.items()))
            self.timeouts.append(options.timeout_ns)
            outcome = self.outcomes.pop(0)
            await Turn()
            try:
                if isinstance(outcome, BaseException):
                    raise outcome
                return outcome
            finally:
                del outcome  # else it, its traceback and this frame keep each other

        return call


def bound(transport: Any, name: str = "look", retry: Retry | None = QUICK, **options: Any) -> Callable[..., Any]:
    return bind(transport, METHODS[name], CallOptions(retry=retry, **options))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; they take no time."""
    made: list[float] = []

    async def sleep(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return made


# What costs nothing


async def test_without_a_retry_a_stub_has_what_its_transport_binds() -> None:
    class Same:
        def bind(self, method: Any, options: CallOptions) -> Any:
            return method

    transport: Any = Same()
    for method in METHODS.values():
        bound: object = bind(transport, method, CallOptions())
        assert bound is method


# Default timeouts


def timeout_of(name: str, **options: Any) -> int:
    timeouts: list[int] = []

    class Noting:
        def bind(self, method: Any, options: CallOptions) -> None:
            timeouts.append(options.timeout_ns)

    transport: Any = Noting()
    bind(transport, METHODS[name], CallOptions().merged(options.get("timeout"), None))
    return timeouts[0]


def test_a_method_has_its_declared_timeout_where_the_stub_has_none() -> None:
    assert timeout_of("hurry") == 7_000_000_000
    assert timeout_of("look") == 0


@pytest.mark.parametrize("timeout", [0.5, 100.0])
def test_the_stubs_own_timeout_counts_instead_be_it_shorter_or_longer(timeout: float) -> None:
    assert timeout_of("hurry", timeout=timeout) == int(timeout * 1e9)


async def test_the_declared_timeout_of_one_method_is_not_that_of_others() -> None:
    transport: Any = Outcomes(1, 2, 3)
    stub: Any = Stub(read(Api), transport, CallOptions())
    for call in (stub.hurry, stub.look, shmrpc.options(stub, metadata={"a": "b"}).hurry):
        await call()
    assert transport.timeouts == [7_000_000_000, 0, 7_000_000_000]


# What is repeated


async def test_an_idempotent_call_is_made_again_until_it_ends_well() -> None:
    transport = Outcomes(gone(), gone(), 5)
    assert await bound(transport)(3) == 5
    assert transport.calls == [(3,)] * 3


async def test_after_its_last_attempt_the_last_error_is_raised_and_tells_of_those_before() -> None:
    last = gone()
    transport = Outcomes(lost(), gone(), last)
    with pytest.raises(shmrpc.Unavailable) as caught:
        await bound(transport)()
    assert caught.value is last
    assert last.__notes__ == ["It was attempt 3. Before it: ConnectionLost: lost; Unavailable: gone"]


async def test_a_call_that_succeeds_or_fails_at_once_has_no_notes() -> None:
    error = gone()
    with pytest.raises(shmrpc.Unavailable):
        await bound(Outcomes(error), retry=Retry(attempts=1))()
    assert not hasattr(error, "__notes__")


async def test_an_error_with_another_code_is_not_repeated() -> None:
    for error in (
        shmrpc.ResourceExhausted("full"),
        shmrpc.RpcError("odd", code=Code.ABORTED),
        shmrpc.InvalidArgument(),
    ):
        transport = Outcomes(error)
        with pytest.raises(type(error)):
            await bound(transport)()
        assert len(transport.calls) == 1


async def test_the_codes_say_what_is_repeated_and_nothing_else_is() -> None:
    retry = Retry(backoff=0, codes={Code.ABORTED})
    assert await bound(Outcomes(shmrpc.RpcError("odd", code=Code.ABORTED), 5), retry=retry)() == 5
    for error in (gone(), lost()):
        with pytest.raises(shmrpc.Unavailable):
            await bound(Outcomes(error), retry=retry)()


async def test_an_error_whose_code_is_a_field_of_its_own_is_not_repeated() -> None:
    error = gone()
    error.code = [Code.UNAVAILABLE]  # type: ignore[assignment]
    with pytest.raises(shmrpc.Unavailable):
        await bound(Outcomes(error))()


@pytest.mark.parametrize("cls", [shmrpc.Closed, shmrpc.ForkedError])
async def test_what_this_side_did_itself_is_not_repeated(cls: type[shmrpc.Unavailable]) -> None:
    transport = Outcomes(cls("by myself"))
    with pytest.raises(cls):
        await bound(transport)()
    assert len(transport.calls) == 1


async def test_a_call_that_is_not_idempotent_is_repeated_only_if_it_was_not_executed() -> None:
    assert await bound(Outcomes(gone(executed=False), lost(executed=False), 5), "change")(1) == 5
    transport = Outcomes(gone(executed=False), gone(executed=True))
    with pytest.raises(shmrpc.Unavailable):
        await bound(transport, "change")(1)
    assert len(transport.calls) == 2
    transport = Outcomes(shmrpc.ResourceExhausted("full"))
    with pytest.raises(shmrpc.ResourceExhausted):
        await bound(transport, "change", Retry(backoff=0, codes={Code.RESOURCE_EXHAUSTED}))(1)


@pytest.mark.parametrize("first", [gone(), lost(), shmrpc.ResourceExhausted("full")])
async def test_what_one_attempt_may_have_done_is_not_forgotten_after_the_next(first: shmrpc.RpcError) -> None:
    retry = Retry(attempts=2, backoff=0, codes={Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})
    with pytest.raises(shmrpc.Unavailable) as caught:
        await bound(Outcomes(first, gone(executed=False)), retry=retry)()
    assert caught.value.maybe_executed


async def test_cancelling_the_caller_ends_all_attempts() -> None:
    transport = Outcomes(gone(), 5)
    call = asyncio.ensure_future(bound(transport, retry=Retry(backoff=1000, max_backoff=1000))())
    while not transport.calls:  # noqa: ASYNC110 - a call is no event
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(transport.calls) == 1


async def test_a_call_that_is_made_again_keeps_nothing_of_the_attempts_before() -> None:
    transport = Outcomes(gone(), 5)
    failed = weakref.ref(transport.outcomes[0])
    gc.disable()
    try:
        assert await bound(transport)() == 5
        assert failed() is None
    finally:
        gc.enable()


# Pauses and deadlines


async def test_the_pauses_grow(pauses: list[float]) -> None:
    transport = Outcomes(*(gone() for _ in range(4)), 5)
    retry = Retry(attempts=5, backoff=1.0, factor=10.0, max_backoff=50.0)
    assert await bound(transport, retry=retry)() == 5
    for pause, seconds in zip(pauses, (1.0, 10.0, 50.0, 50.0), strict=True):
        assert 0.8 * seconds <= pause <= 1.2 * seconds


async def test_nothing_but_the_next_connection_is_waited_for_after_a_lost_one(pauses: list[float]) -> None:
    assert await bound(Outcomes(lost(), lost(), 5), retry=Retry(backoff=1.0))() == 5
    assert pauses == []


async def test_a_pause_that_would_not_end_before_the_deadline_is_not_made(pauses: list[float]) -> None:
    transport = Outcomes(gone(), 5)
    with pytest.raises(shmrpc.Unavailable):
        await bound(transport, retry=Retry(backoff=10.0, max_backoff=10.0), timeout_ns=5_000_000_000)()
    assert pauses == []
    assert await bound(Outcomes(gone(), 5), retry=Retry(backoff=1.0), timeout_ns=5_000_000_000)() == 5


async def test_the_deadline_is_that_of_the_call_and_not_of_an_attempt() -> None:
    transport = Outcomes(gone(), gone(), 5)
    assert await bound(transport, timeout_ns=5_000_000_000)() == 5
    first, second, third = transport.timeouts
    assert first == 5_000_000_000
    assert first > second > third > 0


async def test_an_inherited_deadline_bounds_the_pauses_too(pauses: list[float]) -> None:
    class Serving:
        deadline_ns = monotonic_ns() + 5_000_000_000

    running.set(Serving())  # type: ignore[arg-type]
    with pytest.raises(shmrpc.Unavailable):
        await bound(Outcomes(gone(), 5), retry=Retry(backoff=10.0, max_backoff=10.0))()
    assert pauses == []


async def test_without_a_timeout_of_its_own_a_call_is_bound_once() -> None:
    transport = Outcomes(gone(), gone(), 5)
    await bound(transport)()
    assert transport.bound == 1


# The budget


async def test_at_half_of_the_budget_nothing_is_repeated_any_more() -> None:
    """As in A6: the first attempts that fail count too."""
    transport = Outcomes(*(gone() for _ in range(8)))
    call = bound(transport, retry=Retry(attempts=2, backoff=0, max_tokens=10))
    made = []
    for _ in range(5):
        before = len(transport.calls)
        with pytest.raises(shmrpc.Unavailable):
            await call()
        made.append(len(transport.calls) - before)
    assert made == [2, 2, 1, 1, 1]
    assert budget_of(transport).missing == 7  # type: ignore[arg-type]


async def test_successes_earn_what_repetitions_cost() -> None:
    transport = Outcomes(*(gone() for _ in range(6)), *range(10), gone(), 5)
    retry = Retry(attempts=2, backoff=0, max_tokens=10, budget=0.2)
    for _ in range(4):
        with pytest.raises(shmrpc.Unavailable):
            await bound(transport, retry=retry)()
    for number in range(10):
        assert await bound(transport, "change", retry)(1) == number
    assert await bound(transport, retry=retry)() == 5


async def test_one_connection_has_one_budget_for_all_its_stubs() -> None:
    transport: Any = Outcomes(*(gone() for _ in range(5)))
    stub: Any = Stub(read(Api), transport, CallOptions(retry=Retry(attempts=5, backoff=0, max_tokens=10)))
    with pytest.raises(shmrpc.Unavailable):
        await stub.look()
    transport.outcomes = [gone(), 5]
    with pytest.raises(shmrpc.Unavailable):
        await shmrpc.options(stub, retry=Retry(attempts=2, backoff=0, max_tokens=10)).look()
    other: Any = Stub(read(Api), Outcomes(gone(), 5), CallOptions(retry=QUICK))  # type: ignore[arg-type]
    assert await other.look() == 5


async def test_a_lost_connection_is_not_charged() -> None:
    """It takes all its calls with it: a budget would let most of them down."""
    transport = Outcomes(*(lost() for _ in range(100)), *range(100))
    calls = [bound(transport, retry=Retry(max_tokens=10))() for _ in range(100)]
    assert sorted(await asyncio.gather(*calls)) == list(range(100))
    assert budget_of(transport).missing == 0  # type: ignore[arg-type]


def test_a_budget_ends_with_its_connection() -> None:
    transport: Any = Outcomes()
    budget = weakref.ref(transport)
    budget_of(transport)
    del transport
    gc.collect()
    assert budget() is None
