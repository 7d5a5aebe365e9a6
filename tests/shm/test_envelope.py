"""Envelopes: small enough for a record, decoded strictly, and numbered as the tables say."""

import functools
import operator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmrpc
from shmrpc.context import MAX_METADATA
from shmrpc.failure import Failure
from shmrpc.shm import envelope, layout
from shmrpc.shm.envelope import BlockReference, DecodeError
from shmrpc.shm.layout import Geometry

u64 = st.integers(0, 2**64 - 1)


@given(u64, u64, u64)
def test_a_block_reference_always_fits_into_a_record(number: int, generation: int, nbytes: int) -> None:
    reference = BlockReference(number, generation, nbytes)
    packed = envelope.encode_reference(reference)
    assert envelope.decode_reference(packed) == reference
    Geometry(inline_limit=64).check()  # the lowest limit that there is
    assert len(packed) <= 64


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.binary())), st.binary())
def test_metadata_keeps_text_and_bytes_apart(metadata: dict[str, str | bytes], payload: bytes) -> None:
    opened, rest = envelope.open_metadata(envelope.with_metadata(metadata, payload))
    assert (opened, rest) == (metadata, payload)
    assert list(map(type, opened.values())) == list(map(type, metadata.values()))


@pytest.mark.parametrize("value", [7, 1.5, None, True, [], {}, [[[]]]], ids=repr)
def test_metadata_of_any_other_type_is_refused_without_being_built(value: object) -> None:
    packed = msgspec.msgpack.encode(({"key": value}, b""))
    with pytest.raises(ValueError, match="'key' is neither text nor bytes"):
        envelope.open_metadata(packed)


def test_metadata_has_a_limit_on_either_side() -> None:
    large = {"key": "x" * MAX_METADATA}
    with pytest.raises(shmrpc.ResourceExhausted, match=r"metadata has 65546 bytes, the limit is 65536"):
        envelope.with_metadata(large, b"")
    with pytest.raises(ValueError, match="the limit is 65536"):
        envelope.open_metadata(msgspec.msgpack.encode((large, b"")))


@given(u64, st.text(), st.text(), st.binary(), st.text(), st.booleans())
def test_a_failure_travels_whole(code: int, message: str, name: str, fields: bytes, identity: str, maybe: bool) -> None:
    failure = Failure(code, message, name, fields, identity, maybe)
    assert envelope.decode_failure(envelope.encode_failure(failure)) == failure


NOT_REFERENCES: list[Any] = [
    (1, 2),
    (1, 2, 3, 4),
    {"number": 1, "generation": 2, "nbytes": 3},
    (1, 2, "3"),
    (1, 2, 3.5),
    (1, 2, None),
    5,
]


@pytest.mark.parametrize("fields", NOT_REFERENCES)
def test_what_is_not_exactly_a_reference_is_refused(fields: object) -> None:
    with pytest.raises(DecodeError):
        envelope.decode_reference(msgspec.msgpack.encode(fields))


@given(st.binary(max_size=200))
def test_garbage_is_decoded_or_refused(garbage: bytes) -> None:
    for decode in (envelope.decode_reference, envelope.decode_failure, envelope.open_metadata):
        try:
            decode(garbage)
        except DecodeError:
            continue


@pytest.mark.parametrize("depth", [10_000, 1_000_000])
def test_a_bottomless_envelope_is_refused(depth: int) -> None:
    metadata = b"\x92\x81\xa1k" + b"\x91" * depth + b"\xc0" + b"\xc4\x00"
    with pytest.raises(DecodeError):
        envelope.open_metadata(metadata)


def test_a_later_version_may_add_fields_to_what_is_not_a_reference() -> None:
    longer = msgspec.msgpack.encode(({"tenant": "a"}, b"payload", "new"))
    assert envelope.open_metadata(longer) == ({"tenant": "a"}, b"payload")


def test_kinds_and_flags_are_distinct_and_fit_their_bytes() -> None:
    calls = [envelope.REQUEST, envelope.REPLY, envelope.FAILURE, envelope.CANCEL, envelope.GOAWAY]
    streams = [envelope.ARGUMENTS, envelope.END_OF_ARGUMENTS, envelope.RESULTS]
    kinds = [*calls, *streams, envelope.ARGUMENT_CREDIT, envelope.RESULT_CREDIT, envelope.INITIAL_METADATA]
    assert layout.KIND_PAD not in kinds
    assert sorted(envelope.KIND_NAMES) == sorted(kinds) == list(range(1, envelope.LAST_KIND + 1))
    for kind, name in envelope.KIND_NAMES.items():
        assert getattr(envelope, name) == kind
    flags = [envelope.IN_BLOCK, envelope.HAS_METADATA, envelope.AS_JSON, envelope.HAS_BUFFERS, envelope.MANY]
    assert sum(flags) == functools.reduce(operator.or_, flags) < 256
