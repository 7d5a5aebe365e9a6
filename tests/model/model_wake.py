"""The doorbell protocol as `_native/wake.h` and `_native/atomics.h` have it, step by step, for the explorer.

Each function has the name of the one that it stands for, and does the same loads, stores and fences in the same order;
`test_model_is_the_code.py` compares them. What the announcer does to be told less often is not here: whether to announce
is open in the model, which covers it.
"""

from model_steps import Fence, Load, Steps, Store


class Sleeper:
    """`struct shm_sleeper`."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.epoch = 0


class Ringer:
    """`struct shm_ringer`."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.rung = 0


def shm_fence_ringer() -> Steps[None]:
    yield Fence()


def shm_fence_sleeper() -> Steps[None]:
    yield Fence()


def shm_sleeper_armed(s: Sleeper) -> bool:
    return s.epoch & 1 != 0


def shm_sleeper_arm(s: Sleeper) -> Steps[None]:
    if not shm_sleeper_armed(s):
        s.epoch += 1
        yield Store(s.word, s.epoch)
    yield from shm_fence_sleeper()


def shm_sleeper_disarm(s: Sleeper) -> Steps[None]:
    if shm_sleeper_armed(s):
        s.epoch += 1
        yield Store(s.word, s.epoch)


def shm_ringer_must_ring(r: Ringer) -> Steps[bool]:
    yield from shm_fence_ringer()
    epoch: int = yield Load(r.word)
    if epoch & 1 == 0 or epoch == r.rung:
        return False
    r.rung = epoch
    return True


def shm_announce(r: Ringer) -> Steps[bool]:
    epoch: int = yield Load(r.word)
    if epoch & 1 == 0:
        return True
    if epoch == r.rung:
        return False
    r.rung = epoch
    return True
