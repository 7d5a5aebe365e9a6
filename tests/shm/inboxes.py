"""Owners and pollers to watch: what a member does with its turns, and how often a poller looks."""

import asyncio
import os
from collections.abc import Callable

from joined import handlers_of, word

from shmrpc.shm import layout
from shmrpc.shm.channel import Channel, Record
from shmrpc.shm.poller import Member, Poller, Polling

LONG = Polling(3_600 * 10**9, adaptive=False)
"""Looks for work for longer than any test lasts."""
NEVER = Polling.of("never")


class Inbox:
    """An owner that takes what is there, at most a budget in one turn."""

    def __init__(self, channel: Channel, polling: Polling = NEVER, budget: int = 64) -> None:
        self.channel = channel
        self.records: list[int] = []
        self.turns: list[int] = []
        self.rings = self.silences = 0
        self.end: Callable[[], object] = lambda: None
        self.then: Callable[[], object] = lambda: None
        self.member = Member(self, channel.consumer, channel.doorbell, polling, os.getpid())
        self._budget = budget

    def on_records(self) -> None:
        """Counts what it takes."""
        taken: list[Record] = []
        self.channel.dispatch(self._budget, handlers_of(taken.append), {})
        self.records += [record[3] for record in taken]
        self.turns.append(len(taken))
        self.then()

    def on_rung(self) -> None:
        """As a session does."""
        self.rings += 1
        self.on_records()

    def on_silenced(self) -> None:
        """Ends, as a session does."""
        self.silences += 1
        self.end()

    @property
    def armed(self) -> bool:
        """Whether the peer sees that this side sleeps."""
        return word(self.channel.own, layout.CURSOR_DOORBELL_EPOCH) % 2 == 1


class Watched(Poller):
    """A poller that counts its looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.looks = 0

    def _look(self) -> None:
        self.looks += 1
        super()._look()


def send(channel: Channel, call_id: int) -> None:
    """Sends an empty record."""
    channel.send(1, 0, 0, call_id, 0, b"")


async def turns(count: int = 20) -> None:
    """Lets the event loop go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def started(inbox: Inbox) -> Watched:
    """A poller with one member."""
    made = Watched(asyncio.get_running_loop())
    made.add(inbox.member)
    inbox.end = lambda: made.remove(inbox.member)
    return made
