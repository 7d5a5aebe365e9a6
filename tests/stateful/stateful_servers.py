"""The servers of the stateful test as its client sees them: processes at two places, which come and go."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
PATIENCE: Final = 30.0
"""Seconds after which what must happen has failed to."""


class Zygote:
    """Forks servers: see ``stateful_zygote.py``."""

    def __init__(self) -> None:
        self._process: Final = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", str(HERE / "stateful_zygote.py")],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends it, and its servers with it."""
        self._process.kill()
        self._process.communicate()

    def _order(self, *order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: int = json.loads(self._process.stdout.readline())
        return answer

    def serve(self, plan: dict[str, Any]) -> int:
        """Forks a server. Its pid; it listens."""
        pid = self._order("serve", plan)
        assert pid, f"a server did not begin to listen; its log:\n{Path(plan['log']).read_text()}"
        return pid

    def reap(self, pid: int) -> int:
        """The exit status of a server that has ended."""
        return self._order("reap", pid)


class Server:
    """One server process."""

    def __init__(self, zygote: Zygote, plan: dict[str, Any]) -> None:
        self._zygote: Final = zygote
        self.pid: Final = zygote.serve(plan)
        self.log: Final = Path(plan["log"])
        self.stopped = False
        self.signals = 0
        """How many SIGTERM it got."""
        self.killed = False
        self._first: Final = self.held()

    def held(self) -> Counter[str]:
        """What its fds are of."""
        kinds: Counter[str] = Counter()
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                kinds[re.sub(r"\d+", "", os.readlink(f"/proc/{self.pid}/fd/{fd}"))] += 1
        return kinds

    def left(self) -> Counter[str]:
        """What its fds are of that it had not when it began."""
        return self.held() - self._first

    def send(self, number: signal.Signals) -> None:
        """Sends a signal; its pid is its own until it is reaped."""
        os.kill(self.pid, number)

    def stall(self) -> None:
        """Stops it; returns when it stands still, or has ended."""
        self.send(signal.SIGSTOP)
        while self._state() not in "TZX":
            os.sched_yield()
        self.stopped = True

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def resume(self) -> None:
        """Lets it go on."""
        self.send(signal.SIGCONT)
        self.stopped = False

    def let_go(self) -> None:
        """Lets its held calls go, and what it keeps."""
        self.send(signal.SIGUSR1)

    def terminate(self) -> None:
        """Asks it to drain; the second time, to end."""
        self.send(signal.SIGTERM)
        self.signals += 1

    def kill(self) -> None:
        """Kills it; returns when it is gone, and its memory is let go."""
        self.send(signal.SIGKILL)
        self.killed = True
        self.end()

    def end(self) -> None:
        """Waits for its end, and checks that it was the one that it was to have."""
        pidfd = os.pidfd_open(self.pid)
        try:
            waiting = select.poll()
            waiting.register(pidfd, select.POLLIN)
            ended = waiting.poll(PATIENCE * 1000)
        finally:
            os.close(pidfd)
        if not ended:
            self.send(signal.SIGKILL)
        status = self._zygote.reap(self.pid)
        assert ended, f"server {self.pid} did not end within {PATIENCE} s of the last signal"
        wanted = (-signal.SIGKILL,) if self.killed else (0,)
        assert status in wanted, f"server {self.pid} ended with status {status}; its log:\n{self.log.read_text()}"


class Place:
    """A path with its servers: one that listens, and those before it that still drain."""

    def __init__(self, zygote: Zygote, folder: Path, name: str, plan: dict[str, Any]) -> None:
        self.path: Final = str(folder / f"{name}.sock")
        self.current: Server | None = None
        self.draining: Final[list[Server]] = []
        self._letting_go = False
        """Whether what is at the path is a draining server's, which removes it."""
        self._zygote = zygote
        self._plan = {**plan, "at": self.path, "journal": str(folder / f"{name}.journal")}
        self._plan["log"] = str(folder / f"{name}.log")

    @property
    def servers(self) -> list[Server]:
        """All that were not killed, or waited for."""
        return [*self.draining, *((self.current,) if self.current is not None else ())]

    @property
    def listening(self) -> bool:
        """Whether there is one that takes calls, and runs."""
        return self.current is not None and not self.current.stopped

    @property
    def standing(self) -> bool:
        """Whether one of them stands still."""
        return any(server.stopped for server in self.servers)

    def start(self) -> None:
        """Starts a server. What is at the path must be nobody's."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.current = Server(self._zygote, self._plan)
        self._letting_go = False

    def start_after(self) -> None:
        """The same, when the one before has let go of the path."""
        until = time.monotonic() + PATIENCE
        while self._letting_go and os.path.exists(self.path):
            assert time.monotonic() < until, f"a draining server still has {self.path}"
            time.sleep(0.0005)
        self.start()

    def kill(self) -> None:
        """Kills the one that listens."""
        assert self.current is not None
        server, self.current = self.current, None
        server.kill()

    def drain(self) -> None:
        """Asks the one that listens to drain; another one may take its place when the path is free."""
        assert self.current is not None
        server, self.current = self.current, None
        server.terminate()
        self._letting_go = True
        self.draining.append(server)

    def check_log(self, allowed: tuple[str, ...]) -> None:
        """Checks that its servers had nothing to complain of."""
        log = Path(self._plan["log"])
        lines = log.read_text().splitlines() if log.exists() else []
        odd = [line for line in lines if not any(text in line for text in allowed)]
        assert not odd, f"the servers at {self.path} logged:\n" + "\n".join(odd)
