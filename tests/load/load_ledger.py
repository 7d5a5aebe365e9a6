"""The books of a load: what was called, how it ended, what was done. They prove that nothing was lost, or done twice.

A ledger belongs to the side that makes the calls. `Ledger.settle` holds it against the journal of the side that served them.
"""

from collections import Counter
from enum import IntEnum
from time import monotonic_ns
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from load_journal import BEGAN, CORRUPT, OUTCOMES, SENT, Journal, JournalReader

import shmrpc
from shmrpc.retry import ATTEMPTS

Numbers = npt.NDArray[Any]


class Kind(IntEnum):
    """How often a call may be done."""

    ONCE = 1
    AGAIN = 2
    """Idempotent: several times."""
    ONE_WAY = 3
    FED = 4
    """Once, and with a stream of the caller's, which cannot be had twice."""


class Outcome(IntEnum):
    """How a call ended."""

    OPEN = 0
    DONE = 1
    """With the result that it must have."""
    NOT_DONE = 2
    """With an error that says that it was not executed."""
    MAYBE = 3
    """With an error that says that it may have been executed."""
    LATE = 4
    """Its deadline passed."""
    CANCELLED = 5
    """By its caller."""
    UNSENT = 6
    """Its deadline passed before it was sent."""


class Ledger:
    """All calls of one client, by number. Numbers begin with `first`, so that several clients can share a journal."""

    def __init__(self, *, first: int = 0, journal: Journal | None = None) -> None:
        """With a `journal`, beginnings and ends are in there too, for a client that may be killed."""
        self.first: Final = first
        self.wrong: list[str] = []
        """What must not be."""
        self.reasons: dict[int, str] = {}
        """Of those that were not executed."""
        self.nbytes = 0
        """Contents that were checked end to end."""
        self.first_done_ns = 0
        """When a call ended well for the first time since this was set to 0."""
        self.streams = 0
        """Streams that ended well, each item of which was checked."""
        self.items = 0
        self.returned: Counter[int] = Counter()
        """Calls from the server, by the number of the call that led to them."""
        self._kinds = bytearray()
        self._outcomes = bytearray()
        self._done: Numbers = np.zeros(0, np.int64)
        self._journal = journal

    def __len__(self) -> int:
        """How many calls were begun."""
        return len(self._kinds)

    def __repr__(self) -> str:
        return f"<Ledger of {len(self)} calls, {self.counts()}, {len(self.wrong)} wrong>"

    def begin(self, kind: Kind) -> int:
        """A number for a call that is about to be made."""
        number = self.first + len(self._kinds)
        self._kinds.append(kind)
        self._outcomes.append(Outcome.OPEN)
        if self._journal is not None:
            self._journal.write(SENT + kind, number)
        return number

    def end(self, number: int, outcome: Outcome) -> None:
        """A call has ended."""
        index = number - self.first
        if self._outcomes[index] != Outcome.OPEN:
            self.wrong.append(f"call {number} ended twice: {Outcome(self._outcomes[index])!r}, then {outcome!r}")
        self._outcomes[index] = outcome
        if outcome == Outcome.DONE and not self.first_done_ns:
            self.first_done_ns = monotonic_ns()
        if self._journal is not None:
            self._journal.write(OUTCOMES + outcome, number)

    def fail(self, number: int, error: BaseException) -> None:
        """A call has ended with an error, which must be one that the load accounts for."""
        match error:
            case shmrpc.DeadlineExceeded() | shmrpc.ResourceExhausted() if "sent" in str(error):
                self.end(number, Outcome.UNSENT)
            case shmrpc.DeadlineExceeded():
                self.end(number, Outcome.LATE)
            case shmrpc.Unavailable():
                self.end(number, Outcome.MAYBE if error.maybe_executed else Outcome.NOT_DONE)
                if not error.maybe_executed:
                    self.reasons[number] = f"{type(error).__name__}: {error}"
            case _:
                self.end(number, Outcome.MAYBE)
                self.wrong.append(f"call {number} ended with {type(error).__name__}: {error}")

    def counts(self) -> dict[str, int]:
        """How many calls had which outcome."""
        numbers = np.bincount(np.frombuffer(self._outcomes, np.uint8), minlength=len(Outcome))
        return {outcome.name: int(numbers[outcome]) for outcome in Outcome if numbers[outcome]}

    @property
    def lost(self) -> int:
        """Calls that have not ended."""
        return self._outcomes.count(Outcome.OPEN)

    def settle(self, *readers: JournalReader) -> None:
        """Holds the books against the journals, once all calls have ended and nobody serves any more. May be repeated.

        Raises:
            AssertionError: something was lost, done twice, or said wrongly.
        """
        entries = np.concatenate([reader.read() for reader in readers])
        at = entries["number"].astype(np.int64) - self.first
        mine = (at >= 0) & (at < len(self))
        self._done = np.bincount(at[mine & (entries["event"] == BEGAN)], minlength=len(self)) + np.pad(
            self._done, (0, len(self) - len(self._done))
        )
        done = self._done
        corrupt = at[mine & (entries["event"] == CORRUPT)] + self.first
        kinds, outcomes = (np.frombuffer(bytes(book), np.uint8) for book in (self._kinds, self._outcomes))
        wrong = self.wrong + misreports(np.arange(len(self)) + self.first, kinds, outcomes, done)
        wrong += [f"call {number} arrived corrupted" for number in corrupt]
        for number, times in self.returned.items():
            if times > 1 or not done[number - self.first]:
                wrong.append(f"call {number} came back {times} times, and began {done[number - self.first]} times")
        told = [
            f"call {number}: {why}" for number, why in self.reasons.items() if any(f" {number} " in x for x in wrong)
        ]
        assert not wrong, "\n".join([f"{len(wrong)} things are wrong", *wrong[:20], *told[:20]])


def misreports(numbers: Numbers, kinds: Numbers, outcomes: Numbers, done: Numbers, *, died: bool = False) -> list[str]:
    """What does not fit of how calls ended and of how often each was done. `died`: their client did, with some open."""
    most = np.where(kinds == Kind.AGAIN, ATTEMPTS, 1)
    most[(outcomes == Outcome.NOT_DONE) | (outcomes == Outcome.UNSENT)] = 0
    least = np.where((outcomes == Outcome.DONE) & (kinds != Kind.ONE_WAY), 1, 0)
    found = []
    for which, what in (
        ((outcomes == Outcome.OPEN) & (not died), "never ended"),
        ((outcomes == Outcome.NOT_DONE) & (kinds != Kind.FED), "was not made again, though it was not executed"),
        (done < least, "was acknowledged and not done"),
        (done > most, "was done too often, or was said not to have been"),
    ):
        found += [
            f"call {numbers[at]} ({Kind(kinds[at]).name}, {Outcome(outcomes[at]).name}) {what}: done {done[at]} times"
            for at in np.flatnonzero(which)
        ]
    return found


def settle_journals(
    client_journal: JournalReader, server_journal: JournalReader, *, but: int = 0, died: bool = True
) -> int:
    """Holds what clients wrote, which perhaps died of it, against what their servers did; how many calls that were.

    Calls with numbers below `but` are somebody else's.

    Raises:
        AssertionError: something was lost, done twice, or said wrongly.
    """
    said, did = client_journal.read(), server_journal.read()
    numbers, events = said["number"], said["event"]
    sent = (events > SENT) & (events < OUTCOMES)
    order = np.argsort(numbers[sent], kind="stable")
    called, kinds = numbers[sent][order], (events[sent] - SENT)[order]
    assert len(np.unique(called)) == len(called)
    ended = events >= OUTCOMES
    assert len(np.unique(numbers[ended])) == np.count_nonzero(ended), "a call ended twice"
    outcomes = np.zeros(len(called), np.uint8)
    outcomes[np.searchsorted(called, numbers[ended])] = events[ended] - OUTCOMES
    began = did["number"][(did["event"] == BEGAN) & (did["number"] >= but)]
    at = np.searchsorted(called, began)
    assert np.isin(began, called).all(), "something was done that nobody asked for"
    wrong = misreports(called, kinds, outcomes, np.bincount(at, minlength=len(called)), died=died)
    wrong += [f"call {number} arrived corrupted" for number in did["number"][did["event"] == CORRUPT]]
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong", *wrong[:20]])
    return len(called)
