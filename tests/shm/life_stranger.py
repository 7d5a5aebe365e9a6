"""Runs a client of the tests, or the command line, under another uid: ``life_stranger.py UID client|buffers|shmrpc …``.

Becomes the other uid only after everything that is imported late has been imported: the interpreter may be where the other
uid cannot read.
"""

import asyncio
import os
import sys
import tempfile

import buffer_client
import life_client
import numpy as np
import uvloop
from buffer_api import Buffers, Holder
from life_api import Keeper, Life

import shmrpc
from shmrpc import cli


async def warm_up() -> None:
    """Makes calls with and without arrays, so that everything is imported that making and serving calls needs."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/warm.sock"
        async with shmrpc.Server(Keeper(), at=path), shmrpc.connect(Life, path) as life:
            await asyncio.to_thread(os.getuid)
            await life.add(1)
        async with shmrpc.Server(Holder(), at=path), shmrpc.connect(Buffers, path) as stub:
            await stub.echo(np.zeros(1 << 20, np.uint8))  # needs an extent
            shmrpc.empty(1, np.uint8, to=stub)[:] = await stub.give(1, 7)


def main(uid: int, what: str, *arguments: str) -> None:
    asyncio.run(warm_up())
    uvloop.new_event_loop().close()
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if what == "client":
        asyncio.run(life_client.main(*arguments))
    elif what == "buffers":
        asyncio.run(buffer_client.main(*arguments))
    else:
        sys.exit(cli.main(arguments))


main(int(sys.argv[1]), *sys.argv[2:])
