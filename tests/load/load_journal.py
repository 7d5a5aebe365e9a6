"""A journal that outlives the process that writes it: what was written is there, also after SIGKILL.

Each entry is one `write` of 16 bytes to a file that is opened for appending, so that several processes may write into one,
and none is ever seen in part: the kernel looks for a fatal signal before it copies them and not meanwhile.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

BEGAN: Final = 1
"""A handler of the load began: its effect happened."""
ENDED: Final = 2
"""It ended, however that was."""
CORRUPT: Final = 3
"""What it got is not what was sent."""
SIGNALS: Final = 4
"""How many signals were handled, in place of a call's number."""
SENT: Final = 32
"""A client is about to make a call: this and its kind."""
OUTCOMES: Final = 64
"""A call of a client ended: this and its outcome."""

_ENTRY: Final = struct.Struct("<QQ")
ENTRY: Final = np.dtype([("number", "<u8"), ("event", "<u8")])


class Journal:
    """The writing end, for one process."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, event: int, number: int) -> None:
        """Notes an event of a call."""
        os.write(self._fd, _ENTRY.pack(number, event))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


@contextmanager
def journal(path: str) -> Iterator[Journal]:
    """A journal that is closed at the end."""
    made = Journal(path)
    try:
        yield made
    finally:
        made.close()


class JournalReader:
    """Counts what is in a journal, from where it stopped the last time."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._offset = 0

    def read(self) -> npt.NDArray[np.void]:
        """The entries that are new, with their `number` and their `event`."""
        if not os.path.exists(self.path):
            return np.empty(0, ENTRY)
        entries = np.fromfile(self.path, ENTRY, offset=self._offset)
        self._offset += entries.nbytes
        return entries
