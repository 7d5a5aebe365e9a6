"""The contract that isolated processes speak, its service, and the parts that a process plays in isolation.

A part prints one line of JSON, or of text, for each step, and reads its commands from standard input.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.session import Session

Bytes = npt.NDArray[np.uint8]
LARGE = 1 << 20
"""Bytes of an array that no slab has room for, and no `/dev/shm` of 64 KiB."""
NOBODY = 12345
"""A uid that is neither root's nor the tests'."""
ITEMS = 300
"""Of a stream: more than a window has."""


class Border(Protocol):
    """What crosses the border of a namespace."""

    async def seen(self) -> list[int]:
        """The caller's pid, uid and gid as the server sees them, and the server's own pid."""
        ...

    async def invert(self, values: Bytes) -> Bytes: ...

    def count(self, most: int) -> AsyncIterator[int]: ...

    async def total(self, parts: AsyncIterator[int]) -> int: ...

    async def hold(self) -> None:
        """Ends when the caller is gone."""
        ...


class Guard(Border):
    """The service."""

    def __init__(self) -> None:
        self.held = 0
        self.ended = 0

    async def seen(self) -> list[int]:
        return [*shmrpc.current_call().peer, os.getpid()]

    async def invert(self, values: Bytes) -> Bytes:
        out: Bytes = shmrpc.empty(values.shape, np.uint8)
        np.subtract(255, values, out=out)
        return out

    async def count(self, most: int) -> AsyncIterator[int]:
        for item in range(most):
            yield item

    async def total(self, parts: AsyncIterator[int]) -> int:
        return sum([part async for part in parts])

    async def hold(self) -> None:
        self.held += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.ended += 1


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


async def numbers() -> AsyncIterator[int]:
    for item in range(ITEMS):
        yield item


async def all_kinds(stub: Any) -> dict[str, Any]:
    """Makes a call of every kind; says what was seen, once all of it is right."""
    seen = await stub.seen()
    sent = np.arange(LARGE, dtype=np.uint8)
    got = await stub.invert(sent)
    assert np.array_equal(got, 255 - sent)
    born = shmrpc.empty(LARGE, np.uint8, to=stub)
    born[:] = 7
    assert int((await stub.invert(born)).min()) == 248
    assert [item async for item in stub.count(ITEMS)] == list(range(ITEMS))
    assert await stub.total(numbers()) == sum(range(ITEMS))
    return {"seen": seen, "peer": list(shmrpc.peer(stub) or ()), "self": [os.getpid(), os.geteuid(), os.getegid()]}


def beget(sessions: Iterable[Session]) -> None:
    """Leaves a child behind that holds the sockets of all connections open, until the input ends."""
    held = [os.dup(session.memory.control._sock.fileno()) for session in sessions]
    if not os.fork():
        while os.read(0, 1):
            pass
        os._exit(0)
    for fd in held:
        os.close(fd)
    say("begot")


async def command() -> str:
    """The next line of the input; empty at its end."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


async def hold(stub: Border) -> None:
    """Says how a call ended that only an error ends."""
    try:
        await stub.hold()
    except shmrpc.RpcError as error:
        say(f"{type(error).__name__}: {error}")


async def client(path: str, settings: dict[str, Any]) -> None:
    """Connects and makes all kinds of calls, then does what it is told: ``again``, ``hold``, ``beget``, ``drop``."""
    try:
        async with shmrpc.connect(Border, path, **settings) as stub:
            say(await all_kinds(stub))
            holding = []
            while line := await command():
                match line:
                    case "again":
                        say(await all_kinds(stub))
                    case "hold":
                        holding.append(asyncio.create_task(hold(stub)))
                    case "reconnect":
                        for _ in range(5):
                            async with shmrpc.connect(Border, path, **settings) as other:
                                await other.seen()
                        say("reconnected")
                    case "drop":
                        os.setgid(NOBODY)
                        os.setuid(NOBODY)
                        say([os.getuid(), os.geteuid()])
                    case "beget":
                        transport: Any = open_stub(stub)[1]
                        beget([transport._session])
    except shmrpc.RpcError as error:
        say(f"{type(error).__name__}: {error}")


async def server(path: str, settings: dict[str, Any]) -> None:
    """Serves until its input ends. Told to ``beget``, it leaves a child; it says how many calls were ``held`` and have
    ended, and what is ``charged`` to other uids, and how many watches that takes.
    """
    guard = Guard()
    async with shmrpc.Server(guard, at=path, **settings) as serving:
        assert serving._listener is not None
        say("listening")
        while line := await command():
            match line:
                case "beget":
                    beget(serving._listener.sessions)
                case "charged":
                    quota = serving._listener._quota
                    say([sum(quota._bytes.values()), len(quota._by_process)])
                case "held":
                    say([guard.held, guard.ended])


def play(part: str, path: str, settings: dict[str, Any]) -> None:
    """Plays one part to its end."""
    asyncio.run((client if part == "client" else server)(path, settings))
