"""The guards of what is left when one side dies at a certain step."""

from typing import Final

from mutant import Mutant

CRASHES: Final = (
    Mutant(
        "a control socket that fails is no hang-up",
        "shmrpc/shm/control.py",
        "if not isinstance(error, ConnectionError):  # the",
        "if False:  # the",
        "tests/shm/test_control_sending.py",
    ),
    Mutant(
        "who breaks a connection takes nothing more first",
        "shmrpc/shm/control.py",
        "self._loop.call_soon(self._break_off)",
        "self._sock.shutdown(socket.SHUT_RDWR)",
        "tests/shm/test_control.py",
    ),
    Mutant(
        "a closed segment goes with its last view",
        "shmrpc/shm/segment.py",
        "        self.mapping = CLOSED\n",
        "",
        "tests/shm/test_segment.py",
    ),
    Mutant(
        "closed regions go with their last view",
        "shmrpc/shm/arena.py",
        "            region.mapping = CLOSED\n",
        "",
        "tests/shm/test_extents_end.py",
    ),
    Mutant(
        "a timer of the lender keeps no call's context",
        "shmrpc/shm/lending.py",
        "self._tidy, context=self._context)",
        "self._tidy)",
        "tests/shm/test_lending_waits.py",
    ),
    Mutant(
        "a timer of deadlines keeps no call's context",
        "shmrpc/shm/deadlines.py",
        "self._fire, context=self._context",
        "self._fire",
        "tests/shm/test_deadlines.py",
    ),
    Mutant(
        "an error that is kept collects no tracebacks",
        "shmrpc/shm/extents.py",
        "                raise anew(self._ended)\n",
        "                raise self._ended\n",
        "tests/shm/test_extents_end.py",
    ),
    Mutant(
        "an error for all that wait keeps none of their arrays",
        "shmrpc/shm/extents.py",
        "                raise anew(error)\n",
        "                raise error\n",
        "tests/shm/test_shm_extents_end.py",
    ),
    Mutant(
        "the error of a plain call and its frame do not keep each other",
        "shmrpc/shm/calling.py",
        "                    answer = pending = None  # lest the error, its traceback and this frame keep each other\n",
        "",
        "tests/conformance/test_conformance_garbage.py",
    ),
    Mutant(
        "the error of a handler and the frame that drives it do not keep each other",
        "shmrpc/shm/eager.py",
        "            awaited = None  # it may have the error that the coroutine passes on, whose frames have this one\n",
        "",
        "tests/shm/test_shm_garbage.py",
    ),
    Mutant(
        "the error of a handler in a thread and the frame that waits for it do not keep each other",
        "shmrpc/dispatch.py",
        "            del error, result\n",
        "            pass\n",
        "tests/shm/test_shm_garbage.py",
    ),
    Mutant(
        "a handler that was a task and its call do not keep each other",
        "shmrpc/shm/incoming.py",
        "        call.task = None  # whose context has the call\n",
        "",
        "tests/shm/test_shm_garbage.py",
    ),
    Mutant(
        "a stream that was stopped and what stopped it do not keep each other",
        "shmrpc/shm/flows.py",
        "        self._pump = None  # lest what it was cancelled with, its frames and this keep each other, and the items\n",
        "        pass\n",
        "tests/conformance/test_conformance_garbage.py",
    ),
    Mutant(
        "a process that is watched no more is let go of",
        "shmrpc/shm/session.py",
        "            self._watch.close()\n",
        "            self._watch = None\n",
        "tests/crash/test_crash.py",
        words="server",
    ),
    Mutant(
        "a call that is refused for idempotency is not made again after a crash",
        "shmrpc/shm/calling.py",
        "if not method.policy.idempotent or options.retry",
        "if options.retry",
        "tests/crash/test_crash.py",
        words="server",
    ),
    Mutant(
        "a client that could not finish its handshake lets go of all",
        "shmrpc/shm/handshake.py",
        "    except BaseException:\n        mine.close()\n        raise\n    finally:",
        "    finally:",
        "tests/crash/test_crash.py",
        words="server",
    ),
)
