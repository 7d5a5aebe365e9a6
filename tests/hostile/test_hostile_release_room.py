"""Peers that lend more than they take home, or lie about where they read releases: the connection is cut."""

import pytest
from buffer_api import KIB, pair
from buffer_stage import MINE, array_ext, number_of
from hostile_stage import encode
from raw_channel import HAS_BUFFERS, RELEASE_HEAD, REPLY, REQUEST, table_of
from raw_peer import RawClient, hung_up

from shmrpc.shm.layout import Geometry

pytestmark = pytest.mark.counted("bad inputs tried")


async def test_a_lie_about_the_release_ring_is_found_when_a_buffer_dies(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be raised: whatever comes next ends the connection."""
    few = Geometry(release_entries=16, slab_bytes=16 * KIB)
    async with pair(path, {"geometry": few}, geometry=few) as others, RawClient(path) as peer:
        channel = await peer.shake_hands()
        channel.put(0, b"x" * 4 * KIB)
        payload = table_of([MINE], encode([array_ext(4 * KIB)]))
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
        payload = table_of([MINE], encode([array_ext(4 * KIB)]))
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
