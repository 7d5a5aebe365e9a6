"""One call that is being served: what is counted of it."""

from types import SimpleNamespace
from typing import Any

import shmrpc
from shmrpc.dispatch import Dispatcher
from shmrpc.shm.incoming_call import IncomingCall
from shmrpc.shm.listener import Listener


class Api:
    async def add(self, left: int) -> int:
        return left


def test_a_call_that_fails_and_whose_failure_cannot_be_sent_is_counted_once() -> None:
    served = Dispatcher((Api(),)).find("Api.add")
    call = IncomingCall(None, served, 1, 0, {}, as_json=False)  # type: ignore[arg-type]
    assert call.failure is None
    call.count_failure(shmrpc.Code.ABORTED)
    call.count_failure(shmrpc.Code.RESOURCE_EXHAUSTED)
    assert call.failure is shmrpc.Code.ABORTED
    assert served.failures == {shmrpc.Code.ABORTED: 1}


def test_a_call_that_has_failed_and_waits_to_say_so_is_not_in_flight_any_more() -> None:
    served = Dispatcher((Api(),)).find("Api.add")
    calls = [IncomingCall(None, served, number, 0, {}, as_json=False) for number in (1, 2, 3)]  # type: ignore[arg-type]
    calls[1].count_failure(shmrpc.Code.ABORTED)
    incoming = SimpleNamespace(running={call.call_id: call for call in calls[:2]})
    orphaned = SimpleNamespace(incoming=SimpleNamespace(running={3: calls[2]}))
    sessions = [SimpleNamespace(incoming=incoming), SimpleNamespace(incoming=None)]
    listener: Any = SimpleNamespace(sessions=sessions, _orphaned=[orphaned])
    listener._serving = lambda: Listener._serving(listener)
    assert Listener.in_flight(listener) == [served, served]
