"""Every transport that the conformance suite runs against, and what runs a case on one of them.

A case is a coroutine function that is stated once. `on_every_transport` makes of it a test for each transport: shared memory
on both event loops with both kinds of doorbell, where the server is a second process, and `shmrpc.local` on both loops.
"""

import asyncio
import inspect
import itertools
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from conformance_api import Api, Echo, Inner, Life, Names, Threads
from conformance_arrays import Arrays, ArrayService, ArrayThreadHandlers, ArrayThreads
from conformance_backward import Front, FrontService
from conformance_interceptors import Kinds, KindsService, Obedient
from conformance_interop import Interop, InteropService, Nested, NestedService
from conformance_policy import Policed, PolicedService
from conformance_service import InnerService, LifeService, NamesService, Service, ThreadHandlers
from conformance_streams import Streams, StreamService

import shmrpc

T = TypeVar("T")
Case = Callable[..., Coroutine[Any, Any, None]]

_runs: Final = itertools.count()

INJECTED: Final = ("api", "streams", "interop", "transport", "key")
"""What a case may ask for by name: a stub of `Api`, `Streams` or `Interop`, the transport, and a key for the journal that
nobody else uses."""
PATIENCE_SECONDS: Final = 60.0
"""After this a case has failed; none comes near it."""


class Transport(ABC):
    """A way for calls to travel, with a server at its end."""

    def __init__(self, loop: str) -> None:
        self.loop = loop

    @abstractmethod
    def connect(self, contract: Callable[..., T], **options: Any) -> AbstractAsyncContextManager[T]:
        """A connection to the server as a client of a contract."""

    @abstractmethod
    def connect_debug(self) -> AbstractAsyncContextManager[Api]:
        """A connection to a server in debug mode."""

    @abstractmethod
    def connect_intercepted(self) -> AbstractAsyncContextManager[Kinds]:
        """A connection to a server with an `Obedient` interceptor."""

    @abstractmethod
    def alone(self, diary: Path) -> AbstractAsyncContextManager[Life]:
        """A connection to a server that is started and stopped with it, and serves `Life`."""

    def run(self, case: Case, arguments: dict[str, Any]) -> None:
        """Runs a case in an event loop of this transport's kind, and checks that it leaves no task."""
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            runner.run(self._run(case, arguments))
        for thread in threading.enumerate():
            if thread.name == "AnyIO worker thread":  # told to end with the case
                thread.join(PATIENCE_SECONDS)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        if self.loop == "asyncio":
            return asyncio.new_event_loop()
        uvloop = pytest.importorskip("uvloop")
        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return loop

    async def _run(self, case: Case, arguments: dict[str, Any]) -> None:
        wanted = inspect.signature(case).parameters
        injected = {"transport": self, "key": f"{case.__name__} {next(_runs)}"}
        arguments |= {name: injected[name] for name in injected if name in wanted}
        async with asyncio.timeout(PATIENCE_SECONDS), self._serving():
            async with AsyncExitStack() as stack:
                for name, contract in (("api", Api), ("streams", Streams), ("interop", Interop)):
                    if name in wanted:
                        arguments[name] = await stack.enter_async_context(self.connect(contract))
                await case(**arguments)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"the case left tasks running: {left}"

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        yield


class SharedMemory(Transport):
    """Shared memory between this process and a second one, the host, which serves all cases of a run."""

    def __init__(self, loop: str, doorbell: str) -> None:
        super().__init__(loop)
        self.doorbell = doorbell
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._host: subprocess.Popen[bytes] | None = None

    def __str__(self) -> str:
        return f"{self.loop}-{self.doorbell}"

    def start(self) -> None:
        """Starts the host; who connects waits until it listens."""
        self._folder = tempfile.TemporaryDirectory(prefix="shmrpc-")
        self._host = self._start_host(self._folder.name)

    def _start_host(self, folder: str, *more: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("conformance_host.py")
        command = [sys.executable, "-W", "error", str(script), folder, self.loop, self.doorbell, *more]
        with (Path(folder) / "log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log)

    def stop(self) -> str | None:
        """Stops the host; the answer is its log, if it ended badly."""
        if self._host is None or self._folder is None:
            return None
        status, self._host = _end(self._host), None
        log = (Path(self._folder.name) / "log").read_text()
        self._folder.cleanup()
        return f"the host of {self} ended with status {status}:\n{log}" if status else None

    def connect(self, contract: Callable[..., T], **options: Any) -> AbstractAsyncContextManager[T]:
        return self.connect_at("main.sock", contract, **options)

    def connect_at(self, name: str, contract: Callable[..., T], **options: Any) -> AbstractAsyncContextManager[T]:
        """A connection to one of the host's addresses."""
        assert self._folder is not None
        return shmrpc.connect(contract, Path(self._folder.name) / name, wait=30.0, doorbell=self.doorbell, **options)

    def connect_debug(self) -> AbstractAsyncContextManager[Api]:
        return self.connect_at("debug.sock", Api)

    def connect_intercepted(self) -> AbstractAsyncContextManager[Kinds]:
        return self.connect_at("intercepted.sock", Kinds)

    @asynccontextmanager
    async def alone(self, diary: Path) -> AsyncIterator[Life]:
        with tempfile.TemporaryDirectory(prefix="shmrpc-") as folder:
            host = self._start_host(folder, str(diary))
            try:
                path = Path(folder) / "life.sock"
                async with shmrpc.connect(Life, path, wait=30.0, doorbell=self.doorbell) as life:
                    yield life
            finally:
                status = await asyncio.to_thread(_end, host)
            assert status == 0, (Path(folder) / "log").read_text()


def _end(host: "subprocess.Popen[bytes]") -> int:
    assert host.stdin is not None
    host.stdin.close()
    try:
        return host.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        host.kill()
        return host.wait()


class Pooled(SharedMemory):
    """The same over two connections at once, which calls take in turns."""

    def __str__(self) -> str:
        return f"{super().__str__()}-pool"

    def connect_at(self, name: str, contract: Callable[..., T], **options: Any) -> AbstractAsyncContextManager[T]:
        return super().connect_at(name, contract, connections=2, **options)


class Local(Transport):
    """`shmrpc.local`: the services are objects of this process, made anew for each case."""

    def __str__(self) -> str:
        return f"{self.loop}-local"

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        nested = NestedService()
        async with shmrpc.local(Inner, InnerService()) as inner, shmrpc.local(Nested, nested) as nested.itself:
            self._services: dict[Callable[..., Any], object] = {
                Api: Service(inner),
                Echo: Echo(),
                Inner: InnerService(),
                Names: NamesService(),
                Threads: ThreadHandlers(),
                Arrays: ArrayService(),
                ArrayThreads: ArrayThreadHandlers(),
                Streams: StreamService(),
                Interop: InteropService(),
                Nested: nested,
                Front: FrontService(),
                Policed: PolicedService(),
            }
            yield

    def connect(self, contract: Callable[..., T], **options: Any) -> AbstractAsyncContextManager[T]:
        return shmrpc.local(contract, self._services[contract], **options)

    def connect_debug(self) -> AbstractAsyncContextManager[Api]:
        return shmrpc.local(Api, self._services[Api], debug=True)

    def connect_intercepted(self) -> AbstractAsyncContextManager[Kinds]:
        service = KindsService()
        return shmrpc.local(Kinds, service, server_interceptors=[Obedient(service.journal)])

    def alone(self, diary: Path) -> AbstractAsyncContextManager[Life]:
        return shmrpc.local(Life, LifeService(diary))


LOOPS: Final = ("uvloop", "asyncio")
SHARED_MEMORY: Final = (
    *(SharedMemory(loop, doorbell) for loop in LOOPS for doorbell in ("eventfd", "pipe")),
    Pooled("uvloop", "eventfd"),
)
LOCAL: Final = tuple(map(Local, LOOPS))


def on_every_transport(case: Case) -> Callable[..., None]:
    """Makes of a case a test for each transport."""
    return _as_test(case, (*SHARED_MEMORY, *LOCAL))


def over_one_connection(case: Case) -> Callable[..., None]:
    """Makes of a case a test for each transport but pools: calls over different connections have no order."""
    return _as_test(case, tuple(one for one in (*SHARED_MEMORY, *LOCAL) if not isinstance(one, Pooled)))


def between_processes(case: Case) -> Callable[..., None]:
    """Makes of a case a test for each transport with two processes: it is about what one process cannot have."""
    return _as_test(case, SHARED_MEMORY)


def _as_test(case: Case, transports: tuple[Transport, ...]) -> Callable[..., None]:
    def test(transport: Transport, **arguments: Any) -> None:
        transport.run(case, arguments)

    passed = [parameter for name, parameter in inspect.signature(case).parameters.items() if name not in INJECTED]
    given = inspect.Parameter("transport", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    test.__signature__ = inspect.Signature([given, *passed])  # type: ignore[attr-defined]
    test.__name__ = test.__qualname__ = case.__name__
    test.__doc__, test.__module__ = case.__doc__, case.__module__
    decorate = pytest.mark.parametrize("transport", transports, ids=str)
    result: Callable[..., None] = decorate(test)
    return result
