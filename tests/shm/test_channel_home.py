"""What comes home to a channel: released leases, each after the records that were published before it."""

from collections.abc import Iterator

import pytest
from joined import fill, received, rung, send, two_channels

from shmrpc.shm.arena import Block
from shmrpc.shm.channel import Channel
from shmrpc.shm.layout import GRANULE

Pair = tuple[Channel, Channel]


@pytest.fixture(params=["eventfd", "pipe"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two joined channels, for each kind of doorbell."""
    with two_channels(bell=request.param) as channels:
        yield channels


def call_ids(channel: Channel, budget: int = 1000) -> list[int]:
    return [record[3] for record in received(channel, budget)]


def lend(channel: Channel, granules: int = 1) -> tuple[int, int]:
    """A block that is out: its number, and the lease."""
    block = channel.arena.take(granules * GRANULE, attached=True)
    assert block is not None
    return block.number, channel.arena.lend(block, 0, block.nbytes, "Service.method")


def is_home(channel: Channel) -> bool:
    return not channel.arena.loans and not channel.arena.base.blocks


def test_a_released_lease_comes_home(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    assert not left.collect()
    right.release(*out)
    assert left.collect()
    assert is_home(left)
    assert not left.collect()


def test_a_release_waits_until_the_records_before_it_were_handled(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    send(right, 1)
    send(right, 2)
    right.release(*out)
    assert not left.collect()
    send(right, 3)  # after the release: it need not be handled
    assert call_ids(left, 1) == [1]
    assert not left.collect()
    assert left.arena.returned(*out, 0, 1).number == out[0]
    assert call_ids(left, 1) == [2]
    assert left.collect()
    assert is_home(left)


def test_a_release_counts_from_the_last_record_before_it_on_whatever_was_copied_out_with_that(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    send(right, 1)
    send(right, 2)
    right.release(*out)
    send(right, 3)
    came: list[bool] = []
    left.dispatch(1000, (lambda *_: came.append(left.collect()),) * 256, {})
    assert came == [False, False, True]  # it was first seen together with the third, and counts as if behind that


def test_a_caller_who_runs_inside_of_its_reply_uses_the_block_of_its_request_again(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    right.release(*out)
    send(right, 1)
    again: list[int] = []

    def handle(*_: object) -> None:
        left.collect()
        again.append(lend(left)[0])

    left.dispatch(1000, (handle,) * 256, {})
    assert again == [out[0]]


def test_releases_come_home_in_their_order_behind_their_records(pair: Pair) -> None:
    left, right = pair
    first, second = lend(left), lend(left)
    send(right, 1)
    right.release(*first)
    assert not left.collect()
    send(right, 2)
    right.release(*second)
    assert not left.collect()
    call_ids(left, 1)
    assert left.collect()
    assert list(left.arena.loans) == [second[1]]
    call_ids(left, 1)
    assert left.collect()
    assert is_home(left)


def test_a_handle_that_died_counts_as_memory_that_came_home(pair: Pair) -> None:
    left, _ = pair
    block = left.arena.take(GRANULE, attached=True)
    assert isinstance(block, Block)
    left.arena.hold(block)
    assert not left.collect()
    left.arena.drop_soon(block.number, 0)
    assert left.collect()
    assert is_home(left)


def test_nobody_is_rung_for_memory_that_nobody_waits_for(pair: Pair) -> None:
    left, right = pair
    right.release(*lend(left))
    assert not rung(left)


def test_whoever_waits_for_memory_is_rung_and_told_once(pair: Pair) -> None:
    left, right = pair
    first, second = lend(left), lend(left)
    told: list[int] = []
    left.on_home = lambda: told.append(len(left.arena.loans))
    left.flush()
    assert told == []
    assert not rung(left)
    right.release(*first)
    assert rung(left)
    left.doorbell.clear()
    left.flush()
    assert told == [1]
    right.release(*second)
    assert not rung(left)
    left.flush()
    assert told == [1]


def test_memory_that_came_home_before_anybody_waited_is_found_at_once(pair: Pair) -> None:
    left, right = pair
    right.release(*lend(left))
    told: list[bool] = []
    left.on_home = lambda: told.append(is_home(left))
    left.flush()
    assert told == [True]


def test_memory_whose_release_waits_for_a_record_is_told_of_after_it(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    send(right, 1)
    right.release(*out)
    told: list[bool] = []
    left.on_home = lambda: told.append(is_home(left))
    left.flush()
    assert told == []
    received(left)
    left.flush()
    assert told == [True]


def test_whoever_waits_for_memory_does_not_hold_up_records_nor_they_it(pair: Pair) -> None:
    left, right = pair
    fill(left)
    out = lend(left)
    told: list[bool] = []
    left.on_home = lambda: told.append(True)
    left.flush()
    assert rung(right) is rung(left) is False
    right.release(*out)
    assert rung(left)
    left.doorbell.clear()
    left.flush()
    assert told == [True]
    assert left.outbox
    received(right)
    assert rung(left)
    left.flush()
    assert not left.outbox


def test_nobody_is_told_of_memory_after_the_end(pair: Pair) -> None:
    left, right = pair
    out = lend(left)
    told: list[bool] = []
    left.on_home = lambda: told.append(True)
    left.flush()
    left.close()
    right.release(*out)
    left.flush()
    assert told == []
