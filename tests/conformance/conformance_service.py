"""The services of the conformance suite, which keep a journal of what happened to their calls."""

import asyncio
import contextlib
import os
import threading
import time
from collections import defaultdict
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

from conformance_api import About, Api, BadShape, Fussy, Inner, Life, Names, NotToday, Point, shrunk, text_of

import shmrpc

_remembered: ContextVar[str] = ContextVar("remembered", default="nothing")


class Journal:
    """What happened under which key, and the gates that keep handlers waiting."""

    def __init__(self) -> None:
        self.words: defaultdict[str, list[str]] = defaultdict(list)
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._news = asyncio.Event()

    def note(self, key: str, word: str) -> None:
        self.words[key].append(word)
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, key: str, word: str) -> None:
        while word not in self.words[key]:
            await self._news.wait()


class Service(Api):
    """Implements `Api`."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner
        self._journal = Journal()

    async def place(self, x: int, y: int = 99, *, label: str = "other", scale: float = 99.0) -> str:
        return f"{x} {y} {label} {scale}"

    async def point(self, point: Point, /, factor: int = 1) -> Point:
        return Point(point.x * factor, point.y * factor)

    async def measure(self, texts: list[str]) -> int:
        return sum(map(len, texts))

    async def repeat(self, text: str, times: int) -> str:
        return text * times

    async def refuse_shape(self, shape: tuple[int, ...], hint: str) -> None:
        raise BadShape(shape, centre=Point(1, 2), hint=hint)

    async def refuse_today(self, weekday: int, code: int = 0) -> None:
        error = NotToday(weekday)
        if code:
            error.code = shmrpc.Code(code)
        raise error

    async def refuse_with(self, code: int, text: str) -> None:
        raise shmrpc.RpcError(text, code=shmrpc.Code(code))

    async def refuse_path(self, path: bytes) -> None:
        raise shmrpc.RpcError(f"cannot read {os.fsdecode(path)}", code=shmrpc.Code.NOT_FOUND)

    async def break_down(self, secret: str) -> None:
        raise ValueError(secret)

    async def give_what_cannot_be_encoded(self) -> Any:
        return object()

    async def give_what_does_not_fit(self) -> int:
        return cast(int, "text")

    async def give_what_will_not_be_read(self) -> Fussy:
        return shrunk()

    async def take_fussy(self, fussy: Fussy) -> int:
        return fussy.size

    async def cancel_itself(self) -> None:
        raise asyncio.CancelledError

    async def hang(self, key: str) -> None:
        self._journal.note(key, "started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            raise

    async def ignore_cancellation(self, key: str) -> str:
        self._journal.note(key, "started")
        while not self._journal.gates[key].is_set():
            try:
                await self._journal.gates[key].wait()
            except asyncio.CancelledError:
                self._journal.note(key, f"ignored, cancelled is {shmrpc.current_call().cancelled}")
        self._journal.note(key, "finished")
        return "finished"

    async def answer_when_cancelled(self) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "half of an answer"

    async def answer_when_released(self, key: str) -> str:
        self._journal.note(key, "started" if not self._journal.words[key] else "started twice")
        await self._journal.gates[key].wait()
        return "answer"

    async def call_after_the_deadline(self, key: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await self._inner.run(key)
        except shmrpc.DeadlineExceeded:
            self._journal.note(key, "refused")
        else:
            self._journal.note(key, "carried out")

    async def nested_deadlines(self, timeout: float | None) -> tuple[float | None, float | None]:
        inner = self._inner if timeout is None else shmrpc.options(self._inner, timeout=timeout)
        return shmrpc.current_call().deadline, await inner.deadline()

    async def about(self) -> About:
        call = shmrpc.current_call()
        binary = {key: value for key, value in call.metadata.items() if isinstance(value, bytes)}
        peer = (call.peer.pid, call.peer.uid, call.peer.gid)
        return About(call.method, call.deadline, text_of(call.metadata), binary, peer, call.cancelled, os.getpid())

    async def remember(self, value: str) -> tuple[str, str]:
        before = _remembered.get()
        _remembered.set(value)
        await asyncio.sleep(0)
        return before, _remembered.get()

    async def is_one_task(self) -> bool:
        task = asyncio.current_task()
        call = shmrpc.current_call().method
        await asyncio.sleep(0)
        return task is not None and task is asyncio.current_task() and call == shmrpc.current_call().method

    async def time_out(self) -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "waited in vain"

    async def gather(self, count: int) -> list[int]:
        async def one(number: int) -> int:
            await asyncio.sleep(0)
            assert shmrpc.current_call().method == "Api.gather"
            return number

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(count)]
        return [task.result() for task in tasks]

    async def note(self, key: str, word: str) -> None:
        self._journal.note(key, word)

    async def note_and_fail(self, key: str) -> None:
        self._journal.note(key, "failing")
        raise BadShape((), Point(0))

    async def note_when_released(self, key: str) -> None:
        self._journal.note(key, "started")
        try:
            await self._journal.gates[key].wait()
        except asyncio.CancelledError:
            self._journal.note(key, "cancelled")
            raise
        self._journal.note(key, "finished")

    async def journal(self, key: str) -> list[str]:
        return self._journal.words[key]

    async def until(self, key: str, word: str) -> None:
        await self._journal.until(key, word)

    async def release(self, key: str) -> None:
        self._journal.gates[key].set()


class InnerService(Inner):
    """Implements `Inner`."""

    def __init__(self) -> None:
        self._ran: set[str] = set()

    async def deadline(self) -> float | None:
        return shmrpc.current_call().deadline

    async def run(self, key: str) -> None:
        self._ran.add(key)

    async def has_run(self, key: str) -> bool:
        return key in self._ran


class ThreadHandlers:
    """Serves `Threads` with plain functions, so that it cannot inherit from it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._journal = Journal()

    def add(self, left: int, *, right: int = 99) -> int:
        return left + right

    def is_off_the_loop(self) -> bool:
        return threading.get_ident() != self._loop_thread

    def about(self) -> tuple[str, dict[str, str]]:
        call = shmrpc.current_call()
        return call.method, text_of(call.metadata)

    def fail(self, shape: tuple[int, ...]) -> None:
        raise BadShape(shape, Point(3))

    def work_until_cancelled(self, key: str) -> None:
        self._loop.call_soon_threadsafe(self._journal.note, key, "started")
        while not shmrpc.current_call().cancelled:
            time.sleep(0.001)
        self._loop.call_soon_threadsafe(self._journal.note, key, "stopped")

    async def until(self, key: str, word: str) -> None:
        await self._journal.until(key, word)


class NamesService(Names):
    """Implements `Names`: each method gives its name."""

    async def close(self) -> str:
        return "close"

    async def open(self) -> str:
        return "open"

    async def call(self) -> str:
        return "call"

    async def bind(self) -> str:
        return "bind"

    async def peer(self) -> str:
        return "peer"

    async def options(self, options: int, metadata: int) -> str:
        return f"options {options} {metadata}"

    async def send(self, args: int, kwargs: int, method: int) -> str:
        return f"send {args} {kwargs} {method}"


class LifeService(Life):
    """Writes down its life in a file."""

    def __init__(self, diary: Path) -> None:
        self._diary = diary

    def _write(self, word: str) -> None:
        with self._diary.open("a") as diary:
            diary.write(f"{word}\n")

    async def __aenter__(self) -> None:
        self._write("entered")

    async def __aexit__(self, *exc_info: object) -> None:
        self._write("left")

    async def live(self) -> None:
        self._write("called")
