"""Real servers and clients in processes of their own, which tests stop, kill and replace."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from life_waiting import PATIENCE, wait_until

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
STRANGER_SCRIPT: Final = str(HERE / "life_stranger.py")
STRANGER: Final = 12345
"""A uid that is neither root's nor the tests'."""

as_root: Final = pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process under another uid")


def inode(path: str) -> int:
    """What is at a path; 0: nothing."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def start_server(
    path: str, record: str = "", *options: str, user: int | None = None, service: str = "life_api:Keeper"
) -> subprocess.Popen[bytes]:
    """``shmrpc serve`` with a service at a path, listening. Its log is in the path with ``.log``."""
    before = inode(path)
    environment = {**os.environ, "LIFE_RECORD": record, "PYTHONPATH": str(ROOT)}
    module = ["-m", "shmrpc"] if user is None else [STRANGER_SCRIPT, str(user), "shmrpc"]
    command = [sys.executable, *module, "serve", service, "--at", path, *options]
    with open(f"{path}.log", "ab") as log:
        process = subprocess.Popen(command, cwd=HERE, env=environment, stderr=log)
    try:
        wait_until(lambda: inode(path) not in (0, before) or process.poll() is not None, "the server to listen")
        assert process.poll() is None, Path(f"{path}.log").read_text()
    except BaseException:
        end(process)
        raise
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process, stopped or not, if it still runs."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextmanager
def serving(
    path: str, record: str = "", *options: str, user: int | None = None, service: str = "life_api:Keeper"
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is killed at the end, if it still runs."""
    process = start_server(path, record, *options, user=user, service=service)
    try:
        yield process
    finally:
        end(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a process with SIGSTOP; returns when it stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process, also one that stands still; returns when it is gone."""
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)


class ClientProcess:
    """``life_client.py``, or another one, in a process of its own: takes one command a line, answers one line each."""

    def __init__(
        self, path: str, *arguments: str, user: int | None = None, script_name: str = "life_client.py"
    ) -> None:
        script = [str(HERE / script_name)] if user is None else [STRANGER_SCRIPT, str(user), "client"]
        self.process: Final = subprocess.Popen(
            [sys.executable, *script, path, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str) -> None:
        """Gives one command."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    async def hear(self) -> str:
        """The next answer; empty when the process has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.to_thread(self.process.stdout.readline)).decode().strip()

    async def ask(self, line: str) -> str:
        """One command and its answer."""
        self.say(line)
        return await self.hear()


@contextmanager
def client_process(
    path: str, *arguments: str, user: int | None = None, script_name: str = "life_client.py"
) -> Iterator[ClientProcess]:
    """A client that is killed at the end, if it still runs."""
    client = ClientProcess(path, *arguments, user=user, script_name=script_name)
    try:
        yield client
    finally:
        end(client.process)
