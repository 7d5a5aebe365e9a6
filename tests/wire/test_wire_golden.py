"""The wire is what it was: frozen bytes that today's code makes and reads, and that a second decoder understands."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import independent_decoder
import independent_msgpack
import pytest
from wire_vector import Vector
from wire_vectors import GOLDEN, VECTORS, as_json

from shmrpc.shm import envelope

HERE = Path(__file__).parent
BY_NAME = {vector.name: vector for vector in VECTORS}
each = pytest.mark.parametrize("vector", [pytest.param(vector, id=vector.name) for vector in VECTORS])


def golden(vector: Vector) -> bytes:
    return (GOLDEN / f"{vector.name}.bin").read_bytes()


def understood(kind: str, packed: bytes, meaning: Any) -> Any:
    """What the independent decoder makes of a vector; of a digest, what it makes of the signatures."""
    match kind:
        case "frame":
            return independent_decoder.frame(packed)
        case "header":
            return independent_decoder.header(packed)
        case "msgpack":
            return independent_msgpack.read(packed)
        case "digest":
            return (
                meaning if independent_decoder.digest(meaning) == packed else independent_decoder.digest(meaning).hex()
            )
        case "record":
            return independent_decoder.record(packed, no_blocks)
        case "segment":
            segment = independent_decoder.Segment(packed)
            return {
                "header": segment.header,
                "cursors": segment.cursors(),
                "begin": meaning["begin"],
                "records": segment.records(meaning["begin"]),
                "releases": segment.releases(),
            }
    raise AssertionError(kind)


def no_blocks(extent: int, granule: int, nbytes: int) -> bytes:
    raise AssertionError("this record names no block of its own")


@each
def test_todays_code_makes_the_same_bytes(vector: Vector) -> None:
    assert vector.make() == golden(vector)


@each
def test_todays_code_reads_the_same_from_them(vector: Vector) -> None:
    assert vector.today(golden(vector)) == vector.value


@each
def test_a_decoder_that_was_written_from_the_specification_understands_them(vector: Vector) -> None:
    frozen = json.loads((GOLDEN / f"{vector.name}.json").read_text())
    assert understood(frozen["kind"], golden(vector), frozen["meaning"]) == frozen["meaning"]


@each
def test_their_meaning_is_frozen_too(vector: Vector) -> None:
    assert (GOLDEN / f"{vector.name}.json").read_text() == as_json(vector)


def test_there_is_no_vector_without_files_and_no_file_without_a_vector() -> None:
    files = {path.name for path in GOLDEN.iterdir()}
    assert files == {f"{name}{suffix}" for name in BY_NAME for suffix in (".bin", ".json")}
    assert len(BY_NAME) == len(VECTORS)


def test_there_is_a_vector_of_every_kind_of_record_and_every_flag() -> None:
    records = [vector.meaning for vector in VECTORS if vector.kind == "record"]
    records += [record for vector in VECTORS if vector.kind == "segment" for record in vector.meaning["records"]]
    assert {record["kind"] for record in records} == {"PAD", *envelope.KIND_NAMES.values()}
    flags = {flag for record in records for flag in record.get("flags", [])}
    assert flags == {"IN_BLOCK", "HAS_METADATA", "AS_JSON", "HAS_BUFFERS", "MANY"}


@pytest.mark.parametrize("name", ["independent_decoder", "independent_msgpack"])
def test_the_second_decoder_shares_no_code_with_the_first(name: str) -> None:
    tree = ast.parse((HERE / f"{name}.py").read_text())
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported <= {*sys.stdlib_module_names, "collections.abc", "independent_msgpack"}
