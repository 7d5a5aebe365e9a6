"""One end of a channel with its event loop, step by step, for the explorer.

Stands for `shm/channel.py` (outbox, want-room, coming home), `shm/poller.py` (what happens on a wake, and before a sleep),
`_native/consumer.c`, `producer.c` and `release_types.c` (what they compose of ring.h and wake.h), and for what `session.py`
and `lending.py` do between them. A function has the name of the one that it stands for. For how long a loop keeps looking
is open: at each look it may go on, or arm.

What the application does is in `Plan`. It may begin the next thing in any turn of the loop.
"""

from typing import Any, Final

import model_rings as rings
import model_wake as wake
from model_plan import Plan
from model_rings import FULL
from model_steps import Await, Choose, Clear, Load, Ring, Steps, Store, Turn, Update

SENT: Final = "sent"
RING: Final = "ring"


class Endpoint:
    """What the objects of one end keep."""

    def __init__(self, own: str, peer: str, plan: Plan) -> None:
        self.own = own
        self.bell = f"{own}.bell"
        self.peer_bell = f"{peer}.bell"
        self.plan = plan
        # of the native objects
        self.producer = rings.Producer(own, peer, plan.ring)
        self.doorbell_of_peer = wake.Ringer(f"{peer}.doorbell_epoch")
        self.want_room = wake.Sleeper(f"{own}.room_epoch")
        self.consumer = rings.Consumer(own, peer, plan.ring_of_peer)
        self.doorbell = wake.Sleeper(f"{own}.doorbell_epoch")
        self.room_of_peer = wake.Ringer(f"{peer}.room_epoch")
        self.releaser = rings.Releaser(own, peer, plan.entries)
        self.release_room_of_peer = wake.Ringer(f"{peer}.room_epoch")
        self.reaper = rings.Reaper(own, peer, plan.entries)
        self.room_due = False
        self.handled = 0
        # of the Channel
        self.outbox: tuple[Any, ...] = ()
        self.kept: tuple[Any, ...] = ()
        """Of the records in the outbox, those whose lease is released when they are published."""
        self.corked = False
        self.waiting_for_room = False
        self.on_home = False
        self.homecoming: tuple[tuple[int, tuple[Any, ...]], ...] = ()
        # of the Arena
        self.free = tuple(range(plan.blocks)) if plan.lends else ()
        self.loans: dict[int, int] = {}
        # of the Poller
        self.awake = plan.gets > 0
        """One who gets nothing never looks: nobody reads its doorbell epoch."""
        # of the application
        self.sent = 0
        self.received = 0
        self.collects = plan.collects
        self.waits_for_memory = False
        self.wants_back = plan.wants_back


# ---- sending ----


def producer_publish(e: Endpoint, record: Any) -> Steps[str]:
    if e.corked:
        return FULL
    status = yield from rings.shm_producer_push(e.producer, record)
    if status == FULL:
        return FULL
    must_ring = yield from wake.shm_ringer_must_ring(e.doorbell_of_peer)
    return RING if must_ring else SENT


def send(e: Endpoint, record: Any) -> Steps[None]:
    status = yield from producer_publish(e, record)
    if status == RING:
        yield Ring(e.peer_bell)
    elif status == FULL:
        e.outbox += (record,)
        if len(e.outbox) == 1:
            yield from flush(e)


def announce(e: Endpoint) -> Steps[None]:
    if not e.outbox:
        rings_ahead = yield from wake.shm_announce(e.doorbell_of_peer)
        if rings_ahead:
            yield Ring(e.peer_bell)


def flush(e: Endpoint) -> Steps[None]:
    if not e.outbox and not e.on_home:
        return
    if e.waiting_for_room:
        yield from room_found(e)
        e.waiting_for_room = False
    e.corked = False
    while True:
        done = yield from empty_outbox(e)
        told = yield from tell_home(e)
        if (told and done) or e.waiting_for_room:
            break
        yield from want_room(e)
        e.waiting_for_room = True
    e.corked = bool(e.outbox)
    if not e.outbox and not e.on_home and e.waiting_for_room:
        yield from room_found(e)
        e.waiting_for_room = False


def want_room(e: Endpoint) -> Steps[None]:
    yield from wake.shm_sleeper_arm(e.want_room)


def room_found(e: Endpoint) -> Steps[None]:
    yield from wake.shm_sleeper_disarm(e.want_room)


def empty_outbox(e: Endpoint) -> Steps[bool]:
    while e.outbox:
        record = e.outbox[0]
        status = yield from producer_publish(e, record)
        if status == FULL:
            return False
        if status == RING:
            yield Ring(e.peer_bell)
        e.outbox = e.outbox[1:]
        if record in e.kept:
            e.kept = tuple(each for each in e.kept if each != record)
            yield from releaser_send_home(e, record)
    return True


def tell_home(e: Endpoint) -> Steps[bool]:
    if not e.on_home:
        return True
    return (yield from collect(e))


# ---- coming home ----


def collect(e: Endpoint) -> Steps[bool]:
    came = yield from take_home(e)
    if came and e.on_home:
        e.on_home = False
        e.waits_for_memory = False  # look_again
    return came


def take_home(e: Endpoint) -> Steps[bool]:
    came = False
    entries = yield from reaper_take(e.reaper)
    if entries:
        position = yield from rings.shm_consumer_published(e.consumer)
        e.homecoming += ((position, entries),)
    while e.homecoming and e.homecoming[0][0] <= e.handled:
        end_leases(e, e.homecoming[0][1])
        e.homecoming = e.homecoming[1:]
        came = True
    return came


def end_leases(e: Endpoint, entries: tuple[Any, ...]) -> None:
    """`Arena.take_home`."""
    for lease, block in entries:
        assert e.loans.pop(lease, None) == block, f"lease {lease} was released twice, or was never out"
        e.free += (block,)


def reaper_take(r: rings.Reaper) -> Steps[tuple[Any, ...]]:
    entries: tuple[Any, ...] = ()
    while len(entries) < r.entries:
        release = yield from rings.shm_reaper_take(r)
        if release == rings.EMPTY:
            break
        entries += (release,)
    return entries


def releaser_send_home(e: "Endpoint | Thread", record: Any) -> Steps[None]:
    """Releases the lease of a record: a View died."""
    _, lease, block = record
    content: int = yield Load(f"block{block}")
    assert content == lease, f"block {block} was given away while lease {lease} was out"
    yield from rings.shm_releaser_push(e.releaser, (lease, block))
    must_ring = yield from wake.shm_ringer_must_ring(e.release_room_of_peer)
    if must_ring:
        yield Ring(e.peer_bell)


# ---- receiving ----


def take_chunk(e: Endpoint, most: int) -> Steps[tuple[Any, ...]]:
    chunk: tuple[Any, ...] = ()
    while len(chunk) < most:
        record = yield from rings.shm_consumer_take(e.consumer)
        if record == rings.EMPTY:
            break
        chunk += ((record, e.consumer.head),)
    committed = yield from rings.shm_consumer_commit(e.consumer)
    if committed:
        due = yield from wake.shm_ringer_must_ring(e.room_of_peer)
        e.room_due = e.room_due or due
    return chunk


def dispatch(e: Endpoint) -> Steps[None]:
    chunk = yield from take_chunk(e, e.plan.budget)
    while chunk:
        record, e.handled = chunk[0]
        chunk = chunk[1:]
        yield from on_record(e, record)
    if e.room_due:
        e.room_due = False
        yield Ring(e.peer_bell)


def on_records(e: Endpoint) -> Steps[None]:
    yield from dispatch(e)
    if e.outbox or e.on_home:
        yield from flush(e)


def on_record(e: Endpoint, record: Any) -> Steps[None]:
    """The application gets a record."""
    number, lease, block = record
    assert number == e.received + 1, f"record {number} came behind record {e.received}"
    e.received = number
    if e.plan.lends:  # a reply, which has a block of this side by reference
        assert e.loans.get(lease) == block, f"a record refers to lease {lease}, which is over"
    elif e.plan.returns == "home":
        yield from releaser_send_home(e, record)
    elif e.plan.returns == "thread":
        yield Update(f"{e.own}.views", record)
    elif e.plan.returns == "reply":
        yield from reply(e, record)


def reply(e: Endpoint, record: Any) -> Steps[None]:
    """Sends a block back by reference; its View dies when that is published: `Channel.keep`."""
    yield from send(e, record)
    if record in e.outbox:
        e.kept += (record,)
    else:
        yield from releaser_send_home(e, record)


# ---- the loop ----


def ready(e: Endpoint) -> Steps[bool]:
    return (yield from rings.shm_consumer_ready(e.consumer))


def arm(e: Endpoint) -> Steps[bool]:
    yield from wake.shm_sleeper_arm(e.doorbell)
    something = yield from ready(e)
    if not something:
        return True
    yield from disarm(e)
    return False


def disarm(e: Endpoint) -> Steps[None]:
    yield from wake.shm_sleeper_disarm(e.doorbell)


def clear(e: Endpoint) -> Steps[None]:
    yield Clear(e.bell)


def on_doorbell(e: Endpoint) -> Steps[None]:
    yield from clear(e)
    if e.awake:
        yield from on_rung(e)
        return
    yield from disarm(e)
    yield from on_rung(e)
    e.awake = e.plan.gets > 0


def on_rung(e: Endpoint) -> Steps[None]:
    yield from on_records(e)


def look(e: Endpoint) -> Steps[None]:
    something = yield from ready(e)
    if something:
        yield from on_records(e)
        return
    window_is_over = yield Choose(2)
    if window_is_over:
        asleep = yield from arm(e)
        e.awake = not asleep


def begin_next(e: Endpoint) -> Steps[None]:
    """The application sends its next record, or takes the last step: to have all its memory back."""
    lease = block = 0
    if e.plan.lends:
        needs = 1 if e.sent < e.plan.sends else e.plan.blocks
        found = yield from look_for_memory(e, needs)
        if not found:
            return
        if e.sent == e.plan.sends:
            e.wants_back = False
            return
        lease, block = e.sent + 1, e.free[0]
        e.free = e.free[1:]
        yield Store(f"block{block}", lease)
        e.loans[lease] = block
    if e.plan.announces:
        tells = yield Choose(2)
        if tells:
            yield from announce(e)
    e.sent += 1
    yield from send(e, (e.sent, lease, block))


def look_for_memory(e: Endpoint, needs: int) -> Steps[bool]:
    """What `Lender.place` does until there is memory: looks, and waits to look again."""
    yield from collect(e)
    if len(e.free) >= needs:
        return True
    e.waits_for_memory = e.on_home = True  # _wait_home
    yield from flush(e)  # arms, and looks once more
    return False


def todo(e: Endpoint) -> tuple[str, ...]:
    """What the loop may do next, beside its doorbell."""
    wants = e.sent < e.plan.sends or e.wants_back
    return (
        *(("application",) if wants and not e.waits_for_memory else ()),
        *(("collect",) if e.collects else ()),
        *(("look",) if e.awake else ()),
    )


def content(e: Endpoint) -> bool:
    """Whether it may sleep for ever: it has done and got everything."""
    done = e.sent == e.plan.sends and e.received == e.plan.gets and not e.outbox and not e.kept
    return done and not e.wants_back


def one_turn(e: Endpoint) -> Steps[None]:
    turn = yield Turn(todo(e), e.bell, content(e))
    if turn == "rings":
        yield from on_doorbell(e)
    elif turn == "look":
        yield from look(e)
    elif turn == "collect":
        e.collects -= 1
        yield from collect(e)
    else:
        yield from begin_next(e)


def event_loop(own: str, peer: str, plan: Plan) -> Steps[None]:
    """The process of one end."""
    e = Endpoint(own, peer, plan)
    while True:
        yield from one_turn(e)


class Thread:
    """What another thread of one end needs, on which the last references to buffers die."""

    def __init__(self, own: str, peer: str, plan: Plan) -> None:
        self.peer_bell = f"{peer}.bell"
        self.releaser = rings.Releaser(own, peer, plan.entries)
        self.release_room_of_peer = wake.Ringer(f"{peer}.room_epoch")
        self.released = 0


def releasing_thread(own: str, peer: str, plan: Plan) -> Steps[None]:
    """The process of that thread."""
    t = Thread(own, peer, plan)
    while t.released < plan.gets:
        yield Await(f"{own}.views", content=False)
        views = yield Update(f"{own}.views", None)
        while views:
            t.released += 1
            record, views = views[0], views[1:]
            yield from releaser_send_home(t, record)
        del views, record
