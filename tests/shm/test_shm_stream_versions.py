"""Streams between two versions of a contract whose items may hold buffers at one side only."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

import shmrpc

COUNT = 200


class Caption(msgspec.Struct):
    label: str


class Picture(msgspec.Struct):
    """A later version of `Caption`."""

    label: str
    image: npt.NDArray[np.uint8] | None = None


class Older(Protocol):
    def captions(self) -> AsyncIterator[Caption]: ...
    async def count(self, captions: AsyncIterator[Caption]) -> int: ...


class Newer(Protocol):
    def captions(self) -> AsyncIterator[Picture]: ...
    async def count(self, captions: AsyncIterator[Picture]) -> int: ...


class Anything(Protocol):
    def captions(self) -> AsyncIterator[Any]: ...
    async def count(self, captions: AsyncIterator[Any]) -> int: ...


# Contracts are found by their names.
for version in (Older, Newer, Anything):
    version.__name__ = "Captions"


class Service:
    """Implements any of them."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.got: list[Any] = []

    async def captions(self) -> AsyncIterator[Any]:
        for number in range(COUNT):
            yield self._kind(f"number {number}")

    async def count(self, captions: AsyncIterator[Any]) -> int:
        self.got = [caption async for caption in captions]
        return len(self.got)


async def test_a_reader_of_pictures_reads_captions(path: str) -> None:
    async with (
        shmrpc.Server(shmrpc.service(Service(Caption), Older), at=path),
        shmrpc.connect(Newer, path) as stub,
    ):
        assert [item async for item in stub.captions()] == [Picture(f"number {n}") for n in range(COUNT)]


async def test_a_reader_of_captions_reads_pictures(path: str) -> None:
    async with (
        shmrpc.Server(shmrpc.service(Service(Picture), Newer), at=path),
        shmrpc.connect(Older, path) as stub,
    ):
        assert [item async for item in stub.captions()] == [Caption(f"number {n}") for n in range(COUNT)]


async def test_a_handler_of_pictures_takes_captions(path: str) -> None:
    service = Service(Picture)
    async with shmrpc.Server(shmrpc.service(service, Newer), at=path), shmrpc.connect(Older, path) as stub:
        assert await stub.count(Caption(f"number {n}") async for n in numbers()) == COUNT
    assert service.got == [Picture(f"number {n}") for n in range(COUNT)]


async def test_a_reader_of_anything_reads_captions(path: str) -> None:
    async with (
        shmrpc.Server(shmrpc.service(Service(Caption), Older), at=path),
        shmrpc.connect(Anything, path) as stub,
    ):
        assert [item async for item in stub.captions()] == [{"label": f"number {n}"} for n in range(COUNT)]


async def numbers() -> AsyncIterator[int]:
    for number in range(COUNT):
        yield number
