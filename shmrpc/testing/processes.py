"""A server in a process of its own, for tests: started, killed, stopped, continued and started again.

Needs no event loop: a test of any kind may start one, and its log is shown when the test fails.
"""

import os
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from shmrpc.testing.pairs import short_folder

LOG_CHARACTERS: Final = 20_000
"""How much of a log's end is shown in a failure."""

_alive: Final["weakref.WeakSet[ServerProcess]"] = weakref.WeakSet()


class Launched(NamedTuple):
    """A process that does not listen yet."""

    process: "subprocess.Popen[bytes]"
    inode: int
    """Of what was at its path before; 0: nothing."""
    until: float
    """When it is too late."""


class ServerProcess:
    """A server process; what `process` and `command` give. It runs while it is entered.

    ``with`` starts it and waits until it listens, ``async with`` does the same while the event loop runs on. At the end it
    is killed, with all processes that it started, and reaped. An exception that leaves the block has the log as a note,
    which pytest shows.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[str], Sequence[str]],
        *,
        at: str | os.PathLike[str] | None,
        environment: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        start_timeout: float,
    ) -> None:
        self._name = name
        self._arguments = arguments
        self._at = os.fspath(at) if at is not None else ""
        self._environment = environment
        self._cwd = cwd
        self._start_timeout = start_timeout
        self._stack = ExitStack()
        self._log: Path | None = None
        self._logged = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._expected_to_end = False

    def __repr__(self) -> str:
        if self._process is None:
            return f"<ServerProcess {self._name}, not started>"
        state = "running" if self.running else "ended"
        return f"<ServerProcess {self._name} at {self._at}, pid {self.pid}, {state}>"

    @property
    def address(self) -> str:
        """Where it listens, for `shmrpc.connect`.

        Raises:
            RuntimeError: it was not started yet.
        """
        if not self._at:
            raise RuntimeError(f"{self!r} has no address before it is entered")
        return self._at

    @property
    def pid(self) -> int:
        """Of the process, or of the last one.

        Raises:
            RuntimeError: it was not started yet.
        """
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the process is there, also if it was stopped with `stall`."""
        return self._process is not None and not self._has_ended(self._process)

    @property
    def log(self) -> str:
        """All that it wrote to standard output and standard error so far."""
        if self._log is not None and self._log.exists():
            self._logged = self._log.read_text(errors="replace")
        return self._logged

    # ---- what happens to it ----

    def kill(self) -> None:
        """Kills it (SIGKILL) and reaps it, with all processes that it started. Does nothing to one that has ended."""
        process = self._started()
        self._expected_to_end = True
        self._reap(process)

    def stall(self) -> None:
        """Stops it (SIGSTOP); returns when it stands still. Its clients see a server that does not answer.

        Raises:
            RuntimeError: it has ended.
        """
        process = self._started()
        if not self.running:
            raise RuntimeError(f"{self!r} cannot be stopped: it has ended")
        self._signal(process, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Lets one that was stopped go on (SIGCONT)."""
        self._signal(self._started(), signal.SIGCONT)

    def terminate(self) -> None:
        """Asks it to drain and end (SIGTERM); `wait` or `wait_async` say when it has."""
        self._expected_to_end = True
        self._started().send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 10.0) -> int:
        """Returns its exit status when it has ended; negative: the number of the signal that ended it.

        Blocks the event loop, if one runs here; `wait_async` does not.

        Raises:
            TimeoutError: it runs on after so many seconds.
        """
        process, until = self._started(), time.monotonic() + timeout
        while not self._has_ended(process):
            self._check_time(until, timeout)
            time.sleep(0.002)
        return self._status_of(process)

    async def wait_async(self, timeout: float = 10.0) -> int:
        """`wait`, while the event loop runs on."""
        process, until = self._started(), time.monotonic() + timeout
        while not self._has_ended(process):
            self._check_time(until, timeout)
            await anyio.sleep(0.002)
        return self._status_of(process)

    def restart(self) -> None:
        """Kills it if it runs, and starts it again at the same address; returns when it listens.

        Raises:
            RuntimeError: as on entering.
        """
        self.kill()
        with suppress(FileNotFoundError):
            os.unlink(self._at)
        self._start()

    # ---- its life ----

    def __enter__(self) -> "ServerProcess":
        """Starts it and waits until it listens.

        Raises:
            RuntimeError: it ended, or did not listen in time; the text has its log.
        """
        self._open()
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Kills it.

        Raises:
            AssertionError: it had ended by itself, with a status that says that something went wrong.
        """
        process = self._started()
        self._reap(process)
        status = process.returncode  # its own, if it was about to end already
        log = self.tail()
        described = f"{self!r}"
        self._stack.close()
        if error is not None:
            error.add_note(f"log of {described}:\n{log}")
        elif status not in (0, -signal.SIGKILL, -signal.SIGTERM) and not self._expected_to_end:
            raise AssertionError(f"{described} ended by itself with status {status}; its log:\n{log}")

    async def __aenter__(self) -> "ServerProcess":
        """The same, while the event loop runs on."""
        self._open()
        try:
            launched = self._launch()
            try:
                while not self._listens(launched):  # noqa: ASYNC110
                    await anyio.sleep(0.002)
            except BaseException:
                self._reap(launched.process)
                raise
        except BaseException:
            self._stack.close()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Kills it."""
        self.__exit__(kind, error, traceback)

    def tail(self) -> str:
        """The end of the log, as failures show it."""
        log = self.log
        return log if len(log) <= LOG_CHARACTERS else f"[…]\n{log[-LOG_CHARACTERS:]}"

    def _open(self) -> None:
        if self._process is not None:
            raise RuntimeError(f"{self!r} can be entered once")
        folder = self._stack.enter_context(short_folder())
        self._log = folder / "log"
        if not self._at:
            self._at = str(folder / "server.sock")

    def _start(self) -> None:
        launched = self._launch()
        try:
            while not self._listens(launched):
                time.sleep(0.002)
        except BaseException:
            self._reap(launched.process)
            raise

    def _launch(self) -> Launched:
        assert self._log is not None
        self._expected_to_end = False
        before = _inode(self._at)
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                self._arguments(self._at),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                env={**os.environ, **self._environment},
                start_new_session=True,  # a group of its own, to be killed with all that it starts
            )
        _alive.add(self)
        return Launched(process, before, time.monotonic() + self._start_timeout)

    def _listens(self, launched: Launched) -> bool:
        """Whether it does by now. Raises RuntimeError if it never will."""
        if _inode(self._at) not in (0, launched.inode):  # a server of shmrpc is at its path from when it listens
            return True
        if self._has_ended(launched.process):
            status = self._status_of(launched.process)
            raise RuntimeError(f"{self._name} ended with status {status} before it listened; its log:\n{self.tail()}")
        if time.monotonic() > launched.until:
            raise RuntimeError(
                f"{self._name} does not listen at {self._at} after {self._start_timeout} s (start_timeout); its log:\n"
                f"{self.tail()}"
            )
        return False

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError(f"{self!r} must be entered first")
        return self._process

    def _signal(self, process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
        """To the whole group; its id cannot be another's as long as its leader was not reaped."""
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _has_ended(self, process: "subprocess.Popen[bytes]") -> bool:
        return process.returncode is not None or self._ended_status(process) is not None

    def _ended_status(self, process: "subprocess.Popen[bytes]") -> int | None:
        """The status of one that has ended and was not reaped yet; it stays so."""
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def _status_of(self, process: "subprocess.Popen[bytes]") -> int:
        self._expected_to_end = True
        self._reap(process)
        return process.returncode

    def _check_time(self, until: float, timeout: float) -> None:
        if time.monotonic() > until:
            raise TimeoutError(f"{self!r} runs on after {timeout} s")

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        self._signal(process, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        _alive.discard(self)


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def running_processes() -> list[ServerProcess]:
    """Those that run now, for reports of failures."""
    return list(_alive)
