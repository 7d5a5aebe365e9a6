"""A peer that lies about buffers and extents: one connection is cut, or one call refused, and nobody else notices."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import uvloop
from buffer_api import KIB, pair
from buffer_stage import (
    BUFFER,
    LENT,
    MINE,
    Open,
    Stage,
    array_body,
    array_ext,
    number_of,
    stages,
)
from life_waiting import until
from msgspec.msgpack import Ext
from raw_channel import (
    GRANULE,
    HAS_BUFFERS,
    IN_BLOCK,
    INLINE,
    PEER_OWNED,
    RELEASE_HEAD,
    RELEASE_TAIL,
    REPLY,
    REQUEST,
    table_of,
)
from raw_peer import RawClient, hung_up

from shmrpc.shm.layout import Geometry

uvloop.new_event_loop().close()  # libuv makes a pipe for the process with its first loop, which no test leaves behind

Act = Callable[[Stage], None]

_encode = msgspec.msgpack.encode
_BODY = _encode(array_ext(4 * KIB))
_FAR = 1 << 64


def _refer(*references: tuple[int, int, int, int], count: int | None = None) -> Act:
    return lambda stage: stage.send(table_of(references, _BODY, count))


def _payload(payload: bytes) -> Act:
    return lambda stage: stage.send(payload)


def _back(change: Callable[[Any], tuple[int, int, int, int]]) -> Act:
    """Sends the victim's own memory back, under a reference that was changed."""
    return lambda stage: stage.send(
        table_of([change(stage.lease._replace(block=stage.lease.block | PEER_OWNED))], _BODY)
    )


def _many_in_a_block(count: int) -> Act:
    def act(stage: Stage) -> None:
        payload = table_of([MINE] * count, _BODY)
        stage.channel.put(100, payload)
        stage.send(_encode((100, 9, len(payload))), HAS_BUFFERS | IN_BLOCK)

    return act


def _act(name: str, act: Act, why: str) -> Any:
    return pytest.param(act, why, id=name)


_OUT = "leads out of its slab of 368640 bytes"
_SHORT = "does not fit in its payload"
_NOT_OUT = "which is not out"


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        # The table
        _act("no table", _payload(b""), _SHORT),
        _act("half a table", _payload(b"\1\0\0\0"), _SHORT),
        _act("a table of nothing", _refer(MINE, count=1000), _SHORT),
        _act("a table without an end", _refer(MINE, count=(1 << 32) - 1), "references"),
        _act("a word that must be zero", _payload(b"\0\0\0\0\1\0\0\0" + _BODY), "must be zero, and is not"),
        _act("more than can be released", _many_in_a_block(1025), "sent 1025 references in one record, allowed are 10"),
        # Where it leads
        _act("a block behind the slab", _refer((360, 1, 0, 1)), _OUT),
        _act("the last block of all", _refer(((1 << 32) - 1, 1, 0, 1)), _OUT),
        _act("an end behind the slab", _refer((359, 1, 0, GRANULE + 1)), _OUT),
        _act("an offset behind the slab", _refer((359, 1, GRANULE, 1)), _OUT),
        _act("an offset without an end", _refer((0, 1, _FAR - 1, 2)), _OUT),
        _act("an offset that leads back", _refer((1, 1, _FAR - GRANULE, GRANULE)), _OUT),
        _act("a size without an end", _refer((0, 1, 0, _FAR - 1)), _OUT),
        _act("a size that leads back", _refer((0, 1, 1, _FAR - 1)), _OUT),
        _act("a message over the limit", _refer((0, 1, 0, 1 << 40)), _OUT),
        _act("a second one that is wrong", _refer(MINE, (360, 1, 0, 1)), _OUT),
        _act("an extent that never was", _refer((5 << 32, 1, 0, 1)), "refers to extent 5, which it never attached"),
        _act("the last extent", _refer(((1 << 31) - 1 << 32, 1, 0, 1)), "refers to extent 2147483647, which it never"),
        # The victim's own memory
        _act("a lease that never was", _back(lambda lent: lent._replace(lease=99)), _NOT_OUT),
        _act("no lease", _back(lambda lent: lent._replace(lease=0)), _NOT_OUT),
        _act("a lease on another block", _back(lambda lent: lent._replace(block=lent.block + 1)), _NOT_OUT),
        _act("a lease in an extent", _back(lambda lent: lent._replace(block=lent.block | 3 << 32)), _NOT_OUT),
        _act("more than was lent", _back(lambda lent: lent._replace(nbytes=LENT + 1)), f"0 to {LENT + 1} of block"),
        _act("what lies behind", _back(lambda lent: lent._replace(offset=LENT, nbytes=1)), f"{LENT} to {LENT + 1} of"),
        _act("all there is", _back(lambda lent: lent._replace(nbytes=_FAR - 1)), "the peer sent back bytes 0 to"),
        _act(
            "what leads back", _back(lambda lent: lent._replace(offset=_FAR - 1, nbytes=2)), "the peer sent back bytes"
        ),
    ],
)
async def test_the_connection_is_cut_after(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        act(scene)
        await scene.must_be_cut(why)


async def _taken(stage: Stage, contents: bytes = b"x" * 4 * KIB) -> None:
    """The victim gets an array from the raw peer's slab, and keeps it."""
    stage.channel.put(0, contents)
    stage.send(table_of([MINE], _BODY))
    await stage.must_take(contents)


@stages
async def test_a_lease_that_was_released_cannot_be_sent_back(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.channel.release(scene.lease.block, scene.lease.lease)
        scene.look()
        _back(lambda lent: lent)(scene)
        await scene.must_be_cut(_NOT_OUT)


@stages
async def test_a_lease_may_be_sent_back_as_often_as_it_is_held(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        contents = scene.channel.see(scene.lease)
        body = _encode(array_ext(LENT))
        for _ in range(3):
            scene.send(table_of([scene.lease._replace(block=scene.lease.block | PEER_OWNED)], body))
            await scene.must_take(contents)
        scene.channel.release(scene.lease.block, scene.lease.lease)
        scene.look()
        assert scene.seen.tobytes() == contents  # which keeps the block


@stages
@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda block, lease: [(block + 1, lease)], "which is on block 0"),
        (lambda block, lease: [(block, lease + 1)], _NOT_OUT),
        (lambda block, lease: [(block, lease)] * 2, _NOT_OUT),
        (lambda block, lease: [(block | PEER_OWNED, lease)], "which is on block 0"),
        (lambda block, lease: [(block | 1 << 32, lease)], "which is on block 0"),
        (lambda block, lease: [(_FAR - 1, _FAR - 1)], _NOT_OUT),
    ],
    ids=["another block", "another lease", "twice", "a block of its own", "another extent", "anything"],
)
async def test_a_forged_release_of_a_buffer_cuts_the_connection(
    path: str,
    stage: Open,
    forge: Callable[[int, int], list[tuple[int, int]]],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage(path, caplog) as scene:
        for release in forge(scene.lease.block, scene.lease.lease):
            scene.channel.release(*release)
        scene.look()
        await scene.must_be_cut(why)


@stages
@pytest.mark.parametrize("tail", [1025, _FAR - 1])
async def test_a_release_position_that_jumps_cuts_the_connection(
    path: str, stage: Open, tail: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        scene.channel.set_word(RELEASE_TAIL, tail)
        scene.look()
        await scene.must_be_cut("the peer's write position went back, is unaligned or ran over")


async def test_a_lie_about_the_release_ring_is_found_when_a_buffer_dies(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be raised: whatever comes next ends the connection."""
    few = Geometry(release_entries=16, slab_bytes=16 * KIB)
    async with pair(path, {"geometry": few}, geometry=few) as others, RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.put(0, b"x" * 4 * KIB)
        payload = table_of([MINE], _encode([array_ext(4 * KIB)]))
        channel.set_word(RELEASE_HEAD, 1000)
        for call_id in range(1, 17):
            channel.send(REQUEST, payload, flags=HAS_BUFFERS, call_id=call_id, method=number_of("keep"))
            assert (await channel.receive()).kind == REPLY
        others.holder.arrays.clear()
        channel.send(REQUEST, payload, flags=HAS_BUFFERS, call_id=17, method=number_of("first"))
        await hung_up(peer.sock)
        assert "was cut: the peer's position in the release ring is impossible" in caplog.text
        await others.at_home()


async def test_a_peer_cannot_lend_more_than_it_takes_home(path: str, caplog: pytest.LogCaptureFixture) -> None:
    few = Geometry(release_entries=16, slab_bytes=16 * KIB)
    async with pair(path, {"geometry": few}, geometry=few) as others, RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.put(0, b"x" * 4 * KIB)
        payload = table_of([MINE], _encode([array_ext(4 * KIB)]))
        for call_id in range(1, 17):
            channel.send(REQUEST, payload, flags=HAS_BUFFERS, call_id=call_id, method=number_of("keep"))
            assert (await channel.receive()).kind == REPLY
        others.holder.arrays.pop()  # and one more for one that comes home
        for call_id in (17, 18):
            channel.send(REQUEST, payload, flags=HAS_BUFFERS, call_id=call_id, method=number_of("keep"))
        assert (await channel.receive()).kind == REPLY
        await hung_up(peer.sock)
        assert "the peer sent 1 references in one record, allowed are 0" in caplog.text
        assert len(others.holder.arrays) == 16
        assert all((array == ord("x")).all() for array in others.holder.arrays)


# What is only one call's fault


def _body(*body: Ext | bytes, references: int = 1) -> Act:
    return lambda stage: stage.send(table_of([MINE] * references, b"".join(map(_encode, body))))


def _array(nbytes: int = 4 * KIB, **how: Any) -> Act:
    return _body(array_ext(nbytes, **how))


_WHOLE = array_body(4 * KIB)


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        _act("more bytes than there are", _array(4 * KIB + 1), "got 4096 bytes for uint8 of shape (4097,)"),
        _act("fewer bytes than there are", _array(1), "got 4096 bytes for uint8 of shape (1,)"),
        _act("another dtype", _array(dtype=b"<f8", shape=(512,)), "got float64 of shape (512,)"),
        _act("objects", _array(dtype=b"|O8"), "dtype"),
        _act("objects by name", _array(dtype=b"O"), "dtype"),
        _act("no dtype", _array(dtype=b""), ""),
        _act("a dtype of noise", _array(dtype=b"\xc1\xff\0"), ""),
        _act("a tower of dtypes", _array(dtype=b"\x91" * 5000), "dtype"),
        _act("a dtype without an end", _array(dtype=b"|V99999999999"), "dtype"),
        _act("sixty-four axes", _array(shape=(1,) * 65), "malformed"),
        _act("many axes", _array(shape=(1,) * 255), "malformed"),
        _act("an axis without an end", _array(shape=(_FAR - 1,)), "fits into no memory"),
        _act("axes that overflow", _array(shape=(1 << 32, 1 << 32)), "fits into no memory"),
        _act("axes that overflow to nothing", _array(shape=(1 << 63, 2, 0)), "fits into no memory"),
        _act("an array of no kind", _array(kind=9), "malformed"),
        _act("bytes", _body(Ext(BUFFER, b"\0\0\0\0\0")), "got bytes"),
        _act("half a description", _body(Ext(BUFFER, _WHOLE[:-1])), "description"),
        _act("too long a description", _body(Ext(BUFFER, _WHOLE + b"x")), "description"),
        _act("an index only", _body(Ext(BUFFER, b"\0\0\0\0")), "malformed"),
        _act("nothing at all", _body(Ext(BUFFER, b"")), "malformed"),
        _act("a buffer that never came", _array(index=1), "buffer 1 of 1 is not there"),
        _act("a buffer far away", _array(index=(1 << 32) - 2), "is not there"),
        _act("one inline, and a buffer", _body(Ext(BUFFER, INLINE + _WHOLE[4:] + b"x" * 4096)), "hold"),
        _act("one inline that is short", _body(Ext(BUFFER, INLINE + _WHOLE[4:] + b"x")), "got 1 bytes"),
        _act("another extension", _body(Ext(7, _WHOLE)), "xpected"),
        _act("more buffers than values", _body(array_ext(4 * KIB), references=3), "hold"),
        _act("a number", _body(b"seven"), "xpected"),
    ],
)
async def test_only_the_call_is_refused_after(
    path: str, stage: Open, act: Act, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        lent = scene.channel.far_word(RELEASE_TAIL)
        act(scene)
        await scene.must_refuse(why)
        await until(lambda: scene.channel.far_word(RELEASE_TAIL) > lent, "what it had lent to come home")


@stages
async def test_what_a_peer_writes_while_it_is_read_changes_what_is_read_and_nothing_else(
    path: str, stage: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(path, caplog) as scene:
        await _taken(scene)
        scene.channel.put(0, b"y" * 4 * KIB)
        assert scene.seen.tobytes() == b"y" * 4 * KIB
        assert not scene.seen.flags.writeable
        assert not caplog.text
