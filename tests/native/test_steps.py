"""The numbered steps of the native core: that each is passed, where it lies, and that a plan is carried out at it."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shmrpc import _native

NATIVE = Path(__file__).parent.parent.parent / "shmrpc" / "_native"
STEPS = re.findall(r"^    STEP\((\w+)\)", (NATIVE / "steps.h").read_text(), flags=re.MULTILINE)

PRELUDE = """
import json
from shmrpc import _native

own, peer = bytearray(1 << 14), bytearray(1 << 14)
RING, RELEASES = 0x1400, 0x1800  # 1024 bytes, 64 entries
producer = _native.Producer(own, peer, RING, 1024, 512)
consumer = _native.Consumer(peer, own, RING, 1024, 512)
releaser = _native.Releaser(peer, own, RELEASES, 64)
reaper = _native.Reaper(own, peer, RELEASES, 64)
handlers = (lambda *record: None,) * 256


def call(number):
    assert producer.send(1, 0, 0, number, 0, b"x" * 200) in (0, 1)
    consumer.dispatch(64, handlers, {})
"""

EVERYTHING = """
import asyncio
from collections import namedtuple
from types import SimpleNamespace

consumer.arm(), producer.announce(), call(1), consumer.disarm()
producer.want_room()
for number in range(2, 9):
    call(number)
producer.unread(), producer.room_found()

class Memory(_native.Block):
    region = SimpleNamespace(attached=True)

memory = bytearray(1 << 14)
block = Memory()
block.number, block.nbytes, block.handles = 1, 64, 1
block.address = _native.address_of(memory)[0]
loan = namedtuple("Loan", "block offset nbytes method since_ns")
ledger = _native.Ledger(loan)
ledger.mark = ledger.longest_body = ledger.largest_message = 1 << 20
ledger.blocks[block.address] = block
block.nbytes = len(memory)
payload, lease = ledger.refer(memory, "echo", b"")
table = _native.pack_references([(1, lease, 0, 64)], b"")
body, views = _native.open_references(table, {0: (memory, 0, len(memory))}, releaser, 1)
del views
assert ledger.take_back(reaper.take(), []) == 1


async def main():
    requester = _native.Requester(asyncio.get_running_loop(), producer, {}, print)
    requester.start(None, 0, 0, 0, b"")
    requester.lend(ledger, None, 0, 0, b"", memory, "echo")


asyncio.run(main())
"""


def run(package: Path, code: str, plan: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs code after the prelude, on the extension with steps; at its end it prints how often each was passed."""
    script = PRELUDE + textwrap.dedent(code) + "\nprint(json.dumps(_native.steps()))\n"
    environment = {**os.environ, "SHMRPC_STEP": plan}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def passed(package: Path, code: str) -> dict[str, int]:
    """How often each step was passed by code."""
    done = run(package, code)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def test_every_step_is_passed_by_what_uses_the_whole_native_core(stepped_package: Path) -> None:
    counts = passed(stepped_package, EVERYTHING)
    assert list(counts) == STEPS
    assert not [name for name, count in counts.items() if not count]


def test_every_step_lies_in_the_code_once_or_more() -> None:
    code = "\n".join(file.read_text() for file in (*NATIVE.glob("*.c"), *NATIVE.glob("*.h")) if file.stem != "steps")
    assert set(re.findall(r"SHM_STEP\((\w+)\)", code)) == set(STEPS)


def test_the_extension_that_is_installed_has_no_steps() -> None:
    assert not hasattr(_native, "steps")
    assert b"publish_tail_stored" not in Path(_native.__file__).read_bytes()


@pytest.mark.parametrize(("action", "status"), [("exit", 86), ("kill", -signal.SIGKILL)])
@pytest.mark.parametrize("step", ["publish_record_written", "publish_tail_stored", "commit_begun"])
def test_a_process_ends_at_the_passage_that_was_planned(
    stepped_package: Path, step: str, action: str, status: int
) -> None:
    code = "for number in range(5):\n    print(number, flush=True)\n    call(number)"
    done = run(stepped_package, code, f"{step}:3:{action}")
    assert (done.returncode, done.stdout.split()) == (status, ["0", "1", "2"])


def test_a_step_may_be_given_by_its_number(stepped_package: Path) -> None:
    number = STEPS.index("publish_tail_stored") + 1
    assert run(stepped_package, "call(1)", f"{number}:1:exit").returncode == 86


def test_what_was_stored_before_the_step_is_there_and_what_comes_behind_it_is_not(stepped_package: Path) -> None:
    code = """
    import os, mmap
    shared = mmap.mmap(-1, 1 << 14)  # outlives the child that dies
    producer = _native.Producer(shared, peer, RING, 1024, 512)
    for step in ("publish_header_written", "publish_record_written", "publish_tail_stored"):
        shared[:] = bytes(1 << 14)
        if (child := os.fork()) == 0:
            _native.plan_steps(step + ":1:exit")
            producer.send(1, 0, 0, 7, 0, b"payload!")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 86
        print(shared[RING + 8], shared[RING + 24 : RING + 32] == b"payload!", shared[_native.CURSOR_TAIL])
    """
    done = run(stepped_package, code)
    assert done.stdout.splitlines()[:3] == ["7 False 0", "7 True 0", "7 True 32"], done.stderr


def test_plans_may_be_several_and_for_every_passage(stepped_package: Path) -> None:
    done = run(
        stepped_package, "for number in range(5): call(number)", "commit_begun:0:yield,commit_begun:2:delay,5:4:exit"
    )
    assert done.returncode == 86


def test_a_process_that_was_stopped_at_a_step_goes_on(stepped_package: Path) -> None:
    code = """
    import os, signal, time
    if (child := os.fork()) == 0:
        _native.plan_steps("commit_begun:2:stop")
        call(1), call(2)
        os._exit(7)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    assert passed(stepped_package, code)["commit_begun"] == 0


@pytest.mark.parametrize(
    "plan",
    ["publish", "publish_tail_stored", "nowhere:1:kill", "publish_begun:1:jump", "999:1:kill", "1:1:kill;", "0:1:kill"],
)
def test_a_plan_that_cannot_be_read_is_refused_at_import(stepped_package: Path, plan: str) -> None:
    done = run(stepped_package, "", plan)
    assert done.returncode == 1
    assert "ValueError: SHMRPC_STEP is step:count:action" in done.stderr
