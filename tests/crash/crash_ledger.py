"""The books of one process that makes calls: each call with its ends, to be held against the journal of effects."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import shmrpc

ONEWAY: Final = "drop"
FROM_HANDLERS: Final = "Home."


@dataclass
class Entry:
    """One call."""

    what: str
    repeatable: bool
    """Whether it is declared idempotent, so that its effect may happen more than once."""
    ends: list[object] = field(default_factory=list)
    """What it ended with: its result, or the error. There must be one in the end."""
    right: bool = True
    """Whether the result was the right one."""


class Ledger:
    """All calls of one process."""

    def __init__(self, first: int) -> None:
        """Numbers its calls from `first` on."""
        self.entries: Final[dict[int, Entry]] = {}
        self._next = first

    def number(self) -> int:
        """A number that no other call has."""
        self._next += 1
        return self._next

    async def call(
        self,
        what: str,
        make: Callable[[int], Awaitable[object]],
        is_right: Callable[[int, object], bool] | None = None,
        *,
        repeatable: bool = False,
    ) -> object:
        """Makes a call and enters its end; gives the result, or None for an error that a crash may cause.

        Args:
            what: Its method.
            make: Makes it, with its number.
            is_right: Whether a result is the right one; without it, that is the call's number.
            repeatable: Whether its effect may happen more than once.
        """
        number = self.number()
        entry = self.entries[number] = Entry(what, repeatable)
        try:
            result = await make(number)
        except shmrpc.RpcError as error:
            error.__cause__ = error.__context__ = None  # whose frames may see arrays
            entry.ends.append(error.with_traceback(None))
            return None
        except asyncio.CancelledError:
            entry.ends.append(asyncio.CancelledError())
            raise
        entry.ends.append(None)
        entry.right = result == number if is_right is None else is_right(number, result)
        return result

    def faults(self, effects: list[int], *, flawless: bool = False) -> list[str]:
        """What is wrong with the calls so far, given what happened; with `flawless`, every error is.

        The end of a one-way call says nothing of its effect. A call that a handler made may be cancelled with it.
        """
        happened = Counter(effects)
        found = []
        for number, entry in self.entries.items():
            name = f"{entry.what} {number}"
            if len(entry.ends) != 1:
                found.append(f"{name} ended {len(entry.ends)} times")
                continue
            (end,) = entry.ends
            if not entry.right:
                found.append(f"{name} has a wrong result")
            if happened[number] > 1 and not entry.repeatable:
                found.append(f"{name} happened {happened[number]} times")
            if entry.what == ONEWAY:
                continue
            if isinstance(end, asyncio.CancelledError) and entry.what.startswith(FROM_HANDLERS) and not flawless:
                continue
            if end is None and not happened[number]:
                found.append(f"{name} was acknowledged and never happened")
            if end is not None:
                found += self._faults_of_error(name, end, happened[number])
                if flawless:
                    found.append(f"{name} failed: {end!r}")
        return found

    @staticmethod
    def _faults_of_error(name: str, error: object, happened: int) -> list[str]:
        if not isinstance(error, shmrpc.Unavailable):
            return [f"{name} ended with {error!r}, which no death of a process causes"]
        if happened and not error.maybe_executed:
            return [f"{name} happened, and maybe_executed is False: {error!r}"]
        return []
