"""The command line: ``shmrpc serve``, ``call``, ``list``, ``health``. One file a command; each has `add_parser`, `run`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from shmrpc.cli import call, health, listing, serve
from shmrpc.cli.common import NobodyReads, UsageError
from shmrpc.errors import BadAddress, ContractError, RpcError, UnsupportedPlatform

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C, as a shell has it for a command that SIGINT ends: 128 and the signal's number."""
PIPE_BROKEN: Final = 141
"""When nobody reads the output any more, as for SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0, 1 for a call that failed or an answer that is no, 2 for a command that cannot
    be carried out, or `INTERRUPTED` or `PIPE_BROKEN`."""
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
        return INTERRUPTED
    except NobodyReads:
        return PIPE_BROKEN
