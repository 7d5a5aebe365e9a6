"""Arguments and results with buffers in them, as a method of a contract packs and unpacks them."""

import gc
import threading
import weakref
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from travelling import method_of, views_of

import shmrpc
from shmrpc import codec, slots
from shmrpc.buffers import Buffer
from shmrpc.contract import read
from shmrpc.methods import Method

T = TypeVar("T")

U8 = npt.NDArray[np.uint8]

pixels = np.arange(20_000, dtype=np.uint8)
LARGE = b"x" * 20_000


class Frame(msgspec.Struct):
    image: U8
    label: str = ""


class Box(msgspec.Struct, Generic[T]):
    content: T


class WiderFrame(msgspec.Struct):
    """A later version of `Frame`, with a buffer that the older one does not know, before one that it does."""

    preview: U8
    image: U8
    label: str = ""


class Api(Protocol):
    async def filter(self, image: U8, top: int = 3, mask: U8 | None = None, *, raw: bytes = b"") -> U8: ...
    async def frame(self, frame: Frame, raw: bytes = b"none", mask: U8 | None = None) -> Frame: ...
    async def anything(self, value: Any) -> Any: ...
    async def count(self, word: str, times: float = 1.0) -> float: ...
    async def pair(self, number: int, value: Any) -> None: ...
    async def choice(self, number: int, image: U8 | list[float]) -> None: ...
    async def choices(self, number: int, images: list[U8 | list[float]]) -> None: ...
    async def either(self, image: U8 | list[float]) -> dict[str, U8]: ...


methods = read(Api).methods


def arrive(method: Method, *args: Any) -> tuple[Any, ...]:
    packed = method.pack_arguments(args)
    arrived = method.unpack_arguments(packed.payload, views_of(packed))
    again = method.decode_arguments(packed.payload, views_of(packed))
    assert [type(value) for value in arrived] == [type(value) for value in again]
    return arrived


# There and back


def test_arguments_arrive_with_defaults_filled_in() -> None:
    image, top, mask, raw = arrive(methods["filter"], pixels)
    assert np.array_equal(image, pixels)
    assert (top, mask, raw) == (3, None, b"")
    image, top, mask, raw = arrive(methods["filter"], pixels[:5], 4, pixels[1:], LARGE)
    assert (image.tolist(), top, mask.tolist(), raw) == ([0, 1, 2, 3, 4], 4, pixels[1:].tolist(), LARGE)


def test_buffers_deep_in_one_argument_and_whole_in_the_next_do_not_change_places() -> None:
    frame, raw, mask = arrive(methods["frame"], Frame(pixels[::-1], "a"), LARGE, pixels)
    assert np.array_equal(frame.image, pixels[::-1])
    assert raw == LARGE
    assert np.array_equal(mask, pixels)
    assert arrive(methods["frame"], Frame(pixels))[1:] == (b"none", None)


def test_a_default_may_be_an_array_or_another_member_of_a_union() -> None:
    default = np.arange(20_000, dtype=np.uint8)

    of_default, raw_default = Frame(default), bytearray(b"raw")

    class Defaults:
        async def call(self, a: U8 = default, b: U8 | Frame = of_default, c: bytearray = raw_default) -> None: ...

    a, b, c = arrive(read(Defaults).methods["call"])
    assert a is default
    assert b.image is default
    assert c == b"raw"


def test_a_default_of_a_whole_parameter_arrives_as_it_is() -> None:
    default = bytearray(b"raw")

    class Defaults:
        async def call(self, raw: bytearray = default, view: memoryview | None = None) -> None: ...

    raw, view = arrive(read(Defaults).methods["call"])
    assert raw is default
    assert view is None


@pytest.mark.parametrize("default", [None, 3, [1], np.zeros(3), "abc"])
def test_a_default_that_is_not_such_an_array_is_refused(default: Any) -> None:
    class Wrong:
        async def call(self, image: U8 = default) -> None: ...

    with pytest.raises(shmrpc.ContractError, match=r"Wrong\.call: parameter 'image': its default .* does not fit"):
        read(Wrong)


def test_results_arrive() -> None:
    for name, result in (
        ("filter", pixels),
        ("frame", Frame(pixels)),
        ("anything", [pixels]),
        ("either", {"a": pixels}),
    ):
        packed = methods[name].pack_result(result)
        arrived = methods[name].unpack_result(packed.payload, views_of(packed))
        assert type(arrived) is type(result)
        assert len(packed.pieces) == 1


def test_a_method_knows_whether_buffers_can_be_in_its_arguments_and_its_result() -> None:
    def buffered(annotation: Any) -> bool:
        taking, giving = method_of(a=annotation), method_of(a=int, result=annotation)
        assert taking.buffered_arguments == giving.buffered_result
        assert not taking.buffered_result
        assert not giving.buffered_arguments
        return taking.buffered_arguments

    annotation: Any
    for annotation in (
        U8,
        bytes,
        bytearray,
        memoryview,
        Buffer,
        Any,
        list,
        U8 | None,
        bytes | int,
        list[U8 | int],
        Frame,
    ):
        assert buffered(annotation), annotation
    for annotation in (int, str | None, list[bytes], dict[str, list[float]]):
        assert not buffered(annotation), annotation


@pytest.mark.parametrize(
    ("type_", "anything", "holds"),
    [
        (int, False, False),
        (list[str], False, False),
        (bytes, False, False),
        (Frame, False, True),
        (WiderFrame | None, False, True),
        (list[dict[str, tuple[int, Frame]]], False, True),
        (dict[str, tuple[Any, Frame]], True, True),
        (list, True, False),
        (dict[str, Any], True, False),
        (Box[U8], False, True),
        (Box[int], False, False),
        (slots.rewrite(list[U8 | dict[str, Any]]), True, True),
    ],
)
def test_what_a_type_can_hold_is_found_at_any_depth(type_: Any, anything: bool, holds: bool) -> None:
    assert codec.content_of(type_) == (anything, holds)


def test_what_is_small_or_no_buffer_makes_no_pieces() -> None:
    assert methods["filter"].pack_arguments((pixels[:4000], 3)).pieces == []
    assert methods["anything"].pack_arguments(({"a": b"abc"},)).pieces == []
    payload, pieces = methods["count"].pack_arguments(("abc",))
    assert (payload, pieces) == (methods["count"].encode(("abc",)), [])
    assert methods["count"].unpack_arguments(payload, ()) == ("abc", 1.0)


def test_a_piece_keeps_what_was_passed_alive() -> None:
    packed = methods["filter"].pack_arguments((np.full(20_000, 7, np.uint8),))
    gc.collect()
    assert bytes(views_of(packed)[0]) == b"\7" * 20_000


def test_numbers_of_numpys_are_numbers_in_every_method() -> None:
    assert arrive(methods["count"], "a", np.float32(1.5)) == ("a", 1.5)
    assert methods["count"].encode(np.int64(3)) == msgspec.msgpack.encode(3)
    assert arrive(methods["filter"], pixels[:3], np.int8(4))[1] == 4


# What does not fit


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("filter", (np.zeros(3),), "parameter 'image': got float64 of shape (3,), expected uint8"),
        ("filter", ([1, 2],), "parameter 'image': got a list, expected an array; numpy.asarray makes one"),
        ("filter", (pixels, 3, np.zeros(3)), "parameter 'mask': got float64 of shape (3,), expected uint8"),
        ("filter", (pixels, object()), "parameter 'top' cannot be encoded: Encoding objects of type builtins.object"),
        ("filter", (np.zeros(3, object),), "parameter 'image': got object of shape (3,), expected uint8"),
        ("frame", (Frame(np.zeros(3, object)),), "parameter 'frame' cannot be encoded: dtype object cannot travel"),
        ("frame", (Frame(pixels), b"", [1]), "parameter 'mask': got a list, expected an array"),
        ("anything", (object(),), "parameter 'value' cannot be encoded: Encoding objects of type builtins.object"),
        ("anything", (np.ma.zeros(3),), "parameter 'value' cannot be encoded: got a masked array"),
        ("anything", (np.zeros(3, object),), "parameter 'value' cannot be encoded: dtype object cannot travel"),
        (
            "count",
            (pixels,),
            "parameter 'word' cannot be encoded: Encoding objects of type numpy.ndarray is unsupported",
        ),
        ("either", (np.zeros(3),), "parameter 'image': got float64 of shape (3,), expected uint8"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_at_the_caller_by_name(
    name: str, args: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(shmrpc.InvalidArgument) as caught:
        methods[name].pack_arguments(args)
    assert str(caught.value).startswith(f"Api.{name}: {text}")


@pytest.mark.parametrize(
    ("written", "args", "name", "text"),
    [
        ("anything", (np.zeros(3),), "filter", "parameter 'image': got float64 of shape (3,), expected uint8"),
        ("anything", (None,), "filter", "parameter 'image': Expected an array of uint8, got null"),
        (
            "anything",
            ({"image": np.zeros(3)},),
            "frame",
            "parameter 'frame'.image: got float64 of shape (3,), expected",
        ),
        ("anything", ({"image": None},), "frame", "parameter 'frame'.image: Expected an array of uint8, got null"),
        ("anything", ("abc",), "either", "parameter 'image': Expected `array`, got `str`"),
        ("pair", (1, ["abc"]), "choice", "parameter 'image': Expected `float`, got `str` (in its [0])"),
        ("pair", (1, [["abc"]]), "choices", "parameter 'images'[0]: Expected `float`, got `str` (in its [0])"),
        ("anything", (pixels,), "count", "parameter 'word': Expected `str`, got `ext`"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_on_arrival_by_name(
    written: str, args: tuple[Any, ...], name: str, text: str
) -> None:
    packed = methods[written].pack_arguments(args)
    with pytest.raises(shmrpc.InvalidArgument) as caught:
        methods[name].decode_arguments(packed.payload, views_of(packed))
    assert str(caught.value).startswith(f"Api.{name}: {text}")
    with pytest.raises((ValueError, TypeError)):
        methods[name].unpack_arguments(packed.payload, views_of(packed))


def test_a_result_that_does_not_fit_is_refused_at_the_server_and_is_internal_at_the_client() -> None:
    with pytest.raises(ValueError, match=r"got float64 of shape \(3,\), expected uint8"):
        methods["filter"].pack_result(np.zeros(3))
    packed = methods["anything"].pack_result(np.zeros(3))
    text = r"Api\.filter: the server's result does not fit the contract: got float64 of shape \(3,\), expected uint8"
    with pytest.raises(shmrpc.Internal, match=text):
        methods["filter"].unpack_result(packed.payload, views_of(packed))


@pytest.mark.parametrize("name", ["filter", "either"])
def test_buffers_that_do_not_belong_to_a_value_are_refused(name: str) -> None:
    packed = methods[name].pack_arguments((pixels,))
    (view,) = views_of(packed)
    for views in ([], [view[1:]], [memoryview(bytes(20_001))]):
        with pytest.raises(shmrpc.InvalidArgument, match=rf"Api\.{name}: parameter 'image': "):
            methods[name].decode_arguments(packed.payload, views)


def test_more_buffers_than_values_are_refused() -> None:
    packed = methods["filter"].pack_arguments((pixels,))
    with pytest.raises(shmrpc.InvalidArgument, match="2 buffers came, and the values hold fewer"):
        methods["filter"].decode_arguments(packed.payload, views_of(packed) * 2)
    packed = methods["filter"].pack_result(pixels)
    with pytest.raises(shmrpc.Internal, match="2 buffers came, and the value holds fewer"):
        methods["filter"].unpack_result(packed.payload, views_of(packed) * 2)


def test_one_buffer_cannot_be_two_values() -> None:
    twice = methods["filter"].pack_arguments((pixels, 3, pixels))
    forged = twice.payload.replace(b"\1\0\0\0\1\1", b"\0\0\0\0\1\1")
    assert forged != twice.payload
    with pytest.raises(
        shmrpc.InvalidArgument, match=r"parameter 'mask': buffer 0 of 2 is not there, or was used twice"
    ):
        methods["filter"].decode_arguments(forged, views_of(twice))


def test_a_buffer_in_a_field_that_the_reader_does_not_know_is_passed_over() -> None:
    written = method_of(frame=WiderFrame)
    packed = written.pack_arguments((WiderFrame(pixels[:15_000], pixels[::-1], "a"),))
    assert len(packed.pieces) == 2
    (frame,) = method_of(frame=Frame).unpack_arguments(packed.payload, views_of(packed))
    assert np.array_equal(frame.image, pixels[::-1])


def test_an_extension_of_someone_elses_is_no_buffer() -> None:
    ext = msgspec.msgpack.Ext(5, b"abc")
    assert arrive(methods["anything"], ext)[0].data == b"abc"
    for name in ("filter", "either"):
        with pytest.raises(shmrpc.InvalidArgument):
            methods[name].decode_arguments(msgspec.msgpack.encode([ext]))


def test_a_type_without_an_encoding_is_refused_beside_an_array() -> None:
    with pytest.raises(shmrpc.ContractError, match=r"Api\.call: parameter 'a': complex cannot travel"):
        method_of(a=U8 | complex)
    with pytest.raises(
        shmrpc.ContractError, match=r"Api\.call: parameter 'a': an array of Python objects cannot travel"
    ):
        method_of(a=npt.NDArray[np.object_])

    class Broken(msgspec.Struct):
        image: U8 | bytes

    with pytest.raises(shmrpc.ContractError, match=r"Api\.call: parameter 'a': Type unions containing a custom type"):
        method_of(a=Broken)


# One decoder, many messages


def test_a_message_that_is_decoded_while_another_is_has_its_own_buffers() -> None:
    method = method_of(a=list[U8])
    outer = method.pack_arguments(([pixels, pixels[::-1], pixels[1:]],))
    nested: list[Any] = []

    class Finalised(bytes):
        """Whoever asks for its length decodes another message first, as a finalizer could."""

        def __len__(self) -> int:
            packed = methods["frame"].pack_arguments((Frame(pixels[2:]),))
            nested.append(methods["frame"].unpack_arguments(packed.payload, views_of(packed))[0].image)
            return super().__len__()

    (arrived,) = method.unpack_arguments(outer.payload, [Finalised(view) for view in views_of(outer)])
    assert [len(array) for array in arrived] == [20_000, 20_000, 19_999]
    assert [len(array) for array in nested] == [19_998] * 3


def test_threads_that_decode_at_the_same_time_have_their_own_buffers() -> None:
    method = method_of(a=list[U8])
    step = threading.Barrier(2, timeout=10)
    arrived: dict[int, list[int]] = {}

    class InStep(bytes):
        """Whoever asks for its length waits for the other thread to ask for that of its own."""

        def __len__(self) -> int:
            step.wait()
            return super().__len__()

    def run(number: int) -> None:
        packed = method.pack_arguments(([np.full(20_000, number, np.uint8)] * 5,))
        (row,) = method.unpack_arguments(packed.payload, [InStep(view) for view in views_of(packed)])
        arrived[number] = [array[0] for array in row]

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert arrived == {1: [1] * 5, 2: [2] * 5}


def test_the_views_of_a_message_can_be_used_again_to_say_what_was_wrong() -> None:
    for name, args in (("filter", (pixels,)), ("frame", (Frame(pixels),))):
        packed = methods[name].pack_arguments(args)
        views = views_of(packed)
        for _ in range(2):
            methods[name].unpack_arguments(packed.payload, views)


def test_the_buffers_of_a_message_are_let_go_of_with_its_values() -> None:
    class View(bytearray):
        """Memory that can be watched."""

    for name, args in (("filter", (pixels,)), ("frame", (Frame(pixels),)), ("anything", ([pixels],))):
        packed = methods[name].pack_arguments(args)
        view = View(views_of(packed)[0])
        seen = weakref.ref(view)
        arrived = methods[name].unpack_arguments(packed.payload, [view])
        del view
        assert seen() is not None
        del arrived
        assert seen() is None


# JSON, for callers without the contract


def test_arrays_are_nested_lists_in_json() -> None:
    (image, top, mask, raw) = methods["filter"].decode_arguments(b'[[1, 2, 3], 5, null, "YWJj"]', json=True)
    assert (image.dtype, image.tolist(), top, mask, raw) == (np.dtype("u1"), [1, 2, 3], 5, None, b"abc")
    assert not image.flags.writeable
    (frame, *_) = methods["frame"].decode_arguments(b'[{"image": [[1, 2], [3, 4]]}]', json=True)
    assert frame.image.tolist() == [[1, 2], [3, 4]]
    assert methods["either"].decode_arguments(b"[[1.5]]", json=True) == ([1.5],)
    assert methods["filter"].encode_json(np.array([[1, 2], [3, 4]])) == b"[[1,2],[3,4]]"
    assert methods["frame"].encode_json(Frame(pixels[:2])) == b'{"image":[0,1],"label":""}'
    assert methods["anything"].encode_json([np.float32(1.5), memoryview(b"abc")]) == b'[1.5,"YWJj"]'


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b'["abc"]', "parameter 'image': "),
        (b"[[300]]", "parameter 'image': "),
        (b"[[[1], [1, 2]]]", "parameter 'image': "),
        (b"[null]", "parameter 'image': Expected an array of uint8, got null"),
        (b'[[1], 3, null, "?"]', "parameter 'raw': "),
    ],
)
def test_json_that_is_no_such_array_is_refused_by_name(payload: bytes, text: str) -> None:
    with pytest.raises(shmrpc.InvalidArgument) as caught:
        methods["filter"].decode_arguments(payload, json=True)
    assert str(caught.value).startswith(f"Api.filter: {text}")


# Items of streams


def test_items_that_can_hold_no_buffers_may_come_together() -> None:
    items = codec.ItemCodec(dict[str, int])
    assert not items.buffered
    body = bytearray(codec.head_of_many(2))
    for value in ({"a": 1}, {}):
        codec.encode_into(value, body, -1)
    assert codec.count_of_many(bytes(body)) == 2
    assert items.read(bytes(body), (), many=True) == [{"a": 1}, {}]
    assert items.read(msgspec.msgpack.encode({"b": 2}), (), many=False) == [{"b": 2}]


def test_each_of_many_items_is_checked() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str`$"):
        codec.ItemCodec(int).read(codec.head_of_many(2) + b"\x01\xa1x", (), many=True)
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int`, got `str` - at `\$\[0\]`"):
        codec.ItemCodec(list[int]).read(codec.head_of_many(2) + b"\x91\x01\x91\xa1x", (), many=True)


@pytest.mark.parametrize("type_", [U8, Frame, bytes, list[U8]])
def test_items_that_can_hold_buffers_are_checked_when_they_come_together(type_: Any) -> None:
    items = codec.ItemCodec(type_)
    assert items.buffered
    with pytest.raises((ValueError, TypeError), match=r"[Ee]xpected"):
        items.read(codec.head_of_many(1) + b"\x01", (), many=True)


def test_items_that_can_hold_buffers_come_together_from_a_writer_whose_items_cannot() -> None:
    class Caption(msgspec.Struct):
        label: str

    class Picture(msgspec.Struct):
        label: str
        image: U8 | None = None

    body = bytearray(codec.head_of_many(2))
    for label in ("a", "b"):
        codec.encode_into(Caption(label), body, -1)
    assert codec.ItemCodec(Picture).read(bytes(body), (), many=True) == [Picture("a"), Picture("b")]
    assert codec.ItemCodec(Any).read(codec.head_of_many(2) + b"\x01\xa1x", (), many=True) == [1, "x"]


def test_arrays_that_lie_in_the_message_may_come_together() -> None:
    items = codec.ItemCodec(U8)
    body = codec.head_of_many(2) + b"".join(items.pack(pixels[:count]).payload for count in (3, 5))
    assert [list(array) for array in items.read(body, (), many=True)] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_an_item_arrives_with_its_buffers() -> None:
    items = codec.ItemCodec(Frame)
    packed = items.pack(Frame(pixels, "p"))
    (frame,) = items.read(packed.payload, views_of(packed), many=False)
    assert (frame.image == pixels).all()
    assert frame.label == "p"


def test_buffers_that_belong_to_no_item_are_refused() -> None:
    items = codec.ItemCodec(int)
    with pytest.raises(ValueError, match="1 buffers came"):
        items.read(b"\x01", [bytearray(5)], many=False)
    with pytest.raises(ValueError, match="comes alone in its message"):
        items.read(codec.head_of_many(1) + b"\x01", [bytearray(5)], many=True)


def test_numbers_of_numpys_are_numbers_as_items_too() -> None:
    body = bytearray(codec.head_of_many(1))
    codec.encode_into(np.float32(0.5), body, -1)
    assert codec.ItemCodec(float).read(bytes(body), (), many=True) == [0.5]


@pytest.mark.parametrize("count", [1, 64, (1 << 32) - 1])
def test_the_head_of_many_items_has_one_form(count: int) -> None:
    head = codec.head_of_many(count)
    assert len(head) == codec.MANY_HEAD_BYTES
    assert head == b"\xdd" + count.to_bytes(4, "big")


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xdd\0\0\0\1", b"\xdd\0\0\0\0\1", b"\xdd\0\0\0\3\1\1", b"\x92\1\1\1\1\1", b"\xdd\xff\xff\xff\xff\1"],
)
def test_what_does_not_begin_like_many_items_is_none(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"^\d+ bytes are no message of \d+ items$"):
        codec.count_of_many(payload)
