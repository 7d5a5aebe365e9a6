"""Promises of shmrpc that are broken on purpose, in the client or in its servers: the machine must catch each.

What a mutant does is done to classes in place: in the client for the time of a test, in a server for good.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from stateful_api import journalled

from shmrpc.buffers import Packed
from shmrpc.inlet import Inlet, Message
from shmrpc.shm.channel import Channel
from shmrpc.shm.envelope import REQUEST
from shmrpc.shm.incoming import IncomingCalls
from shmrpc.shm.incoming_call import IncomingCall
from shmrpc.shm.lending import Lender
from shmrpc.shm.placed import Placed

if TYPE_CHECKING:
    from stateful_end import Example

Change = Callable[[pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """Who breaks a promise, how, and what the machine says of it."""

    side: str
    change: Change
    caught: str
    """A regular expression."""
    prelude: Callable[["Example"], None]
    """What happens first of all in each example: something that it takes."""


def _deny(patch: pytest.MonkeyPatch) -> None:
    """Says of every call that was lost that it was not executed, and so repeats it."""
    patch.setattr(Channel, "unread", lambda _: [(REQUEST, call_id) for call_id in range(100_000)])


def _end_twice(patch: pytest.MonkeyPatch) -> None:
    """Sends each answer twice."""
    end = IncomingCalls._end

    def end_twice(
        calls: IncomingCalls, call: IncomingCall, kind: int, payload: bytes, placed: Placed | None = None
    ) -> None:
        end(calls, call, kind, payload, placed)
        if placed is None:
            calls._channel.send(kind, 0, 0, call.call_id, 0, payload)

    patch.setattr(IncomingCalls, "_end", end_twice)


def _release_in_children(patch: pytest.MonkeyPatch) -> None:
    """Lets arrays that die in a forked child release what is their parent's."""
    patch.setattr(Channel, "forget", lambda channel: channel._ringer.forget())


def _free_too_early(patch: pytest.MonkeyPatch) -> None:
    """Uses the memory of a result again while the client still sees it."""
    place = Lender._try_place_one

    def place_and_free(lender: Lender, packed: Packed, method: str) -> Placed | None:
        placed = place(lender, packed, method)
        leases: Sequence[int] = placed.leases if placed is not None else ()
        for lease in leases:
            block = lender._arena.loans[lease].block
            block.leases -= 1
            lender._arena._give_back_if_unused(block)
        return placed

    patch.setattr(Lender, "_try_place_one", place_and_free)


def _lose_an_item(patch: pytest.MonkeyPatch) -> None:
    """Loses the last item of every message of many."""
    open_message: Callable[[Inlet, Message], None] = Inlet._open

    def open_most(inlet: Inlet, message: Message) -> None:
        open_message(inlet, message)
        if message.items > 2:
            inlet.ready.pop()

    patch.setattr(Inlet, "_open", open_most)


def _call(example: "Example", kind: str, times: int, items: int = 0) -> None:
    for _ in range(times):
        example.call(0, kind, size=2, items=items, timeout=None, born=False, keep=True)
        example.calls[-1].permit(items + 1)


def _answer(example: "Example") -> None:
    _call(example, "effect", 2)
    example.settle()


def _kill_what_runs(example: "Example") -> None:
    _call(example, "hold", 2)
    example.until(lambda: len(journalled(example.folder)) == 2, lambda: "the calls to begin")
    example.kill(example.places[0])
    example.places[0].start()


def _keep_arrays(example: "Example") -> None:
    _call(example, "make", 2)
    example.until(lambda: all(call.ended for call in example.calls), lambda: "the arrays")


def _fork_with_arrays(example: "Example") -> None:
    _keep_arrays(example)
    example.fork(stays=False)


def _read_numbers(example: "Example") -> None:
    _call(example, "numbers", 1, items=100)
    example.settle()


MUTANTS: Final[dict[str, Mutant]] = {
    "lost calls are said not to be executed": Mutant(
        "client", _deny, "may not be repeated|which its error denies", _kill_what_runs
    ),
    "calls end twice": Mutant("server", _end_twice, "which is not under way", _answer),
    "forked children release": Mutant(
        "client",
        _release_in_children,
        "was released under lease|release ring|is another one|changed since it came",
        _fork_with_arrays,
    ),
    "memory is free too early": Mutant(
        "server", _free_too_early, "changed since it came|is another one|another array", _keep_arrays
    ),
    "items of streams get lost": Mutant("client", _lose_an_item, r"item \d+ is|\d+ items", _read_numbers),
}


def change_server(name: str) -> None:
    """In a server that is a mutant: makes it one."""
    if name and (mutant := MUTANTS[name]).side == "server":
        mutant.change(pytest.MonkeyPatch())


def change_client(name: str, patch: pytest.MonkeyPatch) -> None:
    """The same in the client."""
    if (mutant := MUTANTS[name]).side == "client":
        mutant.change(patch)
