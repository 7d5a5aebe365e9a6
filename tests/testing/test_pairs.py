"""A server and a client in one event loop: what they are given, and that both are real."""

import os
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from faulty_api import NoSuchItem, Shop, ShopService

import shmrpc
from shmrpc.testing import no_leaks, pair
from shmrpc.testing.pairs import short_folder


async def test_calls_go_over_a_connection_of_the_server() -> None:
    service = ShopService()
    both = pair(Shop, service)
    async with both as shop:
        assert await shop.add(1) == 2
        assert shmrpc.peer(shop) == (os.getpid(), os.getuid(), os.getgid())
        assert both.server.connections == 1
        assert "Link to" in repr(shop)
        assert f"Pair of Shop at {both.address}" in repr(both)
    assert service.diary == ["entered", "add 1", "left"]
    assert not Path(both.address).parent.exists()


async def test_more_clients_may_connect() -> None:
    both = pair(Shop, ShopService())
    async with both, shmrpc.connect(Shop, both.address) as second:
        assert await second.add(1) == 2
        assert both.server.connections == 2


def test_before_it_is_entered_there_is_no_server() -> None:
    both = pair(Shop, ShopService())
    with pytest.raises(RuntimeError, match="no server before it is entered"):
        _ = both.server
    with pytest.raises(RuntimeError, match="no address before it is entered"):
        _ = both.address


class Other:
    async def other(self) -> str:
        return "other"


async def test_further_services_are_served_beside() -> None:
    both = pair(Shop, ShopService(), Other())
    async with both, shmrpc.connect(Other, both.address) as other:
        assert await other.other() == "other"


class Asking:
    async def ask(self) -> str:
        return await shmrpc.current_call().client(Other).other()


async def test_the_client_may_expose_a_service_of_its_own() -> None:
    async with pair(Asking, Asking(), exposes=Other()) as asking:
        assert await asking.ask() == "other"


async def test_settings_are_of_both_or_of_one_side() -> None:
    async with pair(Shop, ShopService(), timeout=0.02, server={"debug": True}, client={"max_message": 2000}) as shop:
        with pytest.raises(shmrpc.DeadlineExceeded):
            await shop.wait()
    with pytest.raises(TypeError, match="there is no setting 'speed'"):
        async with pair(Shop, ShopService(), speed=3):
            pass


class Refusing(ShopService):
    async def __aenter__(self) -> None:
        raise NoSuchItem("key")


async def test_a_service_that_cannot_be_entered_leaves_nothing() -> None:
    with no_leaks(), pytest.raises(NoSuchItem):
        async with pair(Shop, Refusing()):
            pass


def test_an_implementation_without_a_method_is_refused_at_once() -> None:
    with pytest.raises(shmrpc.ContractError, match=r"Other does not implement Shop\.add"):
        pair(Shop, Other())


@pytest.mark.parametrize(
    "opened", [pair(Shop, ShopService()), shmrpc.local(Shop, ShopService())], ids=["pair", "local"]
)
def test_where_no_event_loop_of_asyncio_runs_it_says_what_is_missing(opened: AbstractAsyncContextManager[Shop]) -> None:
    entering = opened.__aenter__()
    with pytest.raises(shmrpc.WrongLoop, match=r"trio has none .*anyio_backend gives 'asyncio'"):
        entering.send(None)  # as another library's loop would


def test_sockets_find_a_short_folder_where_temporary_files_have_long_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = folder / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with short_folder() as short:
        assert not short.is_relative_to(long)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with short_folder() as short:
        assert short.is_relative_to(folder)
