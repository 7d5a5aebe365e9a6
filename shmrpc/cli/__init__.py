"""The command line: ``shmrpc serve``, ``call``, ``list``, ``health``. One file a command; each has `add_parser`, `run`."""

import argparse
import sys
from collections.abc import Sequence

from shmrpc.cli import call, health, listing, serve
from shmrpc.cli.common import UsageError
from shmrpc.errors import BadAddress, ContractError, RpcError, UnsupportedPlatform


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, 1 for a call that failed or an answer that is no, 2 for a command that cannot
    be carried out."""
    from shmrpc import __version__

    parser = argparse.ArgumentParser(
        prog="shmrpc", description="RPC between processes of one host, through shared memory."
    )
    parser.add_argument("--version", action="version", version=f"shmrpc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (serve, call, listing, health):
        module.add_parser(commands)
    runs = {"serve": serve.run, "call": call.run, "list": listing.run, "health": health.run}
    arguments = parser.parse_args(argv)
    try:
        return runs[arguments.command](arguments)
    except UsageError as error:
        print(f"shmrpc: {error}", file=sys.stderr)
        return 2
    except RpcError as error:
        print(f"shmrpc: {error.code.name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (BadAddress, ContractError, UnsupportedPlatform)) else 1
    except KeyboardInterrupt:
        return 130
