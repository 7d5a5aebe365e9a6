"""Waits until what peers sent is closed, which happens in threads."""

import threading
from typing import Final

from shmrpc.shm import disposal

PATIENCE: Final = 20.0


def closings_over() -> None:
    """Returns when all of it is; fails when something cannot be."""
    for thread in threading.enumerate():
        if thread.name == disposal.THREAD:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "something that a peer sent is not closed"
