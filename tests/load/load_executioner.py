"""A process that makes processes and kills them: of servers, or clients, of the load, which it forks warm.

``load_executioner.py FD MODULE`` takes orders from a socket, one JSON a packet, one after the other. The module was
imported and has warmed up before, so that to fork a process costs milliseconds; the next one is forked ahead, and waits for
its word to begin. The executioner has neither event loop nor threads then. It ends, with all that it forked, when the other
end of its socket is closed.

- ``{"begin": function, "arguments": {…}}``: the process that waits begins with that function; answers its pid.
- ``{"await": pid}``: answers how it ended by itself.
- ``{"kill": pid, "after": seconds}``: waits, kills (SIGKILL) and reaps it; answers how it ended, a signal as its negative
  number.
"""

import asyncio
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from types import ModuleType
from typing import Any, Final

import uvloop

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""The kinds of event loop that a process can be asked to run in."""


class Waiting:
    """A forked process that has not begun."""

    def __init__(self, module: ModuleType, orders: socket.socket) -> None:
        word, self._word = os.pipe()
        self.pid: Final = os.fork()
        if not self.pid:
            status = 1
            try:
                orders.close()
                os.close(self._word)
                said = os.read(word, 65536)
                os.close(word)
                if said:
                    run(module, **json.loads(said))
                status = 0
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(word)

    def begin(self, function: str, arguments: dict[str, Any]) -> None:
        """Gives it the word."""
        os.write(self._word, json.dumps({"function": function, "arguments": arguments}).encode())
        os.close(self._word)

    def dismiss(self) -> None:
        """Lets it end."""
        os.close(self._word)


def run(module: ModuleType, function: str, arguments: dict[str, Any]) -> None:
    """What a process is for, in an event loop of the kind that is asked for."""
    with asyncio.Runner(loop_factory=LOOPS[arguments.pop("loop", "asyncio")]) as runner:
        runner.run(getattr(module, function)(**arguments))


def reap(pid: int) -> int:
    """How a process has ended, when it has; a signal's number is negative."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(fd: int, module_name: str) -> None:
    """Takes orders until nobody gives any more."""
    module = importlib.import_module(module_name)
    module.warm_up()
    gc.collect()
    gc.freeze()
    orders = socket.socket(fileno=fd)
    waiting = Waiting(module, orders)
    living: set[int] = set()
    while order := orders.recv(65536):
        answer = 0
        match json.loads(order):
            case {"begin": function, "arguments": arguments}:
                begun, answer = waiting, waiting.pid
                begun.begin(function, arguments)
                living.add(begun.pid)
                waiting = Waiting(module, orders)
            case {"kill": pid, "after": seconds}:
                time.sleep(seconds)
                os.kill(pid, signal.SIGKILL)
                answer = reap(pid)
                living.discard(pid)
            case {"await": pid}:
                answer = reap(pid)
                living.discard(pid)
        orders.send(str(answer).encode())
    waiting.dismiss()
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    for pid in (waiting.pid, *living):
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
