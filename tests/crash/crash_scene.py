"""The scenes of the crash matrix: one side dies at a point, and the other one, this process, is asked what it lost."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from crash_api import Crash, CrashService, HomeService, Journal
from crash_death import STATUS, Way
from crash_ledger import Ledger
from crash_nursery import PATIENCE, Child, Nursery, child_of
from crash_points import Point, Role
from crash_work import SETTINGS, Work
from figures import Figures

import shmrpc
from shmrpc.client import open_stub
from shmrpc.testing.holdings import Held, left_since

STATUSES: Final[dict[Way, int]] = {"exit": STATUS, "kill": -9}
FIRST: Final = {"survivor": 0, "handlers": 50_000, "neighbour": 90_000, "victim": 100_000, "heir": 200_000}
"""The first numbers of calls, by who makes them."""
AFTERWARDS: Final = {"cut": "calls", "drain": "calls", "leave": "calls", "deaf": "calls"}
"""What is called after the crash, where that is not the same."""


async def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Returns when a condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not condition():
        assert loop.time() < deadline, f"waited {patience} s for {what}"
        await asyncio.sleep(0.001)


class Scene:
    """What both scenes have in common. Collects what the survivor lost, and says it all at the end."""

    def __init__(
        self,
        point: Point,
        way: Way,
        nursery: Nursery,
        folder: Path,
        caplog: pytest.LogCaptureFixture,
        patience: float = 20.0,
    ) -> None:
        """`patience` is how long a point may take to be reached, in seconds."""
        self.point: Final = point
        self.way: Final[Way] = way
        self.path: Final = str(folder / "crash.sock")
        self.journal: Final = Journal(str(folder / "journal"))
        self.settings: Final = SETTINGS[point.scenario]
        self.calls: list[str] = []
        self.blocks: list[str] = []
        self.fds: list[str] = []
        self.patience: Final = patience
        self._nursery = nursery
        self._log = str(folder / "log")
        self._caplog = caplog
        self._raised: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self._raised.append(str(context)))

    def plan(self, role: Role, who: str, *, dies: bool) -> dict[str, Any]:
        """What a child does."""
        point = self.point
        return {
            "role": role,
            "path": self.path,
            "journal": self.journal.path,
            "log": self._log,
            "first": FIRST[who],
            "scenario": point.scenario if dies else AFTERWARDS.get(point.scenario, point.scenario),
            "polling": "adaptive",
            "loop": "uvloop" if point.number % 2 else "asyncio",
            "flawless": not dies,
            "point": self._death() if dies else None,
            "environment": {},
        }

    def _death(self) -> dict[str, object]:
        return {
            "where": self.point.where,
            "when": self.point.when,
            "passage": self.point.passage,
            "way": self.way,
        }

    def start(self, role: Role, who: str, stack: AsyncExitStack, *, dies: bool) -> Child:
        """A child, until the stack ends."""
        return stack.enter_context(child_of(self._nursery, self.plan(role, who, dies=dies)))

    async def started_server(self, who: str, stack: AsyncExitStack, *, dies: bool) -> Child:
        """The same for a server; returns when it listens."""
        before = _inode(self.path)
        child = self.start("server", who, stack, dies=dies)
        await until(lambda: _inode(self.path) not in (0, before), "the server to listen")
        return child

    async def check_death(self, victim: Child) -> None:
        """The victim has reached its point, and died of it."""
        try:
            async with asyncio.timeout(self.patience):
                status = await victim.ended()
        except TimeoutError:
            status = None
        assert status == STATUSES[self.way], f"{self.point} was never reached, status {status}; log:\n{victim.log}"

    def check_calls(self, ledger: Ledger, *, flawless: bool = False) -> None:
        """Enters what is wrong with the calls of this process."""
        self.calls += ledger.faults(self.journal.read(), flawless=flawless)

    def check_log(self) -> None:
        """A death is no mistake of anybody's: nothing was cut, and nothing raised where nobody listens."""
        self.calls += [
            f"logged: {record.getMessage()}"
            for record in self._caplog.records
            if record.levelname == "ERROR" or " was cut: " in record.getMessage()
        ]
        self.calls += [f"raised: {context}" for context in self._raised]

    async def check_left(self, before: Held, when: str) -> None:
        """Nothing is held that was not held before; a thread that works on an extent may take a moment to end."""
        with suppress(AssertionError):
            await until(lambda: not self._left(before), "everything to be gone", self.patience)
        self.calls += [f"{when}: {what}" for what in self._left(before) if what.startswith("thread")]
        self.blocks += [f"{when}: {what}" for what in self._left(before) if what.startswith("mapping")]
        self.fds += [f"{when}: {what}" for what in self._left(before) if what.startswith("fd")]

    def _left(self, before: Held) -> list[str]:
        left = left_since(before)
        found = [f"thread {thread.name}" for thread in left.threads]
        if self.point.scenario == "drain":  # every connection is another one: then their number counts
            now = Held.now()
            fds, mappings = len(now.fds) - len(before.fds), len(now.mappings) - len(before.mappings)
            return found + [f"fds: {fds:+}"] * bool(fds) + [f"mappings: {mappings:+}"] * bool(mappings)
        found += [f"fd {fd} -> {target}" for fd, target in left.fds]
        return found + [f"mapping {mapping}" for mapping in left.mappings]

    async def check_home(self, memories: list[Any], leases: Callable[[], list[shmrpc.Lease]], when: str) -> None:
        """All memory of these connections is at home, in the owner's books and the borrower's."""
        gc.collect()

        def out() -> list[str]:
            found = [str(lease) for lease in leases()]
            for memory in memories:
                memory.lender.leases()
                found += [f"lease {lease}" for lease in memory._arena.loans]
                for region in memory._arena.regions:
                    found += [f"block {block!r}" for block in region.blocks.values()]
                    found += [f"{region._slab.taken_bytes} bytes of {region!r}"] * bool(region._slab.taken_bytes)
                borrowed = memory.borrowed
                found += ["a lease of the peer's"] * borrowed._releaser.out
            return found

        try:
            await until(lambda: not out(), "the memory to come home", self.patience)
        except AssertionError:
            self.blocks += [f"{when}: {what}" for what in out()]

    def verdict(self, figures: Figures) -> None:
        """Fails if anything was lost; counts all of it."""
        self.check_log()
        figures.add("calls lost", len(self.calls))
        figures.add("blocks lost", len(self.blocks))
        figures.add("fds lost", len(self.fds))
        lost = self.calls + self.blocks + self.fds
        assert not lost, f"after a crash at {self.point}:\n" + "\n".join(lost)
        figures.add("crash points hit")


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


# ---- the server dies ----


async def server_dies(scene: Scene) -> None:
    """A client outlives its server, beside a connection to another one, and goes on with the next."""
    journal = scene.journal
    async with _neighbour(f"{scene.path}.2", journal) as beside:
        before = Held.now()
        async with AsyncExitStack() as stack:
            victim = await scene.started_server("victim", stack, dies=True)
            heir = asyncio.create_task(_succeed(scene, victim, stack))
            try:
                await _outlive_server(scene, victim, heir)
            finally:
                heir.cancel()
                await asyncio.wait((heir,))
        await scene.check_left(before, "in the end")
        await beside()


async def _succeed(scene: Scene, victim: Child, stack: AsyncExitStack) -> None:
    await victim.ended()
    await scene.started_server("heir", stack, dies=False)


async def _outlive_server(scene: Scene, victim: Child, heir: "asyncio.Task[None]") -> None:
    home = HomeService(scene.journal)
    ledger = Ledger(FIRST["survivor"])
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(_connect(scene, home))
        work = Work(stub, ledger, scene.journal)
        await work.do(scene.point.scenario)
        if scene.point.scenario == "leave":
            await stack.aclose()
        await scene.check_death(victim)
        scene.check_calls(ledger)
        if scene.point.scenario == "leave":
            stub = await stack.enter_async_context(_connect(scene, home))
        await heir
        again = Work(stub, Ledger(max(ledger.entries)), scene.journal)
        await again.do(AFTERWARDS.get(scene.point.scenario, scene.point.scenario))
        scene.check_calls(again.ledger, flawless=True)
        scene.calls.extend(["the array of the dead server has changed"] * (not work.found_is_right()))
        for each in (work, again):
            each.found.clear()
        session: Any = open_stub(stub)[1]._session  # type: ignore[attr-defined]
        await scene.check_home([session.memory], lambda: shmrpc.leases(stub), "after the crash")
        scene.calls.extend(["a handler of the client's never ended"] * home.handlers)
        scene.calls.extend(f"{call!r} is pending" for call in session.outgoing.pending.values())


def _connect(scene: Scene, home: HomeService) -> Any:
    return shmrpc.connect(Crash, scene.path, exposes=home, wait=PATIENCE, polling="never", **scene.settings)


# ---- the client dies ----


class _Serving:
    """A server of this process, and the next one whenever it has drained."""

    def __init__(self, scene: Scene) -> None:
        self.service: Final = CrashService(scene.journal, Ledger(FIRST["handlers"]))
        self.server: shmrpc.Server | None = None
        self._scene = scene

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            server = shmrpc.Server(self.service, at=self._scene.path, polling="never", **self._scene.settings)
            async with server:
                self.server = self.service.server = server
                await server.wait_closed()


async def client_dies(scene: Scene) -> None:
    """A server outlives its client, beside another one, and serves the next."""
    serving = _Serving(scene)
    running = asyncio.create_task(serving.run())
    ledger = Ledger(FIRST["neighbour"])
    try:
        await until(lambda: serving.server is not None, "the server to listen")
        async with shmrpc.connect(Crash, scene.path, **scene.settings) as beside:
            held = asyncio.create_task(ledger.call("hold", beside.hold))
            await until(lambda: serving.service.handlers == 1, "the neighbour's call to begin")
            await _outlive_client(scene, serving, beside, held)
            await ledger.call("note", beside.note)
            await beside.let_go()
            await held
        scene.check_calls(ledger, flawless=True)
    finally:
        running.cancel()
        await asyncio.wait((running,))


async def _outlive_client(scene: Scene, serving: _Serving, beside: Crash, held: "asyncio.Task[object]") -> None:
    service = serving.service
    before = Held.now()
    for who, dies in (("victim", True), ("heir", False)):
        async with AsyncExitStack() as stack:
            child = scene.start("client", who, stack, dies=dies)
            if dies:
                if scene.point.scenario == "deaf":  # nothing that it says is heard while it lives
                    child.wait_dead()
                await scene.check_death(child)
            else:
                assert await child.ended() == 0, child.log
        await until(lambda: _connections(serving) == [1, 1] and shmrpc.peer(beside), "the server to notice")
        scene.calls.extend(["the array of the dead client has changed"] * (not service.kept_is_right()))
        service.let_kept_go()
        await until(lambda: service.handlers == (not held.done()), "the handlers to end")
        assert serving.server is not None
        sessions: Any = serving.server._listener.sessions
        await scene.check_home([session.memory for session in sessions], serving.server.leases, f"after the {who}")
        scene.check_calls(service.ledger)
        await scene.check_left(before, f"after the {who}")
    effects = set(scene.journal.read())
    unheard = [number for number in effects if number < 0 and -number not in effects]
    scene.calls.extend(f"one-way call {-number} was sent, and never happened" for number in unheard)


def _connections(serving: _Serving) -> list[int]:
    """How many there are, and how many are charged for."""
    assert serving.server is not None
    if not serving.server._listener.listening:
        return []
    return [serving.server.connections, serving.server._listener._quota._connections.total()]


@asynccontextmanager
async def _neighbour(path: str, journal: Journal) -> AsyncIterator[Callable[[], Any]]:
    """Another connection of this process, with a call under way; gives what makes sure that it works."""
    ledger = Ledger(FIRST["neighbour"])
    service = CrashService(journal, Ledger(FIRST["neighbour"] + 5000))
    async with shmrpc.Server(service, at=path), shmrpc.connect(Crash, path) as stub:
        held = asyncio.create_task(ledger.call("hold", stub.hold))
        await until(lambda: service.handlers == 1, "the neighbour's call to begin")

        async def check() -> None:
            assert not held.done()
            await ledger.call("note", stub.note)
            assert await stub.let_go() == 1
            await held
            assert not ledger.faults(journal.read(), flawless=True)

        yield check
