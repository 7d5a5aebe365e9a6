"""What a call takes and gives: every supported type, and the ways to pass arguments. Stated once, for every transport."""

import asyncio
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from conformance_api import (
    Api,
    Box,
    Circle,
    Colour,
    Compact,
    Echo,
    Inner,
    Level,
    Names,
    Node,
    Pair,
    Person,
    Point,
    Square,
    Versioned,
)
from conformance_transports import SharedMemory, Transport, between_processes, on_every_transport

import shmrpc

pytest_plugins = ["conformance_plugin"]

VALUES: dict[str, list[Any]] = {
    "nothing": [None],
    "boolean": [True, False],
    "integer": [0, -1, 1 << 31, -(1 << 63), (1 << 64) - 1],
    "real": [0.0, -1.5, 1e300, math.inf, -math.inf],
    "text": ["", "word", "Grüße, 世界 \N{SNOWMAN}", "zero \0 inside", "x" * 100_000],
    "binary": [b"", b"\0\xff", bytes(range(256)) * 400],
    "decimal": [Decimal("0.10"), Decimal("-12345678901234567890.5")],
    "uuid": [UUID("12345678-1234-5678-1234-567812345678")],
    "moment": [
        datetime(2026, 2, 3, 4, 5, 6, 789),
        datetime(2026, 2, 3, tzinfo=UTC),
        datetime(1969, 1, 1, 12, tzinfo=timezone(timedelta(hours=5))),
    ],
    "day": [date(2026, 2, 28)],
    "clock": [time(23, 59, 59, 999_999)],
    "duration": [timedelta(days=-1, microseconds=1)],
    "colour": [Colour.RED, Colour.GREEN],
    "level": [Level.HIGH],
    "word": ["yes"],
    "optional": [None, "", "text"],
    "either": [7, "seven", [7, 7]],
    "shape": [Circle(1.5), Square(2.0)],
    "point": [Point(1), Point(-1, 2)],
    "tree": [Node("root", [Node("leaf"), Node("branch", [Node("leaf")])])],
    "box": [Box(Point(1, 2))],
    "compact": [Compact("Ada"), Compact("Ada", "Lovelace")],
    "person": [Person("Ada"), Person("Ada", ["A.", "Lady L."])],
    "pair": [Pair(1, "one")],
    "settings": [{}, {"depth": 3}],
    "numbers": [[], [1, 2, 3], list(range(10_000))],
    "unique": [set(), {1, 2, 3}],
    "frozen": [frozenset({"a", "b"})],
    "fixed": [(1, "one", True)],
    "several": [(), (1,), (1, 2, 3)],
    "mapping": [{}, {"pi": 3.14, "e": 2.72}],
    "by_number": [{1: "one", -1: "minus one"}],
    "by_place": [{(0, 1): "north"}],
    "nested": [{"a": [(Point(1), None), ()], "b": []}],
    "anything": [None, [1, "two", {"three": 3.0}]],
}


@on_every_transport
async def test_a_value_of_every_type_comes_back_as_it_was(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        for method, values in VALUES.items():
            for value in values:
                answer = await getattr(echo, method)(value)
                assert (answer, type(answer)) == (value, type(value)), method


def test_every_method_of_the_echo_has_values() -> None:
    assert list(VALUES) == [name for name in vars(Echo) if not name.startswith("_")]


@on_every_transport
async def test_a_number_that_is_none_comes_back_as_none(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        assert math.isnan(await echo.real(math.nan))


@on_every_transport
async def test_an_integer_is_accepted_as_a_real_number(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        answer = await echo.real(3)
    assert (answer, type(answer)) == (3.0, float)


@on_every_transport
async def test_a_message_of_any_size_comes_back_whole(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        for size in (0, 1, 7, 8, 9, *range(8_160, 8_200), 65_536, 100_000):
            value = bytes(index % 251 for index in range(size))
            assert await echo.binary(value) == value, size


@on_every_transport
async def test_what_arrives_is_a_copy(api: Api) -> None:
    texts = ["one"]
    call = asyncio.ensure_future(api.measure(texts))
    await asyncio.sleep(0)
    texts.append("changed after the call was made")
    assert await call in (3, 34)  # whichever was encoded; never a list that changes in the handler's hands
    assert await api.measure(texts) == 34


@on_every_transport
async def test_what_is_left_out_is_the_default_of_the_contract(api: Api) -> None:
    assert await api.place(1) == "1 10 none 1.0"


@on_every_transport
async def test_arguments_may_be_given_by_position_or_by_name(api: Api) -> None:
    assert await api.place(1, 2) == await api.place(1, y=2) == await api.place(y=2, x=1) == "1 2 none 1.0"


@on_every_transport
async def test_a_default_before_a_given_argument_is_filled_in(api: Api) -> None:
    assert await api.place(1, scale=2.5) == "1 10 none 2.5"


@on_every_transport
async def test_keyword_only_arguments_arrive_under_their_names(api: Api) -> None:
    assert await api.place(1, 2, scale=0.5, label="here") == "1 2 here 0.5"


@on_every_transport
async def test_a_positional_only_argument_is_given_by_position(api: Api) -> None:
    assert await api.point(Point(1, 2), factor=3) == Point(3, 6)
    with pytest.raises(shmrpc.InvalidArgument, match="point"):
        await api.point(point=Point(1, 2))  # type: ignore[call-arg]


@on_every_transport
async def test_a_contract_may_use_the_frameworks_own_names(transport: Transport) -> None:
    async with transport.connect(Names) as names:
        found = [await method() for method in (names.close, names.open, names.call, names.bind, names.peer)]
        assert found == ["close", "open", "call", "bind", "peer"]
        assert await names.options(1, metadata=2) == "options 1 2"
        assert await names.send(args=1, kwargs=2, method=3) == "send 1 2 3"


@on_every_transport
async def test_one_server_answers_for_several_services(transport: Transport) -> None:
    async with transport.connect(Api) as api, transport.connect(Inner) as inner, transport.connect(Echo) as echo:
        assert await api.place(1) == "1 10 none 1.0"
        assert await inner.deadline() is None
        assert await echo.integer(1) == 1


@on_every_transport
async def test_each_of_many_calls_at_once_gets_its_own_answer(transport: Transport) -> None:
    async with transport.connect(Echo) as echo:
        answers = await asyncio.gather(*(echo.integer(number) for number in range(3000)))
    assert answers == list(range(3000))


@on_every_transport
async def test_answers_come_in_any_order(api: Api, key: str) -> None:
    slow = asyncio.create_task(api.answer_when_released(key))
    await api.until(key, "started")
    assert await api.place(1) == "1 10 none 1.0"
    assert not slow.done()
    await api.release(key)
    assert await slow == "answer"


@between_processes
async def test_a_method_that_an_older_server_lacks_is_unimplemented(transport: Transport) -> None:
    assert isinstance(transport, SharedMemory)
    async with transport.connect_at("older.sock", Versioned) as versioned:
        assert await versioned.greet("Ada") == "hello, Ada"
        with pytest.raises(shmrpc.Unimplemented, match=r"no method Versioned.leave.*older"):
            await versioned.leave()
        assert await versioned.greet("Bob") == "hello, Bob"


@between_processes
async def test_a_parameter_that_an_older_server_lacks_must_be_left_out(transport: Transport) -> None:
    assert isinstance(transport, SharedMemory)
    async with transport.connect_at("older.sock", Versioned) as versioned:
        with pytest.raises(shmrpc.InvalidArgument, match=r"2 arguments were given.* takes 1.*older"):
            await versioned.greet("Ada", "good evening")
        assert await versioned.greet("Ada") == "hello, Ada"
