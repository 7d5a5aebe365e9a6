"""Faults: which calls meet them, when, and what their callers see, over shared memory and in one process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytest
from faulty_api import NoSuchItem, Shop, ShopService

import shmrpc
from shmrpc.testing import Fault, Faults, all_released, pair

Connect = Callable[[Faults, ShopService], AbstractAsyncContextManager[Shop]]


def over_shared_memory(faults: Faults, service: ShopService) -> AbstractAsyncContextManager[Shop]:
    return pair(Shop, service, faults=faults, max_extent_bytes=8 << 20)


def in_one_process(faults: Faults, service: ShopService) -> AbstractAsyncContextManager[Shop]:
    return shmrpc.local(Shop, faults.wrap(service))


@pytest.fixture(params=[over_shared_memory, in_one_process])
def connect(request: pytest.FixtureRequest) -> Connect:
    made: Connect = request.param
    return made


@pytest.fixture
def faults() -> Faults:
    return Faults()


# Kinds of faults


async def test_a_delayed_call_can_miss_its_deadline(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        hasty = shmrpc.options(shop, timeout=0.05)
        with faults.delay("add", 60) as fault:
            with pytest.raises(shmrpc.DeadlineExceeded):
                await hasty.add(1)
            assert fault.met == 1
            assert await hasty.add_in_thread(1) == 2
        assert await shop.add(1) == 2


@pytest.mark.parametrize("method", ["add", "add_in_thread"])
async def test_a_call_is_held_until_it_is_released(connect: Connect, faults: Faults, method: str) -> None:
    service = ShopService()
    async with connect(faults, service) as shop:
        fault = faults.hold(method)
        call = asyncio.ensure_future(getattr(shop, method)(1))
        await fault.reached()
        assert service.diary == ["entered"]
        fault.release()
        assert await call == 2
        assert await getattr(shop, method)(2) == 3, "once released it holds nobody"


async def test_a_call_can_be_held_when_all_is_done_but_the_answer(connect: Connect, faults: Faults) -> None:
    service = ShopService()
    async with connect(faults, service) as shop:
        with faults.hold("add", at="end") as fault:
            calls = [asyncio.ensure_future(shop.add(number)) for number in range(2)]
            await fault.reached(2)
            assert service.diary == ["entered", "add 0", "add 1"]
        assert await asyncio.gather(*calls) == [1, 2]


async def test_a_failure_arrives_as_the_error_that_it_is(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        with faults.fail("add", NoSuchItem("bread"), times=1):
            with pytest.raises(NoSuchItem) as caught:
                await shop.add(1)
            assert caught.value.name == "bread"
            assert await shop.add(1) == 2
        with faults.fail("add", ZeroDivisionError("secret")), pytest.raises(shmrpc.Internal, match="correlation id"):
            await shop.add(1)


async def test_a_failure_keeps_no_arguments(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        faults.fail("copy", shmrpc.ResourceExhausted("full"))
        with pytest.raises(shmrpc.ResourceExhausted, match="full"):
            await shop.copy(np.zeros(100_000, np.uint8))
        await all_released(shop)


class Picky(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


async def test_a_failure_may_be_of_any_class(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        faults.fail("add", Picky("one", "two"))
        for _ in range(2):
            with pytest.raises(shmrpc.Internal):
                await shop.add(1)


@pytest.mark.parametrize("method", ["add", "add_in_thread"])
@pytest.mark.parametrize(("at", "executed"), [("start", []), ("end", ["{method} 1"])])
async def test_a_dropped_call_ends_without_an_answer_and_the_next_one_works(
    connect: Connect, faults: Faults, method: str, at: Any, executed: list[str]
) -> None:
    service = ShopService()
    async with connect(faults, service) as shop:
        faults.drop(method, at=at)
        with pytest.raises(shmrpc.ConnectionLost, match=f"Shop.{method} was under way there") as caught:
            await getattr(shop, method)(1)
        assert caught.value.maybe_executed
        assert service.diary == ["entered", *(text.format(method=method) for text in executed)]
        assert await getattr(shop, method)(5) == 6


async def test_answers_wait_while_all_memory_is_taken(faults: Faults) -> None:
    async with over_shared_memory(faults, ShopService()) as shop:
        image = np.ones(100_000, np.uint8)
        with faults.exhaust("copy"):
            with pytest.raises(shmrpc.DeadlineExceeded):
                await shmrpc.options(shop, timeout=0.1).copy(image)
            assert await shop.add(1) == 2
        assert (await shop.copy(image) == image).all()


async def test_memory_without_a_limit_cannot_be_taken(faults: Faults) -> None:
    faults.exhaust("copy", times=None)
    async with in_one_process(faults, ShopService()) as shop:
        with pytest.raises(shmrpc.RpcError, match="no limit to the memory here"):
            await shop.copy(np.zeros(9000, np.uint8))
    async with pair(Shop, ShopService(), faults=faults) as shop:
        with pytest.raises(shmrpc.RpcError, match=r"1024 MiB, which is too much to take; the limit is 256 MiB"):
            await shop.copy(np.zeros(9000, np.uint8))


# Streams


@pytest.mark.parametrize("method", ["count", "count_in_thread"])
async def test_a_stream_fails_after_so_many_items(connect: Connect, faults: Faults, method: str) -> None:
    async with connect(faults, ShopService()) as shop:
        with faults.fail(method, NoSuchItem("third"), at=2):
            seen = []
            with pytest.raises(NoSuchItem):
                async for number in getattr(shop, method)(5):
                    seen.append(number)
            assert seen == [0, 1]
        assert [number async for number in getattr(shop, method)(3)] == [0, 1, 2]


@pytest.mark.parametrize(("at", "items"), [("start", 0), (2, 2), ("end", 5)])
async def test_a_stream_is_dropped_after_the_items_that_were_sent(
    connect: Connect, faults: Faults, at: Any, items: int
) -> None:
    async with connect(faults, ShopService()) as shop:
        faults.drop("count", at=at)
        seen = []
        with pytest.raises(shmrpc.ConnectionLost):
            async for number in shop.count(5):
                seen.append(number)
        assert seen == list(range(items))
        assert [number async for number in shop.count(1)] == [0]


class Counter:
    """An async iterator that cannot be closed."""

    def __init__(self, to: int) -> None:
        self._numbers = iter(range(to))

    def __aiter__(self) -> "Counter":
        return self

    async def __anext__(self) -> int:
        for number in self._numbers:
            return number
        raise StopAsyncIteration


class Handmade(ShopService):
    def count(self, to: int) -> AsyncIterator[int]:
        return Counter(to)


async def test_a_stream_need_not_be_a_generator(connect: Connect, faults: Faults) -> None:
    async with connect(faults, Handmade()) as shop:
        assert [number async for number in shop.count(3)] == [0, 1, 2]
        faults.fail("count", NoSuchItem("end"), at="end")
        with pytest.raises(NoSuchItem):
            assert [number async for number in shop.count(3)] == []


async def test_a_call_that_takes_a_stream_meets_faults_too(connect: Connect, faults: Faults) -> None:
    async def numbers() -> Any:
        for number in range(4):
            yield number

    async with connect(faults, ShopService()) as shop:
        assert await shop.total(numbers()) == 6
        faults.fail("total", NoSuchItem("end"), at="end")
        with pytest.raises(NoSuchItem):
            await shop.total(numbers())


async def test_a_stream_that_is_left_early_is_left_at_the_handler(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        with faults.hold("count", at=1) as fault:
            stream = aiter(shop.count(5))
            assert await anext(stream) == 0
            await fault.reached()
            await stream.aclose()  # type: ignore[attr-defined]


# Which calls meet them


@pytest.mark.parametrize("pattern", ["add", "Shop.add", "a?d", "Shop.*", "*"])
async def test_a_pattern_says_which_methods(connect: Connect, faults: Faults, pattern: str) -> None:
    async with connect(faults, ShopService()) as shop:
        with faults.fail(pattern, NoSuchItem("x")), pytest.raises(NoSuchItem):
            await shop.add(1)


async def test_several_faults_are_met_in_the_order_of_their_making(connect: Connect, faults: Faults) -> None:
    async with connect(faults, ShopService()) as shop:
        first, second = faults.hold("add"), faults.fail("add", NoSuchItem("x"))
        call = asyncio.ensure_future(shop.add(1))
        await first.reached()
        assert second.met == 0
        faults.clear()
        with pytest.raises(NoSuchItem):  # it was on its way through both
            await call
        assert await shop.add(1) == 2


def test_a_fault_of_no_method_is_refused() -> None:
    faults = Faults()
    faults.delay("ad", 1)
    with pytest.raises(ValueError, match=r"no method matches 'ad'; there are Shop\.add, "):
        faults.wrap(ShopService())
    later = Faults()
    later.wrap(ShopService())
    with pytest.raises(ValueError, match="no method matches 'ad'"):
        later.delay("ad", 1)
    assert "[]" in repr(later)


@pytest.mark.parametrize("seconds", [-1, "1", None])
def test_a_delay_takes_seconds(seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"seconds is a number of seconds, from 0 to math\.inf, not"):
        Faults().delay("add", seconds)


@pytest.mark.parametrize("error", ["x", ValueError, KeyboardInterrupt()])
def test_a_failure_takes_an_exception(error: Any) -> None:
    with pytest.raises(TypeError, match=r"error is an exception to be raised, like RpcError\('…'\), not"):
        Faults().fail("add", error)


def test_a_failure_may_have_a_field_that_is_called_code() -> None:
    @dataclass(eq=False)
    class Own(shmrpc.RpcError):
        code: Any

    assert Faults().fail("add", Own(3)).portable is False


def test_a_fault_at_an_item_is_refused_where_there_are_no_items() -> None:
    faults = Faults()
    faults.wrap(ShopService())
    with pytest.raises(ValueError, match=r"Shop\.add gives one result and no items"):
        faults.delay("add", 1, at=3)
    faults.delay("c*", 1, at=3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"at": "middle"}, "at is 'middle', it is 'start', 'end', or a number of items"),
        ({"at": 0}, "at is 0, it is 'start', 'end', or a number of items"),
        ({"times": 0}, "times is 0, it must be at least 1"),
    ],
)
def test_a_fault_that_could_never_be_met_is_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Faults().delay("add", 1, **arguments)


# The service under them


async def test_the_service_is_entered_and_left_once(connect: Connect, faults: Faults) -> None:
    service = ShopService()
    async with connect(faults, service) as shop:
        assert await shop.add(1, more=4) == 5
    assert service.diary == ["entered", "add 1", "left"]


class Alone:
    """Inherits from no contract."""

    async def add(self, number: int, *, more: int = 1) -> int:
        return number


class Adding(Protocol):
    async def add(self, number: int, *, more: int = 1) -> int: ...


async def test_a_service_that_inherits_from_nothing_is_wrapped_as_a_contract(path: str, faults: Faults) -> None:
    faults.fail("Adding.add", NoSuchItem("x"))
    wrapped = faults.wrap(Alone(), Adding)
    assert "with faults" in repr(wrapped.implementation)
    async with shmrpc.Server(wrapped, at=path), shmrpc.connect(Adding, path) as adding:
        with pytest.raises(shmrpc.RpcError, match="NoSuchItem") as caught:
            await adding.add(1)
    assert caught.value.code is shmrpc.Code.NOT_FOUND


# To another process


def test_faults_can_be_told_to_another_process() -> None:
    faults = Faults()
    faults.delay("add", 0.5, times=2)
    faults.drop("count", at=3)
    faults.exhaust("copy", at="end")
    faults.fail("wait", shmrpc.PermissionDenied("no"))
    assert Faults.from_json(faults.to_json()).to_json() == [
        *faults.to_json()[:3],
        {**faults.to_json()[3], "text": "no", "code": "PERMISSION_DENIED"},
    ]


def add_a_hold(faults: Faults) -> Fault:
    return faults.hold("add")


def add_a_declared_error(faults: Faults) -> Fault:
    return faults.fail("add", NoSuchItem("x"))


@pytest.mark.parametrize("add", [add_a_hold, add_a_declared_error])
def test_what_cannot_be_told_is_refused(add: Callable[[Faults], Fault]) -> None:
    faults = Faults()
    add(faults)
    with pytest.raises(ValueError, match=r"cannot be put into another process; serve faults\.wrap"):
        faults.to_json()
