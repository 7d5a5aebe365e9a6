"""Lines of stdin as an async iterator, whatever stdin is: a file, a pipe, a terminal."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from typing import Final

READ_AHEAD: Final = 64
"""Lines that are read before somebody asks for them."""
_CHUNK_BYTES: Final = 1 << 16


async def stdin_lines() -> AsyncIterator[bytes]:
    """The lines of stdin that are not blank, without their ends, as they come.

    They are read in a thread, since a file cannot be waited for; the thread is left behind when the process ends, since a
    read cannot be cancelled. It goes around `sys.stdin`, whose lock the interpreter would wait for then.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes | OSError | None] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD)
    fd = sys.stdin.fileno()

    def put(line: bytes | OSError | None) -> None:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:  # the loop is closed: nobody reads any more
            return

    def read() -> None:
        rest = b""
        try:
            while chunk := os.read(fd, _CHUNK_BYTES):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    room.acquire()
                    put(line)
        except OSError as error:
            put(error)
        else:
            put(rest)
            put(None)

    threading.Thread(target=read, name="shmrpc stdin", daemon=True).start()
    while (line := await lines.get()) is not None:
        room.release()
        if isinstance(line, OSError):
            raise line
        if line := line.strip():
            yield line
