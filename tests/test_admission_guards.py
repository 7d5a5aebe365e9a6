"""Guards: who is let pass, who is refused and how, and what a guard sees."""

import asyncio
import contextvars
import gc
import weakref
from time import monotonic_ns
from typing import Any, Protocol

import pytest
from admitting import Gate, served_by, settle, start

import shmrpc
from shmrpc import admission
from shmrpc.dispatch import Dispatcher, ServedMethod


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
