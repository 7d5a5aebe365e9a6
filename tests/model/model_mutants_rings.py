"""Waiting for room and memory, the rings and the releases, with one of their rules taken out, for each rule."""

from typing import Any

import model_endpoint as ends
import model_rings as rings
import model_wake as wake
from model_endpoint import Endpoint
from model_mutant import Replacements, mutant, named, nothing
from model_rings import FULL, OK
from model_steps import Choose, Load, Steps, Store

# ---- waiting for room and memory ----


@mutant("who waits for room does not look once more when it has armed", ends, caught=("room", "home"))
def _() -> Replacements:
    def flush(e: Endpoint) -> Steps[None]:
        if not e.outbox and not e.on_home:
            return
        if e.waiting_for_room:
            yield from ends.room_found(e)
        e.corked = False
        done = yield from ends.empty_outbox(e)
        told = yield from ends.tell_home(e)
        e.waiting_for_room = not (told and done)
        if e.waiting_for_room:
            yield from ends.want_room(e)
        e.corked = bool(e.outbox)

    return (flush,)


@mutant("who waits for room again does so under the old epoch", ends, caught=("room again", "home with 2 blocks"))
def _() -> Replacements:
    return (named("room_found", nothing),)


@mutant("the consumer does not look whether the producer waits for room", ends, caught=("room",))
def _() -> Replacements:
    def take_chunk(e: Endpoint, most: int) -> Steps[tuple[Any, ...]]:
        record = yield from rings.shm_consumer_take(e.consumer)
        if record == rings.EMPTY:
            return ()
        yield from rings.shm_consumer_commit(e.consumer)
        return ((record, e.consumer.head),)

    return (take_chunk,)


@mutant("the consumer looks whether the producer waits before it gives room back", ends, caught=("room",))
def _() -> Replacements:
    def take_chunk(e: Endpoint, most: int) -> Steps[tuple[Any, ...]]:
        record = yield from rings.shm_consumer_take(e.consumer)
        if record == rings.EMPTY:
            return ()
        e.room_due = yield from wake.shm_ringer_must_ring(e.room_of_peer)
        yield from rings.shm_consumer_commit(e.consumer)
        return ((record, e.consumer.head),)

    return (take_chunk,)


@mutant("a turn that ends early does not look at what waits for room", ends, caught=("room", "home"))
def _() -> Replacements:
    def on_records(e: Endpoint) -> Steps[None]:
        yield from ends.dispatch(e)
        interrupted = yield Choose(2)
        if (e.outbox or e.on_home) and not interrupted:
            yield from ends.flush(e)

    return (on_records,)


@mutant("newer records do not wait behind those that wait for room", ends, caught=("room again",))
def _() -> Replacements:
    original = ends.producer_publish

    def producer_publish(e: Endpoint, record: Any) -> Steps[str]:
        e.corked = False
        return (yield from original(e, record))

    return (producer_publish,)


@mutant("a doorbell that rings for memory is heard only if a record waits for room", ends, caught=("home", "thread"))
def _() -> Replacements:
    def on_records(e: Endpoint) -> Steps[None]:
        yield from ends.dispatch(e)
        if e.outbox:
            yield from ends.flush(e)

    return (on_records,)


@mutant("a release does not ring who waits for memory", ends, caught=("home", "thread"))
def _() -> Replacements:
    def releaser_send_home(e: Any, record: Any) -> Steps[None]:
        yield from rings.shm_releaser_push(e.releaser, record[1:])

    return (releaser_send_home,)


@mutant("who waits for memory does not look once more", ends, caught=("home", "thread"))
def _() -> Replacements:
    def look_for_memory(e: Endpoint, needs: int) -> Steps[bool]:
        yield from ends.collect(e)
        if len(e.free) >= needs:
            return True
        e.waits_for_memory = e.on_home = True
        if not e.waiting_for_room:
            yield from ends.want_room(e)
            e.waiting_for_room = True
        return False

    return (look_for_memory,)


# ---- the rings ----


@mutant("a record is written after it is published", rings, caught=("records", "room"))
def _() -> Replacements:
    def shm_producer_push(p: rings.Producer, record: Any) -> Steps[str]:
        if p.tail + 1 - p.head > p.size:
            yield from rings.shm_producer_refresh(p)
            if p.tail + 1 - p.head > p.size:
                return FULL
        p.tail += 1
        yield Store(p.tail_word, p.tail)
        yield Store(rings.place(p.ring, p.tail - 1, p.size), record)
        return OK

    return (shm_producer_push,)


@mutant("a record is written where there is no room", rings, caught=("room",))
def _() -> Replacements:
    def shm_producer_refresh(p: rings.Producer) -> Steps[None]:
        yield Load(p.head_word)
        p.head = max(p.head, p.tail + 1 - p.size)

    return (shm_producer_refresh,)


@mutant("room is given back before what lay there is copied", rings, caught=("room",))
def _() -> Replacements:
    def shm_consumer_take(c: rings.Consumer) -> Steps[Any]:
        if c.head == c.tail:
            status = yield from rings.shm_consumer_look(c)
            if status != OK:
                return rings.EMPTY
        c.head += 1
        yield from rings.shm_consumer_commit(c)
        record = yield Load(rings.place(c.ring, c.head - 1, c.size))
        c.committed -= 1
        return record

    return (shm_consumer_take,)


@mutant("a release is written after it is published", rings, caught=("home",))
def _() -> Replacements:
    def shm_releaser_push(r: rings.Releaser, release: Any) -> Steps[None]:
        yield Load(r.head_word)
        r.tail += 1
        yield Store(r.tail_word, r.tail)
        yield Store(rings.place(r.ring, r.tail - 1, r.entries), release)

    return (shm_releaser_push,)


@mutant("a release that was taken stays in the ring", rings, caught=("home", "thread"))
def _() -> Replacements:
    def shm_reaper_take(r: rings.Reaper) -> Steps[Any]:
        tail: int = yield Load(r.tail_word)
        if tail == r.head:
            return rings.EMPTY
        return (yield Load(rings.place(r.ring, r.head, r.entries)))

    return (shm_reaper_take,)


# ---- releases and records ----


@mutant("a release counts at once, and does not wait for records", ends, caught=("reply",))
def _() -> Replacements:
    def take_home(e: Endpoint) -> Steps[bool]:
        entries = yield from ends.reaper_take(e.reaper)
        ends.end_leases(e, entries)
        return bool(entries)

    return (take_home,)


@mutant("where the records end is looked up before the releases are taken", ends, caught=("reply",))
def _() -> Replacements:
    def take_home(e: Endpoint) -> Steps[bool]:
        position = yield from rings.shm_consumer_published(e.consumer)
        entries = yield from ends.reaper_take(e.reaper)
        if entries:
            e.homecoming += ((position, entries),)
        came = False
        while e.homecoming and e.homecoming[0][0] <= e.handled:
            ends.end_leases(e, e.homecoming[0][1])
            e.homecoming = e.homecoming[1:]
            came = True
        return came

    return (take_home,)


@mutant("a lease is released before the record that sends its block back", ends, caught=("reply",))
def _() -> Replacements:
    def reply(e: Endpoint, record: Any) -> Steps[None]:
        yield from ends.releaser_send_home(e, record)
        yield from ends.send(e, record)

    return (reply,)


@mutant(
    "a lease is released while the record that sends its block back waits for room",
    ends,
    caught=("2 replies",),
    depth_first=True,
)
def _() -> Replacements:
    def reply(e: Endpoint, record: Any) -> Steps[None]:
        yield from ends.send(e, record)
        yield from ends.releaser_send_home(e, record)

    return (reply,)


@mutant("a block is given away again while it is lent", ends, caught=("home again",))
def _() -> Replacements:
    def look_for_memory(e: Endpoint, needs: int) -> Steps[bool]:
        yield from ends.collect(e)
        e.free = e.free or (0,)
        return True

    return (look_for_memory,)
