"""The model and the code, side by side: two real channels and the model's endpoints are led through the same turns.

After each turn every shared word, both doorbells, the outbox and all that was received are the same on both sides. Turns
come in random order, each as a whole: what happens within them is what the explorer goes through. What `Poller` does in a
turn is done here by hand, since it belongs to an event loop; that its order is this one is in `test_model_is_the_code.py`.
"""

import os
import random
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import model_endpoint as ends
import pytest
from model_endpoint import Endpoint
from model_plan import Plan
from model_scenes import WORDS
from model_steps import Choose, Clear, Load, Ring, Steps, Store

from shmrpc.shm import doorbell, layout, segment
from shmrpc.shm.channel import Channel
from shmrpc.shm.doorbell import Doorbell
from shmrpc.shm.layout import Geometry

PLACES: Final = 4
RECORD_BYTES: Final = 1024
GEOMETRY: Final = Geometry(
    ring_bytes=PLACES * RECORD_BYTES, release_entries=16, slab_bytes=16 * 1024, inline_limit=1024
)
OFFSETS: Final = {word: getattr(layout, f"CURSOR_{word.upper()}") for word in WORDS}
BUDGET: Final = 2
WALKS: Final = 60
TURNS: Final = 80


class Code:
    """One real end, with what `Poller` and `Session` would keep of it."""

    def __init__(self, own: segment.Segment, peer: segment.Segment, bell: Doorbell, ringer: doorbell.Ringer) -> None:
        self.segment = own
        self.channel = Channel(own, peer, bell, ringer, 1 << 20)
        self.awake = True
        self.received: list[int] = []

        def handler(flags: int, method: int, call_id: int, deadline_ns: int, payload: bytes) -> None:
            self.received.append(call_id)

        self._handlers = (handler,) * 256

    def send(self, number: int) -> None:
        self.channel.send(1, 0, 0, number, 0, bytes(RECORD_BYTES - layout.RECORD_HEADER))

    def on_records(self) -> None:
        self.channel.dispatch(BUDGET, self._handlers, {})
        if self.channel.outbox:
            self.channel.flush()

    def look(self, window_is_over: bool) -> None:
        if self.channel.consumer.ready():
            self.on_records()
        elif window_is_over:
            self.awake = not self.channel.consumer.arm()

    def on_doorbell(self) -> None:
        self.channel.doorbell.clear()
        if not self.awake:
            self.channel.consumer.disarm()
        self.on_records()
        self.awake = True

    def rings(self) -> bool:
        return bool(select.select([self.channel.doorbell.fd], [], [], 0)[0])

    def words(self) -> dict[str, int]:
        mapping = self.segment.mapping
        found = {word: int.from_bytes(mapping[at : at + 8], "little") for word, at in OFFSETS.items()}
        return found | {word: found[word] // RECORD_BYTES for word in ("tail", "head")}


class Model:
    """The model's endpoints, with a memory in which everything happens at once."""

    def __init__(self) -> None:
        plan = Plan(sends=1000, gets=1000, budget=BUDGET, ring=PLACES, ring_of_peer=PLACES)
        self.ends = {"A": Endpoint("A", "B", plan), "B": Endpoint("B", "A", plan)}
        self.memory: dict[str, Any] = {f"{own}.{word}": 0 for own in "AB" for word in WORDS}
        self.bells = {"A.bell": 0, "B.bell": 0}

    def run(self, steps: Steps[None], choice: int = 0) -> None:
        answer = None
        while True:
            try:
                op = steps.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(op, Load):
                answer = self.memory[op.word]
            elif isinstance(op, Store):
                self.memory[op.word] = op.value
            elif isinstance(op, (Ring, Clear)):
                self.bells[op.bell] = int(isinstance(op, Ring))
            elif isinstance(op, Choose):
                answer = choice

    def words(self, own: str) -> dict[str, int]:
        return {word: self.memory[f"{own}.{word}"] for word in WORDS}


@contextmanager
def two_ends_of_code(kind: doorbell.Kind) -> Iterator[dict[str, Code]]:
    """Two real channels that are joined."""
    segments = [segment.create(GEOMETRY, "memfd") for _ in "AB"]
    seen = [
        segment.attach(os.dup(each.fd), GEOMETRY, each.kind, max_segment_bytes=1 << 20) for each in reversed(segments)
    ]
    bells = [Doorbell(kind) for _ in "AB"]
    ringers = [doorbell.open_ringer(os.dup(each.far_fd), kind) for each in reversed(bells)]
    for own, bell in zip(segments, bells, strict=True):
        own.drop_fd()
        bell.drop_far_fd()
        bell.clear()
    made = [Code(*each) for each in zip(segments, seen, bells, ringers, strict=True)]
    try:
        yield dict(zip("AB", made, strict=True))
    finally:
        for each in made:
            each.channel.close()


@pytest.mark.parametrize("kind", ["eventfd", "pipe"])
def test_model_and_code_go_the_same_way(kind: doorbell.Kind) -> None:
    seed = int(os.environ.get("SHMRPC_TEST_SEED") or random.randrange(1 << 32))
    print(f"SHMRPC_TEST_SEED={seed}")
    source = random.Random(seed)
    slept = waited = 0
    for _ in range(WALKS):
        with two_ends_of_code(kind) as code:
            model = Model()
            eager = source.choice("AB")
            for _ in range(TURNS):
                own = eager if source.random() < 0.6 else source.choice("AB")
                slept += not code[own].awake
                waited += bool(code[own].channel.outbox)
                for act in one_turn(source, own, code[own], model):
                    act()
                for each in "AB":
                    assert code[each].words() == model.words(each)
                    assert code[each].rings() == bool(model.bells[f"{each}.bell"])
                    assert code[each].awake == model.ends[each].awake
                    assert [record[3] for record in code[each].channel.outbox] == [
                        record[0] for record in model.ends[each].outbox
                    ]
                    assert len(code[each].received) == model.ends[each].received
                    assert code[each].received == list(range(1, model.ends[each].received + 1))
    assert slept > WALKS
    assert waited > WALKS


def one_turn(source: random.Random, own: str, code: Code, model: Model) -> list[Callable[[], object]]:
    """What one end does next, by the code and by the model."""
    end = model.ends[own]
    can = ["send"]
    if code.rings():
        can += ["rings"] * 2
    if code.awake:
        can += ["look"] * 2
    turn = source.choice(can)
    if turn == "send":
        end.sent += 1
        sent = end.sent
        return [lambda: code.send(sent), lambda: model.run(ends.send(end, (sent, 0, 0)))]
    if turn == "rings":
        return [code.on_doorbell, lambda: model.run(ends.on_doorbell(end))]
    over = source.random() < 0.7
    return [lambda: code.look(over), lambda: model.run(ends.look(end), int(over))]
