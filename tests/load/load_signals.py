"""Signals by the thousand for a process of the load, and how many it has handled.

The handlers are installed as Python does it, without SA_RESTART: a system call that one interrupts ends with EINTR.
"""

import signal
from types import FrameType

PERIOD = 0.001
"""Seconds between two of the timer's."""
_handled: dict[int, int] = {}


def handle_many() -> None:
    """From now on a timer interrupts this process a thousand times a second; SIGCHLD is handled too, whoever sends it."""
    for number in (signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, _handle)
    signal.setitimer(signal.ITIMER_REAL, PERIOD, PERIOD)


def _handle(number: int, frame: FrameType | None) -> None:
    _handled[number] = _handled.get(number, 0) + 1


def handled() -> int:
    """How many signals came to their handlers."""
    return sum(_handled.values())
