"""The explorer itself, on programs whose outcomes are known: what total store order allows, and what it forbids."""

from collections.abc import Callable

import pytest
from interleavings import Explorer, Result, TooLarge
from model_steps import (
    EVENTFD,
    LONG_PIPE,
    PIPE,
    Await,
    Bell,
    Choose,
    Clear,
    Fence,
    Load,
    Process,
    Ring,
    Steps,
    Store,
    Turn,
    Update,
)

Pair = tuple[int, int]


def outcomes(first: Callable[[], Steps[int]], second: Callable[[], Steps[int]], **memory: int) -> set[Pair]:
    """Every pair of results that two processes can have."""
    found: set[Pair] = set()

    def with_result(process: Callable[[], Steps[int]], name: str) -> Process:
        def run() -> Steps[None]:
            result = yield from process()
            yield Store(name, result)
            yield Fence()

        return run

    def judge() -> Steps[None]:
        yield Await("of_first", content=True)
        yield Await("of_second", content=True)
        one = yield Load("of_first")
        two = yield Load("of_second")
        found.add((one - 1, two - 1))

    processes = {"first": with_result(first, "of_first"), "second": with_result(second, "of_second"), "judge": judge}
    result = Explorer(processes, {**memory, "of_first": 0, "of_second": 0}, {}).run()
    assert result.failure is None
    return found


def store_then_load(mine: str, other: str, *, fenced: bool) -> Callable[[], Steps[int]]:
    def process() -> Steps[int]:
        yield Store(mine, 1)
        if fenced:
            yield Fence()
        seen: int = yield Load(other)
        return seen + 1

    return process


@pytest.mark.parametrize(("fences", "both_miss"), [((0, 0), True), ((0, 1), True), ((1, 0), True), ((1, 1), False)])
def test_a_load_overtakes_the_store_before_it_unless_both_sides_have_a_fence(fences: Pair, both_miss: bool) -> None:
    first = store_then_load("x", "y", fenced=bool(fences[0]))
    second = store_then_load("y", "x", fenced=bool(fences[1]))
    rest = {(0, 1), (1, 0), (1, 1)}
    assert outcomes(first, second, x=0, y=0) == (rest | {(0, 0)} if both_miss else rest)


def test_stores_become_visible_in_their_order_and_loads_are_done_in_theirs() -> None:
    def writes() -> Steps[int]:
        yield Store("x", 1)
        yield Store("y", 1)
        return 1

    def reads() -> Steps[int]:
        y = yield Load("y")
        x = yield Load("x")
        return int(10 * y + x + 1)

    assert {seen for _, seen in outcomes(writes, reads, x=0, y=0)} == {0, 1, 11}


def test_a_process_sees_its_own_stores_at_once() -> None:
    def process(word: str) -> Callable[[], Steps[int]]:
        def run() -> Steps[int]:
            yield Store(word, 1)
            yield Store(word, 2)
            seen = yield Load(word)
            return int(seen + 1)

        return run

    assert outcomes(process("x"), process("y"), x=0, y=0) == {(2, 2)}


def test_a_locked_update_waits_for_the_store_buffer_and_is_one_step() -> None:
    def process(mine: str, other: str) -> Callable[[], Steps[int]]:
        def run() -> Steps[int]:
            yield Store(mine, 1)
            yield Update("list", mine)
            seen = yield Load(other)
            return int(seen + 1)

        return run

    def explore() -> Result:
        def adds() -> Steps[None]:
            yield Update("list", 1)

        def takes() -> Steps[None]:
            yield Await("list", content=False)
            items = yield Update("list", None)
            if items != (1, 1):
                yield Await("list", content=False)
                items += yield Update("list", None)
            assert items == (1, 1)

        return Explorer({"a": adds, "b": adds, "t": takes}, {"list": ()}, {}).run()

    assert (0, 0) not in outcomes(process("x", "y"), process("y", "x"), x=0, y=0, list=())  # type: ignore[arg-type]
    assert explore().failure is None


def sleeper(bell: str) -> Process:
    def run() -> Steps[None]:
        yield Turn((), bell, content=False)
        yield Clear(bell)

    return run


def ringer(bell: str, times: int) -> Process:
    def run() -> Steps[None]:
        rung = 0
        while rung < times:
            yield Ring(bell)
            rung += 1

    return run


def test_a_sleeper_that_nobody_rings_is_found_and_the_way_there_is_told() -> None:
    def sometimes() -> Steps[None]:
        rings = yield Choose(2)
        if rings:
            yield Ring("bell")

    result = Explorer({"S": sleeper("bell"), "R": sometimes}, {}, {"bell": EVENTFD}).run()
    assert result.failure is not None
    assert result.failure.what == "nobody will ever wake S"
    assert len(result.failure.steps) == 1
    assert "R: may do either" in str(result.failure)


@pytest.mark.parametrize(("bell", "clears"), [(EVENTFD, 1), (PIPE, 1), (LONG_PIPE, 2)])
def test_a_bell_that_was_rung_three_times_is_silent_after_so_many_clears(bell: Bell, clears: int) -> None:
    found = set()

    def process() -> Steps[None]:
        yield from ringer("bell", 3)()
        count = 0
        while (yield Turn(("it is silent",), "bell", content=False)) == "rings":
            yield Clear("bell")
            count += 1
        found.add(count)

    assert Explorer({"P": process}, {}, {"bell": bell}).run().failure is None
    assert max(found) == clears


def test_a_ring_is_not_lost_when_it_comes_before_the_sleep() -> None:
    assert Explorer({"S": sleeper("b"), "R": ringer("b", 1)}, {}, {"b": EVENTFD}).run().failure is None


def test_an_assertion_that_fails_in_one_order_only_is_found_and_the_order_told() -> None:
    def writes() -> Steps[None]:
        yield Store("x", 1)
        yield Store("y", 2)

    def reads() -> Steps[None]:
        x = yield Load("x")
        y = yield Load("y")
        assert (x, y) != (0, 2), "y before x"

    result = Explorer({"W": writes, "R": reads}, {"x": 0, "y": 0}, {}).run()
    assert result.failure is not None
    assert result.failure.what == "y before x"
    assert result.failure.steps == [
        "R: loads x: 0",
        "W:     the store of x = 1 reaches the memory",
        "W:     the store of y = 2 reaches the memory",
        "R: loads y: 2",
    ]


def test_going_round_for_ever_without_a_way_out_is_found() -> None:
    def polls() -> Steps[None]:
        while (yield Load("x")) != 2:
            pass

    def writes() -> Steps[None]:
        yield Store("x", 1)

    result = Explorer({"P": polls, "W": writes}, {"x": 0}, {}).run()
    assert result.failure is not None
    assert result.failure.what == "from here no way leads to the end"


def test_a_poll_that_may_end_is_no_trap() -> None:
    def polls() -> Steps[None]:
        while not (yield Load("x")):
            pass

    def writes() -> Steps[None]:
        yield Store("x", 1)

    result = Explorer({"P": polls, "W": writes}, {"x": 0}, {}).run()
    assert result.failure is None
    assert result.states == 5


def test_what_is_too_large_is_not_called_proven() -> None:
    def counts() -> Steps[None]:
        count = 0
        while True:
            yield Load("x")
            count += 1

    with pytest.raises(TooLarge, match="more than 1000 states"):
        Explorer({"C": counts}, {"x": 0}, {}, most_states=1000).run()
