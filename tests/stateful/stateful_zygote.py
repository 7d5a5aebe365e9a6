"""A process that has imported everything and forks servers from then on, each within milliseconds.

Reads one order a line, in JSON, and answers each with one line. ``["serve", PLAN]`` answers the pid of a server that
listens; ``["reap", PID]`` answers the exit status of one that has ended, whose pid is nobody else's until then.
"""

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, NoReturn

import uvloop
from stateful_api import Worker
from stateful_mutants import change_server

import shmrpc.shm.listener  # noqa: F401 - which a server imports when it begins to listen
from shmrpc.cli.common import run_loop
from shmrpc.server import Server, serve
from shmrpc.shm.layout import Geometry

PATIENCE: Final = 20.0
PR_SET_PDEATHSIG: Final = 1


def inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def be_a_server(plan: dict[str, Any]) -> NoReturn:
    """What a forked process does."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for own, standard in ((null, 0), (log, 1), (log, 2)):
            os.dup2(own, standard)
        os.close(null)
        os.close(log)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        settings = dict(plan["settings"])
        if "geometry" in settings:
            settings["geometry"] = Geometry(**settings["geometry"])
        change_server(plan["mutant"])
        run_loop(serve(Worker(plan["journal"]), at=plan["at"], grace=60, **settings), plan["loop"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def start(plan: dict[str, Any]) -> int:
    """Forks a server; its pid once it listens. 0: it did not."""
    before = inode(plan["at"])
    pid = os.fork()
    if not pid:
        be_a_server(plan)
    until = time.monotonic() + PATIENCE
    while inode(plan["at"]) in (0, before):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None or time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 0
        time.sleep(0.0005)
    return pid


def main() -> None:
    for loop in (uvloop.new_event_loop(), asyncio.new_event_loop()):
        loop.close()
    Server(Worker(os.devnull), at="/nowhere")  # reads the contracts, once for all
    gc.collect()
    gc.freeze()
    Path("/proc/self/comm").write_text("shmrpc zygote")
    for line in sys.stdin:
        match json.loads(line):
            case ["serve", plan]:
                answer = start(plan)
            case ["reap", pid]:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
