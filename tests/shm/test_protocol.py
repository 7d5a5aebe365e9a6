"""The state tables of a call: complete, without dead ends, and drawn as they are."""

from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrpc.shm import protocol
from shmrpc.shm.protocol import (
    ARGUMENTS,
    INCOMING,
    OUTGOING,
    Arguments,
    Event,
    Incoming,
    Outgoing,
    step_arguments,
    step_incoming,
)

Table = dict[tuple[Any, Event], Any]
tables = pytest.mark.parametrize(
    ("table", "states", "first"),
    [
        (OUTGOING, Outgoing, Outgoing.OPEN),
        (INCOMING, Incoming, Incoming.RUNNING),
        (ARGUMENTS, Arguments, Arguments.OPEN),
    ],
)


def reachable(table: Table, first: Enum) -> set[Enum]:
    """Every state that some events lead to."""
    found, todo = {first}, [first]
    while todo:
        state = todo.pop()
        after = {target for (source, _), target in table.items() if source is state} - found
        found |= after
        todo += after
    return found


@tables
def test_every_state_can_be_reached(table: Table, states: type[Enum], first: Enum) -> None:
    assert reachable(table, first) == set(states)


@tables
def test_every_state_can_come_to_the_end(table: Table, states: Any, first: Enum) -> None:
    for state in states:
        assert states.ENDED in reachable(table, state)


@tables
def test_nothing_follows_the_end(table: Table, states: Any, first: Enum) -> None:
    assert not [event for (state, event) in table if state is states.ENDED]


@tables
def test_a_drawing_has_every_step_of_its_table(table: Table, states: Any, first: Enum) -> None:
    head, begin, *arrows = protocol.as_mermaid(table).splitlines()
    assert head == "stateDiagram-v2"
    assert begin == f"    [*] --> {first.value}"
    drawn = set()
    for arrow in arrows:
        source, _, rest = arrow.strip().partition(" --> ")
        target, _, event = rest.partition(": ")
        drawn.add((source, event, "ended" if target == "[*]" else target))
    assert drawn == {(source.value, event.value, target.value) for (source, event), target in table.items()}
    assert len(arrows) == len(table)


def test_an_outgoing_call_ends_with_the_peers_answer_or_with_the_connection_and_nothing_else() -> None:
    ends = {event for (_, event), after in OUTGOING.items() if after is Outgoing.ENDED}
    assert ends == {Event.ANSWER, Event.LOSE}
    for state in (Outgoing.OPEN, Outgoing.ABANDONED):
        assert all(OUTGOING[state, event] is Outgoing.ENDED for event in ends)


def test_an_incoming_call_ends_with_its_handler_and_nothing_else() -> None:
    for (state, event), after in INCOMING.items():
        assert (after is Incoming.ENDED) == (event is Event.FINISH), (state, event)
    for state in Incoming:
        if state is not Incoming.ENDED:
            assert INCOMING[state, Event.FINISH] is Incoming.ENDED


@given(st.lists(st.sampled_from(Event)))
def test_whatever_happens_to_a_call_it_ends_at_most_once(events: list[Event]) -> None:
    state, ends = Incoming.RUNNING, 0
    for event in events:
        before, state = state, step_incoming(state, event)
        ends += state is Incoming.ENDED and before is not Incoming.ENDED
    assert ends == (Event.FINISH in events)


@pytest.mark.parametrize("event", [Event.CANCEL, Event.EXPIRE, Event.STOP])
def test_what_a_handler_was_told_first_is_how_its_call_ends(event: Event) -> None:
    told = step_incoming(Incoming.RUNNING, event)
    for later in (Event.CANCEL, Event.EXPIRE, Event.STOP):
        assert step_incoming(told, later) is told
    assert step_incoming(told, Event.LOSE) is Incoming.ORPHANED


def test_an_event_that_means_nothing_changes_nothing() -> None:
    assert step_incoming(Incoming.ENDED, Event.CANCEL) is Incoming.ENDED
    assert step_incoming(Incoming.RUNNING, Event.ANSWER) is Incoming.RUNNING


def test_items_may_come_until_their_end_and_the_end_once() -> None:
    assert step_arguments(Arguments.OPEN, Event.ITEMS) is Arguments.OPEN
    assert step_arguments(Arguments.OPEN, Event.LAST_ITEM) is Arguments.HALF_CLOSED
    for event in (Event.ITEMS, Event.LAST_ITEM):
        assert step_arguments(Arguments.HALF_CLOSED, event) is None


@pytest.mark.parametrize("event", Event)
def test_nothing_that_comes_for_a_stream_that_has_ended_breaks_the_rules(event: Event) -> None:
    assert step_arguments(Arguments.ENDED, event) is Arguments.ENDED


@given(st.lists(st.sampled_from([Event.ITEMS, Event.LAST_ITEM, Event.FINISH])))
def test_a_stream_of_arguments_is_what_its_events_say(events: list[Event]) -> None:
    """Checked against the rule in other words: items and one end, in this order, and anything after the call."""
    state: Arguments | None = Arguments.OPEN
    during = events[: events.index(Event.FINISH)] if Event.FINISH in events else events
    for event in events:
        state = state and step_arguments(state, event)
    broken = Event.LAST_ITEM in during[:-1] and during.index(Event.LAST_ITEM) < len(during) - 1
    assert (state is None) == broken
