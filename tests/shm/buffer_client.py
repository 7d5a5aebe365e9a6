"""A client of buffers in a process of its own: ``buffer_client.py PATH PART``, which plays one part and says so.

A part leaves arrays behind in a way that the end of the interpreter has to cope with, or waits to be killed, or asks for
more and more.
"""

import asyncio
import sys
import threading
from typing import Any

import numpy as np
from buffer_api import Buffers

import shmrpc

left: list[Any] = []
"""Outlives the connection, and lives until the interpreter clears its modules."""


class Knot:
    """Refers to itself, and to an array: only the garbage collector finds it."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.knot = self


class Late:
    """Looks at its array when it dies, at whatever moment that is."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __del__(self) -> None:
        assert int(self.array[-1]) == 7


def hold_on(*arrays: Any) -> None:
    threading.Event().wait()


async def main(path: str, part: str) -> None:
    async with shmrpc.connect(Buffers, path) as stub:
        kept: Any = await stub.give(1 << 20, 7)
        born = shmrpc.empty(1 << 20, np.uint8, to=stub)
        born[:] = 8
        echoed = await stub.echo(born)
        await stub.keep(born)
        match part:
            case "a global":
                left.extend((kept, born, echoed, memoryview(kept)[10:]))
            case "a knot":
                left.append(Knot(kept))
                Knot(born), Knot(echoed)
            case "a finalizer":
                left.append(Knot(Late(kept)))
            case "a thread":
                threading.Thread(target=hold_on, args=(kept, born, echoed), daemon=True).start()
            case "an exit":
                left.extend((kept, born, echoed))
                sys.exit(0)
            case "a wait":
                print("ready", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
            case "results" | "arguments":
                await demand(stub, part)
    print("done", flush=True)


async def demand(stub: Buffers, what: str) -> None:
    """Has 4 MiB more in use with each line of input, and says how that went."""
    while await asyncio.to_thread(sys.stdin.readline):
        try:
            if what == "results":
                left.append(await stub.give(4 << 20, 7))
            else:
                await stub.keep(np.full(4 << 20, 7, np.uint8))
            print("had", flush=True)
        except shmrpc.RpcError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
