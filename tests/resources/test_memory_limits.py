"""A process that may not have the memory for an extent, by any limit that there is: on the size of a file, on addresses,
on a control group, on /dev/shm.

Where the system says no, the call ends in a typed error and the rest goes on. A control group does not say no: when it is
over its limit, the kernel kills a process in it, which to the other side is a crash like any other.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from control_groups import control_group
from faulted_processes import WorkerProcess, worker
from figures import Figures

from shmrpc.testing.pairs import short_folder

WORDS: Final = 100_000
"""Too many for a slab: an extent of 4 MiB."""
LARGE: Final = ["negate", [WORDS]]
MADE: Final = ["make", [WORDS]]
SMALL: Final = ["add", [1, 2]]
MIB: Final = 1 << 20
CLONE_NEWNS: Final = 0x20000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18


@contextmanager
def pair(
    folder: Path, prepare: Callable[[], None] | None = None, **settings: Any
) -> Iterator[tuple[WorkerProcess, WorkerProcess, str]]:
    """A server and a client that has called it in every way once."""
    path = str(folder / "memory.sock")
    with ExitStack() as stack:
        server, client = (stack.enter_context(worker(folder, name, prepare=prepare)) for name in ("server", "client"))
        assert not server.ask("serve", path=path, keep=True, extent_idle=0.01, **settings)
        for one in (server, client):
            one.ask("remember")
        yield server, client, path


def texts(ends: list[dict[str, str]]) -> list[str]:
    """How calls ended, each with its class."""
    return [f"{end['error']}: {end['text']}" if end else "" for end in ends]


Ends = tuple[WorkerProcess, WorkerProcess, str]


@pytest.fixture(scope="module")
def both() -> Iterator[Ends]:
    """A server and a client for all tests that kill neither."""
    with short_folder() as folder, pair(folder) as ends:
        yield ends


@pytest.fixture
def ends(both: Ends) -> Ends:
    """What there is now is no leak of the test."""
    for one in both[:2]:
        one.ask("settle")
        one.ask("remember")
    return both


@pytest.mark.parametrize("limited", ["client", "server"])
def test_a_limit_on_the_size_of_files_is_one_on_extents(ends: Ends, limited: str, figures: Figures) -> None:
    server, client, path = ends
    process = client if limited == "client" else server
    assert client.ask("call", path=path, calls=[LARGE, MADE, SMALL])[-1] == {"kept": True}
    before = process.ask("limit", name="RLIMIT_FSIZE", soft=MIB)
    *calls, connection = client.ask("call", path=path, calls=[LARGE, SMALL, MADE, SMALL])
    assert connection["kept"]
    large, small, made, small_again = texts(calls)
    refused = f"ResourceExhausted: no memory for an extent of {4 * MIB} bytes: [Errno 27] File too large"
    assert large == refused
    assert made == (refused if limited == "server" else "")
    assert small == small_again == ""
    process.ask("limit", name="RLIMIT_FSIZE", soft=before)
    assert client.ask("call", path=path, calls=[LARGE, MADE]) == [{}, {}, {"kept": True}]
    for one in (server, client):
        one.check_settled("files were limited")
    figures.add("faults survived", 2)


def test_a_limit_below_a_segment_lets_nobody_connect_and_says_why(ends: Ends, figures: Figures) -> None:
    server, client, path = ends
    assert not client.ask("connect", path=path)
    for process, words in (
        (client, f"this process cannot connect to {path}: [Errno 27] File too large"),
        (server, "the server refused the connection: [Errno 27] File too large"),
    ):
        before = process.ask("limit", name="RLIMIT_FSIZE", soft=4096)
        assert client.ask("connect", path=path) == {"error": "ConnectFailed", "text": words}
        process.ask("limit", name="RLIMIT_FSIZE", soft=before)
        assert not client.ask("connect", path=path)
        figures.add("faults survived")
    for one in (server, client):
        one.check_settled("files were limited")


@pytest.mark.parametrize("limited", ["client", "server"])
def test_a_limit_on_addresses_is_met_by_an_extent_and_not_by_small_calls(
    ends: Ends, limited: str, figures: Figures
) -> None:
    server, client, path = ends
    process = client if limited == "client" else server
    assert client.ask("call", path=path, calls=[LARGE, MADE])[-1] == {"kept": True}
    for one in (server, client):  # what there was is unmapped by now
        one.check_settled("nothing was limited")
    before = process.ask("allow_memory", more=3 * MIB)
    method = LARGE if limited == "client" else MADE
    large, small, connection = client.ask("call", path=path, calls=[method, SMALL])
    process.ask("limit", name="RLIMIT_AS", soft=before)
    assert texts([large]) == [
        f"ResourceExhausted: no memory for an extent of {4 * MIB} bytes: [Errno 12] Cannot allocate memory"
    ]
    assert not small
    assert connection["kept"]
    assert client.ask("call", path=path, calls=[LARGE, MADE]) == [{}, {}, {"kept": True}]
    for one in (server, client):
        one.check_settled("addresses were limited")
    figures.add("faults survived")


def test_who_may_not_map_what_the_peer_sends_loses_that_connection_alone(ends: Ends, figures: Figures) -> None:
    server, client, path = ends
    client.ask("stand_by", path=path)
    for one in (server, client):
        one.ask("remember")
    assert client.ask("call", path=path, calls=[LARGE])[-1] == {"kept": True}
    for one in (server, client):
        one.check_settled("nothing was limited")
    before = server.ask("allow_memory", more=3 * MIB)
    large, small, connection = client.ask("call", path=path, calls=[LARGE, SMALL])
    server.ask("limit", name="RLIMIT_AS", soft=before)
    assert large["error"] == "ConnectionLost", large["text"]
    assert not small  # over the next connection
    assert not connection["kept"]
    assert client.ask("ask_bystanders")
    for one in (server, client):
        one.check_settled("addresses were limited")
    figures.add("faults survived")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a /dev/shm of another size")
@pytest.mark.parametrize("kib", [64, 2048])
def test_posix_memory_that_is_full_says_so(folder: Path, kib: int, figures: Figures) -> None:
    if not figures.long:
        pytest.skip("with --long")
    libc = ctypes.CDLL(None, use_errno=True)

    def mount() -> None:
        """In the child: a /dev/shm of its own, of that size."""
        private = libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
        if private or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={kib}k".encode()):
            raise OSError(ctypes.get_errno(), "mount")

    with pair(folder, mount, segment="posix") as (server, client, path):
        if kib == 64:
            outcome = client.ask("connect", path=path, segment="posix")
            assert outcome["error"] == "ConnectFailed"
            assert "No space left on device" in outcome["text"]
        else:
            large, small, connection = client.ask("call", path=path, calls=[LARGE, SMALL], segment="posix")
            assert large["error"] == "ResourceExhausted"
            assert "No space left on device" in large["text"]
            assert not small
            assert connection["kept"]
        for one in (server, client):
            one.check_settled("/dev/shm was full")
        figures.add("faults survived")


def test_a_server_that_its_control_group_kills_is_a_server_that_died(folder: Path, figures: Figures) -> None:
    with ExitStack() as stack:
        group = stack.enter_context(control_group("memory"))
        server, client, path = stack.enter_context(pair(folder))
        with worker(folder, "bystander") as bystander:
            quiet = str(folder / "quiet.sock")
            assert not bystander.ask("serve", path=quiet, keep=True)
            client.ask("stand_by", path=quiet)
            for one in (client, bystander):
                one.ask("remember")
            group.take(server.pid)
            group.limit(64 * MIB)
            server.expect_death()
            calls = [["make", [MIB << power]] for power in range(6)]  # 8 to 256 MiB
            *ends, _ = client.ask("call", path=path, calls=calls, max_extent_bytes=MIB << 10, reconnect_timeout=0.1)
            assert server.process.wait(60) == -signal.SIGKILL
            lost = next(end for end in ends if end)
            assert lost["error"] == "ConnectionLost", lost["text"]
            assert {end["error"] for end in ends if end} <= {"ConnectionLost", "Unavailable"}
            assert client.ask("ask_bystanders")
            for one in (client, bystander):
                one.check_settled("the server was killed")
            figures.add("faults survived")


def test_a_client_that_its_control_group_kills_leaves_nothing_with_the_server(folder: Path, figures: Figures) -> None:
    with ExitStack() as stack:
        group = stack.enter_context(control_group("memory"))
        server, client, path = stack.enter_context(pair(folder))
        with worker(folder, "bystander") as bystander:
            bystander.ask("stand_by", path=path)
            server.ask("remember")
            group.take(client.pid)
            group.limit(64 * MIB)
            client.expect_death()
            client.tell("call", path=path, calls=[["negate", [MIB << power]] for power in range(6)])
            assert client.process.wait(60) == -signal.SIGKILL
            server.check_settled("the client was killed")
            assert bystander.ask("ask_bystanders")
            figures.add("faults survived")
            figures.add("fds lost", 0)
            figures.add("blocks lost", 0)
