"""The client of the stateful test: its connections, how it makes each kind of call, and what its forked children try."""

import asyncio
import gc
import os
import select
import signal
import warnings
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import numpy as np
from stateful_api import Array, Home, Work, fill, fits
from stateful_calls import STREAMING, Call
from stateful_servers import PATIENCE, Place

import shmrpc

Views = list[tuple[int, Array]]
"""Arrays that came, with their tokens."""


class AtHome(Home):
    """What the client exposes."""

    def __init__(self) -> None:
        self.answered = 0

    async def answer(self, token: int) -> int:
        self.answered += 1
        await asyncio.sleep(0)
        return token + 1


class Conn:
    """One connection, or one pool of them."""

    def __init__(self, number: int, places: list[Place], *, patient: bool, settings: dict[str, Any]) -> None:
        self.number: Final = number
        self.places: Final = places
        self.patient: Final = patient
        self.open = False
        self.troubles: set[str] = set()
        """What its next calls may still suffer from."""
        self.shaky = False
        """Whether it was ever disturbed."""
        self.manager: AbstractAsyncContextManager[Work] = shmrpc.connect(
            Work,
            [place.path for place in places] if len(places) > 1 else places[0].path,
            reconnect_timeout=2 * PATIENCE if patient else 0.0,
            exposes=AtHome(),
            **settings,
        )
        self.stub: Any = None

    def befall(self, trouble: str) -> None:
        """Something happened to one of its servers."""
        self.troubles.add(trouble)
        self.shaky = True

    def recover(self) -> None:
        """Its next calls are safe again, if it is connected to the servers that are there now."""
        if self.troubles and self.open:
            pids = [place.current.pid if place.current is not None else 0 for place in self.places]
            ends = shmrpc.endpoints(self.stub)
            if all(
                end.state == "connected" and end.peer is not None and end.peer.pid == pid
                for end, pid in zip(ends, pids, strict=True)
            ):
                self.troubles.clear()

    @property
    def reachable(self) -> bool:
        """Whether a call can be answered now."""
        return any(place.listening for place in self.places) and not any(place.standing for place in self.places)


async def perform(stub: Any, call: Call, nbytes: int, *, born: bool, views: Views | None) -> Any:
    """Makes a call, and checks what came.

    Args:
        stub: With the options of the call.
        call: What it is.
        nbytes: Of each array.
        born: Whether arrays are made in shared memory.
        views: Where arrays that come are put; None: they are dropped.
    """
    token, kind = call.token, call.kind
    if kind in STREAMING:
        return await _read(stub, call, nbytes, views)
    if kind in ("total", "weigh"):
        assert call.source is not None
        counted = await getattr(stub, kind)(token, call.source.read())
        assert kind == "weigh" or counted == token * call.source.given + sum(range(call.source.given))
        return counted
    if kind in ("keep", "echo"):
        array = shmrpc.empty(nbytes, np.uint8, to=stub) if born else np.empty(nbytes, np.uint8)
        result = await getattr(stub, kind)(token, fill(array, token))
        del array
    elif kind == "make":
        result = await stub.make(token, nbytes, born)
    else:
        result = await getattr(stub, kind)(token)
        assert result == {"ask": token + 1, "note": None}.get(kind, token), f"{call} gave {result!r}"
        return result
    if kind == "keep":
        assert result is True, f"{call}: the array arrived as another one"
    else:
        assert result.shape == (nbytes,), f"{call}: an array of {result.nbytes} bytes came back"
        assert fits(result, token), f"{call}: another array came back"
        if views is not None:
            views.append((token, result))
    return kind


async def _read(stub: Any, call: Call, nbytes: int, views: Views | None) -> str:
    arguments: dict[str, tuple[Any, ...]] = {
        "numbers": (call.total,),
        "arrays": (call.total, nbytes),
        "both": (call.source.read() if call.source is not None else None,),
    }
    call.stream = getattr(stub, call.kind)(call.token, *arguments[call.kind])
    try:
        while await call.may_read():
            try:
                item = await anext(call.stream)
            except StopAsyncIteration:
                return "ended"
            token = call.token + call.received
            if call.kind == "arrays":
                assert fits(item, token), f"{call}: item {call.received} is another array"
                if views is not None:
                    views.append((token, item))
            else:
                assert item == token + (call.kind == "both"), f"{call}: item {call.received} is {item}"
            del item
            call.received += 1
    except asyncio.CancelledError:
        await call.stream.aclose()  # which is over already, unless it was not read just now
        raise
    await call.stream.aclose()
    return "left"


async def _refused(make: Callable[[], Awaitable[object]], wanted: tuple[type[BaseException], ...]) -> str:
    """What is wrong with how something ends in a forked child: it is to raise what is wanted, if anything."""
    try:
        result = await asyncio.wait_for(make(), PATIENCE / 4)
    except wanted:
        return ""
    except BaseException as error:
        return f"{error!r} and not {wanted}"
    return f"{result!r} and not {wanted}" if shmrpc.ForkedError in wanted or shmrpc.Closed in wanted else ""


def _try_all(conns: list[Conn], streams: list[Call], views: Views, token: int) -> str:
    """What a forked child tries; the text of what went wrong."""
    problems = []
    for conn in conns:
        wanted = (shmrpc.ForkedError,) if conn.open else (shmrpc.Closed,)
        for method in (conn.stub.effect, shmrpc.options(conn.stub, timeout=5.0).note, conn.stub.ask):
            problems.append(asyncio.run(_refused(lambda method=method: method(token), wanted)))  # type: ignore[misc]
        with suppress(shmrpc.RpcError):
            fill(shmrpc.empty(9000, np.uint8, to=conn.stub), token)
    for call in streams:  # of one that has ended, the child may read what had come
        ends = (shmrpc.RpcError, StopAsyncIteration)
        problems.append(asyncio.run(_refused(lambda call=call: anext(call.stream), ends)))  # type: ignore[misc]
    problems += [f"array {number} is another one" for number, array in views if not fits(array, number)]
    views.clear()
    gc.collect()
    for conn in conns:
        if conn.open:
            problems.append(asyncio.run(_refused(lambda conn=conn: conn.manager.__aexit__(None, None, None), ())))  # type: ignore[misc]
    return "; ".join(filter(None, problems))


class Child:
    """A forked child of the client, which tries what must not work and, if it is to stay, lives on until it is told."""

    def __init__(self, conns: list[Conn], streams: list[Call], views: Views, token: int, *, stays: bool) -> None:
        heard, said = os.pipe()
        there, self._end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: what it does, it does on purpose
            self.pid: Final = os.fork()
        if not self.pid:
            try:
                os.write(said, f"{_try_all(conns, streams, views, token)}\n".encode())
                if stays:
                    os.read(there, 1)
            finally:
                os._exit(0)
        os.close(said)
        os.close(there)
        try:
            self.problem: Final = self._hear(heard)
        finally:
            os.close(heard)

    def _hear(self, heard: int) -> str:
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([heard], [], [], PATIENCE)
            part = os.read(heard, 65536) if ready else b""
            if not part:
                return f"the child said no more than {text!r}"
            text += part
        return text.decode().strip()

    def end(self) -> None:
        """Ends and reaps it."""
        with suppress(BrokenPipeError):
            os.write(self._end, b"x")
        os.close(self._end)
        pidfd = os.pidfd_open(self.pid)
        ready, _, _ = select.select([pidfd], [], [], PATIENCE)
        os.close(pidfd)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        assert ready, "a forked child did not end"
