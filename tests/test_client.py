"""`connect`, `options` and `peer`: what is refused before anything connects, and what a stub is."""

import asyncio
import math
import os
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

import shmrpc


class Api(Protocol):
    async def add(self, left: int, right: int = 1) -> int: ...
    async def metadata(self) -> dict[str, str]: ...


class Service(Api):
    async def add(self, left: int, right: int = 1) -> int:
        return left + right

    async def metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in shmrpc.current_call().metadata.items()}


class Broken(Protocol):
    async def method(self, *args: int) -> None: ...


# What is refused at once, before anything connects


def test_a_contract_that_cannot_work_is_refused_at_once(path: str) -> None:
    with pytest.raises(shmrpc.ContractError, match=r"Broken\.method: \*args"):
        shmrpc.connect(Broken, path)


@pytest.mark.parametrize("address", ["", "http://host/path", "shm://relative", "x" * 108])
def test_an_address_where_nobody_can_listen_is_refused_at_once(address: str) -> None:
    with pytest.raises(shmrpc.BadAddress):
        shmrpc.connect(Api, address)


@pytest.mark.parametrize("address", [None, b"/run/api.sock", 3])
def test_an_address_of_another_type_is_refused_at_once(address: Any) -> None:
    with pytest.raises(TypeError, match=r"an address is a path, or shm:///path, or a list of them, not"):
        shmrpc.connect(Api, address)
    with pytest.raises(TypeError, match=r"an address is a path, or shm:///path, not"):
        shmrpc.connect(Api, ["/run/api.sock", address])
    with pytest.raises(TypeError, match=r"an address is a path, or shm:///path, not"):
        shmrpc.Server(Service(), at=address)


def test_an_unknown_setting_is_refused_with_those_that_there_are(path: str) -> None:
    with pytest.raises(TypeError, match=r"there is no setting 'colour'; there are .*polling"):
        shmrpc.connect(Api, path, colour="red")


@pytest.mark.parametrize("setting", [{"polling": "often"}, {"polling": -1}, {"max_in_flight": 0}, {"timeout": 0}])
def test_a_setting_that_cannot_work_is_refused_at_once(path: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"polling is|max_in_flight must be|a timeout is"):
        shmrpc.connect(Api, path, **setting)


def test_metadata_of_the_wrong_type_is_refused_at_once(path: str) -> None:
    with pytest.raises(TypeError, match="metadata maps str to str or bytes"):
        shmrpc.connect(Api, path, metadata=cast(Any, {"a": 1}))


@pytest.mark.parametrize("make", [shmrpc.connect, shmrpc.connect_sync, shmrpc.local])
def test_a_retry_that_is_none_is_refused_at_once(path: str, make: Any) -> None:
    with pytest.raises(TypeError, match=r"retry is a shmrpc\.Retry, not 3"):
        make(Api, Service() if make is shmrpc.local else path, retry=3)


@pytest.mark.parametrize("name", ["wait", "reconnect_timeout"])
@pytest.mark.parametrize("seconds", [None, "3", -1, -0.5, math.nan])
def test_a_time_to_wait_that_is_none_is_refused_at_once(path: str, name: str, seconds: Any) -> None:
    for connections in (1, 2):
        with pytest.raises((TypeError, ValueError)) as caught:
            shmrpc.connect(Api, path, connections=connections, **{name: seconds})
        assert str(caught.value) == f"{name} is a number of seconds, from 0 to math.inf, not {seconds!r}"
        assert type(caught.value) is (ValueError if isinstance(seconds, (int, float)) else TypeError)


# Connecting


@pytest.mark.parametrize("form", [str, Path, "shm://{}".format, os.fsencode], ids=["str", "Path", "shm", "bytes"])
async def test_an_address_may_be_a_path_in_any_form(path: str, form: Any) -> None:
    address = form(path)
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    async with shmrpc.Server(Service(), at=path), shmrpc.connect(Api, address) as api:
        assert await api.add(1) == 2


async def test_connecting_where_nobody_listens_fails_at_once(path: str) -> None:
    connection = shmrpc.connect(Api, path)
    with pytest.raises(shmrpc.ConnectFailed, match=r"no server at .*: No such file or directory"):
        async with connection:
            pass
    with pytest.raises(shmrpc.Closed, match="once"):
        await connection.__aenter__()


@pytest.mark.parametrize("wait", [60.0, math.inf])
async def test_a_client_may_wait_for_its_server(path: str, wait: float) -> None:
    connection = shmrpc.connect(Api, path, wait=wait)
    waiting = asyncio.create_task(connection.__aenter__())
    await asyncio.sleep(0)
    async with shmrpc.Server(Service(), at=path):
        api = await waiting
        assert await api.add(1) == 2
        await connection.__aexit__()


async def test_a_client_does_not_wait_for_a_server_that_refuses_it(path: str) -> None:
    class Other(Protocol):
        async def method(self) -> None: ...

    async with shmrpc.Server(Service(), at=path):
        with pytest.raises(shmrpc.ContractMismatch, match=r"there is no service Other .*; there is Api"):
            async with shmrpc.connect(Other, path, wait=60.0):
                pass


async def test_a_contract_that_does_not_match_is_said_in_full_at_connect_time(path: str) -> None:
    class Newer(Protocol):
        async def add(self, left: float, right: int = 1) -> str: ...
        async def metadata(self) -> dict[str, int]: ...

    Newer.__name__ = "Api"
    async with shmrpc.Server(Service(), at=path):
        with pytest.raises(shmrpc.ContractMismatch) as caught:
            async with shmrpc.connect(Newer, path):
                pass
    assert str(caught.value).splitlines() == [
        f"Api at {path} is not what the client expects:",
        "  add: parameter 'left' is sent as float and read as int; expected add(left: float, right: int = …) -> str, "
        "the server has add(left: int, right: int = …) -> int",
        "  metadata: an item of the result is sent as str and read as int; expected metadata() -> dict[str, int], "
        "the server has metadata() -> dict[str, str]",
    ]


# Stubs


async def test_a_stub_has_the_methods_of_its_contract_and_nothing_else() -> None:
    async with shmrpc.local(Api, Service()) as api:
        assert [name for name in dir(api) if not name.startswith("_")] == ["add", "metadata"]
        assert (api.add.__name__, api.add.__qualname__) == ("add", "Api.add")
        assert asyncio.iscoroutinefunction(api.add)


async def test_a_stub_and_its_connection_describe_themselves(path: str) -> None:
    connection = shmrpc.connect(Api, path)
    assert repr(connection) == f"<Connection of Api over <Link to {path}, not connected>>"
    async with shmrpc.Server(Service(), at=path):
        async with connection as api:
            assert repr(api) == f"<stub of Api over <Link to {path}, connected>>"
        assert repr(api) == f"<stub of Api over <Link to {path}, closed>>"


async def test_options_give_another_stub_over_the_same_connection(path: str) -> None:
    async with shmrpc.Server(Service(), at=path) as server, shmrpc.connect(Api, path, metadata={"a": "1"}) as api:
        other = shmrpc.options(api, metadata={"b": "2"})
        assert type(other) is type(api)
        assert await other.metadata() == {"a": "1", "b": "2"}
        assert await shmrpc.options(other, metadata={"a": "3"}).metadata() == {"a": "3", "b": "2"}
        assert await api.metadata() == {"a": "1"}
        assert server.connections == 1


async def test_options_that_cannot_work_are_refused() -> None:
    async with shmrpc.local(Api, Service()) as api:
        with pytest.raises(ValueError, match="a timeout is a positive number"):
            shmrpc.options(api, timeout=-1)
        with pytest.raises(TypeError, match="metadata maps"):
            shmrpc.options(api, metadata=cast(Any, {1: "a"}))
        with pytest.raises(TypeError, match="retry is a"):
            shmrpc.options(api, retry=cast(Any, 3))


@pytest.mark.parametrize("function", [shmrpc.options, shmrpc.peer])
def test_what_is_no_stub_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a stub, what connect\(\) or local\(\) gives, not Service"):
        function(Service())


async def test_the_peer_is_known_while_there_is_a_connection(path: str) -> None:
    async with shmrpc.Server(Service(), at=path):
        async with shmrpc.connect(Api, path) as api:
            assert shmrpc.peer(api) == (os.getpid(), os.getuid(), os.getgid())
        assert shmrpc.peer(api) is None


async def test_a_stub_used_from_another_event_loop_says_so(path: str) -> None:
    async with shmrpc.Server(Service(), at=path), shmrpc.connect(Api, path) as api:
        with pytest.raises(shmrpc.WrongLoop, match=r"Api\.add was called from another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(call(api)))
        assert await api.add(1) == 2


async def call(api: Api) -> int:
    return await api.add(1)
