"""What the nursery's process runs: it has imported everything once, and forks the servers and clients that are to die.

Takes a line of JSON from its standard input for each thing to do and answers each with a line: ``{"start": plan}`` with the
new process's pid, ``{"reap": pid}`` with the status of one that has ended. When its input ends, all of them are killed.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import traceback
from typing import Any

import uvloop
from crash_api import Crash, CrashService, HomeService, Journal
from crash_death import arm
from crash_ledger import Ledger
from crash_work import SETTINGS, Work

import shmrpc
from shmrpc.shm import backward, link, listener, pool  # noqa: F401  # imported once, and not by each child

PATIENCE = 60.0


async def serve(plan: dict[str, Any]) -> None:
    """A server, until it has drained."""
    service = CrashService(Journal(plan["journal"]), Ledger(plan["first"]))
    settings = SETTINGS[plan["scenario"]]
    async with shmrpc.Server(service, at=plan["path"], polling=plan["polling"], **settings) as server:
        service.server = server
        await server.wait_closed()


async def call(plan: dict[str, Any]) -> None:
    """A client that makes its calls, all of which must succeed if it says so, and leaves."""
    journal, ledger = Journal(plan["journal"]), Ledger(plan["first"])
    home = HomeService(journal)
    settings = SETTINGS[plan["scenario"]]
    async with asyncio.timeout(PATIENCE):
        async with shmrpc.connect(
            Crash, plan["path"], exposes=home, wait=PATIENCE, polling=plan["polling"], **settings
        ) as stub:
            await Work(stub, ledger, journal).do(plan["scenario"])
            await shmrpc.testing.all_released(stub)
    faults = ledger.faults(journal.read(), flawless=plan["flawless"])
    assert not faults, "\n".join(faults)


def live(plan: dict[str, Any]) -> int:
    """The life of a child. Returns its status."""
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd, replaced in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(fd, replaced)
    os.close(log)
    os.close(nothing)
    os.environ.update(plan["environment"])
    if plan["point"] is not None:
        arm(**plan["point"])
    main = {"server": serve, "client": call}[plan["role"]](plan)
    try:
        uvloop.run(main) if plan["loop"] == "uvloop" else asyncio.run(main)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Serves the test process."""
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    for line in sys.stdin:
        match json.loads(line):
            case {"start": plan}:
                pid = os.fork()
                if not pid:
                    status = 1
                    try:
                        status = live(plan)
                    finally:
                        os._exit(status)
                children.add(pid)
                print(pid, flush=True)
            case {"reap": pid}:
                _, status = os.waitpid(pid, 0)
                children.discard(pid)
                print(os.waitstatus_to_exitcode(status), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
