"""A line in the log for each call."""

import asyncio
import logging
from time import perf_counter_ns
from typing import Any, Final

from shmrpc.errors import Code
from shmrpc.interceptors.call import Intercepted, Proceed
from shmrpc.legible import one_line

log: Final = logging.getLogger("shmrpc.calls")

_FINE: Final = frozenset({Code.OK, Code.CANCELLED})
_FAULTS: Final = frozenset({Code.UNKNOWN, Code.UNIMPLEMENTED, Code.INTERNAL, Code.DATA_LOSS})


def level_of(code: Code) -> int:
    """The level that a status is logged at: INFO for OK and CANCELLED, ERROR for what is a fault of a program (UNKNOWN,
    UNIMPLEMENTED, INTERNAL, DATA_LOSS), WARNING for all else."""
    return logging.INFO if code in _FINE else logging.ERROR if code in _FAULTS else logging.WARNING


async def log_calls(call: Intercepted, proceed: Proceed) -> Any:
    """An interceptor for either side: logs each call that has ended, to the logger ``shmrpc.calls``.

    A line has the method, its kind, the peer, the status, the text of an error, and the time from the first step to the
    last. The same is in the record, for handlers that write JSON: ``rpc_method``, ``rpc_kind``, ``rpc_side``,
    ``rpc_code`` and ``rpc_seconds``.
    """
    began_ns = perf_counter_ns()
    try:
        result = await proceed()
    except (Exception, asyncio.CancelledError) as error:
        _write(call, began_ns, error)
        raise
    _write(call, began_ns, None)
    return result


def _write(call: Intercepted, began_ns: int, error: BaseException | None) -> None:
    nanoseconds = perf_counter_ns() - began_ns
    code = call.code_of(error)
    level = level_of(code)
    if log.isEnabledFor(level):
        log.log(
            level,
            "%s (%s) %s %s: %s in %.3f ms%s",
            call.method,
            call.kind,
            "to" if call.side == "client" else "from",
            call.peer or "nobody",
            code.name,
            nanoseconds / 1e6,
            f": {one_line(error)}" if str(error or "") else "",
            extra={
                "rpc_method": call.method,
                "rpc_kind": call.kind,
                "rpc_side": call.side,
                "rpc_code": code.name,
                "rpc_seconds": nanoseconds / 1e9,
            },
        )
