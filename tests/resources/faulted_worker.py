"""One process of the tests of scarce resources: a server or a client, or both, which does what the test tells it.

Commands come as lines of JSON on standard input, answers go as lines to standard output. It knows what it held when it
was told to remember that, says what is left of more than that, and what its log has that should not be there.
"""

import asyncio
import ctypes
import json
import logging
import os
import pathlib
import resource
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import numpy as np
from faulted_api import Faulted, service
from faulted_scenario import PATIENCE, Scenario

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.listener import ACCEPT_PAUSE
from shmrpc.testing.holdings import Held, left_since, settle_process

PATIENT: Final[dict[str, Any]] = {"handshake_timeout": PATIENCE}
STATM: Final = pathlib.Path("/proc/self/statm")


class Complaints(logging.Handler):
    """What was logged that nobody should read: errors, tracebacks, warnings of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.warned: list[str] = []
        self.refusals = 0
        """How often a server could not accept."""

    def emit(self, record: logging.LogRecord) -> None:
        """Sorts a record."""
        text = f"{record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        bad = record.exc_info or record.levelno >= logging.ERROR or record.name in ("asyncio", "py.warnings")
        if "deallocating an open event loop" in text:  # uvloop's word for one that it could not make
            return
        if "cannot accept connections" in text:
            self.refusals += 1
            self.warned.append(text)
        elif bad:
            self.texts.append(text)
        else:
            self.warned.append(text)

    def unraisable(self, what: "sys.UnraisableHookArgs") -> None:
        """An exception that nobody could be given."""
        self.texts.append(f"unraisable in {what.object!r}: {what.exc_value!r}")


class Worker:
    """What the process has and can do."""

    def __init__(self) -> None:
        self.complaints: Final = Complaints()
        self._faults: Final = ctypes.CDLL(None)
        self._before = Held()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: shmrpc.Server | None = None
        self._listener: Any = None
        self._kept: list[Any] = []
        self._bystanders: list[tuple[Faulted, object]] = []

    # ---- faults and limits ----

    async def arm(self, function: str, error: int, nth: int, for_good: bool = False) -> bool:
        return bool(self._faults.faults_arm(function.encode(), error, ctypes.c_long(nth), for_good))

    async def hits(self) -> int:
        """How many calls failed since it was armed."""
        return int(self._faults.faults_hits())

    async def disarm(self) -> int:
        self._faults.faults_disarm()
        return await self.hits()

    async def limit(self, name: str, soft: int) -> int:
        """Sets a limit of the process; says what it was."""
        number = getattr(resource, name)
        before, hard = resource.getrlimit(number)
        resource.setrlimit(number, (soft, hard))
        return before

    async def allow_fds(self, more: int) -> int:
        """Lets the process have so many fds more than it has; says what the limit was."""
        used = {int(number) for number, _ in Held.now().fds}
        limit = free = 0
        while free < more or limit in used:
            free += limit not in used
            limit += 1
        return await self.limit("RLIMIT_NOFILE", limit)

    async def allow_memory(self, more: int) -> int:
        """Lets the process have so many bytes of addresses more than it has."""
        pages = int(STATM.read_text().split()[0])
        return await self.limit("RLIMIT_AS", pages * resource.getpagesize() + more)

    async def watch_refusals(self, attempts: int) -> dict[str, float]:
        """Returns when a server has failed so often to accept; says how often, and how often it may have tried meanwhile."""
        began = time.monotonic()
        before = self.complaints.refusals
        while self.complaints.refusals < before + attempts:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return {"tried": self.complaints.refusals - before, "at_most": (time.monotonic() - began) / ACCEPT_PAUSE + 2}

    # ---- the server ----

    async def serve(self, path: str, keep: bool = False, backlog: int | None = None, **settings: Any) -> dict[str, str]:
        """Begins to listen; with `keep` until the end of the process, with `backlog` on a socket that has no longer one."""
        if backlog is not None:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(path)
                sock.listen(backlog)
                settings["fd"] = os.dup(sock.fileno())
        server = shmrpc.Server(service(), at=path, grace=PATIENCE, handshake_timeout=PATIENCE, **settings)
        try:
            await server.__aenter__()
        except (shmrpc.RpcError, OSError) as error:
            return {"error": type(error).__name__, "text": str(error)}
        except Exception:
            return {"error": "", "text": traceback.format_exc()}
        if keep:
            self._kept.append(server)
        else:
            self._server, self._listener = server, server._listener
        return {}

    async def drain(self) -> dict[str, Any]:
        """Ends the server; says what is still counted."""
        server, self._server = self._server, None
        assert server is not None
        blocks = sum(lease.blocks for lease in server.leases())
        await server.__aexit__(None, None, None)
        return {"connections": self._listener._quota._connections.total(), "blocks": blocks}

    async def abandon(self) -> None:
        """Ends the server that a test which failed has left."""
        if self._server is not None:
            await self.drain()

    async def connections(self) -> int:
        assert self._server is not None
        return self._server.connections

    # ---- the client ----

    async def scenario(self, path: str, **settings: Any) -> Any:
        return msgspec.to_builtins(await Scenario(path, settings).run())

    async def stand_by(self, path: str, **settings: Any) -> None:
        """Makes a connection that nothing may happen to."""
        stub = await shmrpc.connect(Faulted, path, timeout=PATIENCE, **PATIENT, **settings).__aenter__()
        self._bystanders.append((stub, await self._session_of(stub)))

    async def ask_bystanders(self) -> bool:
        """Whether every one of them still has the connection that it had, and calls over it."""
        return all([await self._session_of(stub) is session for stub, session in self._bystanders])

    @staticmethod
    async def _session_of(stub: Faulted) -> object:
        assert await stub.add(20, 22) == 42
        link: Any = open_stub(stub)[1]
        return link._session

    async def connect(self, path: str, **settings: Any) -> dict[str, str]:
        """One connection and a call over it."""
        try:
            async with shmrpc.connect(Faulted, path, timeout=PATIENCE, **{**PATIENT, **settings}) as stub:
                assert await stub.add(1, 2) == 3
        except shmrpc.RpcError as error:
            return {"error": type(error).__name__, "text": str(error)}
        except Exception:
            return {"error": "", "text": traceback.format_exc()}
        return {}

    async def connect_many(self, path: str, count: int, **settings: Any) -> list[dict[str, str]]:
        """As many, at once."""
        return list(await asyncio.gather(*(self.connect(path, **settings) for _ in range(count))))

    async def connect_blocking(self, path: str) -> dict[str, str]:
        """The same for a blocking stub."""
        try:
            with shmrpc.connect_sync(Faulted, path, timeout=PATIENCE, handshake_timeout=PATIENCE) as stub:
                assert stub.add(1, 2) == 3
                assert stub.total(range(4)) == 6
        except shmrpc.RpcError as error:
            return {"error": type(error).__name__, "text": str(error)}
        except Exception:
            return {"error": "", "text": traceback.format_exc()}
        return {}

    async def call(self, path: str, calls: list[tuple[str, list[Any]]], **settings: Any) -> list[dict[str, str]]:
        """Calls over one connection, which is lost by none of them if it says so; an array of so many words for a number."""
        ends = []
        async with shmrpc.connect(Faulted, path, timeout=PATIENCE, extent_idle=0.01, **PATIENT, **settings) as stub:
            first = open_stub(stub)[1]._session  # type: ignore[attr-defined]
            for method, arguments in calls:
                given = [np.arange(*arguments)] if method == "negate" else arguments
                try:
                    result = getattr(stub, method)(*given)
                    if hasattr(result, "__aiter__"):
                        assert [item async for item in result]
                    else:
                        await result
                except shmrpc.RpcError as error:
                    ends.append({"error": type(error).__name__, "text": str(error)})
                except Exception:
                    ends.append({"error": "", "text": traceback.format_exc()})
                else:
                    ends.append({})
                del given, result
            kept = open_stub(stub)[1]._session is first  # type: ignore[attr-defined]
        return [*ends, {"kept": kept}]  # type: ignore[dict-item]

    # ---- what is left ----

    async def remember(self) -> None:
        """What is held now is no leak."""
        self._before = Held.now()
        self._tasks = asyncio.all_tasks()
        self.complaints.texts.clear()
        self.complaints.warned.clear()

    async def settle(self) -> dict[str, Any]:
        """What is still left of more than it remembers when that does not change any more, and what was logged."""
        until = time.monotonic() + PATIENCE
        while (left := self._left()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        texts, warned = self.complaints.texts.copy(), self.complaints.warned.copy()
        self.complaints.texts.clear()
        self.complaints.warned.clear()
        return {"left": left, "complaints": texts, "warned": warned}

    def _left(self) -> str:
        tasks = [task.get_name() for task in asyncio.all_tasks() - self._tasks]
        return "; ".join(filter(None, (str(left_since(self._before)), *tasks)))

    async def quit(self) -> None:
        for stub, _ in self._bystanders:
            await open_stub(stub)[1].close()  # type: ignore[attr-defined]
        for kept in reversed(self._kept):
            await kept.__aexit__(None, None, None)


async def main() -> None:
    """Does what it is told until it is told to quit, or the test is gone."""
    logging.captureWarnings(True)
    worker = Worker()
    logging.getLogger().addHandler(worker.complaints)
    logging.getLogger().setLevel(logging.INFO)
    sys.unraisablehook = worker.complaints.unraisable
    settle_process()
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    rest = bytearray()

    def read() -> None:
        chunk = os.read(0, 65536)
        rest.extend(chunk or b'{"do": "quit"}\n')
        while b"\n" in rest:
            line, _, after = rest.partition(b"\n")
            rest[:] = after
            lines.put_nowait(bytes(line))

    loop = asyncio.get_running_loop()
    loop.add_reader(0, read)
    try:
        while True:
            arguments = json.loads(await lines.get())
            do: Callable[..., Awaitable[Any]] = getattr(worker, arguments.pop("do"))
            try:
                answer = {"answer": await do(**arguments)}
            except Exception:
                answer = {"failed": traceback.format_exc()}
            os.write(1, json.dumps(answer).encode() + b"\n")
            if do == worker.quit:
                return
    finally:
        loop.remove_reader(0)


if __name__ == "__main__":
    if sys.argv[1:] == ["uvloop"]:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
