"""Arrays whose description does not fit their bytes, or any memory: the one call is refused, and what was lent goes home."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from buffer_api import KIB
from buffer_stage import BUFFER, MINE, Open, Stage, array_body, array_ext, stages
from hostile_stage import case
from life_waiting import until
from msgspec.msgpack import Ext
from raw_channel import INLINE, RELEASE_TAIL, table_of

pytestmark = pytest.mark.counted("bad inputs tried")

Act = Callable[[Stage], None]

_encode = msgspec.msgpack.encode
_FAR = 1 << 64


def _body(*body: Ext | bytes, references: int = 1) -> Act:
    return lambda stage: stage.send(table_of([MINE] * references, b"".join(map(_encode, body))))


def _array(nbytes: int = 4 * KIB, **how: Any) -> Act:
    return _body(array_ext(nbytes, **how))


_WHOLE = array_body(4 * KIB)


@stages
@pytest.mark.parametrize(
    ("act", "why"),
    [
        case("more bytes than there are", _array(4 * KIB + 1), "got 4096 bytes for uint8 of shape (4097,)"),
        case("fewer bytes than there are", _array(1), "got 4096 bytes for uint8 of shape (1,)"),
        case("another dtype", _array(dtype=b"<f8", shape=(512,)), "got float64 of shape (512,)"),
        case("objects", _array(dtype=b"|O8"), "dtype"),
        case("objects by name", _array(dtype=b"O"), "dtype"),
        case("no dtype", _array(dtype=b""), ""),
        case("a dtype of noise", _array(dtype=b"\xc1\xff\0"), ""),
        case("a tower of dtypes", _array(dtype=b"\x91" * 5000), "dtype"),
        case("a dtype without an end", _array(dtype=b"|V99999999999"), "dtype"),
        case("sixty-four axes", _array(shape=(1,) * 65), "malformed"),
        case("many axes", _array(shape=(1,) * 255), "malformed"),
        case("an axis without an end", _array(shape=(_FAR - 1,)), "fits into no memory"),
        case("axes that overflow", _array(shape=(1 << 32, 1 << 32)), "fits into no memory"),
        case("axes that overflow to nothing", _array(shape=(1 << 63, 2, 0)), "fits into no memory"),
        case("an array of no kind", _array(kind=9), "malformed"),
        case("bytes", _body(Ext(BUFFER, b"\0\0\0\0\0")), "got bytes"),
        case("half a description", _body(Ext(BUFFER, _WHOLE[:-1])), "description"),
        case("too long a description", _body(Ext(BUFFER, _WHOLE + b"x")), "description"),
        case("an index only", _body(Ext(BUFFER, b"\0\0\0\0")), "malformed"),
        case("nothing at all", _body(Ext(BUFFER, b"")), "malformed"),
        case("a buffer that never came", _array(index=1), "buffer 1 of 1 is not there"),
        case("a buffer far away", _array(index=(1 << 32) - 2), "is not there"),
        case("one inline, and a buffer", _body(Ext(BUFFER, INLINE + _WHOLE[4:] + b"x" * 4096)), "hold"),
        case("one inline that is short", _body(Ext(BUFFER, INLINE + _WHOLE[4:] + b"x")), "got 1 bytes"),
        case("another extension", _body(Ext(7, _WHOLE)), "xpected"),
        case("more buffers than values", _body(array_ext(4 * KIB), references=3), "hold"),
        case("a number", _body(b"seven"), "xpected"),
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
