"""The guards of shmrpc, each with the change that removes it and the test that must fail then.

`run.py` makes the changes, one by one, in a copy of the tree. A guard that is not in this list is not known to be tested.
"""

from typing import Final

from crash_mutants import CRASHES
from hostile_mutants import HOSTILE
from kill_mutants import KILLS
from leaving_mutants import LEAVING
from meeting_mutants import MEETING
from mutant import Mutant
from native_mutants import NATIVE
from resource_mutants import RESOURCES
from wake_mutants import WAKE

MUTANTS: Final = (
    *NATIVE,
    *WAKE,
    *MEETING,
    *HOSTILE,
    *KILLS,
    *CRASHES,
    *RESOURCES,
    *LEAVING,
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
