"""Ctrl-C in a program with a blocking stub: a real process, a real SIGINT, and what the handler sees of it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blocking_service import PATIENCE, Worker, serving
from life_waiting import wait_until

HERE = Path(__file__).parent

SCRIPT = """
import signal, sys, time
import shmrpc
from blocking_service import Work

def forever():
    yield 1
    while True:
        time.sleep(0.1)  # a signal that comes right before a sleep does not cut it short

with shmrpc.connect_sync(Work, sys.argv[1]) as work:
    kept = work.double(forever())  # so that it does not end because it dies
    def act():
        {act}
    try:
        act()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    sys.stdin.readline()  # the connection stays open until the test has seen what became of the call
    print(work.add(1), list(work.count(2)), work.total([1, 2]), flush=True)
"""


@contextmanager
def program(act: str, path: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(act=act), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent)))},
    )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("act", "begins", "ends"),
    [
        ("work.hold('it')", "it began", "it was cancelled"),
        ("work.total(forever())", "the total began", "the total was cancelled"),
        ("list(kept)", "the doubling began", "the doubling was cancelled"),
    ],
    ids=["call", "iterable", "both"],
)
def test_ctrl_c_cancels_the_handler_and_the_connection_stays_usable(
    act: str, begins: str, ends: str, path: str
) -> None:
    worker = Worker()
    with serving(worker, path), program(act, path) as process:
        wait_until(lambda: begins in worker.diary, "the call to begin")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: ends in worker.diary, "the handler to be cancelled")
        output, _ = process.communicate("\n", PATIENCE)
        assert output == "interrupted\n2 [0, 1] 3\n"
        assert process.returncode == 0


def test_ctrl_c_that_nobody_catches_ends_the_program_and_the_call(path: str) -> None:
    worker = Worker()
    with (
        serving(worker, path),
        program("try: work.hold('it')\n        finally: signal.raise_signal(2)", path) as process,
    ):
        wait_until(lambda: "it began" in worker.diary, "the call to begin")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: "it was cancelled" in worker.diary, "the handler to be cancelled")
