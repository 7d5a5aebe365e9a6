"""The event loop's side of doorbells: who is awake, who sleeps, and for how long to keep looking.

One poller serves all channels of an event loop. A *sleeping* member costs nothing: its doorbell epoch is armed and the
loop watches its fd. An *awake* member is looked at once in every turn of the loop, without blocking it, and goes back to
sleep when its window has passed without work. While it is awake its peer skips the system call, and the message costs a
cache line instead of a wake-up.

The window adapts, much as halt polling does in hypervisors (Linux, Documentation/virt/kvm/halt-polling.rst): it is full
while looking pays, and halves to nothing while it does not; then a number of wake-ups must pass, twice as many after each
vain try, before it is tried again. It is tried in full, since of two peers that both sleep each sees the other's wake-up
as a delay of about the window, and a shorter look would never find out that looking pays. It is zero where the two
processes have one CPU between them.

A ring without a record is an *announcement*: the peer is copying something large, and has rung ahead. The member is *held*
awake for it, whatever its window is, if the last announcement was followed by a record.
"""

import asyncio
import os
from time import monotonic_ns
from typing import Final, Literal, NamedTuple, Protocol
from weakref import WeakValueDictionary

from shmrpc.shm.doorbell import Doorbell
from shmrpc.shm.ring import Consumer, watch

Setting = Literal["adaptive", "never"] | float

WINDOW_NS: Final = 100_000
"""The longest adaptive window: what waking a sleeping process costs on a virtual machine, 40 to 60 us, and then its answer.

With less, two peers that both sleep would never see each other awake: measured, 110 us a turn of a stream instead of 27."""
LOOK_NS: Final = 3_000
"""How long one look may last; a turn of an idle event loop costs about half of it."""
BUSY_GAP_NS: Final = 15_000
"""When the loop was away for longer than this, it has other work, and a look only glances."""
SOON_NS: Final = 250_000
"""Work that comes this soon after the last is worth looking for: two wake-ups, one at each side, and some slack."""
PENALTY: Final = (8, 1024)
"""How many wake-ups to sit out after looking did not pay: at first, and at most."""
HOLD_NS: Final = 2 * WINDOW_NS
"""How long to stay awake for what was announced: twice what a slow machine takes to copy the 1 MiB that may be left then."""
CPU_CHECK_NS: Final = 1_000_000_000


class Polling(NamedTuple):
    """The polling setting of a connection, resolved."""

    window_ns: int
    adaptive: bool

    @classmethod
    def of(cls, setting: Setting) -> "Polling":
        """Reads ``"adaptive"``, ``"never"`` or a fixed number of seconds.

        Raises:
            ValueError: it is none of these.
        """
        if setting == "adaptive":
            return cls(WINDOW_NS, True)
        if setting == "never":
            return cls(0, False)
        if isinstance(setting, (int, float)) and not isinstance(setting, bool) and 0 <= setting <= 1:
            return cls(int(setting * 1e9), False)
        raise ValueError(f"polling is 'adaptive', 'never' or seconds from 0 to 1, not {setting!r}")


class Owner(Protocol):
    """What a member does with its turn."""

    def on_records(self) -> None:
        """There may be records to take; takes a bounded number. Never raises."""

    def on_rung(self) -> None:
        """The doorbell rang: there may also be room for what waited. Never raises."""

    def on_silenced(self) -> None:
        """Nobody can ring the doorbell any more."""


class Member:
    """One channel in a poller."""

    __slots__ = (
        "_cpus_checked_ns",
        "_limit_ns",
        "adaptive",
        "announced_ns",
        "awake",
        "consumer",
        "credible",
        "doorbell",
        "held_until_ns",
        "last_work_ns",
        "one_cpu",
        "owner",
        "peer_pid",
        "penalty",
        "removed",
        "sit_out",
        "window_ns",
        "worked",
    )

    def __init__(self, owner: Owner, consumer: Consumer, doorbell: Doorbell, polling: Polling, peer_pid: int) -> None:
        self.owner = owner
        self.consumer = consumer
        self.doorbell = doorbell
        self.adaptive = polling.adaptive
        self.peer_pid = peer_pid
        self.awake = False
        self.removed = False
        self.worked = False
        """Whether its last turn had work, which has ended when the next look begins: the window counts from there."""
        self.last_work_ns = 0
        self.penalty = PENALTY[0]
        self.sit_out = 0
        self.announced_ns = 0
        """When a record was announced that has not come yet; 0 when there is none."""
        self.held_until_ns = 0
        """Until when it stays awake for that record; 0 when it does not."""
        self.credible = True
        """Whether the last announcement was followed by a record in time. Else the next one holds nobody."""
        self.one_cpu = False
        """Whether both processes had one CPU between them when that was last checked."""
        self._limit_ns = polling.window_ns
        self._cpus_checked_ns = 0
        self.window_ns = self._limit_ns

    def paid(self, now_ns: int) -> None:
        """Looking found work."""
        self.last_work_ns = now_ns
        self.worked = True
        if self.announced_ns:
            self._came(now_ns)  # and whether looking pays was found when it was announced
        elif self.adaptive and self.window_ns:
            self.window_ns = self._limit_ns
            self.penalty = PENALTY[0]

    def woken(self, now_ns: int) -> None:
        """A record rang a sleeping member: looking did not pay, or was not tried."""
        if self.announced_ns:
            self._came(now_ns)
        self._slept(now_ns)

    def announced(self, now_ns: int) -> None:
        """The doorbell rang, and there is no record: one is being written, or there is room again, or it means nothing."""
        if self.held_until_ns:
            return  # once for each record: rings alone keep nobody awake
        if now_ns - self._cpus_checked_ns > CPU_CHECK_NS:
            self.check_cpus(now_ns)
        heeded = self.adaptive and not self.one_cpu
        if heeded:
            self.announced_ns = now_ns
        if not heeded or not self.credible:
            if not self.awake:
                self._slept(now_ns)
            return
        self.held_until_ns = now_ns + HOLD_NS
        if now_ns - self.last_work_ns < self._limit_ns:
            self.window_ns = self._limit_ns
            self.penalty = PENALTY[0]
        elif self.window_ns:
            self.window_ns = max(self.window_ns // 2, self._limit_ns // 8)  # not to nothing: no record waited for it

    def waited_in_vain(self) -> None:
        """It was held, and fell asleep without a record."""
        self.held_until_ns = 0
        self.credible = False

    def _came(self, now_ns: int) -> None:
        """A record came that was announced, whether it was waited for or not: that decides about the next one."""
        self.credible = now_ns - self.announced_ns < HOLD_NS + WINDOW_NS
        self.announced_ns = self.held_until_ns = 0

    def _slept(self, now_ns: int) -> None:
        soon = now_ns - self.last_work_ns < SOON_NS
        self.last_work_ns = now_ns
        self.worked = True
        if not self.adaptive:
            return
        if self.window_ns:
            self.window_ns //= 2
            if self.window_ns < self._limit_ns // 8:
                self.window_ns = 0
                self.sit_out = self.penalty
                self.penalty = min(self.penalty * 2, PENALTY[1])
        elif self.sit_out > 0:
            self.sit_out -= 1
        elif soon:
            self.window_ns = self._limit_ns
        if self.window_ns and now_ns - self._cpus_checked_ns > CPU_CHECK_NS:
            self.check_cpus(now_ns)

    def check_cpus(self, now_ns: int) -> None:
        """Sets the window to zero while both processes share one CPU; looking would only keep the peer from running."""
        self._cpus_checked_ns = now_ns
        self.one_cpu = usable_cpus(self.peer_pid) == 1
        if self.one_cpu and self.adaptive:
            self.window_ns = 0
            self.sit_out = PENALTY[0]


def usable_cpus(peer_pid: int) -> int:
    """On how many CPUs this process and its peer may run, taken together."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:
        return len(cpus | os.sched_getaffinity(peer_pid)) if peer_pid > 0 else len(cpus)
    except OSError:  # it is gone, or in a namespace that this process cannot see
        return len(cpus)


class Poller:
    """All channels of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self._awake: list[Member] = []
        self._consumers: list[Consumer] = []  # of `_awake`, for the native look
        self._scheduled = False
        self._last_look_ns = 0

    def __repr__(self) -> str:
        return f"<Poller {len(self._awake)} awake>"

    def add(self, member: Member) -> None:
        """Begins to serve a member. It starts awake."""
        self.loop.add_reader(member.doorbell.fd, self._on_doorbell, member)
        now_ns = member.last_work_ns = monotonic_ns()
        member.check_cpus(now_ns)
        self._wake(member)

    def remove(self, member: Member) -> None:
        """Forgets a member; to be called before its doorbell is closed."""
        self.loop.remove_reader(member.doorbell.fd)
        member.removed = True
        if member.awake:
            self._drop(member)

    def _wake(self, member: Member) -> None:
        member.awake = True
        self._awake.append(member)
        self._consumers.append(member.consumer)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._look)

    def _drop(self, member: Member) -> None:
        member.awake = False
        index = self._awake.index(member)
        del self._awake[index], self._consumers[index]

    def _on_doorbell(self, member: Member) -> None:
        # In this order: clear, disarm, look. A ring that comes after the clear stays for the next turn.
        if not member.doorbell.clear():
            member.owner.on_silenced()
            return
        if member.awake:
            if not member.consumer.ready():
                member.announced(monotonic_ns())
            member.owner.on_rung()
            return
        member.consumer.disarm()
        if member.consumer.ready():
            member.woken(monotonic_ns())
        else:
            member.announced(monotonic_ns())
        try:
            member.owner.on_rung()
        finally:  # after its work was started, so that a look comes behind it in the loop's queue
            if not member.removed:
                self._wake(member)

    def _look(self) -> None:
        began_ns = monotonic_ns()
        look_ns = LOOK_NS if began_ns - self._last_look_ns < BUSY_GAP_NS else 0
        looking = any(member.window_ns or member.held_until_ns for member in self._awake)
        found = self._consumers and watch(self._consumers, look_ns if looking else 0)
        try:
            for member in tuple(self._awake):
                if found and member.consumer.ready():
                    member.paid(began_ns)
                    member.owner.on_records()
                    continue
                if member.worked:
                    member.worked = False
                    member.last_work_ns = began_ns
                if (
                    began_ns - member.last_work_ns >= member.window_ns
                    and began_ns >= member.held_until_ns
                    and not member.removed
                    and member.consumer.arm()
                ):
                    self._drop(member)
                    if member.held_until_ns:
                        member.waited_in_vain()
        finally:  # a KeyboardInterrupt out of a handler stops the loop, which may run again to clean up
            if self._awake:
                self._last_look_ns = monotonic_ns()
                self.loop.call_soon(self._look)
            else:
                self._scheduled = False


_pollers: WeakValueDictionary[int, Poller] = WeakValueDictionary()
"""By the loop's id. Weak values: a poller refers to its loop, and would keep a weak key alive for ever."""


def poller_of(loop: asyncio.AbstractEventLoop) -> Poller:
    """The poller of an event loop, made when it is needed; whoever uses it keeps it."""
    poller = _pollers.get(id(loop))
    if poller is None or poller.loop is not loop:
        poller = _pollers[id(loop)] = Poller(loop)
    return poller
