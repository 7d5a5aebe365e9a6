"""An exhaustive explorer of small concurrent programs under total store order.

A process is an ordinary Python generator that yields one `Op` for each step which another process can see: a load, a store,
a fence, something done to a doorbell. The explorer runs all processes in all orders, breadth or depth first, and keeps every
state that it has seen.

Memory is what x86 has: each process has a store buffer, first in, first out. A store goes into it. A load looks there first,
then in the memory. The oldest entry may reach the memory at any time, a fence waits until all have, and so does an atomic
update.

What is wrong is an assertion that fails in a process; a state in which nothing can go on, though a process is not content to
sleep (a lost wake-up is one of these); and a state out of which no way leads to the end.
"""

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from model_steps import Await, Bell, Choose, Clear, Load, Process, Ring, Turn, Update
from process_automata import Automaton, Machine

State = tuple[Any, ...]
"""Every word, the rings in each bell, and the stage of each process."""


class Failure(NamedTuple):
    """What is wrong, and the shortest way to it."""

    what: str
    steps: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.steps, f"==> {self.what}"])


class Result(NamedTuple):
    """What an exploration found."""

    states: int
    transitions: int
    failure: Failure | None


class TooLarge(Exception):
    """There are more states than the exploration may have."""


class Explorer:
    """Explores one set of processes."""

    def __init__(
        self,
        processes: Mapping[str, Process],
        memory: Mapping[str, Any],
        bells: Mapping[str, Bell],
        *,
        kernel_fences: bool = True,
        depth_first: bool = False,
        most_states: int = 5_000_000,
    ) -> None:
        """Takes what to explore.

        Args:
            processes: The processes, by name.
            memory: Every shared word, with its first value.
            bells: Every doorbell.
            kernel_fences: Whether what is done to a doorbell, and a turn of a loop, waits for the store buffer, as a system
                call does on x86. Without that there are more interleavings.
            depth_first: Whether to follow one way to its end before the next. That comes sooner upon a failure far from the
                beginning, and by a longer way; breadth first finds the shortest.
            most_states: When to give up.
        """
        self._depth_first = depth_first
        places = {name: place for place, name in enumerate((*memory, *bells))}
        self._machines = [
            Machine(Automaton(name, process), places, kernel_fences) for name, process in processes.items()
        ]
        self._kinds = {places[name]: kind for name, kind in bells.items()}
        self._base = len(places)
        self._most_states = most_states
        self._first: State = (*memory.values(), *(0 for _ in bells), *(each.first for each in self._machines))

    def run(self) -> Result:
        """Goes through all states, or to the first failure.

        Raises:
            TooLarge: there are too many.
        """
        numbers = {self._first: 0}
        states = [self._first]
        came_from = [0]
        leads_from: list[int] = []
        leads_to: list[int] = []
        ends = []
        waiting = deque([0])
        while waiting:
            here = waiting.pop() if self._depth_first else waiting.popleft()
            state = states[here]
            try:
                following = self._following(state)
            except AssertionError as error:
                what = str(error).split("\n")[0]
                return Result(len(states), len(leads_to), self._failure(what, states, came_from, here))
            for new in following:
                number = numbers.setdefault(new, len(states))
                if number == len(states):
                    states.append(new)
                    came_from.append(here)
                    waiting.append(number)
                leads_from.append(here)
                leads_to.append(number)
            if not following:
                if (sleepers := self._unfinished(state)) is not None:
                    return Result(len(states), len(leads_to), self._failure(sleepers, states, came_from, here))
                ends.append(here)
            if len(states) > self._most_states:
                raise TooLarge(f"more than {self._most_states} states")
        failure = None
        if (trapped := _trapped(len(states), leads_from, leads_to, ends)) is not None:
            failure = self._failure("from here no way leads to the end", states, came_from, trapped)
        return Result(len(states), len(leads_to), failure)

    # ---- steps ----

    def _following(self, state: State) -> list[State]:
        found: list[State] = []
        for place, machine in enumerate(self._machines, self._base):
            self._add_steps(found, state, place, machine)
        return found

    def _add_steps(self, found: list[State], state: State, place: int, machine: Machine) -> None:
        """Adds every state that a step of one process leads to."""
        stage = machine.stages[state[place]]
        _, _, drain, act, at, op, known = stage
        if drain is not None:
            word, value, behind = drain
            new = list(state)
            new[word] = value
            new[place] = behind
            found.append(tuple(new))
        if act == "wait":
            return
        if act == "load":
            value = state[at]
            behind = known[value] if value in known else machine.behind(stage, value)
            found.append((*state[:place], behind, *state[place + 1 :]))
        elif act == "anything":
            for behind in known.values():
                found.append((*state[:place], behind, *state[place + 1 :]))
        elif act == "turn":
            assert isinstance(op, Turn)
            for answer in (*op.todo, "rings") if state[at] else op.todo:
                found.append((*state[:place], machine.behind(stage, answer), *state[place + 1 :]))
        elif act != "await" or state[at]:
            new = list(state)
            answer = None
            if act == "ring":
                new[at] = min(state[at] + 1, self._kinds[at].most)
            elif act == "clear":
                new[at] = max(state[at] - self._kinds[at].takes, 0)
            elif isinstance(op, Update):
                answer = state[at]
                new[at] = () if op.item is None else (*state[at], op.item)
            new[place] = machine.behind(stage, answer)
            found.append(tuple(new))

    def _unfinished(self, state: State) -> str | None:
        """What is wrong with a state in which nothing can go on; None: it is the end."""
        sleepers = []
        for machine, stage in zip(self._machines, state[self._base :], strict=True):
            op = machine.stages[stage].op
            if isinstance(op, (Turn, Await)) and not op.content:
                sleepers.append(machine.automaton.name)
        return f"nobody will ever wake {' and '.join(sleepers)}" if sleepers else None

    # ---- telling ----

    def _failure(self, what: str, states: list[State], came_from: list[int], last: int) -> Failure:
        way = [last]
        while way[-1]:
            way.append(came_from[way[-1]])
        way.reverse()
        steps = [self._told(states[old], states[new]) for old, new in pairwise(way)]
        for place, machine in enumerate(self._machines, self._base):
            try:
                self._add_steps([], states[last], place, machine)
            except AssertionError:
                steps.append(f"{machine.automaton.name}: {self._said(machine, states[last], place)}")
        return Failure(what, steps)

    def _told(self, old: State, new: State) -> str:
        """One step as a line of text."""
        place = next(
            place for place in range(self._base, len(old)) if old[place] != new[place] or place == len(old) - 1
        )
        machine = self._machines[place - self._base]
        before, behind = machine.stages[old[place]], machine.stages[new[place]]
        left = before.buffer
        if before.drain is not None and self._drained(old, place, before.drain) == new:
            word, value = before.buffer[0]
            text = f"    the store of {word} = {value} reaches the memory"
            left = left[1:]
        else:
            text = self._said(machine, old, place)
        stored = "".join(f"; stores {word} = {value}" for word, value in behind.buffer[len(left) :])
        return f"{machine.automaton.name}: {text}{stored}"

    def _drained(self, old: State, place: int, drain: tuple[int, Any, int]) -> State:
        new = list(old)
        new[drain[0]], new[place] = drain[1], drain[2]
        return tuple(new)

    def _said(self, machine: Machine, state: State, place: int) -> str:
        stage = machine.stages[state[place]]
        op = stage.op
        where = machine.automaton.places[stage.local]
        if isinstance(op, Load):
            own = [value for word, value in stage.buffer if word == op.word]
            text = f"loads {op.word}: {own[-1] if own else state[stage.at]}"
        elif isinstance(op, Turn):
            text = f"begins a turn of its loop{', its doorbell rings' if state[stage.at] else ''}"
        elif isinstance(op, Choose):
            text = "may do either"
        elif isinstance(op, (Ring, Clear)):
            text = f"{'rings' if isinstance(op, Ring) else 'clears'} {op.bell}"
        else:
            text = str(op)
        return f"{text}   [{where}]" if where else text


def _trapped(count: int, leads_from: list[int], leads_to: list[int], ends: list[int]) -> int | None:
    """The first of `count` states from which no end can be reached."""
    before: list[list[int]] = [[] for _ in range(count)]
    for old, new in zip(leads_from, leads_to, strict=True):
        before[new].append(old)
    reaches = bytearray(count)
    stack = list(ends)
    for each in ends:
        reaches[each] = 1
    while stack:
        for each in before[stack.pop()]:
            if not reaches[each]:
                reaches[each] = 1
                stack.append(each)
    missing = reaches.find(0)
    return None if missing < 0 else missing
