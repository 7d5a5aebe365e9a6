"""Geometries that cannot work, are too large, or whose parts would overlap: the handshake is refused, nothing is mapped."""

import pytest
from hostile_halves import Refuse, Spoil, brings, case, declares, doorbell, header, memfd, sends, victims
from raw_channel import DEFAULT, RING, TAIL, Geometry

pytestmark = pytest.mark.counted("bad inputs tried")


def _says(**changes: object) -> Spoil:
    """A segment whose header says something else than the handshake."""
    return sends(memfd(header=header(**changes)), doorbell)


def _declared(**changes: object) -> Spoil:
    return declares(geometry=DEFAULT._asdict() | changes)


_DIFFERS = "header says .* declared"


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("a crooked ring", brings(Geometry(ring_bytes=100_000)), "ring_bytes is 100000, it must be a power of two"),
        case("a tiny ring", brings(Geometry(ring_bytes=2048, inline_limit=64)), "ring_bytes is 2048, .* at least 4096"),
        case("no ring", _declared(ring_bytes=0), "ring_bytes is 0, .* at least 4096"),
        case("a ring of the sign bit", _declared(ring_bytes=1 << 63), "the segment has .* bytes, the limit is"),
        case("a slab in bits", brings(Geometry(slab_bytes=1000)), "slab_bytes is 1000, .* multiple of 1024"),
        case("no slab", _declared(slab_bytes=0), "slab_bytes is 0, .* multiple of 1024"),
        case("a negative slab", _declared(slab_bytes=-1024), "slab_bytes is -1024, .* multiple of 1024"),
        case("few releases", brings(Geometry(release_entries=8)), "360 blocks and the release ring 8 entries"),
        case("no releases", _declared(release_entries=0), "release_entries is 0"),
        case("crooked releases", _declared(release_entries=1000), "release_entries is 1000, it must be a power of two"),
        case("releases without end", _declared(release_entries=1 << 62), "the segment has .* bytes, the limit is"),
        case(
            "fewer releases than the other side has blocks",
            brings(Geometry(release_entries=64, slab_bytes=64 * 1024)),
            "release ring has fewer entries than this side's slab has blocks",
        ),
        case("large records", brings(Geometry(inline_limit=1 << 17)), "inline_limit is 131072, allowed are 64 to"),
        case("small records", _declared(inline_limit=63), "inline_limit is 63, allowed are 64 to"),
        case("negative records", _declared(inline_limit=-1), "inline_limit is -1, allowed are 64 to"),
        case(
            "a huge segment", brings(Geometry(ring_bytes=32 << 20)), "the segment has .* bytes, the limit is 16777216"
        ),
        case(
            "a segment without end",
            _declared(slab_bytes=1 << 62),
            "the segment has .* bytes|must have at least as many",
        ),
        case("a negative ring", _declared(ring_bytes=-4096), "ring_bytes is -4096"),
        case("words", declares(geometry={"ring_bytes": "many"}), "cannot be understood: .*ring_bytes"),
        case("fractions", declares(geometry={"ring_bytes": 4096.5}), "cannot be understood: .*ring_bytes"),
        case("numbers beyond words", declares(geometry={"ring_bytes": 1e300}), "cannot be understood: .*ring_bytes"),
        case("nothing", declares(geometry=None), "cannot be understood: .*geometry"),
        case("a list", declares(geometry=list(DEFAULT)), "cannot be understood: .*geometry"),
    ],
)
async def test_a_peer_is_refused_that_declares(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)


@victims
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        case("the ring over the cursors", _says(ring=TAIL), _DIFFERS),
        case("the ring over the header", _says(ring=0), _DIFFERS),
        case("the ring over the releases", _says(ring_bytes=DEFAULT.ring_bytes * 2), _DIFFERS),
        case("the releases over the ring", _says(release=RING), _DIFFERS),
        case("the releases over the slab", _says(entries=DEFAULT.release_entries * 2), _DIFFERS),
        case("the slab over the releases", _says(slab=DEFAULT.release_offset), _DIFFERS),
        case("the slab over everything", _says(slab=0), _DIFFERS),
        case("the slab over its end", _says(slab_bytes=DEFAULT.slab_bytes * 2), _DIFFERS),
        case("offsets that overflow", _says(slab=(1 << 64) - 1024), _DIFFERS),
        case("another size", _says(size=1 << 40), _DIFFERS),
        case("a word that must be zero", _says(zero=1), _DIFFERS),
        case("another limit of records", _says(limit=1 << 20), _DIFFERS),
    ],
)
async def test_a_peer_is_refused_whose_segment_says_that_it_has(
    path: str, must_refuse: Refuse, spoil: Spoil, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    await must_refuse(path, caplog, spoil, why)
