"""What is done to a live connection on purpose: it is broken, or all its memory is taken.

Owns the knowledge of what is behind a call or a stub; when it happens is `faults`' or the test's.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final, NoReturn

from shmrpc.client import open_stub
from shmrpc.context import ServedCall
from shmrpc.errors import Code, ConnectionLost, ResourceExhausted, RpcError, Unavailable
from shmrpc.local import LocalTransport
from shmrpc.local_call import LocalCall
from shmrpc.transport import Relation

OWN_PROCESS: Final = "SHMRPC_TESTING_PROCESS"
"""In the environment of a process that `shmrpc.testing.process` started: its pid. Such a one may be killed by a fault."""

SETTLE_SECONDS: Final = 1.0
SMALLEST: Final = 1024
LARGEST: Final = 4 << 20
MOST: Final = 256 << 20
"""The largest `max_extent_bytes` of a connection whose memory is taken, since it is really taken."""


async def drop(served: ServedCall) -> NoReturn:
    """Takes the server away from a call that it serves: its process, if that is one for tests, else the connection."""
    await asyncio.sleep(0)  # the items of its stream so far leave at the end of this turn of the loop
    if os.environ.get(OWN_PROCESS) == str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    if isinstance(served, LocalCall):
        text = f"the server was dropped; {served.method_name} was under way there"
        served.give_up(ConnectionLost(text, maybe_executed=True))
    else:
        _memory_of(served).control.hang_up()
    # Not to its end: an answer could still overtake that of the connection. A handler in a thread is not told otherwise.
    while not served.cancelled:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    raise asyncio.CancelledError


def exhaust(served: ServedCall) -> list[object]:
    """All shared memory that is left for answers to a call's client, for as long as the list is kept."""
    _check_limit(None if isinstance(served, LocalCall) else _memory_of(served).lender.most_bytes)
    return _take_all(served.allocate)


@asynccontextmanager
async def exhausted(stub: object) -> AsyncIterator[None]:
    """All memory that a client may still use for arguments is taken, until the block ends.

    ::

        async with shmrpc.connect(Vision, path, max_extent_bytes=8 << 20) as vision:
            async with shmrpc.testing.exhausted(vision):
                ...  # calls with large arguments wait for memory, then raise ResourceExhausted

    Calls that fit in a record, 8 KiB with all that is in them, go on as ever. What the server still holds of calls before
    is waited for, a second at the most; what it releases later is free again.

    Args:
        stub: What `connect` or `pair` gave. Its ``max_extent_bytes`` must be 256 MiB at the most: so much is really taken.

    Raises:
        RpcError: FAILED_PRECONDITION: there is more memory than that, or no limit to it, as over `shmrpc.local`.
        Unavailable: there is no connection now.
        TypeError: this is no stub.
    """
    transport = open_stub(stub)[1]
    _check_limit(None if isinstance(transport, LocalTransport) else _memory_behind(transport).lender.most_bytes)
    until = monotonic() + SETTLE_SECONDS
    while any(lease.holder is not None for lease in transport.leases()) and monotonic() < until:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    held = _take_all(transport.allocate)
    try:
        yield
    finally:
        held.clear()


def _memory_of(served: ServedCall) -> Any:
    from shmrpc.shm.incoming_call import IncomingCall

    if not isinstance(served, IncomingCall):
        raise TypeError(f"{type(served).__name__} has no connection that could be dropped or exhausted")
    return served.calls.memory


def _memory_behind(transport: Relation) -> Any:
    calls: Any = getattr(transport, "calls", None)
    if calls is None:
        raise Unavailable(f"{transport!r} has no connection now whose memory could be taken")
    return calls.memory


def _check_limit(most_bytes: int | None) -> None:
    if most_bytes is None:
        text = "there is no limit to the memory here, so it cannot be exhausted; make a handler fail with ResourceExhausted"
    elif most_bytes > MOST:
        text = (
            f"all memory is {most_bytes >> 20} MiB, which is too much to take; the limit is {MOST >> 20} MiB, give the "
        )
        text += "connection a smaller max_extent_bytes"
    else:
        return
    raise RpcError(text, code=Code.FAILED_PRECONDITION)


def _take_all(allocate: Callable[[int], object]) -> list[object]:
    held: list[object] = []
    nbytes = LARGEST
    while nbytes >= SMALLEST:
        try:
            memory = allocate(nbytes)
        except ResourceExhausted:  # more than there ever is
            memory = None
        if memory is None or isinstance(memory, bytearray):  # ordinary memory: there is no more of this size
            nbytes //= 2
        else:
            held.append(memory)
    return held
