"""A client of streams in a process of its own: begins those that its standard input names, and goes on with them.

``flow_client.py PATH``. Each line of input is a method, its number and more integer arguments. A result that is a stream is
read, and a parameter that is one gets numbers, texts or arrays without end. Answers ``under way`` when the first item was
read or given, and how a stream ended when it does.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from flow_api import Flow

import shmrpc

SOURCES: dict[str, Any] = {
    "total": 1,
    "keep": "text",
    "keep_arrays": np.zeros(50_000, np.uint8),
    "echo": 1,
    "negate": np.zeros(50_000, np.uint8),
}
"""What is sent to each method, again and again."""


def say(answer: object) -> None:
    print(" ".join(str(answer).split()), flush=True)


class Stream:
    """One stream under way."""

    def __init__(self, flow: Any, method: str, *arguments: str) -> None:
        self.items = 0
        numbers = [int(argument) for argument in arguments]
        if method in SOURCES:
            numbers.insert(1, self.source(SOURCES[method]))  # type: ignore[arg-type]
        self.call = getattr(flow, method)(*numbers)

    def note(self) -> None:
        self.items += 1
        if self.items == 1:
            say("under way")

    async def source(self, item: object) -> AsyncIterator[object]:
        while True:
            self.note()
            yield item

    async def run(self) -> None:
        try:
            if hasattr(self.call, "__aiter__"):
                async for _ in self.call:
                    self.note()
            else:
                await self.call
            say(f"ended after {self.items}")
        except Exception as error:  # whatever it is, the test on the other end judges it
            say(f"{type(error).__name__} after {self.items}: {error}")


async def main(path: str) -> None:
    streams = set()
    async with shmrpc.connect(Flow, path, wait=20) as flow:
        say("connected")
        while line := await asyncio.to_thread(sys.stdin.readline):
            streams.add(asyncio.create_task(Stream(flow, *line.split()).run()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
