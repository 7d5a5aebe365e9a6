"""Processes in namespaces of their own: started, spoken to and killed, or skipped where the system does not allow them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from isolation_api import NOBODY

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PATIENCE: Final = 40.0
"""Seconds after which a test that waits has failed."""
STRANGER: Final = NOBODY
EVERYTHING: Final = ("mount", "pid", "net", "ipc", "user")
USUAL: Final = (("pid",), EVERYTHING)
"""What plain test runs go through; one namespace after the other takes ``--long``."""
SHM: Final = "64k"
"""How large the only `/dev/shm` is that a process in a mount namespace of its own has."""


_numbers: Final = count()


async def until(condition: Callable[[], object], what: str) -> None:
    """Returns when a condition holds; the event loop runs meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        await asyncio.sleep(0.001)


class Isolated:
    """A process that plays a part of `isolation_api` in isolation.

    Args:
        part: ``client`` or ``server``.
        path: The socket. In a mount namespace its folder is all that is seen of the host, at ``/shared``.
        namespaces: Of `EVERYTHING`.
        settings: Of the part's connection.
        uid: Under which it runs, as the host sees it.
        gid: The same; by default as the uid.
        groups: Its supplementary groups.
        inner: What uid and gid it has in its user namespace; None: none.
        proc: Whether its mount namespace has a ``/proc``.
    """

    def __init__(
        self,
        part: str,
        path: str,
        namespaces: Sequence[str],
        settings: dict[str, Any] | None = None,
        *,
        uid: int = 0,
        gid: int | None = None,
        groups: Sequence[int] = (),
        inner: int | None = 0,
        proc: bool = True,
    ) -> None:
        folder, name = os.path.split(path)
        root = Path(f"{folder}.{next(_numbers)}")  # beside the shared folder, not in it
        root.mkdir()
        how = {
            "part": part,
            "path": f"/shared/{name}" if "mount" in namespaces else path,
            "namespaces": list(namespaces),
            "settings": settings or {},
            "user": {"uid": uid, "gid": uid if gid is None else gid, "groups": list(groups)} if uid or groups else None,
            "inner": None if inner is None else {"uid": inner, "gid": inner},
            "root": str(root),
            "shared": folder,
            "shown": shown(),
            "shm": SHM,
            "proc": proc,
        }
        self._root = root
        self.process: Final = subprocess.Popen(
            [sys.executable, str(HERE / "isolated_main.py"), json.dumps(how)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        self.pid = 0
        """Of the process in isolation, as the host sees it; known after `started`."""

    async def hear(self) -> Any:
        """The next line that it says; None when it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await asyncio.to_thread(self.process.stdout.readline)
        return json.loads(line) if line else None

    async def started(self) -> Any:
        """Its first answer; from then on its pid is known."""
        self.pid = await self.hear()
        return await self.hear()

    async def ask(self, command: str) -> Any:
        """One command and its answer."""
        self.say(command)
        return await self.hear()

    async def ask_until(self, command: str, wanted: object) -> None:
        """Asks until that is the answer."""
        deadline = time.monotonic() + PATIENCE
        while (answer := await self.ask(command)) != wanted:
            assert time.monotonic() < deadline, f"the answer to {command!r} is still {answer!r} after {PATIENCE} s"

    def say(self, command: str) -> None:
        """One command."""
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """Kills the process in isolation, from outside, as ``kill -9`` does; returns when it is reaped."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    async def heard_out(self) -> None:
        """Returns when everything that could still say something has ended, children that it left too."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        while await self.hear() is not None:
            pass

    def end(self) -> None:
        """Kills all of it, if it still runs."""
        self.process.kill()  # its child dies with it
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self._root.rmdir()


@cache
def shown() -> list[str]:
    """What a Python needs to see of a file system."""
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc", sys.prefix, sys.base_prefix, *packages(), str(ROOT)]
    kept: list[str] = []
    for path in wanted:
        if not any(path == other or path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


def packages() -> list[str]:
    """Where this interpreter finds its packages."""
    return [path for path in sys.path if os.path.isdir(path) and not path.startswith(str(ROOT))]


@contextmanager
def isolated(part: str, path: str, namespaces: Sequence[str], *args: Any, **kwargs: Any) -> Iterator[Isolated]:
    """A process in isolation that is killed at the end. Skips the test, with the reason, where that is not allowed."""
    if (why := why_impossible(tuple(namespaces))) is not None:
        pytest.skip(why)
    process = Isolated(part, path, namespaces, *args, **kwargs)
    try:
        yield process
    finally:
        process.end()


@cache
def why_impossible(namespaces: tuple[str, ...]) -> str | None:
    """Why a process cannot be put into these namespaces here, or None if it can. Found out by doing it once."""
    if os.geteuid() != 0:
        return "only root can go into all namespaces"
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"shmrpc-probe-{os.getpid()}"
    folder.mkdir()
    probe = Isolated("probe", str(folder / "none.sock"), namespaces)
    try:
        out, _ = probe.process.communicate(timeout=PATIENCE)
    finally:
        probe.end()
        folder.rmdir()
    answer = out.splitlines()[-1].decode() if out else "no answer"
    return None if answer == '"possible"' else f"namespaces {', '.join(namespaces)} cannot be entered here: {answer}"
