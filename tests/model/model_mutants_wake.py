"""The doorbell protocol with one of its rules taken out, for each rule."""

from typing import Any

import model_endpoint as ends
import model_rings as rings
import model_wake as wake
from model_endpoint import Endpoint
from model_mutant import Replacements, mutant, named, nothing
from model_rings import FULL
from model_steps import Choose, Load, Steps, Store
from model_wake import Ringer, Sleeper

# ---- fences and order of the doorbell protocol ----


@mutant("no fence between publishing and looking at the epoch", wake, caught=("records", "announced", "room", "home"))
def _() -> Replacements:
    return (named("shm_fence_ringer", nothing),)


@mutant("no fence between arming and looking once more", wake, caught=("records", "announced", "room", "home"))
def _() -> Replacements:
    return (named("shm_fence_sleeper", nothing),)


@mutant("the producer looks at the epoch before it publishes", ends, caught=("records", "room"))
def _() -> Replacements:
    def producer_publish(e: Endpoint, record: Any) -> Steps[str]:
        if e.corked:
            return FULL
        must_ring = yield from wake.shm_ringer_must_ring(e.doorbell_of_peer)
        status = yield from rings.shm_producer_push(e.producer, record)
        if status == FULL:
            return FULL
        return ends.RING if must_ring else ends.SENT

    return (producer_publish,)


@mutant("the consumer does not look once more when it has armed", ends, caught=("records", "announced", "room"))
def _() -> Replacements:
    def arm(e: Endpoint) -> Steps[bool]:
        yield from wake.shm_sleeper_arm(e.doorbell)
        return True

    return (arm,)


@mutant("the consumer looks once more before it arms, and not after", ends, caught=("records", "announced", "room"))
def _() -> Replacements:
    def arm(e: Endpoint) -> Steps[bool]:
        something = yield from ends.ready(e)
        if not something:
            yield from wake.shm_sleeper_arm(e.doorbell)
        return not something

    return (arm,)


# ---- the epoch ----


def with_flag(*, remembers: bool) -> Replacements:
    """A flag in place of the epoch: 1 while it is armed."""

    def shm_sleeper_arm(s: Sleeper) -> Steps[None]:
        s.epoch = 1
        yield Store(s.word, 1)
        yield from wake.shm_fence_sleeper()

    def shm_sleeper_disarm(s: Sleeper) -> Steps[None]:
        if s.epoch:
            s.epoch = 0
            yield Store(s.word, 0)

    def shm_ringer_must_ring(r: Ringer) -> Steps[bool]:
        yield from wake.shm_fence_ringer()
        flag: int = yield Load(r.word)
        rings_now = bool(flag) and not r.rung
        r.rung = flag if remembers else 0
        return rings_now

    return shm_sleeper_arm, shm_sleeper_disarm, shm_ringer_must_ring


@mutant("a flag instead of an epoch; one ring for each sleep", wake, wake, wake, caught=("records", "room again"))
def _() -> Replacements:
    return with_flag(remembers=True)


@mutant(
    "a flag instead of an epoch; a ring for each record while it is up", wake, wake, wake, harmless=("records", "room")
)
def _() -> Replacements:
    return with_flag(remembers=False)


@mutant("the ringer does not remember which epoch it rang", wake, harmless=("records", "room"))
def _() -> Replacements:
    def shm_ringer_must_ring(r: Ringer) -> Steps[bool]:
        yield from wake.shm_fence_ringer()
        epoch: int = yield Load(r.word)
        return epoch & 1 != 0

    return (shm_ringer_must_ring,)


@mutant("an announcement remembers an epoch that is armed, and does not ring", wake, caught=("announced",))
def _() -> Replacements:
    def shm_announce(r: Ringer) -> Steps[bool]:
        epoch: int = yield Load(r.word)
        if epoch & 1 == 1:
            r.rung = epoch
        return False

    return (shm_announce,)


@mutant("an announcement to one who is awake remembers the sleep to come", wake, caught=("announced",))
def _() -> Replacements:
    def shm_announce(r: Ringer) -> Steps[bool]:
        epoch: int = yield Load(r.word)
        rings_now = epoch | 1 != r.rung
        r.rung = epoch | 1
        return rings_now

    return (shm_announce,)


# ---- waking ----


@mutant("the consumer does not disarm when it wakes", ends, caught=("records", "announced", "room"))
def _() -> Replacements:
    return (named("disarm", nothing),)


@mutant("what came is taken first, and the doorbell cleared last", ends, caught=("room again", "home again"))
def _() -> Replacements:
    def on_doorbell(e: Endpoint) -> Steps[None]:
        if not e.awake:
            yield from ends.disarm(e)
        yield from ends.on_rung(e)
        yield from ends.clear(e)
        e.awake = e.plan.gets > 0

    return (on_doorbell,)


@mutant("the doorbell is cleared again before the sleep", ends, caught=("records", "announced", "room"))
def _() -> Replacements:
    original = ends.arm

    def arm(e: Endpoint) -> Steps[bool]:
        asleep = yield from original(e)
        if asleep:
            yield from ends.clear(e)
        return asleep

    return (arm,)


@mutant(
    "what came is taken first, and the epoch disarmed last", ends, harmless=("records", "announced", "room", "home")
)
def _() -> Replacements:
    def on_doorbell(e: Endpoint) -> Steps[None]:
        yield from ends.clear(e)
        yield from ends.on_rung(e)
        if not e.awake:
            yield from ends.disarm(e)
        e.awake = e.plan.gets > 0

    return (on_doorbell,)


@mutant(
    "the epoch is disarmed first, and the doorbell cleared second",
    ends,
    harmless=("records", "announced", "room", "home"),
)
def _() -> Replacements:
    def on_doorbell(e: Endpoint) -> Steps[None]:
        if not e.awake:
            yield from ends.disarm(e)
        yield from ends.clear(e)
        yield from ends.on_rung(e)
        e.awake = e.plan.gets > 0

    return (on_doorbell,)


@mutant("one who is rung only clears the doorbell, if it is awake", ends, caught=("both send",), depth_first=True)
def _() -> Replacements:
    original = ends.on_doorbell

    def on_doorbell(e: Endpoint) -> Steps[None]:
        if e.awake:
            yield from ends.clear(e)
        else:
            yield from original(e)

    return (on_doorbell,)


@mutant("a doorbell rings for no reason, at any time", wake, harmless=("room", "home"))
def _() -> Replacements:
    original = wake.shm_ringer_must_ring

    def shm_ringer_must_ring(r: Ringer) -> Steps[bool]:
        must_ring = yield from original(r)
        needless = yield Choose(2)
        return must_ring or bool(needless)

    return (shm_ringer_must_ring,)
