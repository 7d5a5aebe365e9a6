"""The running call, the options of a caller, and deadlines."""

import contextvars
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from time import monotonic, monotonic_ns
from types import MappingProxyType
from typing import Any, TypeVar, cast

import pytest

import shmrpc
from shmrpc.context import CallOptions, Metadata, Peer, ServedCall, remaining_seconds, running, timeout_to_ns

T = TypeVar("T")


class Served:
    """A call that is being served, as a transport would keep it."""

    def __init__(self, deadline_ns: int = 0, metadata: Metadata | None = None) -> None:
        self.method_name = "Api.method"
        self.deadline_ns = deadline_ns
        self.metadata = metadata or {}
        self.peer = Peer(1, 2, 3)
        self.cancelled = False

        self.initial: list[Metadata] = []
        self.trailing: list[Metadata] = []

    def allocate(self, nbytes: int) -> bytearray:
        """Ordinary memory."""
        return bytearray(nbytes)

    def back_to(self, contract: Any) -> Any:
        """There is nothing to be called there."""
        raise shmrpc.Unimplemented("nothing is exposed")

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Notes it."""
        self.initial.append(metadata)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Notes it."""
        self.trailing.append(metadata)


def handling(served: ServedCall, function: Callable[[], T]) -> T:
    """Calls a function as a handler would."""

    def handler() -> T:
        running.set(served)
        return function()

    return contextvars.Context().run(handler)


def test_outside_of_a_handler_there_is_no_current_call() -> None:
    with pytest.raises(RuntimeError, match="no call is being handled here"):
        shmrpc.current_call()


def test_a_handler_sees_its_call() -> None:
    served = Served(metadata={"tenant": "a"})
    call = handling(served, shmrpc.current_call)
    assert (call.method, call.metadata, call.peer, call.cancelled) == ("Api.method", {"tenant": "a"}, (1, 2, 3), False)
    assert repr(call) == "<Call Api.method of pid 1 (uid 2, gid 3)>"
    served.cancelled = True
    assert call.cancelled


def test_a_call_without_a_deadline_has_none() -> None:
    call = handling(Served(), shmrpc.current_call)
    assert call.deadline is None
    assert call.time_left is None


def test_the_deadline_of_a_call_is_on_the_monotonic_clock() -> None:
    call = handling(Served(monotonic_ns() + 100 * 10**9), shmrpc.current_call)
    assert call.deadline is not None
    assert call.time_left is not None
    assert monotonic() < call.deadline <= monotonic() + 100
    assert 0 < call.time_left <= 100


def test_the_time_left_is_never_negative() -> None:
    assert handling(Served(1), lambda: shmrpc.current_call().time_left) == 0.0


def test_a_thread_that_a_handler_starts_with_its_context_sees_the_call() -> None:
    seen: list[str] = []

    def handler() -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(lambda: seen.append(shmrpc.current_call().method),))
        thread.start()
        thread.join()

    handling(Served(), handler)
    assert seen == ["Api.method"]


def test_options_are_merged_key_by_key() -> None:
    options = CallOptions().merged(1.0, {"a": "1", "b": "1"}).merged(None, {"b": "2"})
    assert options == CallOptions(10**9, {"a": "1", "b": "2"})
    assert options.merged(2.0, None) == CallOptions(2 * 10**9, {"a": "1", "b": "2"})


def test_merging_leaves_the_given_metadata_alone() -> None:
    given = {"a": "1"}
    options = CallOptions().merged(None, given)
    given["a"] = "2"
    assert options.metadata == {"a": "1"}


@pytest.mark.parametrize("metadata", [{1: "a"}, {"a": 1}, {"a": None}, {b"a": "a"}])
def test_metadata_is_text_to_text_or_bytes(metadata: Any) -> None:
    with pytest.raises(TypeError, match="metadata maps str to str or bytes"):
        CallOptions().merged(None, metadata)


@pytest.mark.parametrize("retry", [3, shmrpc.Retry])
def test_a_retry_is_one(retry: Any) -> None:
    with pytest.raises(TypeError, match=r"retry is a shmrpc\.Retry, not .*; write shmrpc\.Retry\(attempts=…\)"):
        CallOptions().merged(None, None, retry=retry)


@pytest.mark.parametrize("timeout", [0, -1.0, math.inf, math.nan, 1e9])
def test_a_timeout_is_a_positive_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="a timeout is a positive number of seconds, not"):
        timeout_to_ns(timeout)


@pytest.mark.parametrize("timeout", ["1", [1], 1j, Decimal(1)])
def test_a_timeout_of_another_type_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="a timeout is a positive number of seconds, not"):
        timeout_to_ns(timeout)


def test_a_timedelta_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"not datetime\.timedelta\(seconds=1\); write its total_seconds\(\)"):
        CallOptions().merged(cast(Any, timedelta(seconds=1)), None)


@pytest.mark.parametrize("reply", [shmrpc.Reply, {}])
def test_a_reply_is_one(reply: Any) -> None:
    with pytest.raises(TypeError, match=r"reply is a shmrpc\.Reply, not .*; write shmrpc\.Reply\(\)"):
        CallOptions().merged(None, None, reply=reply)


@pytest.mark.parametrize("metadata", [[("a", "b")], "ab", {"a"}, 3])
def test_metadata_that_is_no_mapping_is_refused(metadata: Any) -> None:
    with pytest.raises(TypeError) as caught:
        CallOptions().merged(None, metadata)
    name = type(metadata).__name__
    assert str(caught.value) == f"metadata maps str to str or bytes, as a dict does, not {name}"


def test_metadata_may_be_any_mapping() -> None:
    assert CallOptions().merged(None, MappingProxyType({"a": b"1"})).metadata == {"a": b"1"}


def test_the_shortest_timeout_is_not_taken_for_none() -> None:
    assert timeout_to_ns(1e-12) == 1


def test_the_deadline_of_a_call_is_counted_from_now() -> None:
    before = monotonic_ns()
    deadline_ns = CallOptions().merged(10.0, None).deadline_ns()
    assert before + 10**10 <= deadline_ns <= monotonic_ns() + 10**10


@pytest.mark.parametrize(
    ("timeout", "outer_ns", "expected"),
    [(None, 0, "none"), (None, 10**18, "outer"), (1.0, 0, "own"), (1.0, 10**18, "own"), (1.0, 5, "outer")],
)
def test_a_nested_call_has_the_sooner_deadline_of_its_own_and_the_handlers(
    timeout: float | None, outer_ns: int, expected: str
) -> None:
    outer_ns = outer_ns and monotonic_ns() + outer_ns if outer_ns > 5 else outer_ns
    options = CallOptions().merged(timeout, None)
    before = monotonic_ns()
    deadline_ns = handling(Served(outer_ns), options.deadline_ns)
    if expected == "own":
        assert before + 10**9 <= deadline_ns <= monotonic_ns() + 10**9
    else:
        assert deadline_ns == {"none": 0, "outer": outer_ns}[expected]


def test_what_remains_of_a_deadline_may_be_negative() -> None:
    assert remaining_seconds(monotonic_ns() + 10**11) > 99
    assert remaining_seconds(monotonic_ns() - 10**9) <= -1


def test_a_peer_describes_itself() -> None:
    assert str(Peer(1, 2, 3)) == "pid 1 (uid 2, gid 3)"
    assert cast(tuple[int, int, int], Peer(1, 2, 3)) == (1, 2, 3)


def test_a_handler_attaches_metadata_to_its_answer() -> None:
    served = Served()
    call = handling(served, shmrpc.current_call)
    call.send_initial_metadata({"a": "1"})
    call.set_trailing_metadata({"b": b"2"})
    assert (served.initial, served.trailing) == ([{"a": "1"}], [{"b": b"2"}])


@pytest.mark.parametrize("attach", [shmrpc.Call.send_initial_metadata, shmrpc.Call.set_trailing_metadata])
def test_metadata_of_an_answer_is_checked_where_it_is_attached(attach: Callable[[shmrpc.Call, Any], None]) -> None:
    call = handling(Served(), shmrpc.current_call)
    with pytest.raises(TypeError, match="metadata maps str to str or bytes"):
        attach(call, {"a": 1})
    with pytest.raises(shmrpc.ResourceExhausted, match="the metadata has 70008 bytes, the limit is 65536"):
        attach(call, {"a": "x" * 70_000})


def test_a_reply_describes_itself() -> None:
    assert repr(shmrpc.Reply()) == "<Reply with {} and {}>"
