"""The states of a call on either side, and of the items that it takes, as tables. No I/O, no clock, no loop.

The tables are the protocol: `outgoing`, `incoming` and `flows` act on them, a test walks every path through them, and the
diagrams of the documentation are drawn from them by `as_mermaid`.
"""

from enum import Enum
from typing import Final


class Outgoing(Enum):
    """A call as its caller's side sees it."""

    OPEN = "open"
    """The request is on its way, and somebody waits."""
    ABANDONED = "abandoned"
    """Nobody waits any more, or ever did (one-way); the peer still owes the end."""
    ENDED = "ended"


class Incoming(Enum):
    """A call as its handler's side sees it."""

    RUNNING = "running"
    CANCELLED = "cancelled"
    """The caller has gone; the handler was told, and has not ended yet."""
    EXPIRED = "expired"
    """The deadline has passed; the handler was told, and has not ended yet."""
    STOPPED = "stopped"
    """The server stops before the handler ended; the handler was told."""
    ORPHANED = "orphaned"
    """The connection is gone; there is nobody to answer."""
    ENDED = "ended"


class Arguments(Enum):
    """The items of a parameter that is a stream, as the handler's side sees them."""

    OPEN = "open"
    """More may come."""
    HALF_CLOSED = "half-closed"
    """The caller has said that there are no more; the call goes on."""
    ENDED = "ended"
    """The call has ended. What still comes was sent before the caller knew."""

    __hash__ = object.__hash__  # that of Enum is written in Python, and a state is looked up for each record


class Event(Enum):
    """What can happen to a call."""

    ANSWER = "reply or failure"
    GIVE_UP = "caller cancelled, or its deadline passed"
    CANCEL = "cancel received"
    EXPIRE = "deadline passed"
    STOP = "grace time over"
    LOSE = "connection lost"
    FINISH = "handler ended"
    ITEMS = "items received"
    LAST_ITEM = "end of items received"

    __hash__ = object.__hash__


OUTGOING: Final[dict[tuple[Outgoing, Event], Outgoing]] = {
    (Outgoing.OPEN, Event.ANSWER): Outgoing.ENDED,
    (Outgoing.OPEN, Event.GIVE_UP): Outgoing.ABANDONED,
    (Outgoing.OPEN, Event.LOSE): Outgoing.ENDED,
    (Outgoing.ABANDONED, Event.ANSWER): Outgoing.ENDED,
    (Outgoing.ABANDONED, Event.LOSE): Outgoing.ENDED,
}

INCOMING: Final[dict[tuple[Incoming, Event], Incoming]] = {
    (Incoming.RUNNING, Event.FINISH): Incoming.ENDED,
    (Incoming.RUNNING, Event.CANCEL): Incoming.CANCELLED,
    (Incoming.RUNNING, Event.EXPIRE): Incoming.EXPIRED,
    (Incoming.RUNNING, Event.STOP): Incoming.STOPPED,
    (Incoming.CANCELLED, Event.FINISH): Incoming.ENDED,
    (Incoming.EXPIRED, Event.FINISH): Incoming.ENDED,
    (Incoming.STOPPED, Event.FINISH): Incoming.ENDED,
    (Incoming.ORPHANED, Event.FINISH): Incoming.ENDED,
    **{(state, Event.LOSE): Incoming.ORPHANED for state in Incoming if state is not Incoming.ENDED},
}
"""Pairs that are missing change nothing: a cancel for a call that has ended crossed its reply on the way."""

ARGUMENTS: Final[dict[tuple[Arguments, Event], Arguments]] = {
    (Arguments.OPEN, Event.ITEMS): Arguments.OPEN,
    (Arguments.OPEN, Event.LAST_ITEM): Arguments.HALF_CLOSED,
    (Arguments.OPEN, Event.FINISH): Arguments.ENDED,
    (Arguments.HALF_CLOSED, Event.FINISH): Arguments.ENDED,
}
"""Pairs that are missing break the rules, but for those of a stream that has ended, which change nothing."""


def step_incoming(state: Incoming, event: Event) -> Incoming:
    """The state after an event; the same when the event means nothing to it."""
    return INCOMING.get((state, event), state)


def step_arguments(state: Arguments, event: Event) -> Arguments | None:
    """The state after an event; None when the peer breaks the rules with it."""
    return state if state is Arguments.ENDED else ARGUMENTS.get((state, event))


def as_mermaid(
    table: dict[tuple[Outgoing, Event], Outgoing]
    | dict[tuple[Incoming, Event], Incoming]
    | dict[tuple[Arguments, Event], Arguments],
) -> str:
    """A table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2"]
    first = next(iter(table))[0]
    lines.append(f"    [*] --> {first.value}")
    for (state, event), after in table.items():
        lines.append(f"    {state.value} --> {'[*]' if after.value == 'ended' else after.value}: {event.value}")
    return "\n".join(lines)
