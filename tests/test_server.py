"""`Server` and `serve`: when services are entered, who may connect, and how a server drains and stops."""

import asyncio
import math
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Any, Protocol

import pytest

import shmrpc


class Api(Protocol):
    async def add(self, left: int, right: int = 1) -> int: ...
    async def wait(self) -> str: ...


class Service(Api):
    """Its `wait` is held at a gate."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.waiting = asyncio.Event()
        self.gate = asyncio.Event()

    async def __aenter__(self) -> None:
        self.diary.append("entered")

    async def __aexit__(self, *exc_info: object) -> None:
        self.diary.append("left")

    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def wait(self) -> str:
        self.waiting.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.diary.append("cancelled")
            raise
        return "waited"


class Plain:
    async def add(self, left: int) -> int:
        return left + 1


def is_there(path: str) -> bool:
    return os.path.exists(path)


async def until_gone(path: str) -> None:
    """Returns when the server has begun to drain: the first thing it does is to remove its socket."""
    while is_there(path):  # noqa: ASYNC110 - nobody else sets an event for it
        await asyncio.sleep(0)


# Making and entering


async def test_a_server_describes_itself(path: str) -> None:
    assert repr(shmrpc.Server(Service(), at=path)) == f"<Server of Api at {path}>"


def test_a_server_that_cannot_work_is_refused_when_it_is_made(path: str) -> None:
    with pytest.raises(shmrpc.ContractError, match="at least one service"):
        shmrpc.Server(at=path)
    with pytest.raises(TypeError, match="there is no setting 'colour'"):
        shmrpc.Server(Plain(), at=path, colour="red")
    with pytest.raises(ValueError, match="drain_budget must be positive"):
        shmrpc.Server(Plain(), at=path, drain_budget=0)


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (600, "mode is permission bits from 0 to 0o777, not 600; write 0o600"),
        (0o1660, "mode is permission bits from 0 to 0o777, not 944"),
        (-1, "mode is permission bits from 0 to 0o777, not -1"),
        ("600", "mode is permission bits like 0o600, not '600'"),
        (None, "mode is permission bits like 0o600, not None"),
    ],
)
def test_a_mode_that_is_none_is_refused_when_the_server_is_made(path: str, mode: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        shmrpc.Server(Service(), at=path, mode=mode)
    assert str(caught.value) == text
    assert type(caught.value) is (ValueError if isinstance(mode, int) else TypeError)


@pytest.mark.parametrize("grace", ["3", -1, None])
def test_a_grace_time_that_is_none_is_refused_when_the_server_is_made(path: str, grace: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"grace is a number of seconds, from 0 to math\.inf, not"):
        shmrpc.Server(Service(), at=path, grace=grace)


async def test_a_grace_time_that_is_none_drains_nothing(path: str) -> None:
    async with shmrpc.Server(Service(), at=path, grace=math.inf) as server:
        with pytest.raises(ValueError, match="grace is a number of seconds"):
            await server.drain(-1)
        assert is_there(path)


async def test_a_service_is_entered_before_the_server_listens_and_left_after_it_has_stopped(path: str) -> None:
    seen: list[bool] = []

    class Watching(Service):
        async def __aenter__(self) -> None:
            seen.append(is_there(path))

        async def __aexit__(self, *exc_info: object) -> None:
            seen.append(is_there(path))

    async with shmrpc.Server(Watching(), at=path):
        assert is_there(path)
    assert seen == [False, False]


async def test_a_service_is_left_again_when_its_server_cannot_listen(folder: Path) -> None:
    service = Service()
    with pytest.raises(shmrpc.BadAddress, match="cannot serve at"):
        async with shmrpc.Server(service, at=folder / "missing" / "test.sock"):
            pass
    assert service.diary == ["entered", "left"]


async def test_a_service_that_cannot_be_entered_keeps_the_server_from_listening(path: str) -> None:
    class Failing(Service):
        async def __aenter__(self) -> None:
            raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        async with shmrpc.Server(Failing(), at=path):
            pass
    assert not is_there(path)


async def test_a_server_can_be_entered_once(path: str) -> None:
    server = shmrpc.Server(Service(), at=path)
    async with server:
        with pytest.raises(shmrpc.Closed, match="a server can be entered once"):
            await server.__aenter__()
    with pytest.raises(shmrpc.Closed, match="a server can be entered once"):
        await server.__aenter__()


async def test_two_servers_cannot_have_one_address(path: str) -> None:
    async with shmrpc.Server(Service(), at=path), shmrpc.connect(Api, path) as api:
        with pytest.raises(shmrpc.BadAddress, match="a server listens there already"):
            async with shmrpc.Server(Service(), at=path):
                pass
        assert await api.add(1) == 2


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_the_socket_has_the_permission_bits_that_were_asked_for(path: str, mode: int) -> None:
    before = os.umask(0o077)
    try:
        async with shmrpc.Server(Service(), at=path, mode=mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
    finally:
        os.umask(before)


async def test_only_its_user_may_connect_by_default(path: str) -> None:
    async with shmrpc.Server(Service(), at=path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_the_socket_is_gone_when_the_server_is_left(path: str, folder: Path) -> None:
    async with shmrpc.Server(Service(), at=path):
        pass
    assert os.listdir(folder) == []


async def test_a_server_may_serve_on_a_socket_that_it_inherits(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()
        async with (
            shmrpc.Server(Service(), at=path, fd=os.dup(listening.fileno())),
            shmrpc.connect(Api, path) as api,
        ):
            assert await api.add(1) == 2
        assert is_there(path), "it belongs to whoever made it"


async def test_an_fd_that_is_no_listening_socket_is_refused(path: str) -> None:
    service = Service()
    with pytest.raises(shmrpc.BadAddress, match="fd 0 is not a listening Unix stream socket"):
        async with shmrpc.Server(service, at=path, fd=0):
            pass
    assert service.diary == ["entered", "left"]


async def test_a_server_counts_its_connections(path: str) -> None:
    server = shmrpc.Server(Service(), at=path)
    assert server.connections == 0
    async with server:
        async with shmrpc.connect(Api, path) as one, shmrpc.connect(Api, path) as other:
            assert await one.add(1) == await other.add(1) == 2
            assert server.connections == 2
        async with shmrpc.connect(Api, path) as api:
            assert await api.add(1) == 2  # by now the server knows that the others have gone
            assert server.connections == 1


# Draining


async def test_draining_an_idle_server_ends_at_once(path: str) -> None:
    async with shmrpc.Server(Service(), at=path) as server:
        assert await server.drain()
        assert not is_there(path)
        await server.wait_closed()
        assert await server.drain(), "it has drained already"


async def test_a_server_that_was_never_entered_has_nothing_to_drain(path: str) -> None:
    server = shmrpc.Server(Service(), at=path)
    assert await server.drain()
    with pytest.raises(shmrpc.Closed, match="never entered"):
        await server.wait_closed()


async def test_calls_that_run_when_a_server_drains_are_answered(path: str) -> None:
    service = Service()
    async with shmrpc.Server(service, at=path) as server, shmrpc.connect(Api, path) as api:
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
        draining = asyncio.create_task(server.drain())
        await until_gone(path)
        service.gate.set()
        assert await call == "waited"
        assert await draining
    assert service.diary == ["entered", "left"]


async def test_calls_that_do_not_end_in_the_grace_time_are_cut_off(path: str) -> None:
    service = Service()
    async with shmrpc.Server(service, at=path) as server, shmrpc.connect(Api, path) as api:
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
        assert not await server.drain(grace=0.01)
        with pytest.raises(shmrpc.Unavailable, match=r"Api\.wait") as caught:
            await call
        assert caught.value.maybe_executed
        await server.wait_closed()
    assert service.diary == ["entered", "cancelled", "left"]


async def test_a_drain_can_be_hurried_but_not_slowed_down(path: str) -> None:
    service = Service()
    async with shmrpc.Server(service, at=path) as server, shmrpc.connect(Api, path) as api:
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
        draining = asyncio.create_task(server.drain(grace=1000.0))
        await until_gone(path)
        assert not await server.drain(grace=0.0)
        assert not await draining
        assert not await server.drain(grace=1000.0)
        with pytest.raises(shmrpc.Unavailable):
            await call


async def test_a_server_that_is_never_left_is_warned_about(path: str) -> None:
    server = shmrpc.Server(Plain(), at=path)
    await server.__aenter__()
    with pytest.warns(ResourceWarning, match=r"<Server of Plain at .*> was never closed"):
        server.__del__()
    await server.__aexit__()


async def test_leaving_a_server_drains_it_with_its_own_grace_time(path: str) -> None:
    service = Service()
    async with shmrpc.Server(service, at=path, grace=0.01):
        connection = shmrpc.connect(Api, path, reconnect_timeout=0.01)
        api = await connection.__aenter__()
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
    with pytest.raises(shmrpc.Unavailable):
        await call
    with pytest.raises(shmrpc.Unavailable, match=r"not sent: no connection to .* within 0\.01 s"):
        await api.add(1)
    await connection.__aexit__()
    assert service.diary == ["entered", "cancelled", "left"]


async def test_a_call_to_a_server_that_drains_goes_to_its_successor(path: str) -> None:
    first, second = Service(), Service()
    async with shmrpc.Server(first, at=path) as old, shmrpc.connect(Api, path) as api:
        held = asyncio.create_task(api.wait())
        await first.waiting.wait()
        draining = asyncio.create_task(old.drain())
        await until_gone(path)
        async with shmrpc.Server(second, at=path):
            second.gate.set()
            assert await api.wait() == "waited"
            first.gate.set()
            assert await held == "waited"
            assert await draining


# serve()


async def test_serve_ends_when_its_task_is_cancelled(path: str) -> None:
    service = Service()
    serving = asyncio.create_task(shmrpc.serve(service, at=path))
    async with shmrpc.connect(Api, path, wait=60.0) as api:
        assert await api.add(1) == 2
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert service.diary == ["entered", "left"]
    assert not is_there(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_drains_when_a_signal_comes(path: str, number: signal.Signals) -> None:
    service = Service()
    serving = asyncio.create_task(shmrpc.serve(service, at=path))
    async with shmrpc.connect(Api, path, wait=60.0) as api:
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
        os.kill(os.getpid(), number)
        await until_gone(path)
        service.gate.set()
        assert await call == "waited"
        await serving
    assert service.diary == ["entered", "left"]


async def test_a_second_signal_ends_what_still_runs(path: str) -> None:
    service = Service()
    serving = asyncio.create_task(shmrpc.serve(service, at=path, grace=1000.0))
    async with shmrpc.connect(Api, path, wait=60.0) as api:
        call = asyncio.create_task(api.wait())
        await service.waiting.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await until_gone(path)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(shmrpc.Unavailable, match=r"Api\.wait was cut off"):
            await call
        await serving
    assert service.diary == ["entered", "cancelled", "left"]


async def test_serve_gives_the_signals_back(path: str) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(shmrpc.serve(Plain(), at=path))
    async with shmrpc.connect(Plain, path, wait=60.0) as plain:
        assert await plain.add(1) == 2
    serving.cancel()
    await asyncio.wait((serving,))
    assert not loop.remove_signal_handler(signal.SIGTERM)
    assert not loop.remove_signal_handler(signal.SIGINT)


async def test_serve_may_leave_the_signals_alone(path: str) -> None:
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(shmrpc.serve(Plain(), at=path, handle_signals=False))
    async with shmrpc.connect(Plain, path, wait=60.0) as plain:
        assert await plain.add(1) == 2
    assert not loop.remove_signal_handler(signal.SIGTERM)
    serving.cancel()
    await asyncio.wait((serving,))


async def test_serve_works_in_a_thread_whose_signals_belong_to_another(path: str) -> None:
    async def serve_until_told() -> None:
        serving = asyncio.current_task()
        assert serving is not None
        stop.append((asyncio.get_running_loop(), serving))
        with pytest.raises(asyncio.CancelledError):
            await shmrpc.serve(Plain(), at=path)

    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve_until_told()))
    thread.start()
    async with shmrpc.connect(Plain, path, wait=60.0) as plain:
        assert await plain.add(1) == 2
    ((loop, serving),) = stop
    loop.call_soon_threadsafe(serving.cancel)
    await asyncio.to_thread(thread.join)


async def test_serve_handles_signals_from_before_anybody_can_connect(path: str) -> None:
    handled = []

    class Noting(Service):
        async def __aenter__(self) -> None:
            handled.append(("entering", signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    serving = asyncio.ensure_future(shmrpc.serve(Noting(), at=path))
    while not is_there(path):  # noqa: ASYNC110 - in the very turn of the loop in which it is there
        await asyncio.sleep(0)
    assert handled == [("entering", before)]
    assert signal.getsignal(signal.SIGTERM) != before
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    assert signal.getsignal(signal.SIGTERM) == before


async def test_the_services_are_entered_and_nobody_can_connect_when_it_is_about_to_listen(path: str) -> None:
    service, seen = Service(), []
    server = shmrpc.Server(service, at=path)
    server._before_listening = lambda: seen.append((list(service.diary), is_there(path)))
    async with server:
        assert seen == [(["entered"], False)]


async def test_serve_that_cannot_listen_leaves_signals_alone(folder: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(shmrpc.BadAddress):
        await shmrpc.serve(Service(), at=folder / "missing" / "test.sock")
    assert signal.getsignal(signal.SIGTERM) == before


def test_where_no_event_loop_of_asyncio_runs_a_server_says_what_is_missing(path: str) -> None:
    entering = shmrpc.Server(Service(), at=path).__aenter__()
    with pytest.raises(shmrpc.WrongLoop, match="trio has none"):
        entering.send(None)  # as another library's loop would
