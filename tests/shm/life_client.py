"""A client in a process of its own: connects, then makes the calls that it reads from its standard input.

``life_client.py PATH [SETTING=VALUE …]``. Each line of input is a method and integer arguments. Answers ``connected``, or
the error, to each attempt to connect; and the result or the error to each call, as it ends. The line ``close`` ends the
connection and ``connect`` makes another.
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import Any

from life_api import Life

import shmrpc


def say(answer: object) -> None:
    print(" ".join(str(answer).split()), flush=True)


async def call(stub: Any, method: str, *arguments: str) -> None:
    try:
        say(await getattr(stub, method)(*map(int, arguments)))
    except Exception as error:  # whatever it is, the test on the other end judges it
        say(f"{type(error).__name__}: {error}")


async def main(path: str, *settings: str) -> None:
    options: dict[str, Any] = {name: eval(value) for name, _, value in (setting.partition("=") for setting in settings)}
    calls = set()
    stack = AsyncExitStack()
    stub: Any = None
    line = "connect"
    while line:
        match line.split():
            case ["connect"]:
                try:
                    stub = await stack.enter_async_context(shmrpc.connect(Life, path, **options))
                    say("connected")
                except Exception as error:
                    say(f"{type(error).__name__}: {error}")
            case ["close"]:
                await stack.aclose()
                say("closed")
            case [method, *arguments]:
                calls.add(asyncio.create_task(call(stub, method, *arguments)))
        line = await asyncio.to_thread(sys.stdin.readline)
    await stack.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
