"""One call that is being served: what is counted of it."""

import shmrpc
from shmrpc.dispatch import Dispatcher
from shmrpc.shm.incoming_call import IncomingCall


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
