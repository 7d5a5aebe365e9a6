"""A process that may start no more threads: plain handlers, and extents, which are made in a thread, say so.

The connection goes on, and so does everything on it when there are threads again.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import EAGAIN
from pathlib import Path
from typing import Any, Final

from control_groups import control_group
from faulted_processes import WorkerProcess, build_faults, needs_compiler, worker
from figures import Figures

WORDS: Final = 100_000
"""Too many for a slab."""
CALLS: Final[list[tuple[str, list[int]]]] = [
    ("add", [1, 2]),
    ("in_thread", [7]),
    ("steps_in_thread", [3]),
    ("make", [WORDS]),
    ("add", [1, 2]),
]
NEEDS_A_THREAD: Final = [False, True, True, True, False]


@contextmanager
def pair(folder: Path, library: Path | None, faulty: str) -> Iterator[tuple[WorkerProcess, WorkerProcess, str]]:
    """A server and a client, of which one may come to have no threads; neither has started any."""
    path = str(folder / "threads.sock")
    with ExitStack() as stack:
        server, client = (
            stack.enter_context(worker(folder, name, preload=library if name == faulty else None))
            for name in ("server", "client")
        )
        assert not server.ask("serve", path=path, keep=True)
        assert not client.ask("connect", path=path)
        for one in (server, client):
            one.ask("remember")
        yield server, client, path


def check(ends: list[dict[str, Any]], figures: Figures) -> None:
    *calls, connection = ends
    assert [bool(end) for end in calls] == NEEDS_A_THREAD
    for end in filter(None, calls):
        assert end["error"] == "ResourceExhausted", end["text"]
        assert "thread" in end["text"]
        figures.add("faults survived")
    assert connection["kept"]


@needs_compiler
def test_a_server_without_threads_refuses_what_needs_one_and_serves_the_rest(folder: Path, figures: Figures) -> None:
    with pair(folder, build_faults(folder), "server") as (server, client, path):
        server.ask("arm", function="thread", error=EAGAIN, nth=1, for_good=True)
        check(client.ask("call", path=path, calls=CALLS), figures)
        assert server.ask("disarm") > 0
        assert client.ask("call", path=path, calls=CALLS) == [*[{}] * len(CALLS), {"kept": True}]
        for one in (server, client):
            one.check_settled("the server had no threads")


@needs_compiler
def test_a_client_without_threads_cannot_send_what_needs_an_extent(folder: Path, figures: Figures) -> None:
    with pair(folder, build_faults(folder), "client") as (server, client, path):
        client.ask("arm", function="thread", error=EAGAIN, nth=1, for_good=True)
        large, small, connection = client.ask("call", path=path, calls=[("negate", [WORDS]), ("negate", [1])])
        assert large["error"] == "ResourceExhausted"
        assert "thread" in large["text"]
        assert not small
        assert connection["kept"]
        blocking = client.ask("connect_blocking", path=path)
        assert blocking["error"] == "ConnectFailed"
        assert "thread" in blocking["text"]
        client.ask("arm", function="thread", error=EAGAIN, nth=2, for_good=True)
        assert client.ask("connect_blocking", path=path) == {}
        client.ask("disarm")
        for one in (server, client):
            one.check_settled("the client had no threads")
        figures.add("faults survived", 2)


def test_a_limit_of_the_system_is_met_in_the_same_way(folder: Path, figures: Figures) -> None:
    with ExitStack() as stack:
        if os.getuid() == 0:  # whom RLIMIT_NPROC does not concern
            group = stack.enter_context(control_group("pids"))
        server, client, path = stack.enter_context(pair(folder, None, ""))
        if os.getuid() == 0:
            group.take(server.pid)
            group.limit(group.current("pids.current"))
        else:
            server.ask("limit", name="RLIMIT_NPROC", soft=0)
        check(client.ask("call", path=path, calls=CALLS), figures)
        server.check_settled("the server had no threads")
