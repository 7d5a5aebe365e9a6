"""Every system call that a connection needs fails once: the first, the second, … until a run meets no fault any more.

The server and its client are processes of their own; one of them has the fault. Each run connects, calls in every way,
drains and closes. Whoever called gets a typed error with a text, or the right result; neither process keeps anything of
the run, has a traceback in its log, or loses another connection that it has; and the same server and client go on.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from errno import (
    EAGAIN,
    ECONNABORTED,
    ECONNREFUSED,
    EINTR,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    ENOSPC,
    EPERM,
    ETOOMANYREFS,
    errorcode,
)
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest
from faulted_processes import WorkerProcess, build_faults, needs_compiler, worker
from figures import Figures

from shmrpc.testing.pairs import short_folder

pytestmark = needs_compiler

IDLE: Final = 0.01
"""Seconds until extents are detached."""
MOST: Final = 100
"""Calls of one function in a run; more would mean that they do not end."""


class Kind(NamedTuple):
    """One kind of fault."""

    function: str
    error: int
    settings: Mapping[str, str] = MappingProxyType({})
    at: str = "both"
    only_long: bool = False
    unseen: bool = False
    """Whether nobody may notice: the call is simply made again."""
    said: bool = False
    """Whether each must be noticed: the process cannot do without what it did not get."""

    def __str__(self) -> str:
        return "-".join([self.function, errorcode[self.error], *map(str, self.settings.values())])


PIPES: Final = {"doorbell": "pipe"}
SHORTAGES: Final = (EMFILE, ENFILE, ENOMEM, ENOSPC)
POSIX: Final = {"segment": "posix"}

KINDS: Final = (
    Kind("memfd_create", EMFILE, said=True),
    Kind("memfd_create", ENOMEM, only_long=True),
    Kind("mmap", ENOMEM, said=True),
    Kind("fallocate", ENOSPC),
    Kind("ftruncate", ENOMEM, only_long=True),
    Kind("madvise", ENOMEM, only_long=True),
    Kind("seal", EPERM, said=True),
    Kind("fchmod", EPERM, only_long=True),
    Kind("dup", EMFILE),
    Kind("eventfd", ENFILE, said=True),
    Kind("eventfd", ENOMEM, only_long=True),
    Kind("pipe", EMFILE, PIPES, said=True),
    Kind("fchmod", EPERM, PIPES, only_long=True),
    Kind("ring", ENOMEM, PIPES),
    Kind("ring", EINTR, PIPES, only_long=True, unseen=True),
    Kind("open", EMFILE, POSIX),
    Kind("fallocate", ENOSPC, POSIX, only_long=True),
    Kind("mmap", ENOMEM, POSIX, only_long=True),
    Kind("sendmsg", ENOMEM),
    Kind("sendmsg", ETOOMANYREFS, only_long=True),
    Kind("sendmsg", EAGAIN, unseen=True),
    Kind("sendmsg", EINTR, only_long=True, unseen=True),
    Kind("recvmsg", ENOBUFS),
    Kind("recvmsg", EINTR, only_long=True, unseen=True),
    Kind("pidfd", EMFILE, said=True),
    Kind("pidfd", ENOMEM, only_long=True, said=True),
    Kind("epoll_ctl", ENOMEM),
    Kind("epoll_ctl", ENOSPC, only_long=True),
    Kind("socket", EMFILE, said=True),
    Kind("socket", ENFILE, only_long=True),
    Kind("connect", ECONNREFUSED, at="client"),
    Kind("connect", EINTR, at="client", only_long=True),
    Kind("connect", EAGAIN, at="client", unseen=True),
    Kind("bind", EPERM, at="server"),
    Kind("listen", EMFILE, at="server"),
    Kind("accept", EMFILE, at="server", unseen=True),
    Kind("accept", ENOMEM, at="server", only_long=True, unseen=True),
    Kind("accept", EPERM, at="server", only_long=True, unseen=True),
    Kind("accept", EINTR, at="server", only_long=True, unseen=True),
    Kind("accept", ECONNABORTED, at="server", unseen=True),
)


class Scene:
    """A server and a client, one of which can have faults; each has a bystander of the other."""

    def __init__(self, server: WorkerProcess, client: WorkerProcess, folder: Path, faulty: str, loop: str) -> None:
        self.server: Final = server
        self.client: Final = client
        self.faulty: Final = faulty
        self.loop: Final = loop
        self.path: Final = str(folder / "scene.sock")
        self._quiet = str(folder / "quiet.sock")

    def begin(self) -> None:
        """Makes the bystanders, and what every process gets once."""
        assert not self.server.ask("serve", path=self._quiet, keep=True)
        self.client.ask("stand_by", path=self._quiet)
        self.server.ask("remember")
        self.client.ask("remember")
        self.run({})
        self.remember()

    def remember(self) -> None:
        """What there is now is not of the test that begins."""
        self.server.ask("abandon")
        for one in (self.server, self.client):
            one.ask("settle")
            one.ask("remember")

    def run(self, settings: Mapping[str, str]) -> list[dict[str, str]]:
        """One run without a fault; gives the steps that did not go well."""
        assert not self.serve(settings)
        failed = self.failed_steps(settings)
        self.drain()
        return failed

    def serve(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Why the server could not begin, if it could not."""
        refused: dict[str, str] = self.server.ask("serve", path=self.path, extent_idle=IDLE, **settings)
        return refused

    def failed_steps(self, settings: Mapping[str, str]) -> list[dict[str, str]]:
        """What the client met, that is not a right result."""
        steps = self.client.ask("scenario", path=self.path, extent_idle=IDLE, **settings)
        defects = [step for step in steps if step["defect"]]
        assert not defects, defects[0]
        return [step for step in steps if step["error"]]

    def drain(self) -> None:
        assert self.server.ask("drain") == {"connections": 0, "blocks": 0}

    def check_unharmed(self, when: str) -> list[str]:
        """Nobody lost anything; gives what both logged as warnings."""
        assert self.client.ask("ask_bystanders"), f"{when}: another connection was lost"
        return [*self.server.check_settled(when), *self.client.check_settled(when)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes system calls fail."""
    return build_faults(tmp_path_factory.mktemp("faults"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each side has the faults in its turn; uvloop, and the rarer kinds, with --long."""
    long = metafunc.config.getoption("--long")
    sides = [
        (side, loop) for loop in ("asyncio", "uvloop") if long or loop == "asyncio" for side in ("client", "server")
    ]
    kinds = [kind for kind in KINDS if long or not kind.only_long]
    metafunc.parametrize("kind", kinds, ids=str)
    metafunc.parametrize("scene", sides, ids="-".join, indirect=True, scope="module")


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, library: Path) -> Iterator[Scene]:
    """The two processes, one of which is to have the faults."""
    faulty, loop = request.param
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        server, client = (
            stack.enter_context(worker(folder, name, preload=library if name == faulty else None, loop=loop))
            for name in ("server", "client")
        )
        scene = Scene(server, client, folder, faulty, loop)
        scene.begin()
        yield scene


@pytest.mark.timeout(300)
def test_a_system_call_that_fails_ends_in_a_typed_error_and_leaves_nothing(
    scene: Scene, kind: Kind, figures: Figures
) -> None:
    if kind.at not in ("both", scene.faulty):
        pytest.skip(f"a {scene.faulty} does not call {kind.function}")
    if (kind.function, scene.loop) == ("epoll_ctl", "uvloop"):
        pytest.skip("libuv ends the process when it may not watch one more fd")
    scene.remember()
    met = 0
    nth = 1
    while fault_met(scene, kind, nth):
        met += 1
        nth += 1 if figures.long else max(1, nth // 2)
        assert nth < MOST, f"a run has more than {MOST} calls of {kind.function}"
    assert met, f"no run calls {kind.function} at all"
    figures.add("syscalls failed", met)
    figures.add("faults survived", met)
    figures.add("fds lost", 0)
    figures.add("blocks lost", 0)


def fault_met(scene: Scene, kind: Kind, nth: int) -> bool:
    """One run with the fault at the n-th call; whether there was that call."""
    when = f"{kind.function} number {nth} of the {scene.faulty} failed with {os.strerror(kind.error)}"
    process = scene.server if scene.faulty == "server" else scene.client
    assert process.ask("arm", function=kind.function, error=kind.error, nth=nth)
    refused = scene.serve(kind.settings)
    failed = []
    if not refused:
        failed = scene.failed_steps(kind.settings)
        if process.ask("hits"):
            process.ask("disarm")
            again = scene.failed_steps(kind.settings)
            assert not again, f"{when}, and after that: {again}"
        else:  # not yet: the rest of the n-th run is its end
            assert not failed, f"before anything failed: {failed}"
        scene.drain()
    hits: int = process.ask("disarm")
    warned = scene.check_unharmed(when)
    if refused:
        assert refused["error"], f"{when}: {refused['text']}"
        assert hits, f"{when}: {refused}"
        assert not os.path.lexists(scene.path), f"{when}, and the path is left"
    if kind.error in SHORTAGES and not kind.settings:
        wrong = [step for step in failed if step["name"] == "connect" and step["error"] != "ConnectFailed"]
        assert not wrong, f"{when}, which is no disagreement: {wrong}"
    if kind.said and hits:
        assert refused or failed or warned, f"{when}, and nobody noticed"
    if kind.unseen:
        assert not refused, f"{when}: {refused}"
        assert not failed, f"{when}: {failed}"
    return bool(hits)
