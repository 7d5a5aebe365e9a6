"""The state machine of hypothesis: in any order, what clients, servers and the system do to each other.

Its rules only choose. Their preconditions depend on nothing that time decides, so that the same choices make the same
steps. A failure tells the steps that led to it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from stateful_calls import FED, STREAMING
from stateful_end import Ending, Example
from stateful_servers import Place, Zygote

P = ParamSpec("P")
M = TypeVar("M", bound="Peers")

UNARY = ("effect", "again", "note", "hold", "refuse", "ask", "keep", "echo", "make")
STREAMS = ("numbers", "arrays", "total", "weigh", "both")
MOST_CONNS = 4
indices = st.integers(0, 63)
turns = st.sampled_from((0, 0, 1, 2, 5))
timeouts = st.sampled_from((None, None, None, 0.0003, 0.003, 0.03))
either = st.booleans()
places = st.integers(0, 1)


def step(act: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """A rule whose step is told in failures, counted, and followed by the checks."""

    @wraps(act)
    def stepped(self: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        given = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        self.steps.append(f"{act.__name__}({given})")
        type(self).count += 1
        with self.telling():
            act(self, *args, **kwargs)
            self.scene.check()

    return stepped


class telling_of:
    """Adds the steps so far, and what servers logged, to an exception."""

    def __init__(self, machine: "Peers") -> None:
        self._machine = machine

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and not self._machine.failed:
            self._machine.failed = True
            self._machine.caught.append(f"{type(error).__name__}: {error}")
            error.add_note("the steps were\n  " + "\n  ".join(self._machine.steps))


class Peers(RuleBasedStateMachine):
    """Servers at two places, and a client of them with several connections."""

    zygote: ClassVar[Zygote]
    mutant: ClassVar[str] = ""
    count: ClassVar[int] = 0
    """Steps of all examples."""
    kills: ClassVar[int] = 0
    """Servers that were killed, of the examples that ended well."""
    calls: ClassVar[int] = 0
    """The same of calls that were judged."""
    preludes: ClassVar[tuple[Callable[[Example], None], ...]] = ()
    """What happens before anything is chosen."""
    caught: ClassVar[list[str]] = []
    """What went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[str] = []
        self.failed = False
        self.ending: Ending = "settle"
        self.scene: Any = None

    def telling(self) -> telling_of:
        """Around whatever may fail."""
        return telling_of(self)

    @initialize(
        loop=st.sampled_from(("uvloop", "asyncio")),
        server_loop=st.sampled_from(("uvloop", "asyncio")),
        narrow=st.sampled_from((False, False, True)),
        doorbell=st.sampled_from(("auto", "pipe")),
        ending=st.sampled_from(("settle", "cancel", "close", "kill")),
    )
    def begin(self, loop: str, server_loop: str, narrow: bool, doorbell: str, ending: Ending) -> None:
        self.steps.append(f"begin({loop=}, {server_loop=}, {narrow=}, {doorbell=}, {ending=})")
        self.ending = ending
        with self.telling():
            self.scene = Example(
                self.zygote, loop=loop, server_loop=server_loop, narrow=narrow, doorbell=doorbell, mutant=self.mutant
            )
            for prelude in self.preludes:
                prelude(self.scene)
                self.scene.check()

    def teardown(self) -> None:
        """The end of the example, with its checks."""
        if self.scene is None:
            return
        try:
            if not self.failed:
                with self.telling():
                    self.scene.finish(self.ending)
                    type(self).kills += self.scene.kills
                    type(self).calls += len(self.scene.ended)
        finally:
            if self.failed:
                self.scene.give_up()
            self.scene = None

    # ---- connections ----

    def place(self, number: int) -> Place:
        """One of the two."""
        found: Place = self.scene.places[number]
        return found

    @precondition(lambda self: len(self.scene.conns) < MOST_CONNS and not any(p.standing for p in self.scene.places))
    @rule(where=st.sampled_from(("a", "b", "ab")), patient=either)
    @step
    def connect(self, where: str, patient: bool) -> None:
        for place, name in zip(self.scene.places, "ab", strict=True):
            if name in where and place.current is None and not place.draining and not self.scene.at(place):
                place.start()
        self.scene.connect(where, patient=patient)

    @rule(number=indices)
    @step
    def close(self, number: int) -> None:
        conns = [conn for conn in self.scene.conns if conn.open]
        if len(conns) > 1:
            self.scene.close(conns[number % len(conns)])

    # ---- calls ----

    @rule(
        number=indices,
        kind=st.sampled_from(UNARY),
        size=indices,
        timeout=timeouts,
        born=either,
        keep=either,
        turns=turns,
    )
    @step
    def call(
        self, number: int, kind: str, size: int, timeout: float | None, born: bool, keep: bool, turns: int
    ) -> None:
        self.scene.call(number, kind, size=size, items=0, timeout=timeout, born=born, keep=keep)
        self.scene.turn(turns)

    @rule(number=indices, kind=st.sampled_from(UNARY), size=indices, several=st.integers(2, 12), turns=turns)
    @step
    def call_several(self, number: int, kind: str, size: int, several: int, turns: int) -> None:
        for _ in range(several):
            self.scene.call(number, kind, size=size, items=0, timeout=None, born=False, keep=False)
        self.scene.turn(turns)

    @rule(
        number=indices,
        kind=st.sampled_from(STREAMS),
        size=indices,
        items=st.sampled_from((0, 1, 5, 40, 700)),
        timeout=timeouts,
        keep=either,
        reads=st.integers(0, 3),
        turns=turns,
    )
    @step
    def stream(
        self, number: int, kind: str, size: int, items: int, timeout: float | None, keep: bool, reads: int, turns: int
    ) -> None:
        if kind == "arrays":
            items = min(items, 5)
        self.scene.call(number, kind, size=size, items=items, timeout=timeout, born=False, keep=keep)
        self.scene.calls[-1].permit(reads)
        self.scene.turn(turns)

    @rule(number=indices, items=st.sampled_from((1, 3, 300, 1000)), turns=turns)
    @step
    def read(self, number: int, items: int, turns: int) -> None:
        call = self.scene.one_of(number, lambda call: call.kind in STREAMING)
        if call is not None:
            call.permit(items)
        self.scene.turn(turns)

    @rule(number=indices, items=st.sampled_from((1, 3, 20, 300)), size=indices, end=st.integers(0, 5), turns=turns)
    @step
    def feed(self, number: int, items: int, size: int, end: int, turns: int) -> None:
        call = self.scene.one_of(number, lambda call: call.source is not None and not call.source.finished)
        if call is not None:
            self.scene.feed(call, min(items, 4) if call.kind == "weigh" else items, size)
            if end < 3:
                call.source.finish(failing=not end)
        self.scene.turn(turns)

    @rule(number=indices, turns=turns)
    @step
    def leave(self, number: int, turns: int) -> None:
        call = self.scene.one_of(number, lambda call: call.kind in STREAMING)
        if call is not None:
            call.leave()
        self.scene.turn(turns)

    @rule(number=indices, turns=turns)
    @step
    def cancel(self, number: int, turns: int) -> None:
        call = self.scene.one_of(number, lambda call: not call.ended)
        if call is not None:
            call.cancelled = True
            call.task.cancel()
        self.scene.turn(turns)

    @rule(turns=st.sampled_from((1, 3, 10, 30)))
    @step
    def turn(self, turns: int) -> None:
        self.scene.turn(turns)

    @rule()
    @step
    def settle(self) -> None:
        self.scene.settle()

    @rule(count=indices)
    @step
    def drop(self, count: int) -> None:
        self.scene.check_views()
        del self.scene.views[: count % 5]

    # ---- servers ----

    @precondition(lambda self: any(place.current for place in self.scene.places))
    @rule(number=places)
    @step
    def stall(self, number: int) -> None:
        place = self.place(number)
        if place.current is not None and not place.current.stopped:
            place.current.stall()

    @rule(number=places, turns=turns)
    @step
    def resume(self, number: int, turns: int) -> None:
        for server in self.place(number).servers:
            if server.stopped:
                server.resume()
        self.scene.turn(turns)

    @rule(number=places)
    @step
    def let_go(self, number: int) -> None:
        for server in self.place(number).servers:
            server.let_go()

    @rule(number=places, back=either, turns=turns)
    @step
    def kill(self, number: int, back: bool, turns: int) -> None:
        place = self.place(number)
        if place.current is not None:
            self.scene.kill(place)
            if back:
                place.start()
        self.scene.turn(turns)

    @rule(number=places, back=either, turns=turns)
    @step
    def drain(self, number: int, back: bool, turns: int) -> None:
        place = self.place(number)
        if place.current is not None:
            standing = place.current.stopped
            self.scene.drain(place)
            if back and not standing:
                place.start_after()
        self.scene.turn(turns)

    @rule(number=places, turns=turns)
    @step
    def cut(self, number: int, turns: int) -> None:
        place = self.place(number)
        for server in place.draining:
            if server.signals == 1:
                self.scene.cut(place, server)
        self.scene.turn(turns)

    @rule(number=places)
    @step
    def restart(self, number: int) -> None:
        place = self.place(number)
        if place.current is None and not place.standing and self.scene.at(place):
            place.start_after()

    @precondition(lambda self: len(self.scene.children) < 2)
    @rule(stays=either)
    @step
    def fork(self, stays: bool) -> None:
        self.scene.fork(stays=stays)


assert set(FED) | STREAMING == set(STREAMS)
