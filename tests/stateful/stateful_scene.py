"""What one example of the stateful test has to do with: an event loop that is stepped, servers, connections, calls, arrays.

Owns the acts that rules are made of, and the checks after each of them. What an outcome must be is `stateful_calls`', what
must be at the end `stateful_end`'s; which act comes when is `stateful_machine`'s.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from typing import Any, Final, TypeVar

import numpy as np
import uvloop
from stateful_api import fill, fits
from stateful_calls import CLOSED, CUT, DRAINED, FED, KILLED, LARGE, STREAMING, Call, Source, judge
from stateful_client import Child, Conn, Views, perform
from stateful_servers import PATIENCE, Place, Server, Zygote

import shmrpc
from shmrpc.shm.layout import Geometry
from shmrpc.testing.holdings import Held
from shmrpc.testing.pairs import short_folder

T = TypeVar("T")
NARROW: Final[dict[str, Any]] = {"max_in_flight": 4, "max_extent_bytes": 0, "stream_items": 4, "stream_bytes": 8192}
"""Settings with which calls wait for each other: for credit, for room in the ring, for memory."""
NARROW_GEOMETRY: Final = {"ring_bytes": 4096, "release_entries": 64, "slab_bytes": 65536, "inline_limit": 512}
SIZES: Final[dict[bool, tuple[int, ...]]] = {
    False: (64, 9000, 120_000, 300_000, 5 << 20),
    True: (64, 600, 9000, 30_000),
}
"""Of arrays, by whether settings are narrow."""
MOST_VIEWS: Final = 8


class Scene:
    """One example."""

    def __init__(
        self, zygote: Zygote, *, loop: str, server_loop: str, narrow: bool, doorbell: str, mutant: str
    ) -> None:
        self.before: Final = Held.now()
        self.stack: Final = ExitStack()
        self.narrow: Final = narrow
        self.folder: Final = self.stack.enter_context(short_folder())
        self.settings: Final[dict[str, Any]] = {
            "doorbell": doorbell,
            "handshake_timeout": 4 * PATIENCE,  # the client stands still between two steps, however long they take
            **(NARROW if narrow else {}),
        }
        plan: dict[str, Any] = {"loop": server_loop, "settings": dict(self.settings), "mutant": mutant}
        if narrow:
            plan["settings"]["geometry"] = NARROW_GEOMETRY
            self.settings["geometry"] = Geometry(**NARROW_GEOMETRY)
        self.places: Final = [Place(zygote, self.folder, name, plan) for name in "ab"]
        self.conns: Final[list[Conn]] = []
        self.calls: Final[list[Call]] = []
        self.ended: Final[list[Call]] = []
        self.views: Final[Views] = []
        self.children: Final[list[Child]] = []
        self.forked_tokens: Final[list[int]] = []
        self.kills = 0
        self._tokens = 0
        self._odd: Final[list[str]] = []
        factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.SelectorEventLoop
        self.runner: Final = asyncio.Runner(loop_factory=factory)
        self.runner.get_loop().set_exception_handler(lambda _, context: self._odd.append(str(context)))
        self._listen_to_the_log()
        self.places[0].start()
        self.connect("a", patient=True)

    def _listen_to_the_log(self) -> None:
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self._odd.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("shmrpc")
        logger.addHandler(handler)
        self.stack.callback(logger.removeHandler, handler)

    # ---- time ----

    def run(self, act: Coroutine[Any, Any, T]) -> T:
        """One step of the event loop's; the tasks that are under way go on meanwhile."""
        return self.runner.run(act)

    def turn(self, turns: int) -> None:
        """Some turns of the event loop."""

        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        if turns:
            self.run(turn())

    def until(self, condition: Callable[[], object], what: Callable[[], str]) -> None:
        """Lets the event loop run until something holds; what is waited for is asked when it does not."""

        async def wait() -> None:
            until = time.monotonic() + PATIENCE
            pause = 0.0
            while not condition():
                assert time.monotonic() < until, f"waited {PATIENCE} s for {what()}"
                await asyncio.sleep(pause)
                pause = min(0.002, pause + 0.0001)

        self.run(wait())

    def new_token(self) -> int:
        """One that nothing else has, nor any item of its streams."""
        self._tokens += 1000
        return self._tokens

    # ---- connections and calls ----

    def connect(self, where: str, *, patient: bool) -> None:
        """Connects to the places named; starts those that were never started."""
        places = [place for place, name in zip(self.places, "ab", strict=True) if name in where]
        conn = Conn(len(self.conns), places, patient=patient, settings=self.settings)
        there = [place for place in places if place.current is not None]
        try:
            conn.stub = self.run(conn.manager.__aenter__())
        except shmrpc.ConnectFailed:
            assert not there, f"nobody was found at {places}, where a server listens"
            return
        assert there, "connected to nobody"
        conn.open = True
        if len(there) < len(places):
            conn.befall(KILLED)
        self.conns.append(conn)

    def call(
        self, number: int, kind: str, *, size: int, items: int, timeout: float | None, born: bool, keep: bool
    ) -> None:
        """Begins a call."""
        conn = self.conns[number % len(self.conns)]
        call = Call(self.new_token(), kind, conn.number, conn.patient, timeout is not None, set(conn.troubles))
        call.shaky = conn.shaky
        call.total = items
        if kind in FED:
            call.source = Source()
        if not conn.open:
            call.troubles.add(CLOSED)
            if kind in ("keep", "echo"):
                born = False
        stub = shmrpc.options(conn.stub, timeout=timeout) if timeout is not None else conn.stub
        sizes = SIZES[self.narrow]
        made = perform(stub, call, sizes[size % len(sizes)], born=born, views=self.views if keep else None)
        call.task = self.runner.get_loop().create_task(made)
        self.calls.append(call)

    def one_of(self, number: int, wanted: Callable[[Call], bool]) -> Call | None:
        """One of the calls under way."""
        calls = [call for call in self.calls if wanted(call)]
        return calls[number % len(calls)] if calls else None

    def feed(self, call: Call, items: int, size: int) -> None:
        """Gives a call's own stream some more."""
        assert call.source is not None
        sizes = SIZES[self.narrow]
        for _ in range(items):
            token = call.token + call.source.given
            array = np.empty(sizes[size % len(sizes)], np.uint8) if call.kind == "weigh" else None
            call.source.give(token if array is None else fill(array, token))

    def close(self, conn: Conn) -> None:
        """Closes a connection, with all calls on it."""
        self.befall([conn], CLOSED)
        conn.open = False
        self.run(conn.manager.__aexit__(None, None, None))
        self.until(
            lambda: all(call.ended or self.idles(call) for call in self.of([conn])),
            lambda: "the calls of a closed stub",
        )

    def of(self, conns: list[Conn]) -> list[Call]:
        """The calls under way on some connections."""
        return [call for call in self.calls if self.conns[call.conn] in conns]

    def befall(self, conns: list[Conn], trouble: str) -> None:
        """Something happens that calls may suffer from."""
        self.judge_all()
        for conn in conns:
            conn.befall(trouble)
        sent = [call for call in self.ended if call.kind == "note" and not call.sure and self.conns[call.conn] in conns]
        for call in self.of(conns) + sent:
            call.troubles.add(trouble)

    def cancel_all(self) -> None:
        """Cancels every call, which ends it whatever its server does."""
        for call in self.calls:
            assert call.task is not None
            call.cancelled = True
            call.task.cancel()
        self.until(lambda: all(call.ended for call in self.calls), lambda: "the end of cancelled calls")

    # ---- servers ----

    def at(self, place: Place) -> list[Conn]:
        """The connections to a place."""
        return [conn for conn in self.conns if place in conn.places]

    def kill(self, place: Place) -> None:
        self.befall(self.at(place), KILLED)
        place.kill()
        self.kills += 1

    def drain(self, place: Place) -> None:
        self.befall(self.at(place), DRAINED)
        place.drain()

    def cut(self, place: Place, server: Server) -> None:
        """Tells a draining server to end at once."""
        self.befall(self.at(place), CUT)
        server.terminate()

    def let_go(self) -> None:
        """Every server lets go what it holds."""
        for place in self.places:
            for server in place.servers:
                server.let_go()

    def fork(self, *, stays: bool) -> None:
        """Forks a child, which tries everything."""
        token = self.new_token()
        self.forked_tokens.append(token)
        idle = [call for call in self.calls if call.stream is not None and self.idles(call) and not call.ended]
        child = Child(self.conns, idle, self.views, token, stays=stays)
        if stays:
            self.children.append(child)
        else:
            child.end()
        assert not child.problem, f"in a forked child: {child.problem}"

    # ---- what must be ----

    def idles(self, call: Call) -> bool:
        """Whether a call's reader waits for leave to read on, not for an item."""
        return call.kind in STREAMING and call.received >= call.allowed and not call.leaving

    def obliged(self, call: Call) -> bool:
        """Whether a call must end, or come to where it waits for this side."""
        conn = self.conns[call.conn]
        if call.ended or self.idles(call):
            return False
        if call.timed or call.cancelled or not conn.open:
            return True
        if self.narrow or self._waits(call) or (call.kind in LARGE and len(self.views) > MOST_VIEWS):
            return False
        if any(place.standing for place in conn.places):
            return False
        return conn.reachable or not conn.patient

    def _waits(self, call: Call) -> bool:
        source = call.source
        if source is not None and not source.finished:
            return call.kind != "both" or call.received >= min(source.given, call.allowed)
        return call.kind == "hold"

    def settle(self) -> None:
        """Waits until every call that must end has ended."""
        waiting = [call for call in self.calls if self.obliged(call)]
        self.until(
            lambda: not any(self.obliged(call) for call in waiting),
            lambda: f"the end of {', '.join(map(str, filter(self.obliged, waiting)))}",
        )

    def judge_all(self) -> None:
        """Judges the calls that have ended."""
        for call in [call for call in self.calls if call.ended]:
            self.calls.remove(call)
            self.ended.append(call)
            judge(call)
            self._confirm(call)
            self._forget(call)

    def _confirm(self, call: Call) -> None:
        """What was sent one way over a connection before a call that was answered has arrived."""
        if call.outcome == call.token and len(self.conns[call.conn].places) == 1:
            for sent in self.ended:
                sent.sure = sent.sure or (sent.conn == call.conn and sent.token < call.token)

    def _forget(self, call: Call) -> None:
        """Keeps of a call what was judged, and nothing that its error refers to."""
        call.stream = call.task = None
        error = call.outcome
        while isinstance(error, BaseException):
            error.__traceback__ = None
            before = error.__cause__ or error.__context__
            error.__cause__ = error.__context__ = None
            error = before

    def check(self) -> None:
        """What holds after each step."""
        self.judge_all()
        for conn in self.conns:
            conn.recover()
        del self.views[: max(0, len(self.views) - 2 * MOST_VIEWS)]
        odd = [line for line in self._odd if "no calls go to" not in line]
        assert not odd, "\n".join(odd)

    def check_views(self) -> None:
        """Every array is still what came."""
        for token, array in self.views:
            assert fits(array, token), f"array {token} has changed since it came"

    # ---- after a failure ----

    def give_up(self) -> None:
        """Leaves nothing behind, whatever state all is in."""
        for call in self.calls:
            if call.task is not None:
                call.task.cancel()
        for conn in self.conns:
            if conn.open:
                with suppress(Exception):
                    self.run(conn.manager.__aexit__(None, None, None))
        for place in self.places:
            for server in place.servers:
                with suppress(AssertionError, ProcessLookupError):  # it may have ended, and been reaped
                    server.resume()
                    server.kill()
        for child in self.children:
            child.end()
        self.views.clear()
        self.ended.clear()
        self.calls.clear()
        self.runner.close()
        self.stack.close()
