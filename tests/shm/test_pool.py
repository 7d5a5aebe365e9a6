"""One stub over several connections: which of them a call takes, and what else can be asked of such a stub."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, cast

import numpy as np
import pytest
from life_waiting import until
from pool_service import Listener, Named, Spread

import shmrpc
from shmrpc.client import open_stub
from shmrpc.shm.pool import Pool


@pytest.fixture
def paths(path: str) -> list[str]:
    return [f"{path}.{name}" for name in "abc"]


@pytest.fixture
async def servers(paths: list[str]) -> AsyncIterator[list[Named]]:
    """Three servers, a, b and c."""
    services = [Named(name) for name in "abc"]
    async with AsyncExitStack() as stack:
        for service, path in zip(services, paths, strict=True):
            await stack.enter_async_context(shmrpc.Server(service, at=path))
        yield services


def connect(paths: list[str], **settings: Any) -> shmrpc.client.Connection[Spread]:
    return shmrpc.connect(Spread, paths, **settings)


def pool_of(stub: Spread) -> Pool:
    return cast(Pool, open_stub(stub)[1])


def home_of(stub: Spread, array: Any) -> str:
    """The server to which an array can be sent without a copy."""
    address = array.__array_interface__["data"][0]
    holding = [link for link in pool_of(stub)._links if link.calls is not None and link.calls.memory.holds(address)]
    return holding[0].path[-1] if holding else "nobody"


# The choice


async def test_of_equals_each_takes_its_turn(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        names = [await spread.name() for _ in range(9)]
        assert names == list("abc" * 3)


@pytest.mark.parametrize("metadata", [None, {"a": "1"}], ids=["quick", "slow"])
async def test_each_call_is_one_turn_however_it_is_made(
    servers: list[Named], paths: list[str], metadata: dict[str, str] | None
) -> None:
    async with connect(paths[:2], metadata=metadata) as spread:
        assert [await spread.name() for _ in range(4)] == list("abab")
        for array in (np.zeros(10, np.uint8), np.zeros(100_000, np.uint8)):
            assert [await spread.name_of(array) for _ in range(4)] == list("abab")
        assert [[name async for name in spread.ticks_of(array)] for _ in range(4)] == [["a"], ["b"], ["a"], ["b"]]


async def test_a_call_goes_where_the_fewest_are_under_way(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        calls = [asyncio.ensure_future(spread.hold()) for _ in range(7)]
        await until(lambda: sum(server.held for server in servers) == 7, "all to begin")
        assert sorted(server.held for server in servers) == [2, 2, 3]
        busiest = max(servers, key=lambda server: server.held)
        assert await busiest.name() not in [await spread.name() for _ in range(20)]
        for server in servers:
            server.gate.set()
        await asyncio.gather(*calls)


async def test_calls_that_are_made_at_once_are_spread_evenly_over_unequal_loads(
    servers: list[Named], paths: list[str]
) -> None:
    """The choice is made when a call begins, not when its coroutine is made."""
    async with connect(paths) as spread:
        first = asyncio.ensure_future(spread.hold())
        await until(lambda: servers[0].held, "the first to begin")
        others = [spread.hold() for _ in range(29)]
        calls = [first, *map(asyncio.ensure_future, others)]
        await until(lambda: sum(server.held for server in servers) == 30, "all to begin")
        assert [server.held for server in servers] == [10, 10, 10]
        for server in servers:
            server.gate.set()
        await asyncio.gather(*calls)


async def test_a_stream_counts_until_it_ends(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        ticks = spread.ticks()
        name = await anext(ticks)
        assert name not in [await spread.name() for _ in range(10)]
        await ticks.aclose()  # type: ignore[attr-defined]
        await until(lambda: not any(end.in_flight for end in shmrpc.endpoints(spread)), "the handler to end")
        assert name in [await spread.name() for _ in range(3)]


async def test_a_call_that_was_given_up_counts_until_its_handler_ends(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        call = asyncio.ensure_future(spread.hold())
        await until(lambda: servers[0].held, "it to begin")
        call.cancel()
        await asyncio.wait((call,))
        await until(lambda: not servers[0].held, "the handler to end")
        await until(lambda: not any(end.in_flight for end in shmrpc.endpoints(spread)), "its reply")


async def test_when_all_are_full_a_call_waits_for_credit(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths, max_in_flight=1) as spread:
        calls = [asyncio.ensure_future(spread.hold()) for _ in range(3)]
        await until(lambda: all(server.held for server in servers), "all to begin")
        fourth = asyncio.ensure_future(spread.name())
        with pytest.raises(shmrpc.ResourceExhausted, match="max_in_flight"):
            await shmrpc.options(spread, timeout=0.02).name()
        assert not fourth.done()
        for server in servers:
            server.gate.set()
        assert sorted(await asyncio.gather(*calls)) == list("abc")
        assert await fourth in "abc"


# Memory


@pytest.mark.parametrize("nbytes", [100_000, 8 << 20], ids=["slab", "fresh extent"])
@pytest.mark.parametrize("metadata", [None, {"a": "1"}], ids=["quick", "slow"])
async def test_an_array_goes_where_it_was_born(
    servers: list[Named], paths: list[str], nbytes: int, metadata: dict[str, str] | None
) -> None:
    async with connect(paths, metadata=metadata) as spread:
        homes = set()
        for _ in range(6):
            array = shmrpc.empty(nbytes, np.uint8, to=spread)
            homes.add(home := home_of(spread, array))
            await spread.name()  # the turn of another one
            assert await spread.name_of(array[10:]) == home
            assert await spread.name_of(array=array) == home
        assert homes == set("abc")


async def test_an_array_that_begins_a_stream_goes_where_it_was_born(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        for _ in range(4):
            array = shmrpc.empty(100_000, np.uint8, to=spread)
            await spread.name()
            await spread.name()
            assert [name async for name in spread.ticks_of(array)] == [home_of(spread, array)]


async def test_a_result_that_is_passed_on_goes_where_it_came_from(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        for _ in range(6):
            array = await spread.made()
            await spread.name()
            assert await spread.name_of(array) == chr(array[0])


async def test_an_array_whose_home_is_full_is_copied_to_another(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths, max_in_flight=1) as spread:
        array = shmrpc.empty(100_000, np.uint8, to=spread)
        home = home_of(spread, array)
        held = asyncio.ensure_future(spread.hold())
        await until(lambda: any(server.held for server in servers), "it to begin")
        assert [await server.name() for server in servers if server.held] == [home]
        assert await spread.name_of(array) != home
        for server in servers:
            server.gate.set()
        await held


async def test_an_array_whose_home_was_lost_is_copied_to_another(paths: list[str]) -> None:
    async with AsyncExitStack() as stack:
        for name, path in zip("bc", paths[1:], strict=True):
            await stack.enter_async_context(shmrpc.Server(Named(name), at=path))
        async with AsyncExitStack() as first:
            await first.enter_async_context(shmrpc.Server(Named("a"), at=paths[0]))
            spread = await stack.enter_async_context(connect(paths))
            array = shmrpc.empty(100_000, np.uint8, to=spread)
            assert home_of(spread, array) == "a"
        assert await spread.name_of(array) in "bc"


async def test_other_memory_goes_anywhere(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        array = np.zeros(100_000, np.uint8)
        assert Counter([await spread.name_of(array) for _ in range(9)]) == {"a": 3, "b": 3, "c": 3}


async def test_leases_are_those_of_all_connections_by_method_and_holder(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths) as spread:
        mine = [shmrpc.empty(size, np.uint8, to=spread) for size in (10_000, 20_000)]
        for size in (100_000, 300_000, 200_000):
            await spread.keep(np.zeros(size, np.uint8))
        assert [lease[:4] for lease in shmrpc.leases(spread)] == [
            ("Spread.keep", shmrpc.peer(spread), 3, 600_000),
            ("", None, 2, 30_000),
        ]
        for server in servers:
            server.kept.clear()
        del mine


# What else there is to ask


async def test_what_is_said_of_a_pool(servers: list[Named], paths: list[str]) -> None:
    me = (os.getpid(), os.getuid(), os.getgid())
    connection = connect(paths)
    async with connection as spread:
        assert repr(spread) == f"<stub of Spread over <Pool to {', '.join(paths)}, 3 of 3 connected>>"
        assert shmrpc.peer(spread) == me
        assert shmrpc.endpoints(spread) == [(path, "connected", me, 0) for path in paths]
        held = asyncio.ensure_future(shmrpc.options(spread, timeout=30).hold())
        await until(lambda: servers[0].held, "it to begin")
        assert [end.in_flight for end in shmrpc.endpoints(spread)] == [1, 0, 0]
        servers[0].gate.set()
        await held
    assert shmrpc.endpoints(spread) == [(path, "closed", None, 0) for path in paths]
    assert shmrpc.peer(spread) is None
    assert repr(spread) == f"<stub of Spread over <Pool to {', '.join(paths)}, closed>>"
    assert shmrpc.leases(spread) == []


class Ear(Listener):
    """Counts how often it is entered and left."""

    def __init__(self) -> None:
        self.diary: list[str] = []

    async def __aenter__(self) -> "Ear":
        self.diary.append("entered")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.diary.append("left")

    async def hear(self, name: str) -> str:
        return f"heard {name}"


async def test_what_a_client_exposes_is_exposed_to_all_and_entered_once(servers: list[Named], paths: list[str]) -> None:
    ear = Ear()
    async with connect(paths, exposes=ear) as spread:
        assert [await spread.tell() for _ in range(3)] == ["heard a", "heard b", "heard c"]
        assert ear.diary == ["entered"]
    assert ear.diary == ["entered", "left"]


async def test_a_single_address_in_a_list_is_as_without_the_list(servers: list[Named], paths: list[str]) -> None:
    async with connect(paths[:1]) as spread:
        assert repr(spread) == f"<stub of Spread over <Link to {paths[0]}, connected>>"
        assert await spread.name() == "a"


@pytest.mark.parametrize(
    ("paths", "connections", "text"),
    [([], 1, "there is no address"), (["a.sock"], 0, "connections is 0, it must be at least 1")],
)
def test_a_pool_of_nothing_is_refused_at_once(paths: list[str], connections: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        shmrpc.connect(Spread, paths, connections=connections)


def test_an_address_where_nobody_can_listen_is_refused_at_once(path: str) -> None:
    with pytest.raises(shmrpc.BadAddress):
        shmrpc.connect(Spread, [path, "http://host"])


async def test_a_pool_that_is_closed_or_not_entered_or_elsewhere_says_so(
    servers: list[Named], paths: list[str]
) -> None:
    connection = connect(paths)
    async with connection as spread:
        with pytest.raises(shmrpc.WrongLoop, match=r"Spread\.name was called from another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(call(spread)))
        with pytest.raises(shmrpc.Closed, match="once"):
            await connection.__aenter__()
    with pytest.raises(shmrpc.Closed, match=r"Spread\.name was called on a stub that is closed"):
        await spread.name()
    with pytest.raises(shmrpc.Closed, match="closed"):
        shmrpc.empty(3, to=spread)


async def call(spread: Spread) -> str:
    return await spread.name()


def test_a_forked_child_is_told_that_a_pool_is_not_its_own(path: str) -> None:
    async def scenario() -> None:
        async with shmrpc.Server(Named("a"), at=path), shmrpc.connect(Spread, path, connections=2) as spread:
            child = os.fork()
            if not child:
                try:
                    spread.name().send(None)
                except shmrpc.ForkedError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - the child needs nothing of this loop
            assert await spread.name() == "a"

    asyncio.run(scenario())
