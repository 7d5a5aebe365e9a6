"""The guards of what is left behind: by callers that have gone, and in scopes that were cancelled."""

from typing import Final

from mutant import Mutant

_SCOPES: Final = "tests/shm/test_scopes.py"
_ONEWAY: Final = "tests/shm/test_oneway.py"

LEAVING: Final = (
    Mutant(
        "a connection is closed in a cancelled scope",
        "shmrpc/shm/link.py",
        "with anyio.CancelScope(shield=True):  # one around",
        "with anyio.CancelScope():  # one around",
        f"{_SCOPES}::test_a_connection_is_closed_and_what_it_exposes_is_left",
    ),
    Mutant(
        "a server drains in a cancelled scope",
        "shmrpc/server.py",
        "with anyio.CancelScope(shield=True):\n            await self._leave()",
        "with anyio.CancelScope():\n            await self._leave()",
        f"{_SCOPES}::test_a_server_drains_and_leaves_its_services",
    ),
    Mutant(
        "a link that is cancelled while it connects leaves what it exposes",
        "shmrpc/shm/link.py",
        "with anyio.CancelScope(shield=True):\n                await self._leave()",
        "with anyio.CancelScope():\n                await self._leave()",
        f"{_SCOPES}::test_what_is_cancelled_while_it_connects_is_closed",
    ),
    Mutant(
        "a pool that is cancelled while it connects is closed",
        "shmrpc/shm/pool.py",
        "with anyio.CancelScope(shield=True):",
        "with anyio.CancelScope():",
        f"{_SCOPES}::test_what_is_cancelled_while_it_connects_is_closed",
    ),
    Mutant(
        "a pool hangs up at once",
        "shmrpc/shm/pool.py",
        "            link.hang_up()",
        "            link.closed = True",
        "tests/shm/test_pool_ends.py::test_a_pool_hangs_up_also_when_its_end_is_cancelled",
    ),
    Mutant(
        "what interceptors of a stream shield",
        "shmrpc/interceptors/passage.py",
        "with anyio.CancelScope(shield=True):",
        "with anyio.CancelScope():",
        f"{_SCOPES}::test_what_an_interceptor_shields_runs_to_its_end",
    ),
    Mutant(
        "a call under way is a future, for anyio",
        "shmrpc/_native/call_types.c",
        "return Py_NewRef(native_state_of(Py_TYPE(self))->future);",
        "return Py_NewRef((PyObject *)Py_TYPE(self));",
        f"{_SCOPES}::test_two_time_limits_that_pass_in_one_turn_of_the_loop_end_the_wait_once",
    ),
    Mutant(
        "deadlines of one-way calls whose callers have gone",
        "shmrpc/shm/incoming.py",
        "        if not self.running:\n            self._timer.close()\n        self.look_idle()",
        "        self._timer.close()\n        self.look_idle()",
        f"{_ONEWAY}::test_they_have_their_deadlines",
    ),
    Mutant(
        "one-way calls run on",
        "shmrpc/shm/incoming.py",
        "            if not call.served.method.oneway:\n                call.tell(Event.LOSE)",
        "            call.tell(Event.LOSE)",
        f"{_ONEWAY}::test_they_run_on",
    ),
    Mutant(
        "one-way calls that a client serves end with it",
        "shmrpc/shm/incoming.py",
        "        if self.running:\n            self.stop()\n",
        "        if self.running:\n",
        f"{_ONEWAY}::test_a_client_that_closes_cancels_those_that_it_was_asked_for",
    ),
    Mutant(
        "what is no one-way call does not count when its caller has gone",
        "shmrpc/shm/listener.py",
        "one.incoming.serves_oneway",
        "one.incoming.running",
        f"{_ONEWAY}::test_no_other_call_counts_when_its_caller_has_gone",
    ),
    Mutant(
        "a forked child may leave a connection",
        "shmrpc/shm/link.py",
        "        if self.forked:\n            return\n        with anyio",
        "        with anyio",
        "tests/shm/test_pool_ends.py::test_a_forked_child_may_leave_a_connection",
    ),
    Mutant(
        "a bound on one-way calls whose callers have gone",
        "shmrpc/shm/listener.py",
        "self._quota.open(peer, self._orphans())",
        "self._quota.open(peer)",
        f"{_ONEWAY}::test_the_connections_that_they_came_by_count_until_they_have_ended",
    ),
    Mutant(
        "who says nothing is not waited for",
        "shmrpc/shm/listener.py",
        "                silent.cancel()",
        "                silent.cancelled()",
        "tests/shm/test_shm_drain.py::test_who_has_connected_and_says_nothing_is_not_waited_for",
    ),
    Mutant(
        "a thread counts until its function has ended",
        "shmrpc/admission.py",
        "            left_behind = self._in_thread\n",
        "            left_behind = False\n",
        "tests/test_dispatch.py::test_a_thread_counts_until_its_function_has_ended",
    ),
    Mutant(
        "a call that is given up before its thread begins takes no place",
        "shmrpc/dispatch.py",
        "            slot.end()",
        "            slot.end  # is not called",
        "tests/test_dispatch.py::test_a_call_that_is_given_up_before_its_thread_begins_takes_no_place",
    ),
    Mutant(
        "what a coroutine gives as a stream is closed",
        "shmrpc/dispatch.py",
        "                await close_iterator(items)",
        "                del items",
        "tests/test_dispatch.py::test_what_a_coroutine_gives_as_a_stream_is_closed_with_it",
    ),
    Mutant(
        "a thread that reads a stream hears that another one has left it",
        "shmrpc/crossing.py",
        "            self._items.put(item)  # the end",
        "            del item  # the end",
        "tests/test_crossing.py::test_a_thread_that_waits_for_an_item_hears_that_another_one_has_left",
    ),
    Mutant(
        "a supervisor outlives children that are no workers",
        "shmrpc/cli/serve.py",
        "ended.si_pid not in workers",
        "ended.si_pid == 0",
        "tests/test_cli.py::test_another_child_of_the_supervisor_may_end",
    ),
    Mutant(
        "a one-way call leaves the reply of another alone",
        "shmrpc/shm/calling.py",
        "                if not method.oneway:  # whose",
        "                if True:  # whose",
        "tests/conformance/test_conformance_metadata.py",
        "one_way",
    ),
    Mutant(
        "whoever reads on in local() hears of the caller's end",
        "shmrpc/local_call.py",
        "        if self._settled:",
        "        if self.answer.done():",
        "tests/conformance/test_conformance_stream_endings.py",
        "whoever_reads_on_hears",
    ),
    Mutant(
        "nothing goes ahead of a result that was sent",
        "shmrpc/shm/incoming_call.py",
        "return self.calls.running.get(self.call_id) is not self",
        "return False",
        "tests/conformance/test_conformance_metadata.py",
        "ahead",
    ),
)
