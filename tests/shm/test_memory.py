"""Memory: both directions of one connection, from the first buffer to the end, in this process and in a forked child."""

import gc
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from life_waiting import until
from memories import METHOD, MIB, SLAB, Bytes, End, Pair, is_ordinary, numbered, on, packed, two_ends, with_extent

from shmrpc.context import Lease
from shmrpc.errors import ConnectionLost, ProtocolError
from shmrpc.shm.control import Detach
from shmrpc.shm.placed import Placed
from shmrpc.shm.ring import View
from shmrpc.shm.settings import Settings

uvloop.new_event_loop().close()  # the first one makes a pipe for the whole process, which no test leaks


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with two_ends() as ends:
        yield ends


def mappings() -> int:
    """How many segments and extents this process has mapped."""
    return Path("/proc/self/maps").read_text().count("memfd:shmrpc")


# Both directions


async def test_extents_and_views_of_both_sides_do_not_mix(pair: Pair) -> None:
    arrays = numbered(5 * MIB), numbered(6 * MIB, 3)
    for end, array in zip(pair, arrays, strict=True):
        await end.send_when_possible(array)
    arrived = [end.receive_arrays()[0] for end in reversed(pair)]
    assert [(one == other).all() for one, other in zip(arrived, arrays, strict=True)] == [True, True]
    assert [end.extent_sizes for end in pair] == [[5 * MIB], [6 * MIB]]
    arrived.clear()
    assert all(end.at_home for end in pair)


async def test_an_array_goes_to_and_fro_as_often_as_one_likes_without_a_copy(pair: Pair) -> None:
    left, right = pair
    array = left.allocate(5000)
    array[:] = numbered(5000)
    left.send(array)
    for _ in range(20):
        right.send(*right.receive_arrays())
        left.send(*left.receive_arrays())
        left.channel.collect()
    [arrived] = right.receive_arrays()
    array[17] = 99
    assert arrived[17] == 99
    assert (len(left.blocks), len(right.blocks)) == (1, 0)
    assert len(left.arena.loans) == 1
    del array, arrived
    assert left.at_home


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_both_sides_do_everything_arrives_and_comes_home(seed: int) -> None:
    """Arrays are made, sent, kept, sent back, dropped, by both sides, in any order, until nothing is left."""
    chance = random.Random(seed)
    async with two_ends(max_extent_bytes=12 * MIB, settings=Settings(extent_idle=0.01)) as pair:
        kept: dict[End, list[tuple[Bytes, Bytes]]] = {end: [] for end in pair}
        sent: dict[End, list[list[Bytes]]] = {end: [] for end in pair}

        def receive(end: End) -> None:
            for parcel in end.receive():
                expected = sent[end].pop(0)
                assert len(parcel.views) == len(expected)
                for view, contents in zip(parcel.views, expected, strict=True):
                    assert (on(view) == contents).all()
                    if chance.random() < 0.5:
                        kept[end].append((on(view), contents))

        async def send(end: End, other: End) -> None:
            arrays = []
            for _ in range(chance.randrange(4)):
                if kept[end] and chance.random() < 0.5:
                    arrays.append(chance.choice(kept[end]))
                else:
                    contents = numbered(chance.choice((10, 5000, 100_000, MIB)), chance.randrange(251))
                    made = contents.copy() if chance.random() < 0.5 else end.allocate(contents.nbytes)
                    made[:] = contents
                    arrays.append((made, contents))
            placed = end.lender.try_place(packed([array for array, _ in arrays]), METHOD)
            if not isinstance(placed, Placed):
                for each in pair:  # room comes of what is dropped
                    receive(each)
                    kept[each].clear()
                    each.channel.collect()
                placed = await end.lender.place(packed([array for array, _ in arrays]), METHOD, 0)
            end.send_placed(placed)
            sent[other].append([contents for _, contents in arrays])

        for _ in range(60):
            end = chance.choice(pair)
            other = pair[1] if end is pair[0] else pair[0]
            act = chance.random()
            if act < 0.5 and len(sent[other]) < 5:
                await send(end, other)
            elif act < 0.8:
                receive(end)
            elif kept[end]:
                kept[end].pop(chance.randrange(len(kept[end])))
        for _ in range(2):
            for end in pair:
                receive(end)
                kept[end].clear()
        assert all(end.at_home for end in pair)
        await until(lambda: not any(end.arena.extents for end in pair), "the detaching")
        await until(lambda: not any(end.borrowed._extents for end in pair), "the peers to hear of it")
        assert not any(end.broken or end.lost for end in pair)


async def test_leases_are_those_of_the_memory_of_this_side(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    held = right.receive()
    [lease] = left.memory.leases()
    assert isinstance(lease, Lease)
    assert lease[:4] == (METHOD, left.lender._peer, 1, 5000)
    assert right.memory.leases() == []
    held.clear()


# The end


async def test_the_end_takes_everything_along_and_may_be_repeated() -> None:
    before = mappings()
    async with two_ends() as (left, right):
        await left.send_when_possible(numbered(5 * MIB))
        held = right.receive()
        left.close()
        await until(lambda: right.lost, "the end")
        right.close()
        assert mappings() > before
        held.clear()
        assert mappings() == before
        for end in (left, right):
            end.close()
        assert right.lost == ["closed the connection"]
        assert [left.lost, left.broken, right.broken] == [[], [], []]


async def test_a_peer_that_breaks_the_rules_of_the_socket_is_told_of_once(pair: Pair) -> None:
    left, right = pair
    right.memory.control.send_soon(Detach(7))
    await until(lambda: left.broken, "the error")
    assert isinstance(left.broken[0], ProtocolError)
    assert len(left.broken) == 1
    assert left.lost == []


async def test_after_the_end_memory_is_ordinary_memory(pair: Pair) -> None:
    left, _ = pair
    left.close()
    memory = left.memory.allocate(5000)
    assert is_ordinary(memory)
    assert len(memoryview(memory)) == 5000


async def test_before_the_end_it_is_memory_of_the_connection(pair: Pair) -> None:
    left, _ = pair
    assert isinstance(left.memory.allocate(5000), View)


async def test_arrays_may_die_after_everything_else(pair: Pair) -> None:
    async with two_ends() as (left, right):
        own = [left.allocate(5000), left.allocate(5 * MIB)]
        await left.send_when_possible(*own)
        arrived = right.receive_arrays()
    del left, right
    gc.collect()
    arrived[1][:10].tobytes()
    own[1][:] = 1
    assert (arrived[1] == 1).all()
    own.clear()
    arrived.clear()
    assert all(end.broken == [] for end in pair)


# A forked child


def in_child(act: object) -> str:
    """What a function says in a forked child; an error's text, if it fails."""
    assert callable(act)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            text = str(act())
        except BaseException as error:
            text = repr(error)
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read()


async def test_a_forked_child_cannot_touch_the_memory_of_its_parent(pair: Pair) -> None:
    left, right = pair
    await with_extent(left)

    def act() -> bool:
        left.memory.forget()
        left.channel.close()
        return is_ordinary(left.memory.allocate(5000))

    assert in_child(act) == "True"
    left.send(numbered(SLAB // 2))
    assert (right.receive_arrays()[0] == numbered(SLAB // 2)).all()
    assert left.lost == right.lost == []
    assert left.at_home


async def test_in_a_forked_child_there_is_no_memory(pair: Pair) -> None:
    left, _ = pair

    def act() -> bool:
        left.memory.forget()
        return is_ordinary(left.memory.allocate(10))

    assert in_child(act) == "True"


async def test_what_dies_in_a_forked_child_lives_on_in_its_parent(pair: Pair) -> None:
    left, right = pair
    own = [left.allocate(5000)]
    left.send(own[0])
    arrived = right.receive_arrays()

    def act() -> int:
        for end in pair:
            end.memory.forget()
            end.channel.close()
        own.clear()
        arrived.clear()
        return 0

    assert in_child(act) == "0"
    left.channel.collect()
    assert len(left.arena.loans) == 1
    assert own[0].nbytes == arrived[0].nbytes == 5000
    assert left.blocks[0].handles == 1


# What it says


async def test_it_says_what_is_lent_and_what_is_borrowed(pair: Pair) -> None:
    left, right = pair
    left.send(numbered(5000))
    held = right.receive()
    assert repr(left.memory) == (
        "<Memory <Lender <Arena 1 leases, 0 extents of 0 bytes>, 0 waiting>, "
        f"<Borrowed 0 extents of {SLAB} bytes with the slab>>"
    )
    held.clear()


async def test_an_end_that_is_no_end_of_ours_is_given_as_the_reason(pair: Pair) -> None:
    left, _ = pair
    left.memory.close(ConnectionLost("the server drained"))
    left.memory.close(ConnectionLost("something else"))
    with pytest.raises(ConnectionLost, match="the server drained"):
        await left.lender.place(packed([numbered(10)]), METHOD, 0)
