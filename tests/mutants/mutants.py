"""The guards of shmrpc, each with the change that removes it and the test that must fail then.

`run.py` makes the changes, one by one, in a copy of the tree. A guard that is not in this list is not known to be tested.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mutant:
    """A guard that is taken away."""

    guard: str
    """What it guards against, in a few words."""
    file: str
    """Under the root of the project."""
    old: str
    """The guard: occurs once in the file."""
    new: str
    """What stands there without it."""
    test: str
    """What fails then: a file of tests, or one of its tests, as pytest names it."""

    @property
    def native(self) -> bool:
        """Whether the extension must be built again; the programs of ``tests/native`` are built by their tests."""
        return self.file.startswith("shmrpc/_native") and not self.test.startswith("tests/native")


MUTANTS: Final = (
    Mutant(
        "closing a server waits for threads of connections that ended",
        "shmrpc/shm/listener.py",
        "for orphan in (*self._orphaned, session) if not orphan.settled",
        "for orphan in () if not orphan.settled",
        "tests/shm/test_shm_extents_end.py",
    ),
    Mutant(
        "closing a stub waits for threads of connections that ended",
        "shmrpc/shm/link.py",
        "for retiring in (*self._retiring, session) if not retiring.settled",
        "for retiring in (*self._retiring, session) if not retiring.ended",
        "tests/shm/test_shm_extents_end.py",
    ),
)
