"""The calls that one side makes follow the protocol's table, whatever happens to them."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from joined import two_channels

from shmrpc.errors import ConnectionLost
from shmrpc.failure import Failure
from shmrpc.shm import envelope
from shmrpc.shm.channel import Channel
from shmrpc.shm.outgoing import OutgoingCalls, state_of
from shmrpc.shm.protocol import OUTGOING, Event, Outgoing
from shmrpc.shm.ring import PendingCall


class Method:
    """What a call needs to know of its method."""

    full_name = "Service.method"
    contract = object


class Side:
    """The calls of one channel, and one of them in the state that a test wants."""

    def __init__(self, channel: Channel) -> None:
        self.calls = OutgoingCalls(asyncio.get_running_loop(), channel, {}, 16, self._broken)

    def _broken(self, error: Exception) -> None:
        raise AssertionError(error)

    def bring_to(self, state: Outgoing) -> PendingCall:
        call = self.calls.start(Method(), 0, 0, 0, b"")
        if state is Outgoing.ABANDONED:
            self.calls.abandon(call)
        assert state_of(call) is state
        return call

    def state(self, call: PendingCall) -> Outgoing:
        return state_of(call) if self.calls.pending.get(call.call_id) is call else Outgoing.ENDED


@pytest.fixture
def channel() -> Iterator[Channel]:
    with two_channels() as (near, _):
        yield near


def _reply(side: Side, call: PendingCall) -> None:
    side.calls.on_reply(0, 0, call.call_id, 0, b"result")


def _fail(side: Side, call: PendingCall) -> None:
    side.calls.on_failure(0, 0, call.call_id, 0, envelope.encode_failure(Failure(5, "no such thing")))


def _abandon(side: Side, call: PendingCall) -> None:
    side.calls.abandon(call)


def _lose(side: Side, call: PendingCall) -> None:
    side.calls.lose("the peer died")


ACTS: list[tuple[Event, Callable[[Side, PendingCall], None]]] = [
    (Event.ANSWER, _reply),
    (Event.ANSWER, _fail),
    (Event.GIVE_UP, _abandon),
    (Event.LOSE, _lose),
]


@pytest.mark.parametrize(("event", "act"), ACTS, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("state", [Outgoing.OPEN, Outgoing.ABANDONED])
async def test_a_call_moves_as_the_table_says(
    channel: Channel, state: Outgoing, event: Event, act: Callable[[Side, PendingCall], None]
) -> None:
    side = Side(channel)
    call = side.bring_to(state)
    act(side, call)
    assert side.state(call) is OUTGOING.get((state, event), state)
    side.calls.close("the test is over")


async def test_every_call_that_is_lost_ends_with_what_may_have_happened_to_it(channel: Channel) -> None:
    side = Side(channel)
    call = side.bring_to(Outgoing.OPEN)
    side.calls.lose("the peer died")
    answer = await call
    assert isinstance(answer, ConnectionLost)
    assert not answer.maybe_executed  # the other side has not taken a record
    assert side.calls.pending == {}
