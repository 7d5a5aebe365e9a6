"""A process that may have only so many fds: none more than it has, one, two, … until there are enough.

What it cannot do then it says, it keeps nothing, and what it has goes on. A server that cannot accept waits, and does not
spin, and goes on accepting when there are fds again.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from faulted_processes import WorkerProcess, worker
from figures import Figures

from shmrpc.testing.pairs import short_folder

MOST: Final = 40
"""Fds that a connection with all that comes with it takes at most; more would mean that there are never enough."""


class Ends:
    """A server and a client with a bystander."""

    def __init__(self, server: WorkerProcess, client: WorkerProcess, path: str) -> None:
        self.server: Final = server
        self.client: Final = client
        self.path: Final = path

    def check_unharmed(self, when: str) -> None:
        assert self.client.ask("ask_bystanders"), f"{when}: another connection was lost"
        self.client.check_settled(when)
        self.server.check_settled(when)


@pytest.fixture(scope="module")
def both() -> Iterator[Ends]:
    """Both have done once all that they are going to do."""
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        path, quiet = str(folder / "ends.sock"), str(folder / "quiet.sock")
        server, client = (stack.enter_context(worker(folder, name)) for name in ("server", "client"))
        for where in (path, quiet):
            assert not server.ask("serve", path=where, keep=True, extent_idle=0.01)
        client.ask("stand_by", path=quiet)
        assert not client.ask("connect_blocking", path=path)
        client.ask("scenario", path=path, extent_idle=0.01)
        for one in (client, server):
            one.ask("remember")
        yield Ends(server, client, path)


@pytest.fixture
def ends(both: Ends) -> Ends:
    """What there is now is no leak of the test."""
    for one in (both.client, both.server):
        one.ask("settle")
        one.ask("remember")
    return both


def defects_of(steps: list[dict[str, str]]) -> list[dict[str, str]]:
    return [step for step in steps if step["defect"]]


@pytest.mark.parametrize("limited", ["client", "server"])
def test_with_too_few_fds_every_step_is_right_or_says_what_is_missing(
    ends: Ends, limited: str, figures: Figures
) -> None:
    process = ends.client if limited == "client" else ends.server
    for more in range(MOST):
        when = f"the {limited} may have {more} fds more"
        before = process.ask("allow_fds", more=more)
        hasty: dict[str, Any] = {} if more else {"handshake_timeout": 0.3}  # nobody accepts: see below
        steps = ends.client.ask("scenario", path=ends.path, extent_idle=0.01, **hasty)
        process.ask("limit", name="RLIMIT_NOFILE", soft=before)
        assert not defects_of(steps), when
        ends.check_unharmed(when)
        again = ends.client.ask("scenario", path=ends.path, extent_idle=0.01)
        assert not [step for step in again if step["error"] or step["defect"]], f"{when}, and then enough"
        if not [step for step in steps if step["error"]]:
            break
        figures.add("faults survived")
    else:
        pytest.fail(f"{MOST} fds are not enough")
    assert more > 2, "the limit limited nothing"
    figures.add("fds lost", 0)
    figures.add("blocks lost", 0)


def test_a_blocking_stub_with_too_few_fds_says_so(ends: Ends, figures: Figures) -> None:
    for more in range(MOST):
        when = f"the client may have {more} fds more"
        before = ends.client.ask("allow_fds", more=more)
        outcome = ends.client.ask("connect_blocking", path=ends.path)
        ends.client.ask("limit", name="RLIMIT_NOFILE", soft=before)
        ends.check_unharmed(when)
        if not outcome:
            break
        assert outcome["error"] == "ConnectFailed", f"{when}: {outcome['text']}"
        figures.add("faults survived")
    else:
        pytest.fail(f"{MOST} fds are not enough")
    assert more > 2, "the limit limited nothing"


def test_a_server_that_cannot_accept_waits_and_serves_those_who_waited_when_it_can(ends: Ends) -> None:
    before = ends.server.ask("allow_fds", more=0)
    assert ends.client.ask("ask_bystanders")
    ends.client.tell("connect_many", path=ends.path, count=3, handshake_timeout=60)
    refusals = ends.server.ask("watch_refusals", attempts=3)
    assert refusals["tried"] <= refusals["at_most"], "it spins"
    ends.server.ask("limit", name="RLIMIT_NOFILE", soft=before)
    assert ends.client.answer("connect_many") == [{}, {}, {}]
    ends.check_unharmed("the server could not accept")


def test_a_server_that_cannot_accept_can_be_closed(ends: Ends, folder: Path) -> None:
    path = str(folder / "brief.sock")
    assert not ends.server.ask("serve", path=path)
    before = ends.server.ask("allow_fds", more=0)
    ends.client.tell("connect", path=path, handshake_timeout=60)
    ends.server.ask("watch_refusals", attempts=1)
    assert ends.server.ask("drain") == {"connections": 0, "blocks": 0}
    assert ends.client.answer("connect")["error"] == "ConnectFailed"
    ends.server.ask("limit", name="RLIMIT_NOFILE", soft=before)
    ends.check_unharmed("a server that could not accept was closed")
