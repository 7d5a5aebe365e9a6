"""A server that stands still while many connect: who finds no place in its backlog, or no answer, is told so in time.

Nobody keeps anything of the attempt, and when the server goes on it serves all that still wait.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest
from faulted_processes import PATIENCE, WorkerProcess, worker
from figures import Figures

from shmrpc.testing.pairs import short_folder


class Queue:
    """A server with a short backlog, and two clients."""

    def __init__(self, server: WorkerProcess, client: WorkerProcess, other: WorkerProcess, path: str) -> None:
        self.server: Final = server
        self.client: Final = client
        self.other: Final = other
        self.path: Final = path

    def stall(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.server.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.server.pid, signal.SIGCONT)

    def check_unharmed(self) -> None:
        assert self.client.ask("connect", path=self.path) == {}
        self.server.check_settled("the server stood still")
        self.client.check_settled("the server stood still")


@pytest.fixture(scope="module")
def queue() -> Iterator[Queue]:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        path = str(folder / "queue.sock")
        names = ("server", "client", "other")
        server, client, other = (stack.enter_context(worker(folder, name)) for name in names)
        assert not server.ask("serve", path=path, keep=True, backlog=8)
        assert not client.ask("connect", path=path)
        client.ask("remember")
        server.ask("remember")
        yield Queue(server, client, other, path)


def test_all_who_connect_to_a_server_that_stands_still_are_told_so(queue: Queue, figures: Figures) -> None:
    queue.stall()
    outcomes = queue.client.ask("connect_many", path=queue.path, count=20, handshake_timeout=0.3)
    texts = sorted({(outcome["error"], outcome["text"].removeprefix("the server at ")) for outcome in outcomes})
    assert texts == [
        ("ConnectFailed", f"{queue.path} accepts no connections: its backlog is full"),
        ("HandshakeError", f"{queue.path} did not finish the handshake within 0.3 s (handshake_timeout)"),
    ]
    queue.client.check_settled("nobody answered")
    queue.resume()
    queue.check_unharmed()
    figures.add("faults survived")
    figures.add("fds lost", 0)


def test_all_who_wait_are_served_when_it_goes_on(queue: Queue, figures: Figures) -> None:
    count = 300 if figures.long else 40
    queue.stall()
    queue.client.tell("connect_many", path=queue.path, count=count, handshake_timeout=80)
    until = time.monotonic() + PATIENCE
    while (outcome := queue.other.ask("connect", path=queue.path, handshake_timeout=0.1))["error"] != "ConnectFailed":
        assert time.monotonic() < until, f"the backlog is never full: {outcome}"
    assert "backlog is full" in outcome["text"]
    queue.resume()
    assert queue.client.answer("connect_many") == [{}] * count
    queue.check_unharmed()
    figures.add("faults survived")
