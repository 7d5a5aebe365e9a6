"""What type checkers see: a stub has its contract's type, and a wrong call is flagged. Both mypy and basedpyright say so."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shmrpc

ROOT = Path(shmrpc.__file__).parent.parent

CLIENT = '''
"""A client as users write it. Each line with the word WRONG is one that a checker must flag, and it must flag no other."""

import abc
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, assert_type

import msgspec

import shmrpc


class Label(msgspec.Struct, frozen=True):
    name: str


class Vision(Protocol):
    async def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[Label]: ...
    @shmrpc.oneway
    async def warm_up(self, model: str) -> None: ...
    @shmrpc.method(timeout=1.0, idempotent=True)
    async def count(self) -> int: ...
    def tiles(self, image: bytes, rows: int) -> AsyncIterator[bytes]: ...
    async def total(self, parts: AsyncIterator[bytes]) -> int: ...


class Cache(abc.ABC):
    @abc.abstractmethod
    async def get(self, key: str) -> bytes | None: ...


class Clock:
    async def now(self) -> float:
        return 0.0


async def has_token(call: shmrpc.Call) -> bool:
    assert_type(call.peer.uid, int)
    return "token" in call.metadata


class Worker(Vision):
    @shmrpc.method(max_concurrency=2, max_waiting=10, guard=shmrpc.guards.uids(0, 1000))
    async def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[Label]:
        call = shmrpc.current_call()
        assert_type(call.deadline, float | None)
        assert_type(call.peer.pid, int)
        return [Label(call.method)]

    async def warm_up(self, model: str) -> None: ...

    @shmrpc.method(guard=has_token)
    async def count(self) -> int:
        return 0

    async def tiles(self, image: bytes, rows: int) -> AsyncIterator[bytes]:
        yield image

    async def total(self, parts: AsyncIterator[bytes]) -> int:
        return 0


def odd() -> None:
    class Odd:
        @shmrpc.method(guard=lambda call: "yes")  # WRONG
        async def count(self) -> int:
            return 0

        @shmrpc.method(max_concurrency="two")  # WRONG
        async def other(self) -> int:
            return 0


async def protocol(address: Path) -> None:
    async with shmrpc.connect(Vision, address, timeout=1.0, metadata={"tenant": "a"}, polling="never") as vision:
        assert_type(vision, Vision)
        assert_type(await vision.classify(b"", top=1, exact=True), list[Label])
        assert_type(await vision.count(), int)
        await vision.warm_up("model")
        quick = shmrpc.options(vision, timeout=0.1, metadata={"trace": b"1"})
        assert_type(quick, Vision)
        assert_type(shmrpc.options(vision, retry=shmrpc.Retry(attempts=5, codes={shmrpc.Code.ABORTED})), Vision)
        assert_type(shmrpc.peer(vision), shmrpc.Peer | None)
        await vision.classify("text")  # WRONG
        await vision.classify(b"", top="one")  # WRONG
        await vision.classify(b"", 1, True)  # WRONG
        await vision.classify()  # WRONG
        await vision.explain(b"")  # WRONG
        await vision.warm_up()  # WRONG
        await quick.count(1)  # WRONG
        count: str = await vision.count()  # WRONG
        vision.count() + 1  # WRONG
        print(count)
        shmrpc.options(vision, timeout="soon")  # WRONG
        shmrpc.options(vision, metadata={"a": 1})  # WRONG
        shmrpc.options(vision, 0.1)  # WRONG
        shmrpc.options(vision, retry=3)  # WRONG
        shmrpc.Retry(3)  # WRONG


async def abstract() -> None:
    async with shmrpc.connect(Cache, "/run/cache.sock") as cache:
        assert_type(cache, Cache)
        assert_type(await cache.get("key"), bytes | None)
        assert_type(shmrpc.options(cache, timeout=1.0), Cache)
        await cache.get(1)  # WRONG
        await cache.put("key")  # WRONG


async def plain() -> None:
    async with shmrpc.connect(Clock, "/run/clock.sock") as clock:
        assert_type(clock, Clock)
        assert_type(await clock.now(), float)
        assert_type(shmrpc.options(clock, timeout=1.0), Clock)
        await clock.now("utc")  # WRONG


async def local() -> None:
    async with shmrpc.local(Vision, Worker(), debug=True) as vision:
        assert_type(vision, Vision)
        await vision.classify(1)  # WRONG
    async with shmrpc.local(Cache, object()) as cache:
        assert_type(cache, Cache)
    async with shmrpc.local(Clock, Clock()) as clock:
        assert_type(clock, Clock)


class BlockingVision(Protocol):
    def classify(self, image: bytes, top: int = 3, *, exact: bool = False) -> list[Label]: ...
    def tiles(self, image: bytes, rows: int) -> Iterator[bytes]: ...
    def total(self, parts: Iterable[bytes]) -> int: ...


def blocking() -> None:
    with shmrpc.connect_sync(Vision, "/run/vision.sock", typed_as=BlockingVision, timeout=1.0) as vision:
        assert_type(vision, BlockingVision)
        assert_type(vision.classify(b"", top=1, exact=True), list[Label])
        assert_type(shmrpc.options(vision, timeout=0.1), BlockingVision)
        for tile in vision.tiles(b"", 1):
            assert_type(tile, bytes)
        assert_type(vision.total([b"", b""]), int)
        vision.classify("text")  # WRONG
        vision.total([1])  # WRONG
        vision.explain(b"")  # WRONG
        vision.classify(b"") + 1  # WRONG
    with shmrpc.connect_sync(Vision, "/run/vision.sock", wait=1.0, polling="never") as untyped:
        assert_type(untyped, Any)
        untyped.classify("text").whatever
    connection = shmrpc.connect_sync(Vision, Path("/run/vision.sock"), typed_as=BlockingVision)
    assert_type(connection.open(), BlockingVision)
    connection.close()
    shmrpc.connect_sync(Vision)  # WRONG
    shmrpc.connect_sync("Vision", "/run/vision.sock")  # WRONG
    shmrpc.connect_sync(Vision, "/run/vision.sock", typed_as="BlockingVision")  # WRONG


async def pool(paths: list[str], others: tuple[Path, ...]) -> None:
    async with shmrpc.connect(Vision, paths, connections=2) as vision:
        assert_type(vision, Vision)
        assert_type(shmrpc.endpoints(vision), list[shmrpc.Endpoint])
        assert_type(shmrpc.endpoints(vision)[0].in_flight, int)
    async with shmrpc.connect(Vision, others) as vision:
        assert_type(vision, Vision)
    shmrpc.connect(Vision, [3])  # WRONG
    shmrpc.connect(Vision, paths, connections="two")  # WRONG


async def refused() -> None:
    shmrpc.connect(Vision)  # WRONG
    shmrpc.connect(Vision, 3)  # WRONG
    shmrpc.connect("Vision", "/run/vision.sock")  # WRONG
    shmrpc.connect(Vision, "/run/vision.sock", timeout="soon")  # WRONG
    shmrpc.local(Vision)  # WRONG


async def server() -> None:
    async with shmrpc.Server(Worker(), shmrpc.service(Worker(), Vision), at=Path("/run/vision.sock")) as running:
        assert_type(running, shmrpc.Server)
        assert_type(await running.drain(), bool)
    await shmrpc.serve(Worker(), at="/run/vision.sock", mode=0o660)
    shmrpc.Server(Worker())  # WRONG
    shmrpc.Server(Worker(), at=3)  # WRONG
'''

WRONG = {number for number, line in enumerate(CLIENT.splitlines(), start=1) if line.endswith("# WRONG")}


@pytest.fixture
def client(tmp_path: Path) -> Path:
    path = tmp_path / "client.py"
    path.write_text(CLIENT)
    return path


def run(*command: str, cwd: Path, **environment: str) -> str:
    """The output of a checker, which finds errors, or is not installed."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )
    if f"No module named {command[0]}" in done.stderr:
        pytest.skip(f"{command[0]}, of the extra 'lint', is not installed")
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def flagged_by_mypy(client: Path) -> dict[int, str]:
    output = run(
        "mypy",
        "--strict",
        "--output=json",
        "--config-file=",
        f"--cache-dir={ROOT / '.mypy_cache' / 'test_typing'}",
        str(client),
        cwd=client.parent,
        MYPYPATH=str(ROOT),
    )
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {one["line"]: one["message"] for one in found if one["severity"] == "error"}


def flagged_by_basedpyright(client: Path) -> dict[int, str]:
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "standard", "include": [client.name]}
    (client.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    output = run("basedpyright", "--outputjson", "--pythonpath", sys.executable, cwd=client.parent)
    found = json.loads(output)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in found if one["severity"] == "error"}


@pytest.mark.parametrize("checker", [flagged_by_mypy, flagged_by_basedpyright], ids=["mypy", "basedpyright"])
def test_a_checker_sees_the_contract_and_flags_exactly_the_wrong_calls(
    checker: Callable[[Path], dict[int, str]], client: Path
) -> None:
    flagged = checker(client)
    lines = ["", *CLIENT.splitlines()]
    assert {lines[line].strip(): message for line, message in flagged.items() if line not in WRONG} == {}
    assert [lines[line].strip() for line in sorted(WRONG - set(flagged))] == []


def test_the_client_that_is_checked_also_runs(client: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", str(client)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
