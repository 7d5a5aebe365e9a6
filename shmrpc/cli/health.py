"""``shmrpc health PATH [SERVICE]``: whether a server can do its work; the exit status is 0 when it can, else 1."""

import argparse
import sys

from shmrpc.cli.common import add_server, check_timeout, check_wait, run_loop, settings_of, show
from shmrpc.client import connect, options
from shmrpc.health import Health
from shmrpc.introspection import RESERVED, Introspection


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds this command."""
    parser = commands.add_parser("health", help="ask whether a server can do its work", description=__doc__)
    add_server(parser)
    parser.add_argument(
        "service", nargs="?", default="", metavar="SERVICE", help="a service (default: all of the server's)"
    )
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="seconds to keep trying while nobody listens (default 0)"
    )
    parser.add_argument("--watch", action="store_true", help="go on and print each change, until the server drains")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds for the answer (default 5)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the health."""
    check_timeout(arguments.timeout)
    check_wait("--wait", arguments.wait)
    return 0 if run_loop(_ask(arguments), "auto") is Health.SERVING else 1


async def _ask(arguments: argparse.Namespace) -> Health:
    timeout: float = arguments.timeout
    settings = {"handshake_timeout": timeout, **settings_of(arguments)}
    async with connect(Introspection, arguments.path, wait=arguments.wait, **settings) as server:
        health = await options(server, timeout=timeout).health(arguments.service)
        if not arguments.watch or health is Health.SERVICE_UNKNOWN:
            show(health.name)
        if health is Health.SERVICE_UNKNOWN:
            names = [contract.name for contract in await server.contracts()]
            there = ", ".join(name for name in names if not name.startswith(RESERVED))
            print(f"shmrpc: there is no service {arguments.service!r}; there is {there}", file=sys.stderr)
        elif arguments.watch:
            async for health in server.watch(arguments.service):
                show(health.name)
    return health
