"""The guards of calls and memory when a process dies, forks or executes another program."""

from typing import Final

from mutant import Mutant

KILLS: Final = (
    Mutant(
        "a call that waits finds a new server at once",
        "shmrpc/shm/link.py",
        "            if address.mark(self.path) not in (None, self._tried):\n                return\n",
        "",
        "tests/shm/test_shm_reconnect.py::test_a_call_that_waits_finds_a_new_server_at_once",
    ),
    Mutant(
        "a server that was tried is not tried again at once",
        "shmrpc/shm/link.py",
        "if address.mark(self.path) not in (None, self._tried):",
        "if address.mark(self.path) is not None:",
        "tests/shm/test_shm_reconnect.py::test_a_server_that_loses_its_connections_is_not_asked_again_at_once_though_a_call_waits",
    ),
    Mutant(
        "who has given up waiting does not hurry the attempts",
        "shmrpc/shm/link.py",
        "                connected.cancel()\n",
        "                pass\n",
        "tests/shm/test_shm_reconnect.py::test_who_has_given_up_waiting_does_not_hurry_the_attempts",
    ),
    Mutant(
        "a call that the dead server took may have been executed",
        "shmrpc/shm/outgoing.py",
        "            taken = call_id not in unread",
        "            taken = False",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "a call that may have been executed is not made again",
        "shmrpc/shm/calling.py",
        "if not method.policy.idempotent or options.retry is not None or attempts > ATTEMPTS:",
        "if attempts > ATTEMPTS:",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "a call that was not executed is made again",
        "shmrpc/shm/calling.py",
        "if not isinstance(error, ConnectionLost) or self._link.closed:",
        "if True:",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "a stream that may have been executed is not made again",
        "shmrpc/shm/streaming.py",
        "return isinstance(error, ConnectionLost) and not error.maybe_executed and not self._link.closed",
        "return isinstance(error, ConnectionLost) and not self._link.closed",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "a connection that ended lets go of rings and doorbells",
        "shmrpc/shm/session.py",
        "        self.channel.close()\n",
        "",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "a connection that ended lets go of memory",
        "shmrpc/shm/session.py",
        '        self.memory.close(ended or ConnectionLost(f"the connection to {self.peer} ended"))\n',
        "",
        "tests/load/test_kills_server.py::test_a_client_survives_the_kills_of_its_servers[asyncio]",
    ),
    Mutant(
        "handlers of a dead client are cancelled",
        "shmrpc/shm/session.py",
        "            self.incoming.orphan()\n",
        "            pass\n",
        "tests/shm/test_shm_kill.py::test_the_handlers_of_a_dead_client_are_cancelled_and_nobody_elses",
    ),
    Mutant(
        "fds that came are closed by exec",
        "shmrpc/shm/frames.py",
        "sock.recvmsg(need, _SPACE, socket.MSG_CMSG_CLOEXEC)",
        "sock.recvmsg(need, _SPACE)",
        "tests/load/test_kills_forks.py::test_a_server_that_becomes_another_program_is_gone_and_keeps_nothing",
    ),
    Mutant(
        "doorbells are closed by exec",
        "shmrpc/shm/doorbell.py",
        "os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)",
        "os.eventfd(0, os.EFD_NONBLOCK)",
        "tests/load/test_kills_forks.py::test_a_server_that_becomes_another_program_is_gone_and_keeps_nothing",
    ),
    Mutant(
        "a forked child releases none of its parent's leases",
        "shmrpc/shm/session.py",
        "        self.channel.forget()  # first",
        "        # first",
        "tests/load/test_kills_forks.py::test_a_child_that_outlives_its_server_hides_no_death[forked by Python]",
    ),
    Mutant(
        "a forked child lets go of memory",
        "shmrpc/shm/session.py",
        "            self.outgoing.fork_off()\n        self.memory.forget()\n",
        "            self.outgoing.fork_off()\n",
        "tests/load/test_kills_forks.py::test_a_child_that_outlives_its_server_hides_no_death[forked by Python]",
    ),
    Mutant(
        "a forked child closes its copy of the listening socket",
        "shmrpc/shm/listener.py",
        "        listener.fork_off()\n",
        "        pass\n",
        "tests/load/test_kills_forks.py::test_a_child_that_outlives_its_server_hides_no_death[forked by Python]",
    ),
)
