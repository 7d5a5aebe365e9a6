"""The contract that the process tests of buffers share, a service that keeps what it is given, and how to look at memory.

The tests serve it in their own process, or with ``shmrpc serve buffer_api:Holder`` in others.
"""

import asyncio
import gc
import os
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple, Protocol

import life_processes
import msgspec
import numpy as np
import numpy.typing as npt
from life_waiting import PATIENCE, until

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.arena import Arena
from shmrpc.shm.memory import Memory
from shmrpc.shm.session import Session

Bytes = npt.NDArray[np.uint8]

KIB = 1 << 10
MIB = 1 << 20


class Parcel(msgspec.Struct):
    """An array in a value whose own check may fail where it arrives."""

    contents: Bytes
    mood: str = "good"

    def __post_init__(self) -> None:
        if self.mood == "bad":
            raise ValueError("it is in a bad mood")


class Buffers(Protocol):
    """Methods that take, give and keep arrays."""

    async def small(self, number: int) -> int: ...
    async def first(self, array: Bytes) -> int: ...
    async def checksum(self, array: Bytes) -> int: ...
    async def echo(self, array: Bytes) -> Bytes: ...
    async def raw(self, contents: bytes) -> bytes: ...
    async def both(self, one: Bytes, other: Bytes) -> list[Bytes]: ...
    async def give(self, nbytes: int, value: int) -> Bytes:
        """An array of the heap, which is copied."""
        ...

    async def give_born(self, nbytes: int, value: int) -> Bytes:
        """An array that was born in shared memory."""
        ...

    async def hold(self, array: Bytes) -> Bytes:
        """Gives it back when it is let go."""
        ...

    async def nap(self, array: Bytes) -> int:
        """Waits for nothing, for some turns of the event loop."""
        ...

    async def let_go(self) -> int: ...
    async def keep(self, array: Bytes) -> None: ...
    async def kept(self) -> list[int]:
        """The first element of each array that is kept."""
        ...

    async def drop(self) -> int:
        """Keeps nothing any more; says how many there were."""
        ...

    async def fail(self, array: Bytes) -> None: ...
    async def give_odd(self, array: Bytes) -> list[Any]:
        """A result with an array in it that cannot be encoded."""
        ...

    async def open(self, parcel: Parcel) -> int: ...
    async def give_bad(self, nbytes: int) -> Parcel:
        """A result with an array in it that cannot be decoded."""
        ...

    @shmrpc.oneway
    async def throw(self, array: Bytes) -> None: ...
    async def where(self) -> int:
        """The server's process."""
        ...


METHODS: list[str] = [name for name in vars(Buffers) if not name.startswith("_")]
"""In the order of their numbers."""


class Holder(Buffers):
    """The service."""

    def __init__(self) -> None:
        self.arrays: list[Bytes] = []
        self.held: list[asyncio.Future[None]] = []

    async def small(self, number: int) -> int:
        return number

    async def first(self, array: Bytes) -> int:
        return int(array[0])

    async def checksum(self, array: Bytes) -> int:
        return zlib.crc32(memoryview(array))  # type: ignore[arg-type]  # numpy's types do not know the protocol

    async def echo(self, array: Bytes) -> Bytes:
        return array

    async def raw(self, contents: bytes) -> bytes:
        return contents

    async def both(self, one: Bytes, other: Bytes) -> list[Bytes]:
        return [one, other, one]

    async def give(self, nbytes: int, value: int) -> Bytes:
        return np.full(nbytes, value, np.uint8)

    async def give_born(self, nbytes: int, value: int) -> Bytes:
        array = shmrpc.empty(nbytes, np.uint8)
        array[:] = value
        return array

    async def hold(self, array: Bytes) -> Bytes:
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held.append(held)
        try:
            await held
        finally:
            self.held.remove(held)
        return array

    async def nap(self, array: Bytes) -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return int(array[0])

    async def let_go(self) -> int:
        for held in self.held:
            if not held.done():
                held.set_result(None)
        return len(self.held)

    async def keep(self, array: Bytes) -> None:
        self.arrays.append(array)

    async def kept(self) -> list[int]:
        return [int(array[0]) for array in self.arrays]

    async def drop(self) -> int:
        count = len(self.arrays)
        self.arrays.clear()
        return count

    async def fail(self, array: Bytes) -> None:
        raise RuntimeError(f"no good: {array[:3]}")

    async def give_odd(self, array: Bytes) -> list[Any]:
        return [array, object()]

    async def open(self, parcel: Parcel) -> int:
        return int(parcel.contents[0])

    async def give_bad(self, nbytes: int) -> Parcel:
        parcel = Parcel(np.zeros(nbytes, np.uint8))
        parcel.mood = "bad"
        return parcel

    async def throw(self, array: Bytes) -> None:
        del array

    async def where(self) -> int:
        return os.getpid()


def numbered(nbytes: int, first: int = 0) -> Bytes:
    """An array of the heap in which neighbours differ."""
    return np.arange(first, first + nbytes, dtype=np.uint32).astype(np.uint8)


@contextmanager
def serving(path: str, *options: str) -> Iterator[Popen[bytes]]:
    """A server in a process of its own, which is killed at the end if it still runs."""
    with life_processes.serving(path, "", *options, service="buffer_api:Holder") as process:
        yield process


def session_of(stub: object) -> Session:
    """The client's session behind a stub."""
    transport: Any = open_stub(stub)[1]
    session: Session = transport._session
    return session


class Pair(NamedTuple):
    """A server and a client in this process."""

    server: shmrpc.Server
    holder: Holder
    stub: Buffers
    theirs: Memory
    """The server's end of the connection."""
    ours: Memory
    """The client's."""
    arenas: tuple[Arena, Arena]
    """Of both."""

    @property
    def lent(self) -> list[shmrpc.Lease]:
        """What is out, on both sides."""
        return shmrpc.leases(self.stub) + shmrpc.leases(self.server)

    async def at_home(self) -> None:
        """Returns when every lease has ended and every block is free, on both sides, and the connection still lives."""
        await until(lambda: not self.lent, "all leases to end")
        for arena in self.arenas:
            assert arena.base.free_bytes == arena.base.nbytes
            assert all(region.free_bytes == region.nbytes for region in arena.extents)
        assert await self.stub.small(7) == 7


@asynccontextmanager
async def pair(path: str, ours: dict[str, Any] | None = None, **theirs: Any) -> AsyncIterator[Pair]:
    """A server and a client in this process; `ours` are the client's settings."""
    holder = Holder()
    async with (
        shmrpc.Server(holder, at=path, **theirs) as server,
        shmrpc.connect(Buffers, path, **(ours or {})) as stub,
    ):
        await stub.small(1)
        (session,) = server._listener.sessions
        own = session_of(stub)
        yield Pair(server, holder, stub, session.memory, own.memory, (session.channel.arena, own.channel.arena))
        holder.arrays.clear()


class Client:
    """``buffer_client.py`` in a process of its own, with a part to play, which it can be asked to go on with."""

    def __init__(self, path: str, part: str, user: int | None) -> None:
        script = [str(life_processes.HERE / "buffer_client.py")]
        if user is not None:
            script = [life_processes.STRANGER_SCRIPT, str(user), "buffers"]
        self.process = Popen(
            [sys.executable, "-W", "error", *script, path, part],
            env={**os.environ, "PYTHONPATH": str(life_processes.ROOT)},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )

    async def hear(self) -> str:
        """The next line that it says; empty when it has ended."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await asyncio.to_thread(self.process.stdout.readline)).decode().strip()

    async def go_on(self) -> str:
        """Asks for more, and gives the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return await self.hear()


@contextmanager
def client_playing(path: str, part: str, *, user: int | None = None) -> Iterator[Client]:
    """A client process, killed at the end if it still runs."""
    client = Client(path, part, user)
    try:
        yield client
    finally:
        life_processes.end(client.process)
        if client.process.stderr is not None:
            client.process.stderr.close()


def extents_mapped(pid: int | str = "self", *, collect: bool = True) -> list[int]:
    """The size of each segment that a process has mapped beside the base segments, bytes."""
    if collect:
        gc.collect()
    sizes = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if "/memfd:" in line:
            begin, _, end = line.split()[0].partition("-")
            sizes.append(int(end, 16) - int(begin, 16))
    return [size for size in sizes if size >= MIB]


def segment_fds(pid: int | str = "self") -> int:
    """How many fds of segments a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return sum("memfd:shmrpc" in _target(folder / fd) for fd in os.listdir(folder))


def _target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except FileNotFoundError:  # the fd of the listing itself
        return ""
