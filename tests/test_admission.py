"""Limits: who waits, and that each slot comes back once, however its call ends."""

import asyncio
import sys
from contextlib import suppress
from time import monotonic_ns
from typing import Any, Protocol

import pytest
from admitting import Api, Gate, Two, limit_of, served_by, settle, start

import shmrpc
from shmrpc import admission
from shmrpc.dispatch import Dispatcher

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
    limited = [served for served in dispatcher.methods if served.contract in (Api, Other)]
    assert len({limit_of(served) for served in limited if served.method.name == "work"}) == 2


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
