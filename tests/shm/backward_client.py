"""A client that exposes a service, in a process of its own: ``backward_client.py PATH``. It says when it was asked."""

import asyncio
import sys

from backward_api import Door, House

import shmrpc


class Doorman(Door):
    async def knock(self, who: str) -> str:
        print(f"knock {who}", flush=True)
        return f"welcome {who}"

    async def wait_outside(self) -> None:
        print("waiting", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            print("left", flush=True)


async def main(path: str) -> None:
    async with shmrpc.connect(House, path, exposes=Doorman()) as house:
        try:
            await house.visit()
        except shmrpc.RpcError as error:
            print(type(error).__name__, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
