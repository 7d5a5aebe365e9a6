"""Processes as automata: generators whose states can be told apart, kept, and gone on from.

The state of a process is what its generator holds: where each frame stands, and its local variables. It is taken out of the
frames, so that two ways to the same state are found to be one. To go on from a state, a fresh generator is led there by
what the first way to it was answered; each step is computed once. So whatever a process keeps from one yield to the next
MUST be in local variables, as numbers, strings, tuples, dicts or plain objects of these: no iterator of a `for`, and no
half-computed expression. What a function has from the one around it is taken for constant.

With its store buffer a process is a `Machine`. A store into the own buffer, and a fence with nothing to wait for, are done
at once with the step before, since no other process can tell.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from model_steps import Await, Choose, Clear, Fence, Load, Op, Process, Ring, Steps, Store, Turn, Update

END: Final = -1
"""The local state of a process that has returned."""


def _frozen(value: Any) -> Any:
    """A hashable copy of what a local variable holds."""
    if isinstance(value, (int, str, bytes, type(None))):
        return value
    if isinstance(value, tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((key, _frozen(each)) for key, each in sorted(value.items()))
    return tuple(map(_frozen, vars(value).values()))


def _variables(generator: Any) -> Any:
    constant = generator.gi_code.co_freevars
    return _frozen({name: value for name, value in generator.gi_frame.f_locals.items() if name not in constant})


def _chain(steps: Steps[None]) -> list[Any]:
    """The generators that wait for each other, outermost first."""
    chain = []
    inner: Any = steps
    while inner is not None:
        chain.append(inner)
        inner = inner.gi_yieldfrom
    return chain


class Automaton:
    """One process: its local states, and what leads from one to the next, found when it is asked for."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.ops: list[Op] = []
        self.places: list[str] = []
        """In which functions each local state is."""
        self._process = process
        self._numbers: dict[Any, int] = {}
        self._ways: list[tuple[int, Any]] = []
        self._next: dict[tuple[int, Any], int] = {}
        steps = process()
        self.first = self._number(steps, next(steps), (END, None))

    def after(self, local: int, answer: Any) -> int:
        """The local state behind an op that was answered. Raises the AssertionError of the process."""
        key = local, answer
        if (found := self._next.get(key)) is not None:
            return found
        answers = [answer]
        at = local
        while at != self.first:
            at, earlier = self._ways[at]
            answers.append(earlier)
        steps = self._process()
        op = next(steps)
        try:
            while answers:
                op = steps.send(answers.pop())
        except StopIteration:
            number = END
        else:
            number = self._number(steps, op, key)
        self._next[key] = number
        return number

    def _number(self, steps: Steps[None], op: Op, way: tuple[int, Any]) -> int:
        chain = _chain(steps)
        state = tuple((each.gi_code.co_name, each.gi_frame.f_lasti, _variables(each)) for each in chain)
        number = self._numbers.setdefault((op, state), len(self.ops))
        if number == len(self.ops):
            self.ops.append(op)
            self.places.append(" > ".join(each.gi_code.co_name for each in chain[1:]))
            self._ways.append(way)
        return number


Buffer = tuple[tuple[str, Any], ...]
"""A store buffer: words and values, oldest first."""
Act = Literal["wait", "anything", "load", "ring", "clear", "turn", "update", "await"]


class Stage(NamedTuple):
    """A process with its store buffer: what it can do next."""

    local: int
    buffer: Buffer
    drain: tuple[int, Any, int] | None
    """Where in the state the oldest entry goes, its value, and the stage behind that."""
    act: Act
    at: int
    """Which word or bell it is about, as a place in the state."""
    op: Op | None
    next: dict[Any, int]
    """The stage behind each answer. Of "anything" each is possible; else it is filled when it is asked for."""


class Machine:
    """An automaton with its store buffer."""

    def __init__(self, automaton: Automaton, places: Mapping[str, int], kernel_fences: bool) -> None:
        self.automaton = automaton
        self.stages: list[Stage] = []
        self._places = places
        self._kernel_fences = kernel_fences
        self._numbers: dict[tuple[int, Buffer], int] = {}
        self.first = self._settled(automaton.first, ())

    def behind(self, stage: Stage, answer: Any) -> int:
        """The stage behind an answer."""
        if (found := stage.next.get(answer)) is None:
            found = stage.next[answer] = self._settled(self.automaton.after(stage.local, answer), stage.buffer)
        return found

    def _settled(self, local: int, buffer: Buffer) -> int:
        """Goes on while no other process can tell, and gives the stage."""
        while local != END:
            op = self.automaton.ops[local]
            if isinstance(op, Store):
                buffer = (*buffer, (op.word, op.value))
            elif not (isinstance(op, Fence) and not buffer):
                break
            local = self.automaton.after(local, None)
        if (found := self._numbers.get((local, buffer))) is not None:
            return found
        drain = None
        if buffer:
            word, value = buffer[0]
            drain = self._places[word], value, self._settled(local, buffer[1:])
        waiting = None if local == END else self.automaton.ops[local]
        act, at, answers = self._act(waiting, buffer)
        number = self._numbers[local, buffer] = len(self.stages)
        self.stages.append(Stage(local, buffer, drain, act, at, waiting, {}))
        for each in answers:
            self.behind(self.stages[number], each)
        return number

    def _act(self, op: Op | None, buffer: Buffer) -> tuple[Act, int, tuple[Any, ...]]:
        """What kind of step it is, what it is about, and all answers if they are known."""
        if op is None or isinstance(op, (Fence, Store)):
            return "wait", 0, ()
        if isinstance(op, Choose):
            return "anything", 0, tuple(range(op.ways))
        if isinstance(op, Load):
            own = [value for word, value in buffer if word == op.word]
            return ("anything", 0, (own[-1],)) if own else ("load", self._places[op.word], ())
        if buffer and (self._kernel_fences or isinstance(op, (Update, Await))):
            return "wait", 0, ()
        if isinstance(op, Ring):
            return "ring", self._places[op.bell], ()
        if isinstance(op, Clear):
            return "clear", self._places[op.bell], ()
        if isinstance(op, Turn):
            return "turn", self._places[op.bell], ()
        return "update" if isinstance(op, Update) else "await", self._places[op.word], ()
